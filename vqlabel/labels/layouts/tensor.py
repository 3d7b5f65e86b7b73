""".pt files of labels alone <-> label batches: one tensor, as DD-Ranking saves it, and the other forms that people save.

    tensor or NumPy array          [n, C] or [epochs, n, C]
    dict, or tuple, of them        the labels among them, as in a .npz; members of a tuple are called 0, 1, ...
    list of arrays                 batches, joined in order; labels [C] are stacked
    list of dicts or of tuples     batches of such, joined member by member
    {image name: label [C]}        row i is the label of the i-th image, whose name is kept

Such files are read whole: they are small, as there is one label an image. They are written as one tensor [N, C], fp16, bf16 or fp32.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels.layouts.choose import Selection, Stored, choose, is_array_name
from vqlabel.labels.layouts.rows import BF16, Rows, RowsSource
from vqlabel.labels.layouts.sre2l import refuse_form
from vqlabel.labels.layouts.torch_items import describe, plain, save, to_tensor
from vqlabel.labels.layouts.unpickle import unpickle
from vqlabel.labels.source import About, LabelBatch, LabelWriter

SUFFIXES = (".pt", ".pth")
Parts = list[NDArray[Any]]  # of one array, to be joined in order


class TensorRows(Rows):
    """An array in memory."""

    def __init__(self, name: str, array: NDArray[Any], domain: str | None, how: Selection, note: str | None) -> None:
        super().__init__(name, array.shape, array.dtype, domain, how.axes, note)
        self._array = array.reshape(-1, self.layout.classes)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return self._array[start:stop]


class TensorSource(RowsSource):
    """One such file: row i of [n, C] is the label of image i."""

    layout = "tensor"

    def __init__(self, path: Path, domain: str | None, how: Selection = Selection()) -> None:
        super().__init__(path, [open_tensor(path, how)], domain, axes_named=how.axes is not None, by_image=True)


class Form(NamedTuple):
    """What was saved: arrays by name, or one without a name, which is called ""."""

    members: dict[str, Parts]
    names: list[str] | None = None  # of the images, where the array has a label for each of them
    note: str | None = None  # how it is read, where that is not plain


def open_tensor(path: Path, how: Selection) -> Rows:
    """The labels of one .pt file.

    Raises:
        UsageError: it has no array of the name that `how` gives.
        BadLabels: it is malformed, or holds something else.
    """
    form = read_form(path, unpickle(path))
    if "" in form.members:
        require(how.array is None, "array", how.array, f"must be left out: {path} is one array, which has no name")
    stacked = how.axes is not None and len(how.axes) == 3
    chosen = choose({name: _described(parts, stacked) for name, parts in form.members.items()}, how.array, path)
    rows = TensorRows(str(path), _joined(path, form.members[chosen.name], stacked), chosen.domain, how, chosen.note)
    rows.names = form.names
    if form.note is not None:
        rows.notes["form"] = f"{path}: {form.note}"
    return rows


def read_form(path: Path, saved: Any) -> Form:
    """The arrays in what `unpickle` gave for `path`.

    Raises:
        BadLabels: there are none.
    """
    if _is_array(saved):
        return Form({"": [array_of(path, saved)]})
    if isinstance(saved, Mapping):
        named = _labels_by_name(path, saved)
        if named is not None:
            return named
        members = _members(path, saved)
    elif isinstance(saved, list) and _is_joinable(path, saved):
        form = f"a list of {len(saved)} arrays, joined in order"
        return Form({"": [array_of(path, part) for part in saved]}, note=form if len(saved) > 1 else None)
    elif isinstance(saved, list) and len(saved) > 1 and all(isinstance(batch, Mapping | tuple | list) for batch in saved):
        members = _members_of_batches(path, saved)
        return Form(members, note=f"a list of {len(saved)} batches, joined in order")
    elif isinstance(saved, list | tuple):
        members = _members(path, dict(enumerate(saved)))
    else:
        members = {}
    if not members:
        raise BadLabels(f"{path}: holds {describe(saved)}, and no tensor of labels [n, C]: torch.save(labels, {path.name!r})")
    return Form(members)


def _labels_by_name(path: Path, saved: Mapping[Any, Any]) -> Form | None:
    """{image: label [C]} -> its labels, one below the other; None for another dict."""
    items = list(saved.values())
    if len(items) < 2 or not all(_is_array(item) and max(item.shape, default=0) == _size(item) for item in items):
        return None
    labels = [array_of(path, item).reshape(-1) for item in items]
    first = Stored.of((len(labels), len(labels[0])), labels[0].dtype)
    if not first.may_be_labels or any(label.shape != labels[0].shape or label.dtype != labels[0].dtype for label in labels):
        return None
    keys = list(saved)
    if all(type(key) is int for key in keys) and sorted(keys) == list(range(len(keys))):
        return Form({"": [labels[at] for at in np.argsort(keys)]}, note=f"read as the labels of images 0 to {len(keys) - 1}")
    names = [str(key) for key in keys]
    if any(is_array_name(name) for name in names):
        return None
    return Form({"": labels}, names, f"read as the labels of {len(names)} images by name: {names[0]!r}, {names[1]!r} ...")


def _members(path: Path, saved: Mapping[Any, Any], depth: int = 3) -> dict[str, Parts]:
    """Arrays by name; those of a dict in the dict as "outer/inner"."""
    found: dict[str, Parts] = {}
    for key, item in saved.items():
        if _is_array(item):
            found[str(key)] = [array_of(path, item)]
        elif isinstance(item, Mapping) and depth:
            found.update({f"{key}/{name}": parts for name, parts in _members(path, item, depth - 1).items()})
        elif isinstance(item, list) and _is_joinable(path, item):
            found[str(key)] = [array_of(path, part) for part in item]
    return found


def _members_of_batches(path: Path, batches: Sequence[Any]) -> dict[str, Parts]:
    """Batches of several arrays each -> the parts of each array."""
    joined: dict[str, Parts] = {}
    for number, batch in enumerate(batches):
        members = _members(path, batch if isinstance(batch, Mapping) else dict(enumerate(batch)))
        if number and members.keys() != joined.keys():
            raise BadLabels(
                f"{path}: batch {number} holds the arrays {sorted(members)}, batch 0 {sorted(joined)}; save labels alone"
            )
        for name, parts in members.items():
            joined.setdefault(name, []).extend(parts)
    return joined


def _is_array(item: Any) -> bool:
    return isinstance(item, np.ndarray) or (hasattr(item, "dtype") and hasattr(item, "numpy"))


def _size(item: Any) -> int:
    return math.prod(item.shape)


def _is_joinable(path: Path, items: Sequence[Any]) -> bool:
    """Whether these are arrays that are one when they are joined: batches [b, ..., C], or labels [C]."""
    if not items or not all(_is_array(item) and len(item.shape) for item in items):
        return False
    arrays = [array_of(path, item) for item in items]
    stored = _described(arrays, False)
    return stored.is_float and min(stored.shape) > 0


def array_of(path: Path, item: Any) -> NDArray[Any]:
    """A NumPy array of a tensor or of such an array; bfloat16, which NumPy has not, as two bytes.

    Raises:
        BadLabels: it is neither, is larger than its file, or of a type that NumPy has not.
    """
    import torch

    if isinstance(item, np.ndarray):
        return item
    if not _is_array(item):
        raise BadLabels(f"{path}: holds {describe(item)}; save the labels alone: torch.save(labels, {path.name!r})")
    tensor = plain(path, 0, item)
    try:
        if tensor.dtype == torch.bfloat16:
            raw: NDArray[Any] = tensor.contiguous().view(torch.int16).numpy()
            return raw.view(BF16)
        return np.asarray(tensor.numpy())
    except (TypeError, RuntimeError):
        raise BadLabels(
            f"{path}: holds a tensor of type {tensor.dtype}; labels are float16, bfloat16 or float32: convert them first"
        ) from None


def _described(parts: Parts, stacked: bool) -> Stored:
    """What they are when joined; of no type where they do not fit each other."""
    first = parts[0]
    if len(parts) == 1:
        return Stored.of(first.shape, first.dtype)
    if not first.ndim:
        return Stored.of((len(parts),), first.dtype)
    labels = first.ndim == 1 and first.dtype.kind not in "iub"
    fit = all(part.dtype == first.dtype and part.ndim == first.ndim and part.shape[1:] == first.shape[1:] for part in parts)
    if not fit or ((labels or stacked) and any(part.shape != first.shape for part in parts)):
        return Stored(first.shape, "arrays that differ, the first", False)
    if labels or stacked:
        return Stored.of((len(parts), *first.shape), first.dtype)
    return Stored.of((sum(len(part) for part in parts), *first.shape[1:]), first.dtype)


def _joined(path: Path, parts: Parts, stacked: bool) -> NDArray[Any]:
    if len(parts) == 1:
        return parts[0]
    total, size = sum(part.nbytes for part in parts), path.stat().st_size
    if total > size:
        raise BadLabels(f"{path}: its {len(parts)} arrays span {total} bytes in a file of {size}; save each with .clone()")
    return np.stack(parts) if stacked or parts[0].ndim == 1 else np.concatenate(parts)


class TensorWriter(LabelWriter):
    """Labels of images 0..N-1 in any order, one each; all are in memory until they are sorted and saved, by name where they have names."""

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        refuse_form("tensor", form)
        if about.order == "none":
            raise UsageError(
                "tensor has row i for image i, and these records do not say which image they are of; write .npy, or pass --images"
            )
        self._out, self._about = out, about
        self._labels: list[NDArray[np.floating]] = []
        self._row: dict[int, int] = {}  # of every image

    def add(self, batch: LabelBatch) -> None:
        assert batch.image is not None
        refuse_augmentation(batch, "tensor", (), "its one label an image is for any view")
        for image in batch.image.tolist():
            if image in self._row:
                raise UsageError(f"tensor has one label an image, and image {image} has several; write .npy, or keep one epoch")
            self._row[image] = len(self._row)
        self._labels.append(batch.labels)

    def finish(self) -> None:
        order = [self._row.get(image) for image in range(len(self._row))]
        if None in order:
            raise UsageError(f"tensor has a row for every image, and image {order.index(None)} has no label; write .npy")
        labels = np.concatenate(self._labels)[np.array(order)]
        tensor = to_tensor(labels, "bfloat16" if self._about.dtype == "BF16" else None)
        names = self._about.names
        save(self._out, tensor if names is None else dict(zip(names, tensor, strict=True)))


def refuse_augmentation(batch: LabelBatch, layout: str, held: tuple[str, ...], why: str) -> None:
    """Raises UsageError for anything that was done to the images and is not in `held`: a label is of its view, and nobody could know it."""
    for one in fields(batch):
        if one.name not in ("labels", "place", "image", *held) and getattr(batch, one.name) is not None:
            raise UsageError(f"{layout} has no place for {one.name}, which these records have: {why}; choose another layout")
