"""What `vqlabel demo` does, in order; every figure in it is measured as it runs."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from vqlabel.config import FitConfig
from vqlabel.demo.glyphs import DISTILLED_FACES, HELD_OUT_FACES, TEACHER_FACES, make_glyphs
from vqlabel.demo.train import Batch, accuracy, dump_labels, train_student, train_teacher
from vqlabel.demo.views import Augmentation
from vqlabel.labels import open_labels
from vqlabel.progress import Progress, silent
from vqlabel.report import stats
from vqlabel.storage.targets import refuse_existing
from vqlabel.training.dataset import VqlDataset
from vqlabel.workflows.fit import fit
from vqlabel.workflows.pack import pack

EPOCHS = 20  # of augmented views of the distilled set
PASSES = 2  # of a student over its labels
STUDENT_TEMPERATURE = 2.0


def run_demo(
    folder: Path | None = None,
    *,
    bits: int = 32,
    seed: int = 0,
    say: Callable[[str], None] = print,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train a teacher, dump its labels, fit, pack, and train one student from the dump and one from the `.vql`.

    Args:
        folder: where `dump/`, `codec.safetensors` and `labels.vql` go; None: a temporary folder, deleted at the end.
        bits: code bits per label.
        say: gets a line at each step.

    Returns:
        Sizes, bits per label, distortion held out, accuracies (share of 2,000 images of typefaces that nobody trained on), seconds.

    Raises:
        MissingExtra: matplotlib is not installed.
        TargetExists: `folder` holds an earlier run.
    """
    began = time.perf_counter()
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vqlabel-demo-")))
        dump, codec_file, vql = folder / "dump", folder / "codec.safetensors", folder / "labels.vql"
        for target in (dump, codec_file, vql):
            refuse_existing(target, overwrite=False)

        say("1/6 drawing 1,000 characters in ten typefaces")
        glyphs = make_glyphs()
        teaching, distilled, unseen = (
            tuple(map(torch.from_numpy, glyphs.examples(faces))) for faces in (TEACHER_FACES, DISTILLED_FACES, HELD_OUT_FACES)
        )
        say(f"2/6 training a teacher on {len(teaching[0]):,} images")
        teacher = train_teacher(*teaching, seed=seed)
        taught = accuracy(teacher, *unseen)
        say(f"    teacher: {100 * taught:.1f} % top-1 on {len(unseen[0]):,} images of typefaces it never saw (chance 0.1 %)")

        say(f"3/6 labelling {EPOCHS} augmented views of each of {len(distilled[0]):,} distilled images")
        dump_labels(teacher, distilled[0], dump, epochs=EPOCHS, seed=seed)

        say(f"4/6 fitting a codec of {bits} bits per label, packing")
        codec, report = fit(
            dump, FitConfig(bits=bits, seed=seed, temperature=(STUDENT_TEMPERATURE,)), out=codec_file, progress=progress
        )
        pack(dump, vql, codec=codec, progress=progress)

        students = {}
        for step, (name, batches) in enumerate((("raw dump", _from_dump(dump)), (".vql", _from_vql(vql))), 5):
            say(f"{step}/6 training a student from the {name}")
            paired = _with_images(batches, distilled[0])
            many = len(open_labels(dump)) * PASSES
            students[name] = accuracy(train_student(paired, steps=many, temperature=STUDENT_TEMPERATURE, seed=seed), *unseen)
        return {
            **stats(vql),
            "raw_dump_bytes": sum(file.stat().st_size for file in dump.rglob("*") if file.is_file()),
            "held_out": report["held"],
            "top1": {"teacher": taught, "student_raw": students["raw dump"], "student_vql": students[".vql"]},
            "seconds": round(time.perf_counter() - began, 1),
        }


_Labelled = Callable[[], Iterator[tuple[torch.Tensor, Augmentation, torch.Tensor]]]  # image indices, augmentation, logits


def _from_dump(dump: Path) -> _Labelled:
    """Labels as the teacher wrote them."""

    def batches() -> Iterator[tuple[torch.Tensor, Augmentation, torch.Tensor]]:
        for batch in open_labels(dump):
            assert batch.image is not None
            yield torch.from_numpy(batch.image), _augmentation(batch, torch.from_numpy), torch.from_numpy(batch.labels)

    return batches


def _from_vql(path: Path) -> _Labelled:
    """The same batches out of the `.vql`: nothing but the source of the labels differs."""
    labels = VqlDataset(path)

    def batches() -> Iterator[tuple[torch.Tensor, Augmentation, torch.Tensor]]:
        for batch in labels.batches():
            assert batch.image is not None
            yield batch.image, _augmentation(batch, lambda tensor: tensor), batch.labels

    return batches


def _augmentation(batch: Any, tensor: Callable[[Any], torch.Tensor]) -> Augmentation:
    return Augmentation(
        coords=tensor(batch.crop),
        flip=tensor(batch.flip),
        mix_index=tensor(batch.mix_index),
        mix_lam=batch.mix_lam,
        mix_bbox=batch.mix_box,
    )


def _with_images(batches: _Labelled, images: torch.Tensor) -> Callable[[], Iterator[Batch]]:
    def paired() -> Iterator[Batch]:
        for index, augmentation, logits in batches():
            yield images[index], augmentation, logits

    return paired
