"""LPQLD's flat files <-> label batches: the k largest logits of every label, and their classes.

batch_N.tar                  torch.save list of 7: coords f16 [B, 4], flip bool [B], mix_index u8 [B] or None, mix_lam float or None,
                             mix_bbox 4 tensors u8 or None, logits f16 [B, k] descending, classes i16 [B, k]
sampler_indices_batch.json   {"0": [image index of every record of batch 0], ...}

Without quantisation the list ends with logits f16 [B, C]; dumps made without --use-fp16 have f32. ImageNet-21K has a cutout f32 [B, 7] in
place of the flip. RandAugment stands behind item 1, a list of [operation i64, decision f16, level f16], each [B]; level -99 is none.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.layouts.sre2l import refuse_columns, require_images, require_logits
from vqlabel.labels.layouts.torch_items import (
    array_item,
    box_item,
    describe,
    index_item,
    lam_item,
    plain,
    read_items,
    to_tensor,
    write_items,
)
from vqlabel.labels.layouts.tree import Indices, read_order, write_order
from vqlabel.labels.schema import MAX_OPS
from vqlabel.labels.source import NOWHERE, About, LabelBatch, LabelSource, LabelWriter, Place, Support
from vqlabel.labels.topk import largest, whole

BATCH_ORDER_FILE = "sampler_indices_batch.json"
ITEMS = "coords, flip, mix_index, mix_lam, mix_bbox, top logits, their classes"
LABELS_MOST = 1 << 26  # numbers of one batch, so that a forged class cannot ask for all memory
WHOLE_MOST = 2048  # the whole numbers up to here are halves
CLASSES_MOST, EDGE_MOST, SLOTS_MOST = 1 << 15, 255, 256  # that int16 and uint8 hold


class Recipe(NamedTuple):
    """What the files of a dump have in common."""

    labels: str  # "float16" or "float32"
    coords: str  # likewise
    k: int | None  # None: all classes are there
    ops: int


class Stored(NamedTuple):
    """What a file holds."""

    batch: LabelBatch  # its labels are [B, k] where there are classes
    classes: NDArray[np.int64] | None  # [B, k]
    recipe: Recipe


class LpqldSource(LabelSource):
    """Flat files, in numeric order. Without their order file nobody knows the images.

    Args:
        classes: C, which no file of top logits says; None: the largest class of all files, and one.
    """

    layout = "lpqld"  # its students go from temperature 20 to 2

    def __init__(self, path: Path, domain: str | None, classes: int | None = None) -> None:
        self.path, self.domain = path, domain or "logits"
        flat = find_flat(path)
        self._numbers, self.files = list(flat), list(flat.values())
        if not flat:
            raise BadLabels(f"{path}: no batch_N.tar in it; a dump has at least one batch")
        order = path / BATCH_ORDER_FILE
        self._order = read_order(order) if order.exists() else None
        self.order = "none" if self._order is None else "explicit"
        self.places = places_of(self._numbers, self._order)
        first = parse(self.files[0], self.places[0])
        self._recipe = first.recipe
        self.dtype, self.details = "F16" if first.recipe.labels == "float16" else "F32", {"coords": first.recipe.coords}
        if first.recipe.k is None:
            self.classes = first.batch.labels.shape[1]
        else:
            self.classes = classes or 1 + max(self._largest_classes())
            self.support = Support(k=first.recipe.k, rest="zero")

    def _largest_classes(self) -> Iterator[int]:
        for at in range(len(self)):
            classes = self._stored(at).classes
            assert classes is not None
            yield int(classes.max())

    def _stored(self, at: int) -> Stored:
        file = self.files[at]
        stored = parse(file, self.places[at])
        for what, has, began in zip(Recipe._fields, stored.recipe, self._recipe, strict=True):
            if has != began:
                raise BadLabels(f"{file}: {what} is {has}; the dump began with {began}: mix no recipes")
        return stored

    def files_of(self, at: int) -> tuple[Path, ...]:
        return (self.files[at],)

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        batch, classes, _ = self._stored(at)
        name = str(self.files[at])
        if len(batch) * self.classes > LABELS_MOST:
            raise BadLabels(
                f"{name}: {len(batch)} labels of {self.classes} classes are more than {LABELS_MOST} numbers; cut it into smaller batches"
            )
        labels = batch.labels if classes is None else whole(classes, batch.labels, self.classes, name, NOWHERE)
        return replace(batch, labels=labels, image=self._images(self._numbers[at], len(batch))), name

    def _images(self, number: int, records: int) -> Indices | None:
        if self._order is None:
            return None
        images = self._order.get(number)
        if images is None or len(images) != records:
            has = "no images" if images is None else f"{len(images)} images"
            raise BadLabels(f"{self.path / BATCH_ORDER_FILE}: {has} for batch {number}, whose file has {records} labels")
        return images


class LpqldWriter(LabelWriter):
    """Flat files, numbered as they come, then their order file.

    Args:
        form: k; None: as many logits as are known of every label.
    """

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        require_logits("lpqld", about)
        require_images("lpqld", about)
        self._out, self._k = out, choose_k(about, form)
        again = about.layout == "lpqld"
        self._coords = "float32" if again and about.details.get("coords") == "float32" else "float16"
        self._dtype = np.dtype(np.float32 if again and about.dtype == "F32" else np.float16)
        self._order: dict[int, Indices] = {}
        self._begins: dict[tuple[int, ...], int] = {}
        out.mkdir()

    def add(self, batch: LabelBatch) -> None:
        refuse_columns(batch, "lpqld", ("cutout", "ops"))
        number, items = len(self._order), self._items(batch)
        assert batch.image is not None
        self._order[number] = batch.image.astype(np.int32)
        twin = self._begins.setdefault(tuple(self._order[number][:3].tolist()), number)
        if twin != number:
            raise UsageError(
                f"lpqld finds a batch by its first three images, and batches {twin} and {number} both begin with "
                f"{self._order[number][:3].tolist()}: write gvbsm"
            )
        write_items(self.counted(self._out / f"batch_{number}.tar"), items)

    def finish(self) -> None:
        write_order(self.counted(self._out / BATCH_ORDER_FILE), self._order)

    def _items(self, batch: LabelBatch) -> list[Any]:
        if batch.mix_index is not None and len(batch) > SLOTS_MOST:
            raise UsageError(
                f"lpqld writes mix_index as uint8, and {describe_place(batch)} has {len(batch)} records, more than {SLOTS_MOST}: write lpld"
            )
        second = batch.flip if batch.cutout is None else batch.cutout
        ops = [] if batch.ops is None else [ops_item(batch.ops)]
        mix = [to_tensor(batch.mix_index, "uint8"), batch.mix_lam, small_box(batch)]
        return [to_tensor(batch.crop, self._coords), to_tensor(second), *ops, *mix, *self._labels(batch)]

    def _labels(self, batch: LabelBatch) -> list[Any]:
        if self._k is None:
            return [to_tensor(self._narrow(batch.labels, batch))]
        classes, labels = largest(batch.labels, self._k)
        if (labels <= NOWHERE).any():
            raise UsageError(
                f"{describe_place(batch)} has labels of fewer than {self._k} logits above {NOWHERE:g}: write a smaller lpqld:k"
            )
        return [to_tensor(self._narrow(labels, batch)), to_tensor(classes, "int16")]

    def _narrow(self, logits: NDArray[np.floating], batch: LabelBatch) -> NDArray[np.floating]:
        with np.errstate(over="ignore"):
            short = logits.astype(self._dtype)
        lost = np.isinf(short)
        if lost.any():
            raise UsageError(
                f"{describe_place(batch)} has a logit of {logits[lost][0]:.6g}; lpqld writes fp16, which ends at 65504: write lpld"
            )
        return short


def places_of(numbers: list[int], order: dict[int, Indices] | None) -> list[Place]:
    """Epoch and batch of every file: an epoch shows each image once, so where one comes again the next epoch has begun."""
    places, seen, epoch, first = list[Place](), set[int](), 0, 0
    for number in numbers:
        images = set() if order is None else set(order.get(number, np.empty(0, np.int64)).tolist())
        if seen & images:
            seen, epoch, first = set(), epoch + 1, number
        places.append(Place(epoch, number - first))
        seen |= images
    return places


def find_flat(path: Path) -> dict[int, Path]:
    """Every batch_N.tar in `path`, by its number."""
    files = path.iterdir() if path.is_dir() else ()
    found = {file: re.fullmatch(r"batch_(0|[1-9]\d{0,8})\.tar", file.name) for file in files}
    return dict(sorted((int(name[1]), file) for file, name in found.items() if name))


def parse(file: Path, place: Place) -> Stored:
    """One file, checked."""
    items = read_items(file, (7, 6, 8), "LPQLD", ITEMS)
    ops = items.pop(2) if isinstance(items[2], list | tuple) else None
    at = 2 if ops is None else 3  # where mix_index lies
    if len(items) not in (6, 7):
        raise BadLabels(f"{file}: item 2 is {describe(ops or items[2])} in a list of {at + len(items) - 2}; LPQLD's are {ITEMS}")
    labels = logits_item(file, at + 3, items[5])
    b, k = labels.shape
    classes = classes_item(file, at + 4, items[6], labels) if len(items) == 7 else None
    crop = array_item(file, 0, items[0], (b, 4), "float16", "float32")
    cutout = len(getattr(items[1], "shape", ())) == 2
    batch = LabelBatch(
        labels=labels,
        place=place,
        crop=None if crop is None else crop.astype(np.float32),
        flip=None if cutout else array_item(file, 1, items[1], (b,), "bool"),
        cutout=array_item(file, 1, items[1], (b, 7), "float32") if cutout else None,
        ops=None if ops is None else read_ops(file, ops, b),
        mix_index=index_item(file, at, items[2], b, "uint8"),
        mix_lam=lam_item(file, items[3]),
        mix_box=box_item(file, items[4]),
    )
    coords = "float16" if crop is None else str(crop.dtype)
    return Stored(batch, classes, Recipe(str(labels.dtype), coords, None if classes is None else k, 0 if ops is None else len(ops)))


def logits_item(file: Path, number: int, item: Any) -> NDArray[np.floating]:
    """[B, k] or [B, C]."""
    shape = tuple(getattr(item, "shape", ()))
    labels = array_item(file, number, item, shape, "float16", "float32")
    if labels is None or len(shape) != 2 or not all(shape):
        raise BadLabels(f"{file}: item {number} is {describe(item)}; it must be logits [B, k] or [B, C], and none of it empty")
    return labels


def classes_item(file: Path, number: int, item: Any, logits: NDArray[np.floating]) -> NDArray[np.int64]:
    """[B, k] classes of these logits: each once in a label, and none below 0."""
    classes = array_item(file, number, item, logits.shape, "int16")
    if classes is None or classes.min() < 0:
        raise BadLabels(f"{file}: item {number} is {describe(item)}; it must be classes of 0 and above, int16 {list(logits.shape)}")
    ranked = np.sort(classes)
    twice = (ranked[:, 1:] == ranked[:, :-1]).any(1)
    if twice.any():
        raise BadLabels(f"{file}, row {int(twice.argmax())}: has a class twice; the top classes of a label are different ones")
    if (logits <= NOWHERE).any():
        raise BadLabels(
            f"{file}: a stored logit is {logits.min():g}; it must be above {NOWHERE:g}, which stands for the classes that are not stored"
        )
    return classes.astype(np.int64)


def read_ops(file: Path, item: list[Any] | tuple[Any, ...], records: int) -> NDArray[np.float32]:
    """[B, ops, 3] operation, decision, level. A level is int64 where a whole batch has none but whole ones."""
    if not 1 <= len(item) <= MAX_OPS or not all(isinstance(triple, list | tuple) and len(triple) == 3 for triple in item):
        raise BadLabels(f"{file}: item 2 is {describe(item)}; it must be 1 to {MAX_OPS} lists of operation, decision and level")
    ops = np.empty((records, len(item), 3), np.float32)
    for at, triple in enumerate(item):
        for part, (column, types) in enumerate(zip(triple, (("int64",), ("float16",), ("float16", "int64")), strict=True)):
            values = array_item(file, 2, plain(file, 2, column), (records,), *types)
            if values is None or (values.dtype == np.int64 and (np.clip(values, -WHOLE_MOST, WHOLE_MOST) != values).any()):
                raise BadLabels(f"{file}: item 2, number {at}, is {describe(triple)}; whole numbers there must be in -2048..2048")
            ops[:, at, part] = values
    return ops


def ops_item(ops: NDArray[np.float32]) -> list[list[Any]]:
    """Inverse of `read_ops`."""
    types = ("int64", "float16", "float16")
    return [[to_tensor(ops[:, at, part], kind) for part, kind in enumerate(types)] for at in range(ops.shape[1])]


def choose_k(about: About, form: str | None) -> int | None:
    """How many logits of a label are written; None: all of them, without classes."""
    known = about.classes if about.support is None else about.support.k
    if form is None:
        k = None if about.support is None else known
    elif re.fullmatch(r"[1-9]\d{0,6}", form) and int(form) <= known:
        k = int(form)
    else:
        raise UsageError(f"--layout lpqld:{form}: must be lpqld:1 to lpqld:{known}, the logits that are known of every label")
    if k is not None and about.classes > CLASSES_MOST:
        raise UsageError(f"lpqld writes classes as int16, and {about.classes} are more than {CLASSES_MOST}: write lpld")
    return k


def small_box(batch: LabelBatch) -> list[Any] | None:
    """mix_bbox as tensors of one uint8."""
    import torch

    if batch.mix_box is None:
        return None
    if max(batch.mix_box) > EDGE_MOST:
        raise UsageError(
            f"lpqld writes mix_bbox as uint8, and that of {describe_place(batch)} is {list(batch.mix_box)}, more than {EDGE_MOST}: write lpld"
        )
    return [torch.tensor(edge, dtype=torch.uint8, device="cpu") for edge in batch.mix_box]


def describe_place(batch: LabelBatch) -> str:
    """For messages."""
    return f"epoch {batch.place.epoch}, batch {batch.place.batch}"
