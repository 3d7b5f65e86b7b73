"""Labels -> the scores of a small student that is trained from them alone, on the views that the teacher labelled, and
tested on new images.

Needs pillow (extra `student`). Views of 32 x 32 pixels and labels stay in memory: 5 kB per label of 1,000 classes.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vqlabel.codecs import LabelCodec
from vqlabel.config import check_temperatures
from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels import Context, LabelBatch, LabelSource
from vqlabel.labels.class_map import teacher_classes
from vqlabel.labels.sparse import as_dense
from vqlabel.metrics.distortion import as_logits
from vqlabel.progress import Progress, silent
from vqlabel.report.student_network import student_input, student_network
from vqlabel.views import render_pil
from vqlabel.views.geometry import check_renderable
from vqlabel.views.image_folder import ImageFolder

SIZE, BATCH = 32, 100  # pixels along a student's view; labels per training step
LEARNING_RATE = 2e-3  # at its peak
TEST_BATCH = 500  # new images at a time
PROGRESS_STEPS = 50  # training steps between two reports of progress
# KL to the teacher is that of the best of these scales of the student's logits: else it would measure, for students of
# hard labels, how large their logits are.
SCALES = np.geomspace(0.3, 4, 27)
MAX_FP16 = torch.finfo(torch.float16).max

Recode = Callable[[Tensor, Context | None], Tensor]  # [n, C] labels of the dump, their context -> [n, C] decoded logits


class StudentBenchmark:
    """A dump's views and labels to train students from, and new images to test them on.

    Args:
        source: a dump whose records have image, crop and flip.
        images: the folder of its images: image i is the i-th file in sorted order, subfolders included.
        val: new images that have no labels in the dump, one folder per class.
        val_labels: .npy, [images of `val`, C]: the teacher's logits for them, in sorted order; adds the score
            `kl_teacher`.
        class_map: JSON, folder of `val` -> class of the teacher; None: class i is the i-th folder.
        view: side in pixels of the views that the teacher labelled, the unit of CutMix boxes.

    Attributes:
        views: [N, 32, 32, 3] uint8, in the dump's order.
        raw_labels: [N, C] float16 centred logits.
        new_images: [M, 32, 32, 3] uint8.

    Raises:
        UsageError: a folder has too few images, a file cannot be read or has another shape, or a class is out of range;
            the views were made by operations that cannot be replayed; the labels are sigmoid.
        BadLabels: the records lack image, crop or flip.
        MissingExtra: pillow is not installed.
    """

    def __init__(
        self,
        source: LabelSource,
        images: str | PathLike[str],
        val: str | PathLike[str],
        *,
        val_labels: str | PathLike[str] | None = None,
        class_map: str | PathLike[str] | None = None,
        view: int = 224,
        progress: Progress = silent,
    ) -> None:
        require(1 <= view <= 1 << 16, "view", view, "must be 1..65536 pixels")
        if source.domain == "sigmoid":
            raise UsageError(
                f"{source.path}: has sigmoid labels, but these students learn one distribution over the classes; leave out --student"
            )
        self._read_new_images(Path(val), source.classes, val_labels, class_map)
        folder, views, raw_labels = ImageFolder(images), list[Tensor](), list[Tensor]()
        for done, batch in enumerate(source):
            views.append(torch.from_numpy(small_views(folder, batch, view, str(source.path))))
            raw_labels.append(as_logits(torch.from_numpy(as_dense(batch.labels)), source.domain).half())
            progress("views", done + 1, len(source), {})
        self.source, self.views, self.raw_labels = source, torch.cat(views), torch.cat(raw_labels)

    def _read_new_images(
        self, val: Path, classes: int, labels: str | PathLike[str] | None, class_map: str | PathLike[str] | None
    ) -> None:
        folder = ImageFolder(val)
        self.folder_of_image = torch.from_numpy(folder.targets)  # [M]
        self.class_of_folder = torch.from_numpy(teacher_classes(val, folder.classes, class_map, classes))
        self.teacher = None if labels is None else torch.from_numpy(_read_logits(Path(labels), len(folder), classes))
        self.new_images = torch.from_numpy(np.stack([render_pil.render_view(image, None, False, SIZE) for image in folder]))

    def train_and_score(
        self,
        labels: Tensor,
        *,
        temperature: float = 1.0,
        passes: int = 4,
        keep: float = 1.0,
        seed: int = 0,
        network: str = "resnet",
        progress: Progress = silent,
    ) -> dict[str, float]:
        """Train a student from labels [N, C], logits of any floating type in the dump's order, and test it.

        The loss is KL at `temperature`, the optimizer AdamW with one cycle of the learning rate.

        Args:
            passes: number of steps, in passes over all views; it does not depend on `keep`.
            keep: share of the dump that is used, from its start.
            network: kind of student, of `student_network`.

        Returns:
            `top1`, percent of the new images. With labels of the teacher for them, `kl_teacher`: KL(teacher || student)
            in nats, at the best scale of the student's logits.

        Raises:
            UsageError: a temperature outside 0.01..1000, or an unknown network; another number of labels than views;
                `keep` and `passes` leave less than a batch or than two steps.
        """
        check_temperatures((temperature,))
        require(len(labels) == len(self.views), "labels", len(labels), f"must be {len(self.views)}, one per view of the dump")
        batches = int(keep * len(self.views)) // BATCH
        steps = passes * (len(self.views) // BATCH)
        require(batches > 0 and steps > 1, "keep", keep, f"must leave {BATCH} views of {len(self.views)}, and passes two steps")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            student = student_network(labels.shape[1], network)
        optimizer = torch.optim.AdamW(student.parameters(), LEARNING_RATE, weight_decay=0.01)
        warmup = 0.1 if steps != 10 else 0.2  # a warm-up of exactly one step divides by zero in OneCycleLR
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=warmup)
        for step in range(steps):
            rows = slice(step % batches * BATCH, (step % batches + 1) * BATCH)
            target = F.softmax(labels[rows].float() / temperature, 1)
            logits = student(student_input(self.views[rows]))
            loss = F.kl_div(F.log_softmax(logits / temperature, 1), target, reduction="batchmean") * temperature**2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % PROGRESS_STEPS == PROGRESS_STEPS - 1 or step + 1 == steps:
                progress("student", step + 1, steps, {"loss": loss.item()})
        return self._score(student.eval())

    @torch.no_grad()
    def recoded_labels(self, recode: Recode) -> Tensor:
        """[N, C] float16 centred logits: the dump's labels, read again and replaced batch by batch."""
        parts = []
        for batch in self.source:
            logits = recode(torch.from_numpy(as_dense(batch.labels)), batch.context())
            parts.append((logits - logits.mean(1, keepdim=True)).clamp_(-MAX_FP16, MAX_FP16).half())
        return torch.cat(parts)

    @torch.no_grad()
    def _score(self, student: nn.Module) -> dict[str, float]:
        logits = torch.cat([student(student_input(images)) for images in self.new_images.split(TEST_BATCH)])
        predicted = logits[:, self.class_of_folder].argmax(1)
        scores = {"top1": 100 * float((predicted == self.folder_of_image).float().mean())}
        if self.teacher is not None:
            log_p = F.log_softmax(self.teacher, 1)
            scores["kl_teacher"] = min(
                float((log_p.exp() * (log_p - F.log_softmax(logits * float(scale), 1))).sum(1).mean()) for scale in SCALES
            )
        return scores


