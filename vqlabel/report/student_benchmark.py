"""What labels are worth: a small student learns from them alone, on the very views that the teacher saw, and is judged on new images.

Needs pillow (extra `student`). Views, 32 x 32 pixels, and labels stay in memory: 5 kB a label of 1,000 classes.
"""

import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels import Context, LabelBatch, LabelSource
from vqlabel.metrics.distortion import as_logits
from vqlabel.progress import Progress, silent
from vqlabel.storage.filetypes import read_text
from vqlabel.views.image_folder import ImageFolder, pillow

SIZE, BATCH, WIDTH = 32, 100, 32  # pixels along a view, labels a step, channels of the first block
RATE = 2e-3  # peak learning rate
SCALES = np.geomspace(
    0.3, 4, 27
)  # of a student's logits: it is judged at the best, or a student of hard labels would be judged by its scale
HALF_MOST = torch.finfo(torch.float16).max

Recode = Callable[[Tensor, Context | None], Tensor]  # [n, C] labels of the dump, what is known of them -> logits in their place


class Lesson:
    """A dump's views and labels, and new images to judge students by.

    Args:
        source: a dump whose records say image and crop; its images are the sorted files of `images` and its subfolders.
        val: new images that no label was made of, in one folder a class.
        val_labels: .npy, [images of `val`, C]: the same teacher's logits for them, sorted likewise; adds `kl_teacher`.
        columns: JSON, folder of `val` -> the teacher's class; None: class i is the i-th folder.
        view: side of the views that the teacher saw, in pixels: the unit of CutMix boxes.

    Attributes:
        views: [N, 32, 32, 3] uint8, in the dump's order.
        raw: [N, C] float16 centred logits.
        new: [M, 32, 32, 3] uint8.

    Raises:
        UsageError: a folder holds too few images, a file says nothing of what it should, or classes do not match.
        BadLabels: the records do not say which image they are of, and how it was cropped.
        MissingExtra: pillow is not installed.
    """

    def __init__(
        self,
        source: LabelSource,
        images: str | PathLike[str],
        val: str | PathLike[str],
        *,
        val_labels: str | PathLike[str] | None = None,
        columns: str | PathLike[str] | None = None,
        view: int = 224,
        progress: Progress = silent,
    ) -> None:
        require(1 <= view <= 1 << 16, "view", view, "must be 1..65536 pixels")
        self._read_new_images(Path(val), source.classes, val_labels, columns)
        pictures, views, raw = ImageFolder(images), list[Tensor](), list[Tensor]()
        for done, batch in enumerate(source):
            views.append(_replay(batch, pictures, view, str(source.path)))
            raw.append(as_logits(torch.from_numpy(batch.labels), source.domain).half())
            progress("views", done + 1, len(source), {})
        self.source, self.views, self.raw = source, torch.cat(views), torch.cat(raw)

    def _read_new_images(
        self, val: Path, classes: int, labels: str | PathLike[str] | None, columns: str | PathLike[str] | None
    ) -> None:
        pictures = ImageFolder(val)
        self.truth = torch.from_numpy(pictures.targets)
        self.columns = torch.tensor(_columns_of(pictures.classes, columns, classes))
        self.teacher = None if labels is None else torch.from_numpy(_read_logits(Path(labels), len(pictures), classes))
        self.new = torch.stack([_small(picture, None) for picture in pictures])

    def learn(
        self,
        labels: Tensor,
        *,
        temperature: float = 1.0,
        passes: int = 4,
        keep: float = 1.0,
        seed: int = 0,
        progress: Progress = silent,
    ) -> dict[str, float]:
        """Train a student from labels [N, C] of any floating type, logits in the dump's order, and judge it.

        It is a ResNet of three blocks; KL at `temperature`, AdamW, one cycle of the learning rate.

        Args:
            passes: steps are passes * N / 100, however few views are used.
            keep: share of the dump, from its start, that is used.

        Returns:
            `top1`, percent of the new images; `kl_teacher`, KL(teacher || student) in nats on them at the student's best scale, where
            the teacher's labels for them are known.
        """
        require(len(labels) == len(self.views), "labels", len(labels), f"must be {len(self.views)}, one a view of the dump")
        batches = int(keep * len(self.views)) // BATCH
        steps = passes * (len(self.views) // BATCH)
        require(batches > 0 and steps > 1, "keep", keep, f"must leave {BATCH} views of {len(self.views)}, and passes two steps")
        with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator
            torch.manual_seed(seed)
            student = _student(labels.shape[1])
        optimizer = torch.optim.AdamW(student.parameters(), RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1 if steps != 10 else 0.2)
        for step in range(steps):
            at = slice(step % batches * BATCH, (step % batches + 1) * BATCH)
            target = F.softmax(labels[at].float() / temperature, 1)
            out = student(_pixels(self.views[at]))
            loss = F.kl_div(F.log_softmax(out / temperature, 1), target, reduction="batchmean") * temperature**2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 50 == 49 or step + 1 == steps:
                progress("student", step + 1, steps, {"loss": loss.item()})
        return self._judge(student.eval())

    @torch.no_grad()
    def recoded(self, recode: Recode) -> Tensor:
        """[N, C] float16: the dump's labels, read again, as `recode` gives them back."""
        parts = []
        for batch in self.source:
            part = recode(torch.from_numpy(batch.labels), batch.context())
            parts.append((part - part.mean(1, keepdim=True)).clamp_(-HALF_MOST, HALF_MOST).half())
        return torch.cat(parts)

    @torch.no_grad()
    def _judge(self, student: nn.Module) -> dict[str, float]:
        out = torch.cat([student(_pixels(part)) for part in self.new.split(500)])
        found = {"top1": 100 * float((out[:, self.columns].argmax(1) == self.truth).float().mean())}
        if self.teacher is not None:
            log_p = F.log_softmax(self.teacher, 1)
            apart = [float((log_p.exp() * (log_p - F.log_softmax(out * float(s), 1))).sum(1).mean()) for s in SCALES]
            found["kl_teacher"] = min(apart)
        return found


def _columns_of(folders: list[str], columns: str | PathLike[str] | None, classes: int) -> list[int]:
    """The teacher's class of each folder."""
    if columns is None:
        found: Any = {name: at for at, name in enumerate(folders)}
    else:
        try:
            found = json.loads(read_text(Path(columns)))
        except (OSError, ValueError) as error:
            raise UsageError(f"{columns}: no readable JSON ({error}); it says folder -> class of the teacher") from None
    for name in folders:
        at = found.get(name) if isinstance(found, dict) else None
        if type(at) is not int or not 0 <= at < classes:
            raise UsageError(
                f"{columns or 'the folders of --val'}: folder {name!r} is class {at!r}; it must be 0..{classes - 1} (--columns)"
            )
    return [found[name] for name in folders]


def _read_logits(path: Path, images: int, classes: int) -> NDArray[np.float32]:
    try:
        found: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: no readable .npy ({error})") from None
    want = (images, classes)
    if not isinstance(found, np.ndarray) or found.shape != want or found.dtype.kind != "f":
        raise UsageError(
            f"{path}: is {getattr(found, 'shape', 'no array')}; must be {want}, the teacher's logits for the new images"
        )
    return np.array(found, np.float32)


def _small(image: Any, crop: Any) -> Tensor:
    """[32, 32, 3] uint8: an RGB image, or what a crop (top, left, height, width, as shares) shows of it."""
    top, left, height, width = (0, 0, 1, 1) if crop is None else crop
    box = np.clip([left, top, left + width, top + height], 0, 1) * np.array([image.width, image.height] * 2)
    return torch.from_numpy(np.array(image.resize((SIZE, SIZE), pillow().Resampling.BILINEAR, box=tuple(box))))


def _replay(batch: LabelBatch, pictures: ImageFolder, view: int, dump: str) -> Tensor:
    """[n, 32, 32, 3] uint8: the views that the labels of this batch were made of, small."""
    if batch.image is None or batch.crop is None or batch.flip is None:
        raise BadLabels(
            f"{dump}: its records do not say which image they are of and how it was cropped, so no student can see their views"
        )
    last = int(batch.image.max())
    if last >= len(pictures):
        raise UsageError(
            f"{pictures.folder}: {len(pictures)} images; the dump's labels are of {last + 1} or more: name the images they were made of"
        )
    views = torch.stack([_small(pictures[i], crop) for i, crop in zip(batch.image, batch.crop, strict=True)])
    views = torch.where(torch.from_numpy(np.array(batch.flip, bool))[:, None, None, None], views.flip(2), views)
    if batch.mix_index is None:
        return views
    other = views[torch.from_numpy(np.array(batch.mix_index))]
    if batch.mix_box is not None:  # CutMix
        row0, col0, row1, col1 = (round(edge * SIZE / view) for edge in batch.mix_box)
        views[:, row0:row1, col0:col1] = other[:, row0:row1, col0:col1]
    elif batch.mix_lam is not None:  # mixup
        views = torch.lerp(other.float(), views.float(), batch.mix_lam).round().to(torch.uint8)
    return views


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        first = [nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
        self.main = nn.Sequential(*first, nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside))
        self.skip = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.skip(x))


def _student(classes: int) -> nn.Module:
    stem = [nn.Conv2d(3, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    body = [_Block(WIDTH, WIDTH, 1), _Block(WIDTH, 2 * WIDTH, 2), _Block(2 * WIDTH, 4 * WIDTH, 2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * WIDTH, classes)]
    student = nn.Sequential(*stem, *body, *head)
    return student.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _pixels(views: Tensor) -> Tensor:
    return ((views.permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.25).contiguous(memory_format=torch.channels_last)
