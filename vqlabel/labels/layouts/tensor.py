""".pt files of labels alone <-> label batches: one tensor, as DD-Ranking saves it, and other common forms.

    tensor or NumPy array          [n, C] or [epochs, n, C]
    dict or tuple of these         the labels among them, as in a .npz; the members of a tuple are named 0, 1, ...
    list of arrays                 batches, concatenated in order; labels [C] are stacked
    list of dicts or of tuples     batches of these, concatenated member by member
    {image name: label [C]}        row i is the label of the i-th image, whose name is kept

Such files are read as a whole: with one label per image they are small. They are written as one tensor [N, C], fp16,
bf16 or fp32.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels.batch import LabelBatch
from vqlabel.labels.layouts.array_columns import arrange
from vqlabel.labels.layouts.label_dtypes import BF16
from vqlabel.labels.layouts.layout import Layout
from vqlabel.labels.layouts.rows import Rows, RowsSource
from vqlabel.labels.layouts.select_array import ArrayInfo, SelectedArray, Selection, is_array_name, select_array
from vqlabel.labels.layouts.sre2l import refuse_form
from vqlabel.labels.layouts.torch_items import describe, save, to_plain, to_tensor
from vqlabel.labels.layouts.unpickle import unpickle
from vqlabel.labels.source import About
from vqlabel.labels.sparse import as_dense
from vqlabel.labels.writer import LabelWriter

SUFFIXES = (".pt", ".pth")
IN_MEMORY = Path("labels in memory")  # stands for the path of a dump that is not in a file
MAX_NESTING = 3  # dicts within dicts that are searched for arrays
Parts = list[NDArray[Any]]  # of one array, to be concatenated in order


class TensorRows(Rows):
    """The rows of an array in memory."""

    def __init__(self, path: Path, labels: SelectedArray, array: NDArray[Any], axes: tuple[str, ...] | None) -> None:
        super().__init__(path, labels, array.shape, array.dtype, axes)
        self._array = array.reshape(-1, self.layout.classes)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return self._array[start:stop]


class TensorSource(RowsSource):
    """One such file: row i of [n, C] is the label of image i."""

    layout = "tensor"

    def __init__(self, path: Path, domain: str | None, selection: Selection = Selection()) -> None:
        super().__init__(path, [open_tensor(path, selection)], domain, axes_named=selection.axes is not None, by_image=True)


class SavedArrays(NamedTuple):
    """The arrays in a file: by name, or a single one under the name ""."""

    members: dict[str, Parts]
    names: list[str] | None = None  # of the images, if the array has one label for each
    note: str | None = None  # how the file is read, if that is not obvious


def open_tensor(path: Path, selection: Selection) -> Rows:
    """The labels of one .pt file.

    Raises:
        UsageError: there is no array of the name in `selection`.
        BadLabels: the file is malformed, or contains something else.
    """
    return rows_of(path, unpickle(path), selection)


def rows_of(path: Path, content: Any, selection: Selection) -> Rows:
    """The labels in an unpickled object, or in an object in memory; errors as of `open_tensor`."""
    saved = find_arrays(path, content)
    if "" in saved.members:
        require(selection.array is None, "array", selection.array, f"must be left out: {path} is a single array without a name")
    stacked = selection.axes is not None and len(selection.axes) == 3
    arrays = {name: _describe_joined(parts, stacked) for name, parts in saved.members.items()}
    labels = select_array(arrays, selection.array, path, with_columns=True)
    rows = TensorRows(path, labels, _join(path, saved.members[labels.name], stacked), selection.axes)
    rows.columns = arrange(path, {name: _join(path, saved.members[name], False) for name in labels.columns}, rows.layout)
    rows.names = saved.names
    if saved.note is not None:
        rows.notes["form"] = f"{path}: {saved.note}"
    return rows


def find_arrays(path: Path, saved: Any) -> SavedArrays:
    """The arrays in an unpickled object.

    Args:
        path: of the file, for messages.

    Raises:
        BadLabels: there are none.
    """
    if _is_array(saved):
        return SavedArrays({"": [to_array(path, saved)]})
    if isinstance(saved, Mapping):
        labels_by_name = _labels_by_name(path, saved)
        if labels_by_name is not None:
            return labels_by_name
        members, note = _members(path, saved), None
    elif isinstance(saved, list) and _can_be_joined(path, saved):
        members = {"": [to_array(path, part) for part in saved]}
        note = f"a list of {len(saved)} arrays, concatenated in order" if len(saved) > 1 else None
    elif isinstance(saved, list) and len(saved) > 1 and all(isinstance(batch, Mapping | tuple | list) for batch in saved):
        members, note = _members_of_batches(path, saved), f"a list of {len(saved)} batches, concatenated in order"
    elif isinstance(saved, list | tuple):
        members, note = _members(path, dict(enumerate(saved))), None
    else:
        members, note = {}, None
    if not members:
        remedy = "" if path == IN_MEMORY else f": torch.save(labels, {path.name!r})"
        raise BadLabels(f"{path}: contains {describe(saved)}, but no tensor of labels [n, C]{remedy}")
    return SavedArrays(members, note=note)


def _labels_by_name(path: Path, saved: Mapping[Any, Any]) -> SavedArrays | None:
    """The labels of a dict {image: label [C]}, stacked; None for another dict."""
    items = list(saved.values())
    if len(items) < 2 or not all(_is_array(item) and max(item.shape, default=0) == math.prod(item.shape) for item in items):
        return None
    labels = [to_array(path, item).reshape(-1) for item in items]
    stacked = ArrayInfo.of((len(labels), len(labels[0])), labels[0].dtype)
    if not stacked.may_be_labels or any(label.shape != labels[0].shape or label.dtype != labels[0].dtype for label in labels):
        return None
    keys = list(saved)
    if all(type(key) is int for key in keys) and sorted(keys) == list(range(len(keys))):
        in_order = [labels[i] for i in np.argsort(keys)]
        return SavedArrays({"": in_order}, note=f"read as the labels of images 0 to {len(keys) - 1}")
    names = [str(key) for key in keys]
    if any(is_array_name(name) for name in names):
        return None
    note = f"read as the labels of {len(names)} images by name: {names[0]!r}, {names[1]!r} ..."
    return SavedArrays({"": labels}, names, note)


def _members(path: Path, saved: Mapping[Any, Any], depth: int = MAX_NESTING) -> dict[str, Parts]:
    """The arrays in a dict by name; those of a dict within it as "outer/inner"."""
    members: dict[str, Parts] = {}
    for key, item in saved.items():
        if _is_array(item):
            members[str(key)] = [to_array(path, item)]
        elif isinstance(item, Mapping) and depth:
            members.update({f"{key}/{name}": parts for name, parts in _members(path, item, depth - 1).items()})
        elif isinstance(item, list) and _can_be_joined(path, item):
            members[str(key)] = [to_array(path, part) for part in item]
    return members


def _members_of_batches(path: Path, batches: Sequence[Any]) -> dict[str, Parts]:
    """Batches of several arrays each -> the parts of each array; raises BadLabels if batches hold different arrays."""
    joined: dict[str, Parts] = {}
    for number, batch in enumerate(batches):
        members = _members(path, batch if isinstance(batch, Mapping) else dict(enumerate(batch)))
        if number and members.keys() != joined.keys():
            raise BadLabels(
                f"{path}: batch {number} holds the arrays {sorted(members)}, but batch 0 {sorted(joined)}; save the labels alone"
            )
        for name, parts in members.items():
            joined.setdefault(name, []).extend(parts)
    return joined


def _is_array(item: Any) -> bool:
    return isinstance(item, np.ndarray) or (hasattr(item, "dtype") and hasattr(item, "numpy"))


def _can_be_joined(path: Path, items: Sequence[Any]) -> bool:
    """Whether these are parts of one array: batches [b, ..., C], or labels [C]."""
    if not items or not all(_is_array(item) and len(item.shape) for item in items):
        return False
    joined = _describe_joined([to_array(path, item) for item in items], False)
    return joined.is_float and min(joined.shape) > 0


def to_array(path: Path, item: Any) -> NDArray[Any]:
    """A tensor or array as a NumPy array; bfloat16, which NumPy lacks, as `label_dtypes.BF16`.

    Raises:
        BadLabels: the item is neither, spans more bytes than its file, or is of a type that NumPy lacks.
    """
    import torch

    if isinstance(item, np.ndarray):
        return item
    if not _is_array(item):
        raise BadLabels(f"{path}: contains {describe(item)}; save the labels alone: torch.save(labels, {path.name!r})")
    tensor = to_plain(path, 0, item)
    try:
        if tensor.dtype == torch.bfloat16:
            raw: NDArray[Any] = tensor.contiguous().view(torch.int16).numpy()
            return raw.view(BF16)
        return np.asarray(tensor.numpy())
    except (TypeError, RuntimeError):
        raise BadLabels(
            f"{path}: contains a tensor of type {tensor.dtype}; labels must be float16, bfloat16 or float32: convert them first"
        ) from None


def _describe_joined(parts: Parts, stacked: bool) -> ArrayInfo:
    """Shape and type of the joined parts; not a float array if they do not fit together."""
    first = parts[0]
    if len(parts) == 1:
        return ArrayInfo.of(first.shape, first.dtype)
    if not first.ndim:
        return ArrayInfo.of((len(parts),), first.dtype)
    are_labels = first.ndim == 1 and first.dtype.kind not in "iub"
    fit = all(part.dtype == first.dtype and part.ndim == first.ndim and part.shape[1:] == first.shape[1:] for part in parts)
    if not fit or ((are_labels or stacked) and any(part.shape != first.shape for part in parts)):
        return ArrayInfo(first.shape, "arrays of different shapes or types, the first of", False)
    if are_labels or stacked:
        return ArrayInfo.of((len(parts), *first.shape), first.dtype)
    return ArrayInfo.of((sum(len(part) for part in parts), *first.shape[1:]), first.dtype)


def _join(path: Path, parts: Parts, stacked: bool) -> NDArray[Any]:
    if len(parts) == 1:
        return parts[0]
    total, size = sum(part.nbytes for part in parts), path.stat().st_size if path != IN_MEMORY else None
    if size is not None and total > size:  # many views of one storage
        raise BadLabels(f"{path}: its {len(parts)} arrays span {total} bytes in a file of {size}; save each with .clone()")
    return np.stack(parts) if stacked or parts[0].ndim == 1 else np.concatenate(parts)


class TensorWriter(LabelWriter):
    """One label for each of images 0..N-1, in any order; saved by name if the images have names.

    All labels are in memory until they are sorted and saved.

    Raises:
        UsageError: the labels record no images (in the constructor); records have augmentation, or an image has two
            labels (in `add`); an image has no label (in `finish`).
    """

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        refuse_form("tensor", form)
        if about.order == "none":
            raise UsageError(
                "tensor stores the label of image i in row i, but these records have no image index; write .npy, or pass --images"
            )
        self._out, self._about = out, about
        self._labels: list[NDArray[np.floating]] = []
        self._row: dict[int, int] = {}  # of every image

    def add(self, batch: LabelBatch) -> None:
        assert batch.image is not None
        refuse_augmentation(batch, "tensor", (), "it stores one label per image, for all views of it")
        for image in batch.image.tolist():
            if image in self._row:
                raise UsageError(f"tensor stores one label per image, but image {image} has several; write .npy, or keep one epoch")
            self._row[image] = len(self._row)
        self._labels.append(as_dense(batch.labels))

    def finish(self) -> None:
        rows = [self._row.get(image) for image in range(len(self._row))]
        if None in rows:
            raise UsageError(f"tensor has a row for every image, but image {rows.index(None)} has no label; write .npy")
        labels = np.concatenate(self._labels)[np.array(rows)]
        tensor = to_tensor(labels, "bfloat16" if self._about.dtype == "BF16" else None)
        names = self._about.names
        save(self._out, tensor if names is None else dict(zip(names, tensor, strict=True)))


def refuse_augmentation(batch: LabelBatch, layout: str, stored: tuple[str, ...], reason: str) -> None:
    """Raises UsageError if the batch has augmentation that the layout does not store: a label belongs to its view."""
    for field in fields(batch):
        if field.name not in ("labels", "place", "image", *stored) and getattr(batch, field.name) is not None:
            raise UsageError(f"{layout} cannot store {field.name}, which these records have: {reason}; choose another layout")


LAYOUT = Layout(source=TensorSource, writer=TensorWriter, options="array")
