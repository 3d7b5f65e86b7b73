"""The arrays in a file -> the one with the labels: named by the user, or selected by name, type and shape."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.layouts.array_columns import is_column
from vqlabel.labels.layouts.axes import read_axes, read_shape
from vqlabel.labels.layouts.label_dtypes import BF16, numpy_dtype_name

OUTPUTS = {"logits", "logit", "outputs", "output", "probs", "prob", "probabilities", "softmax", "scores", "preds", "predictions"}
SOFT = {"soft", "softlabels", "softlabel", "teacher"}
LABELS = {"labels", "label", "targets", "target"}  # usually hard labels, so soft labels only if no name above occurs
OTHERS = {"features", "feature", "feats", "embeddings", "embedding", "hidden", "images", "image", "inputs", "x", "data"}
OTHERS |= {"weight", "weights", "bias", "kernel"}  # parameters: a state dict is not a dump
PROBS = {"probs", "prob", "probabilities", "softmax"}
_INTEGER = re.compile("u?int|[IU][0-9]")  # names of integer types in NumPy, Arrow and safetensors
MAX_SHOWN = 8  # arrays that a message lists


class Selection(NamedTuple):
    """Which array to read, as far as the user named it.

    Attributes:
        array: its name, if a file holds several.
        axes: the meaning of its axes, see `read_axes`.
    """

    array: str | None = None
    axes: tuple[str, ...] | None = None

    @classmethod
    def of(cls, array: str | None, axes: str | None) -> "Selection":
        """Raises UsageError if `axes` is not supported."""
        return cls(array, read_axes(axes))


class ArrayInfo(NamedTuple):
    """One array of a file, as its header describes it."""

    shape: tuple[int, ...]
    dtype: str  # for messages
    is_float: bool

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: np.dtype[Any]) -> "ArrayInfo":
        """Of an array of this shape and NumPy type."""
        return cls(shape, "bfloat16" if dtype.str[1:] == BF16.str[1:] else str(dtype), numpy_dtype_name(dtype) is not None)

    @property
    def may_be_labels(self) -> bool:
        """Whether type and shape are those of labels."""
        try:
            read_shape(self.shape, "")
        except BadLabels:
            return False
        return self.is_float

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class SelectedArray(NamedTuple):
    """The array of labels.

    Attributes:
        domain: "probs" or "logits" if the name tells, else None.
        note: the other arrays of the file: those that are read as columns, and those that are not read; None: there are
            none.
        columns: names of the arrays that are columns of the records.
    """

    name: str
    domain: str | None
    note: str | None
    columns: tuple[str, ...] = ()


UNNAMED = SelectedArray("", None, None)  # the array of a file that holds a single one without a name


def select_array(
    arrays: Mapping[str, ArrayInfo], requested: str | None, path: object, *, with_columns: bool = False
) -> SelectedArray:
    """Select the array of labels among those of a file.

    Args:
        arrays: by name.
        requested: the name that the user passed; None: a float array named logits, outputs, probs, soft_labels or
            similar (one word of the name is enough: teacher_logits), or the only array that may be labels.
        path: of the file, for messages.
        with_columns: whether the caller reads arrays such as image, crop and flip as columns of the records.

    Raises:
        UsageError: there is no array of the requested name.
        BadLabels: no array may be labels, or several may be.
    """
    if not arrays:
        raise BadLabels(f"{path}: contains no arrays; labels are an array [n, C] of floats")
    if requested is not None:
        if requested not in arrays:
            raise UsageError(f"--array {requested}: {path} contains {_listed(arrays)}; name one of them")
        return _selected(requested, arrays, path, with_columns)
    if len(arrays) == 1:
        return _selected(next(iter(arrays)), arrays, path, with_columns)
    columns = [name for name, array in arrays.items() if with_columns and is_column(name, array.shape, array.dtype)]
    candidates = {name: array for name, array in arrays.items() if array.may_be_labels and name not in columns}
    if not candidates:
        raise BadLabels(f"{path}: contains {_listed(arrays)}, but no array [n, C] of floats, which labels are")
    named = [name for name in candidates if _is_output(name)] or [name for name in candidates if _is_label(name)]
    if not named and len(candidates) == 1 and not words_of(next(iter(candidates))) & OTHERS:
        named = list(candidates)
    if len(named) == 1:
        return _selected(named[0], arrays, path, with_columns)
    candidates = {name: candidates[name] for name in named} or candidates
    raise BadLabels(
        f"{path}: several of its arrays may be the labels: {_listed(candidates)}; name one with --array {next(iter(candidates))}"
    )


def _selected(name: str, arrays: Mapping[str, ArrayInfo], path: object, with_columns: bool) -> SelectedArray:
    words = words_of(name)
    domain = "probs" if words & PROBS else "logits" if words & {"logits", "logit"} else None
    others = {other: array for other, array in arrays.items() if other != name}
    columns = [other for other, array in others.items() if with_columns and is_column(other, array.shape, array.dtype)]
    unread = {other: array for other, array in others.items() if other not in columns}
    parts = [f"{path}: the labels are {name!r}"]
    parts += [f"columns of the records: {', '.join(columns)}"] if columns else []
    parts += [f"not read: {_listed(unread, mark_hard_labels=True)}"] if unread else []
    return SelectedArray(name, domain, "; ".join(parts) if others else None, tuple(columns))


def words_of(name: str) -> set[str]:
    """ "train/teacherLogits.npy" -> {"train", "teacher", "logits", "npy"}."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def is_array_name(name: str) -> bool:
    """Whether this is a usual name of an array, rather than the name of an image."""
    return name.lower() in OUTPUTS | LABELS | OTHERS | {"soft_labels"}


def _is_output(name: str) -> bool:
    words = words_of(name)
    return bool(words & OUTPUTS) or bool(words & SOFT and words & LABELS) or bool(words & {"softlabels", "softlabel"})


def _is_label(name: str) -> bool:
    return bool(words_of(name) & LABELS)


def _listed(arrays: Mapping[str, ArrayInfo], mark_hard_labels: bool = False) -> str:
    shown = [
        f"{name!r} {array}"
        + (" (hard labels)" if mark_hard_labels and len(array.shape) == 1 and _INTEGER.match(array.dtype) else "")
        for name, array in list(arrays.items())[:MAX_SHOWN]
    ]
    return ", ".join(shown) + (f" and {len(arrays) - MAX_SHOWN} more" if len(arrays) > MAX_SHOWN else "")
