"""The steps of `vqlabel demo`; every figure is measured during the run."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqlabel.config import FitConfig
from vqlabel.demo.glyphs import DISTILLED_FACES, HELD_OUT_FACES, TEACHER_FACES, make_glyphs
from vqlabel.demo.train import Batch, accuracy, dump_labels, train_student, train_teacher
from vqlabel.demo.views import Augmentation
from vqlabel.labels import open_labels
from vqlabel.labels.sparse import as_dense
from vqlabel.progress import Progress, silent
from vqlabel.report import stats
from vqlabel.report.samples import sample_labels
from vqlabel.storage.targets import refuse_existing
from vqlabel.training.dataset import VqlDataset
from vqlabel.vql.file import VqlFile
from vqlabel.workflows.fit import fit
from vqlabel.workflows.pack import pack

EPOCHS = 20  # views of each distilled image
SAMPLES = 3  # labels in the picture
PASSES = 2  # of each student over its labels
STUDENT_TEMPERATURE = 2.0


def run_demo(
    folder: Path | None = None,
    *,
    bits: int = 32,
    seed: int = 0,
    notify: Callable[[str], None] = print,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train a teacher, dump its labels, fit, pack, and train one student from the dump and one from the `.vql`.

    Args:
        folder: where `dump/`, `codec.safetensors` and `labels.vql` are written; None: a temporary folder, deleted at
            the end.
        bits: code bits per label.
        notify: is called with a line of text at each step.

    Returns:
        `stats` of the `.vql` against the dump; samples, see `sample_labels`; raw_dump_bytes; held_out, the distortion;
        top1, accuracies in 0..1 on 2,000 images of typefaces outside the training data; seconds.

    Raises:
        MissingExtra: matplotlib is not installed.
        TargetExists: `folder` has the files of an earlier run.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="vqlabel-demo-") as temporary:
            return run_demo(Path(temporary), bits=bits, seed=seed, notify=notify, progress=progress)
    began = time.perf_counter()
    dump, codec_file, vql = folder / "dump", folder / "codec.safetensors", folder / "labels.vql"
    for target in (dump, codec_file, vql):
        refuse_existing(target, overwrite=False)

    notify("1/6 rendering 1,000 characters in ten typefaces")
    glyphs = make_glyphs()
    train, distilled, held_out = (
        tuple(map(torch.from_numpy, glyphs.examples(faces))) for faces in (TEACHER_FACES, DISTILLED_FACES, HELD_OUT_FACES)
    )
    notify(f"2/6 training a teacher on {len(train[0]):,} images")
    teacher = train_teacher(*train, seed=seed)
    top1 = {"teacher": accuracy(teacher, *held_out)}
    notify(f"    teacher: {100 * top1['teacher']:.1f} % top-1 on {len(held_out[0]):,} images of held-out typefaces (chance 0.1 %)")

    notify(f"3/6 labelling {EPOCHS} augmented views of each of {len(distilled[0]):,} distilled images")
    dump_labels(teacher, distilled[0], dump, epochs=EPOCHS, seed=seed)

    notify(f"4/6 fitting a codec of {bits} bits per label, packing")
    config = FitConfig(bits=bits, seed=seed, temperature=(STUDENT_TEMPERATURE,))
    codec, report = fit(dump, config, out=codec_file, progress=progress)
    pack(dump, vql, codec=codec, progress=progress)

    options: dict[str, Any] = {
        "steps": len(open_labels(dump)) * PASSES, "temperature": STUDENT_TEMPERATURE, "seed": seed
    }  # fmt: skip
    notify("5/6 training a student from the raw dump")
    top1["student_raw"] = accuracy(train_student(_with_images(_from_dump(dump), distilled[0]), **options), *held_out)
    notify("6/6 training a student from the .vql")
    top1["student_vql"] = accuracy(train_student(_with_images(_from_vql(vql), distilled[0]), **options), *held_out)
    return {
        **stats(vql, against=dump),
        "samples": sample_labels(VqlFile(vql), open_labels(dump), SAMPLES),
        "raw_dump_bytes": sum(file.stat().st_size for file in dump.rglob("*") if file.is_file()),
        "held_out": report["held_out"],
        "top1": top1,
        "seconds": round(time.perf_counter() - began, 1),
    }


_Labelled = Callable[[], Iterator[tuple[Tensor, Augmentation, Tensor]]]  # image indices, augmentation, logits


def _from_dump(dump: Path) -> _Labelled:
    """Raw labels."""

    def batches() -> Iterator[tuple[Tensor, Augmentation, Tensor]]:
        for batch in open_labels(dump):
            assert batch.image is not None
            yield torch.from_numpy(batch.image), _augmentation(batch, torch.from_numpy), torch.from_numpy(as_dense(batch.labels))

    return batches


def _from_vql(path: Path) -> _Labelled:
    """The same batches with decoded labels."""
    labels = VqlDataset(path)

    def batches() -> Iterator[tuple[Tensor, Augmentation, Tensor]]:
        for batch in labels.batches():
            assert batch.image is not None
            yield batch.image, _augmentation(batch, lambda tensor: tensor), batch.labels

    return batches


def _augmentation(batch: Any, to_tensor: Callable[[Any], Tensor]) -> Augmentation:
    """Of a batch with the columns of `LabelBatch`, as arrays or tensors."""
    return Augmentation(
        coords=to_tensor(batch.crop),
        flip=to_tensor(batch.flip),
        mix_index=to_tensor(batch.mix_index),
        mix_lam=batch.mix_lam,
        mix_bbox=batch.mix_box,
    )


def _with_images(batches: _Labelled, images: Tensor) -> Callable[[], Iterator[Batch]]:
    """Image indices -> the images."""

    def paired() -> Iterator[Batch]:
        for index, augmentation, logits in batches():
            yield images[index], augmentation, logits

    return paired
