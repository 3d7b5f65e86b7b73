"""Settings of a published label format -> bits per label, bytes per set (docs/accounting.md). Standard library only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

from vqlabel.errors import require

UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}  # bytes
DISK_BLOCK = 4096  # bytes; `du` counts whole blocks
RESNET18_FP16 = 2 * 11_689_512  # bytes; the teacher of SRe2L, LPLD and LPQLD on ImageNet-1K


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSet:
    """All labels of one training, `images * views`, before a format prunes any."""

    images: int
    views: int  # per image: epochs, or FKD's crops
    classes: int = 1000  # C
    batch: int = 128  # labels per file, for formats that store a batch per file
    augmentation: Literal["mix", "crop", "cutout"] = "mix"  # crop + flip + mix, crop + flip, crop + cutout

    def __post_init__(self) -> None:
        for field in ("images", "views", "classes", "batch"):
            require(getattr(self, field) >= 1, field, getattr(self, field), "must be at least 1")


class Files(NamedTuple):
    """Files of equal size: their number, and the labels in each."""

    number: int
    labels: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """What a format stores for a label set, part by part."""

    label_bits: float  # per stored label
    augmentation_bits: float  # per stored label
    files: tuple[Files, ...]
    file_bytes: int = 0  # per file, in addition to its records
    directories: int = 0  # count in `disk_bytes` only
    order_bytes: int = 0  # files that record the image of each label, for the whole set
    fixed_bytes: int = 0  # decoder and codebooks, once for the whole set
    nominal_labels: int  # before pruning

    @property
    def stored_labels(self) -> int:
        return _records(self.files)

    @property
    def data_bytes(self) -> int:
        """Bytes of the label files, without order files and fixed parts."""
        return sum(number * self._file_size(labels) for number, labels in self.files)

    @property
    def total_bytes(self) -> int:
        return self.data_bytes + self.order_bytes + self.fixed_bytes

    @property
    def overhead_bits(self) -> float:
        """Bits per stored label for file overhead and order."""
        return 8 * (self.data_bytes + self.order_bytes) / self.stored_labels - self.label_bits - self.augmentation_bits

    @property
    def fixed_bits(self) -> float:
        return 8 * self.fixed_bytes / self.stored_labels

    @property
    def bits_per_stored_label(self) -> float:
        return 8 * self.total_bytes / self.stored_labels

    @property
    def bits_per_nominal_label(self) -> float:
        return 8 * self.total_bytes / self.nominal_labels

    @property
    def disk_bytes(self) -> int:
        """Bytes as `du` counts them: whole blocks for every file, one block for every directory."""
        sizes = [(number, self._file_size(labels)) for number, labels in self.files]
        sizes += [(1, self.order_bytes), (1, self.fixed_bytes), (self.directories, DISK_BLOCK)]
        return sum(number * math.ceil(size / DISK_BLOCK) * DISK_BLOCK for number, size in sizes)

    def _file_size(self, labels: int) -> int:
        return math.ceil(labels * (self.label_bits + self.augmentation_bits) / 8) + self.file_bytes


def sre2l(labels: LabelSet, *, number_bits: int = 16) -> Storage:
    """All C logits of every view, one file per batch; CDA writes the same. The order of images follows from a seed
    outside the files.

    Args:
        number_bits: 16 (`--use-fp16`) or 32.

    Source: SRe2L, relabel/generate_soft_label.py.
    """
    return Storage(
        label_bits=number_bits * labels.classes,
        augmentation_bits=_augmentation_bits(labels, coordinate_bits=32, partner_bits=64),
        files=_epoch_files(labels),
        file_bytes=2517 if labels.augmentation == "mix" else 2000,  # torch.save, measured; ranges: docs/accounting.md
        directories=1 + labels.views,
        nominal_labels=labels.images * labels.views,
    )


def rded(labels: LabelSet, *, strips: int = 2) -> Storage:
    """What RDED would store; it runs its teacher during training and writes no labels.

    SRe2L's record, and the two permutations of a patch shuffle as int64, as in EDC.

    Args:
        strips: RDED's `factor`, strips per side.

    Source: RDED, validation/main.py, and EDC's list of 8.
    """
    full = sre2l(labels)
    return replace(full, augmentation_bits=full.augmentation_bits + 2 * strips * 64)


def lpld(labels: LabelSet, *, pruned: float = 0.975) -> Storage:
    """SRe2L's records for part of the batches, and the image order of each epoch as JSON.

    Args:
        pruned: `--prune_ratio`, the share of the batches that is not stored, [0, 1).

    Source: LPLD, relabel_and_validate/generate_soft_label_pruning.py.
    """
    files = _kept_files(labels, pruned)
    epochs = math.ceil(files[0].number / max(1, labels.images // labels.batch))
    order = _order_json_bytes(labels, lists=epochs, stored=_records(files))
    return replace(sre2l(labels), files=files, directories=1 + epochs, order_bytes=order)


def lpqld(labels: LabelSet, *, pruned: float = 0.9, top: int = 100) -> Storage:
    """MR-k: the `top` largest logits as fp16 with int16 class indices, for part of the batches, in one folder.

    Args:
        pruned: `--prune_ratio`, the share of the batches that is not stored, [0, 1).
        top: logits kept per label, 1..C.

    Source: LPQLD, relabel_and_validate/generate_soft_label_pruning_batch.py.
    """
    require(1 <= top <= labels.classes, "top", top, f"must be 1..{labels.classes}, the classes")
    files = _kept_files(labels, pruned)
    if pruned:
        files = (Files(_lpqld_written(files[0].number, labels.images // labels.batch), labels.batch),)
    lists = sum(f.number for f in files)
    return Storage(
        label_bits=top * (16 + 16),
        augmentation_bits=_augmentation_bits(labels, coordinate_bits=16, partner_bits=8),
        files=files,
        file_bytes=3381 if labels.augmentation == "mix" else 2250,  # measured
        directories=1,
        order_bytes=_order_json_bytes(labels, lists=lists, stored=_records(files)),
        nominal_labels=labels.images * labels.views,
    )


def fkd(labels: LabelSet, *, top: int | None = 5, number_bits: int = 32) -> Storage:
    """The `top` largest probabilities and their class indices, both as floats; one file per image, no mixing.

    NumPy arrays in a protocol-2 pickle take two bytes for each byte above 127: those are 3/8 of the bytes of a float in
    [0, 1) and about 3/16 of the others (measured). `file_bytes` includes this growth.

    Args:
        top: probabilities kept per label, 1..C; 1 is label smoothing; None is the whole softmax, without indices.
        number_bits: 32, or 16 (`--use_fp16`).

    Source: FKD, FKD_SLG/generate_soft_label.py.
    """
    require(top is None or 1 <= top <= labels.classes, "top", top, f"must be None or 1..{labels.classes}, the classes")
    probabilities, indices = (labels.classes, 0) if top is None else (top, top)
    other_bits = number_bits * (indices + 4) + 8  # class indices, crop, flip
    growth_bits = 3 / 8 * number_bits * probabilities + 3 / 16 * other_bits
    return Storage(
        label_bits=number_bits * (probabilities + indices),
        augmentation_bits=4 * number_bits + 8,
        files=(Files(labels.images, labels.views),),
        file_bytes=1500 + round(labels.views * growth_bits / 8),
        directories=1 + labels.classes,
        nominal_labels=labels.images * labels.views,
    )


def tinyvit(labels: LabelSet, *, top: int = 10, key_bytes: float | None = None) -> Storage:
    """The `top` largest probabilities as fp16 with int16 class indices, and a seed for the augmentation.

    Args:
        top: probabilities kept per label, 1..C.
        key_bytes: mean length of a line in the key files; None: a key is the number of the image.

    Source: TinyViT, save_logits.py and data/augmentation/manager.py.
    """
    require(1 <= top <= labels.classes, "top", top, f"must be 1..{labels.classes}, the classes")
    keys = labels.images * key_bytes if key_bytes is not None else labels.images + _digits(labels.images)
    return Storage(
        label_bits=top * (16 + 16),
        augmentation_bits=32,
        files=(Files(labels.views, labels.images),),
        directories=1 + labels.views,
        order_bytes=math.ceil(labels.views * keys),
        nominal_labels=labels.images * labels.views,
    )


def vqae(
    labels: LabelSet,
    *,
    latent_width: int = 128,
    code_width: int = 8,
    codebook_size: int = 256,
    codebooks: int = 1,
    decoder_parameters: int | None = None,
    augmentation_bits: float = 0.0,
    pruned: float = 0.0,
) -> Storage:
    """m = d_h / d_c indices of log2 k bits per label; codebooks and decoder are stored once, in fp16.

    The paper counts log2 k bits per index; an index of fixed width takes ceil(log2 k).

    Args:
        latent_width: d_h, a multiple of d_c.
        code_width: d_c.
        codebook_size: k, at least 2.
        codebooks: 1 if all slots share one, m if each has its own.
        decoder_parameters: number of parameters; None: one linear layer from the latent to C logits.
        augmentation_bits: per label; not part of the paper's formula.
        pruned: share of the batches that LPLD drops before coding, [0, 1).

    Source: Vector-Quantized Soft Label Compression for Dataset Distillation, arXiv 2603.03808.
    """
    require(codebook_size >= 2, "codebook_size", codebook_size, "must be at least 2")
    require(code_width >= 1, "code_width", code_width, "must be at least 1")
    require(latent_width % code_width == 0, "latent_width", latent_width, f"must be a multiple of code_width = {code_width}")
    decoder = (latent_width + 1) * labels.classes if decoder_parameters is None else decoder_parameters
    return Storage(
        label_bits=latent_width // code_width * math.log2(codebook_size),
        augmentation_bits=augmentation_bits,
        files=(Files(1, _records(_kept_files(labels, pruned))),),
        fixed_bytes=2 * (codebooks * codebook_size * code_width + decoder),
        nominal_labels=labels.images * labels.views,
    )


SYSTEMS: dict[str, Callable[[LabelSet], Storage]] = {
    "SRe2L": sre2l,
    "CDA": sre2l,
    "RDED, if it stored its labels": rded,
    "LPLD 40x": lpld,
    "LPQLD MR-100": partial(lpqld, top=100),
    "LPQLD MR-10": partial(lpqld, top=10),
    "FKD top-5": fkd,
    "TinyViT top-10": tinyvit,
    "VQAE 16 x 8 bits, no augmentation": vqae,
    "VQAE with SRe2L's augmentation record": partial(vqae, augmentation_bits=200),
    "VQAE with that record, on LPLD 40x": partial(vqae, augmentation_bits=200, pruned=0.975),
}


def in_unit(size: float, unit: str) -> float:
    """Bytes -> a unit of `UNITS`. Papers often print GiB as "GB"."""
    return size / UNITS[unit]


def break_even(teacher_bytes: int, bits_per_label: float, fixed_bytes: int = 0) -> int:
    """The largest number of labels whose file is no larger than the teacher.

    Args:
        teacher_bytes: size of the teacher's weights as a file.
        bits_per_label: of all parts that grow with the labels.
        fixed_bytes: of all other parts: decoder, codebooks.

    Returns:
        0 if the fixed parts alone are larger than the teacher.
    """
    require(bits_per_label > 0, "bits_per_label", bits_per_label, "must be above 0")
    return max(0, math.floor(8 * (teacher_bytes - fixed_bytes) / bits_per_label))


def markdown_table(labels: LabelSet, teacher_bytes: int = RESNET18_FP16) -> str:
    """One row per system, in bits per stored label unless the column's heading names another unit."""
    head = "format|label|augmentation|files, order|fixed|per stored label|per nominal label|total, MB|break-even, labels"
    lines = [f"| {head.replace('|', ' | ')} |", "|---|" + "--:|" * head.count("|")]
    for name, system in SYSTEMS.items():
        s = system(labels)
        growing = s.bits_per_stored_label - s.fixed_bits
        cells = [f"{bits:,.0f}" for bits in (s.label_bits, s.augmentation_bits)]
        cells += [f"{bits:,.1f}" for bits in (s.overhead_bits, s.fixed_bits, s.bits_per_stored_label)]
        cells += [f"{s.bits_per_nominal_label:,.1f}", f"{in_unit(s.total_bytes, 'MB'):,.1f}"]
        cells += [f"{break_even(teacher_bytes, growing, s.fixed_bytes):,}"]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def _augmentation_bits(labels: LabelSet, *, coordinate_bits: int, partner_bits: int) -> int:
    """Crop as 4 floats, then flip as a byte and the partner's place in the batch, or cutout as 7 float32."""
    return 4 * coordinate_bits + {"mix": 8 + partner_bits, "crop": 8, "cutout": 7 * 32}[labels.augmentation]


