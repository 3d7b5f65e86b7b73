"""The items of one LPQLD file <-> a label batch with top-k logits; see layouts/lpqld.py for the layout."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.batch import NOWHERE, LabelBatch, Place
from vqlabel.labels.layouts.torch_items import array_item, box_item, describe, index_item, lam_item, read_items, to_plain, to_tensor
from vqlabel.labels.schema import MAX_OPS

ITEMS = "coords, flip, mix_index, mix_lam, mix_bbox, top logits, their classes"
MAX_WHOLE = 2048  # float16 represents all whole numbers up to here
MAX_EDGE = 255  # pixels; the box is stored as uint8


class Recipe(NamedTuple):
    """What all files of a dump have in common."""

    labels: str  # "float16" or "float32"
    coords: str  # likewise
    k: int | None  # logits per label; None: of all classes
    ops: int  # operations of RandAugment


class LpqldFile(NamedTuple):
    """The content of a file."""

    batch: LabelBatch  # without images; its labels are [B, k] if there are `classes`
    classes: NDArray[np.int64] | None  # [B, k]
    recipe: Recipe


def read_file(file: Path, place: Place) -> LpqldFile:
    """Read one file.

    Raises:
        BadLabels: it is malformed.
    """
    items = read_items(file, (7, 6, 8), "LPQLD", ITEMS)
    ops = items.pop(2) if isinstance(items[2], list | tuple) else None
    first = 2 if ops is None else 3  # position of mix_index in the file; `items` no longer has the operations
    if len(items) not in (6, 7):
        raise BadLabels(
            f"{file}: item 2 is {describe(ops or items[2])} in a list of {first + len(items) - 2}; LPQLD's items are {ITEMS}"
        )
    labels = _logits_item(file, first + 3, items[5])
    b, k = labels.shape
    classes = _classes_item(file, first + 4, items[6], labels) if len(items) == 7 else None
    crop = array_item(file, 0, items[0], (b, 4), "float16", "float32")
    has_cutout = len(getattr(items[1], "shape", ())) == 2
    batch = LabelBatch(
        labels=labels,
        place=place,
        crop=None if crop is None else crop.astype(np.float32),
        flip=None if has_cutout else array_item(file, 1, items[1], (b,), "bool"),
        cutout=array_item(file, 1, items[1], (b, 7), "float32") if has_cutout else None,
        ops=None if ops is None else _read_ops(file, ops, b),
        mix_index=index_item(file, first, items[2], b, "uint8"),
        mix_lam=lam_item(file, items[3]),
        mix_box=box_item(file, items[4]),
    )
    coords = "float16" if crop is None else str(crop.dtype)
    recipe = Recipe(str(labels.dtype), coords, None if classes is None else k, 0 if ops is None else len(ops))
    return LpqldFile(batch, classes, recipe)


def _logits_item(file: Path, number: int, item: Any) -> NDArray[np.floating]:
    """Logits [B, k] or [B, C]."""
    shape = tuple(getattr(item, "shape", ()))
    labels = array_item(file, number, item, shape, "float16", "float32")
    if labels is None or len(shape) != 2 or not all(shape):
        raise BadLabels(f"{file}: item {number} is {describe(item)}; it must be logits [B, k] or [B, C], and not empty")
    return labels


def _classes_item(file: Path, number: int, item: Any, logits: NDArray[np.floating]) -> NDArray[np.int64]:
    """The classes [B, k] of these logits: non-negative, and different within a label."""
    classes = array_item(file, number, item, logits.shape, "int16")
    if classes is None or classes.min() < 0:
        raise BadLabels(f"{file}: item {number} is {describe(item)}; it must be non-negative classes, int16 {list(logits.shape)}")
    ranked = np.sort(classes)
    repeated = (ranked[:, 1:] == ranked[:, :-1]).any(1)
    if repeated.any():
        raise BadLabels(f"{file}, row {int(repeated.argmax())}: contains a class twice; the top k classes must be k different ones")
    if (logits <= NOWHERE).any():
        raise BadLabels(
            f"{file}: a stored logit is {logits.min():g}; it must be above {NOWHERE:g}, the logit of classes that are not stored"
        )
    return classes.astype(np.int64)


def _read_ops(file: Path, item: list[Any] | tuple[Any, ...], records: int) -> NDArray[np.float32]:
    """[B, ops, 3] operation, decision, level.

    The level of a whole batch is int64 if all its values are whole numbers.
    """
    if not 1 <= len(item) <= MAX_OPS or not all(isinstance(triple, list | tuple) and len(triple) == 3 for triple in item):
        raise BadLabels(f"{file}: item 2 is {describe(item)}; it must be 1 to {MAX_OPS} lists of operation, decision and level")
    ops = np.empty((records, len(item), 3), np.float32)
    for i, triple in enumerate(item):
        for part, (column, types) in enumerate(zip(triple, (("int64",), ("float16",), ("float16", "int64")), strict=True)):
            values = array_item(file, 2, to_plain(file, 2, column), (records,), *types)
            if values is None or (values.dtype == np.int64 and (np.clip(values, -MAX_WHOLE, MAX_WHOLE) != values).any()):
                raise BadLabels(
                    f"{file}: item 2, operation {i}, is {describe(triple)}; its whole numbers must be in -{MAX_WHOLE}..{MAX_WHOLE}"
                )
            ops[:, i, part] = values
    return ops


def ops_item(ops: NDArray[np.float32]) -> list[list[Any]]:
    """The item of RandAugment's operations [B, ops, 3]; inverse of reading them."""
    types = ("int64", "float16", "float16")
    return [[to_tensor(ops[:, i, part], dtype) for part, dtype in enumerate(types)] for i in range(ops.shape[1])]


def box_as_uint8(batch: LabelBatch) -> list[Any] | None:
    """mix_bbox as four uint8 tensors; None if there is no box.

    Raises:
        UsageError: an edge is above 255.
    """
    import torch

    if batch.mix_box is None:
        return None
    if max(batch.mix_box) > MAX_EDGE:
        raise UsageError(
            f"lpqld stores mix_bbox as uint8, but that of {describe_place(batch)} is {list(batch.mix_box)}, above {MAX_EDGE}: write lpld"
        )
    return [torch.tensor(edge, dtype=torch.uint8, device="cpu") for edge in batch.mix_box]


def describe_place(batch: LabelBatch) -> str:
    """ "epoch E, batch B", for messages."""
    return f"epoch {batch.place.epoch}, batch {batch.place.batch}"