@dataclass(frozen=True, kw_only=True)
class StudentJudge:
    """A codec -> the scores of a student of its labels, for `workflows.tune`; arguments as in `train_and_score`.

    Raises:
        UsageError: a temperature outside 0.01..1000, or no pass.
    """

    benchmark: StudentBenchmark
    temperature: float = 1.0
    passes: int = 4
    seed: int = 0
    progress: Progress = silent

    def __post_init__(self) -> None:
        check_temperatures((self.temperature,))
        require(self.passes >= 1, "passes", self.passes, "must be at least 1")

    @property
    def settings(self) -> dict[str, Any]:
        """All that the scores depend on besides the codec and the dump."""
        digest, benchmark = hashlib.sha256(), self.benchmark
        for tensor in (
            benchmark.views,
            benchmark.new_images,
            benchmark.class_of_folder,
            benchmark.folder_of_image,
            benchmark.teacher,
        ):
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().data)
        images = f"sha256 {digest.hexdigest()[:16]}"
        return {"images": images, "temperature": self.temperature, "passes": self.passes, "seed": self.seed}

    def __call__(self, codec: LabelCodec) -> dict[str, float]:
        """Scores, and `loss`, lower for a better student: KL to the teacher; or, if the benchmark has no labels of the
        teacher for its new images, the error in percent.
        """
        labels = self.benchmark.recoded_labels(
            lambda labels, context: as_logits(codec.decode(codec.encode(labels, context), context), codec.config.domain)
        )
        scores = self.benchmark.train_and_score(
            labels, temperature=self.temperature, passes=self.passes, seed=self.seed, progress=self.progress
        )
        return {"loss": scores.get("kl_teacher", 100 - scores["top1"]), **scores}


def small_views(images: ImageFolder, batch: LabelBatch, view: int, dump: str) -> NDArray[np.uint8]:
    """[n, 32, 32, 3]: the views that the labels of a batch belong to, rendered small: crops are shares of an image,
    boxes are scaled.

    Args:
        view: side in pixels of the views that the teacher labelled, the unit of CutMix boxes.
        dump: path of the dump, for messages.

    Raises:
        UsageError, BadLabels: see `StudentBenchmark`.
    """
    if batch.image is None or batch.crop is None or batch.flip is None:
        raise BadLabels(
            f"{dump}: its records lack image, crop or flip, so a student cannot be shown their views; compare without students (--student)"
        )
    last = int(batch.image.max(initial=-1))
    if last >= len(images):
        raise UsageError(
            f"{images.folder}: {len(images)} images; the dump's labels are of {last + 1} or more: name the images they were made of"
        )
    check_renderable(batch, len(images), view)  # a box must lie in a view of the teacher's size
    if batch.mix_box is not None:
        row0, col0, row1, col1 = (round(edge * SIZE / view) for edge in batch.mix_box)
        batch = replace(batch, mix_box=(row0, col0, row1, col1))
    views = render_pil.render(images, batch, SIZE)
    is_mixup = views.dtype != np.uint8  # then float32 in 0..1
    return np.rint(255 * views).astype(np.uint8) if is_mixup else np.asarray(views, np.uint8)


def _read_logits(path: Path, images: int, classes: int) -> NDArray[np.float32]:
    """[images, classes] from a .npy file."""
    try:
        logits: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as .npy ({error})") from None
    shape = (images, classes)
    if not isinstance(logits, np.ndarray) or logits.shape != shape or logits.dtype.kind != "f":
        raise UsageError(
            f"{path}: has shape {getattr(logits, 'shape', 'none: not an array')}; it must be {shape}, the teacher's logits for the new images"
        )
    return np.array(logits, np.float32)