def _epoch_files(labels: LabelSet) -> tuple[Files, ...]:
    """Every batch of every epoch; the last of each epoch may be smaller."""
    whole, rest = divmod(labels.images, labels.batch)
    files = Files(labels.views * whole, labels.batch), Files(labels.views, rest)
    return tuple(f for f in files if f.number and f.labels)


def _kept_files(labels: LabelSet, pruned: float) -> tuple[Files, ...]:
    """The first `1 - pruned` of the complete batches (`drop_last=True`); without pruning, all batches."""
    require(0 <= pruned < 1, "pruned", pruned, "must be in [0, 1), the share that is not stored; 0.975 stores 1/40")
    if not pruned:
        return _epoch_files(labels)
    kept = int(labels.views * (labels.images // labels.batch) * (1 - pruned))  # rounded as their generators do
    require(kept >= 1, "pruned", pruned, f"must leave at least one complete batch of {labels.batch}")
    return (Files(kept, labels.batch),)


def _lpqld_written(target: int, per_epoch: int) -> int:
    """Files that LPQLD's generator writes: after each epoch it lowers its target by one."""
    written = 0
    for _ in range(target // per_epoch + 1):
        written = target if written < target <= written + per_epoch else written + per_epoch
        target -= 1
    return written


def _records(files: tuple[Files, ...]) -> int:
    return sum(number * labels for number, labels in files)


def _order_json_bytes(labels: LabelSet, *, lists: int, stored: int) -> int:
    """Size of `json.dump({"0": [image, ...], ...})` if every image occurs equally often."""
    mean_digits = _digits(labels.images) / labels.images
    return _digits(lists) + 6 * lists + round(stored * (mean_digits + 2))


def _digits(numbers: int) -> int:
    """Digits of 0, 1, ..., numbers - 1 together."""
    after_the_first: int = sum(max(0, numbers - 10**power) for power in range(1, 12))
    return numbers + after_the_first


if __name__ == "__main__":
    print(markdown_table(LabelSet(images=10_000, views=300)))
