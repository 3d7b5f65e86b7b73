"""Which of several arrays in one file holds the labels: the one that was named, else by name, type and shape."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.layouts.axes import read_axes, read_shape

OUTPUTS = {"logits", "logit", "outputs", "output", "probs", "prob", "probabilities", "softmax", "scores", "preds", "predictions"}
SOFT = {"soft", "softlabels", "softlabel", "teacher"}
LABELS = {"labels", "label", "targets", "target"}  # usually class numbers: labels only where nothing else is
OTHERS = {"features", "feature", "feats", "embeddings", "embedding", "hidden", "images", "image", "inputs", "x", "data"}
OTHERS |= {"weight", "weights", "bias", "kernel"}  # of a network: a state dict is no dump
PROBS = {"probs", "prob", "probabilities", "softmax"}
_INTEGER = re.compile("u?int|[IU][0-9]")  # as NumPy, Arrow and safetensors call them
SHOWN = 8  # arrays that a message names


class Selection(NamedTuple):
    """What the user says of the array to read.

    Attributes:
        array: its name, where a file holds several.
        axes: of its shape, see `read_axes`.
    """

    array: str | None = None
    axes: tuple[str, ...] | None = None

    @classmethod
    def of(cls, array: str | None, axes: str | None) -> "Selection":
        """Raises UsageError where `axes` are not those of labels."""
        return cls(array, read_axes(axes))


class Stored(NamedTuple):
    """One array of a file: what is known without reading it."""

    shape: tuple[int, ...]
    dtype: str  # for messages
    is_float: bool

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: np.dtype[Any]) -> "Stored":
        return cls(shape, "bfloat16" if dtype.str[1:] == "V2" else str(dtype), dtype.str[1:] in ("f2", "f4", "f8", "V2"))

    @property
    def may_be_labels(self) -> bool:
        try:
            read_shape(self.shape, "")
        except BadLabels:
            return False
        return self.is_float

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Chosen(NamedTuple):
    """The array of labels.

    Attributes:
        domain: "probs" or "logits" where its name tells, else None.
        note: what is in the file beside it and is not read; None: nothing.
    """

    name: str
    domain: str | None
    note: str | None


def choose(found: Mapping[str, Stored], wanted: str | None, path: object) -> Chosen:
    """The array of labels among those of a file.

    Args:
        found: by name.
        wanted: the name that the user gave; None: an array of floats that is called logits, outputs, probs, soft_labels or alike
            (a word of the name counts: teacher_logits), or the only one that may be labels.
        path: of the file, for messages.

    Raises:
        UsageError: there is no array of the name that was given.
        BadLabels: none may be labels, or several may be.
    """
    if not found:
        raise BadLabels(f"{path}: holds no arrays; labels are an array [n, C] of floats")
    if wanted is not None:
        if wanted not in found:
            raise UsageError(f"--array {wanted}: {path} holds {_listed(found)}; name one of them")
        return _chosen(wanted, found, path)
    if len(found) == 1:
        return _chosen(next(iter(found)), found, path)
    floats = {name: array for name, array in found.items() if array.may_be_labels}
    if not floats:
        raise BadLabels(f"{path}: holds {_listed(found)}, and no array [n, C] of floats, which labels are")
    named = [name for name in floats if _is_output(name)] or [name for name in floats if _is_label(name)]
    if not named and len(floats) == 1 and not words_of(next(iter(floats))) & OTHERS:
        named = list(floats)
    if len(named) == 1:
        return _chosen(named[0], found, path)
    floats = {name: floats[name] for name in named} or floats
    raise BadLabels(
        f"{path}: it is not clear which of its arrays are labels: {_listed(floats)}; name one with --array {next(iter(floats))}"
    )


def _chosen(name: str, found: Mapping[str, Stored], path: object) -> Chosen:
    words = words_of(name)
    domain = "probs" if words & PROBS else "logits" if words & {"logits", "logit"} else None
    others = {other: array for other, array in found.items() if other != name}
    note = f"{path}: the labels are {name!r}; not read: {_listed(others, targets=True)}" if others else None
    return Chosen(name, domain, note)


def words_of(name: str) -> set[str]:
    """ "train/teacherLogits.npy" -> {"train", "teacher", "logits", "npy"}."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def is_array_name(name: str) -> bool:
    """Whether this is what people call an array, rather than the name of an image."""
    return name.lower() in OUTPUTS | LABELS | OTHERS | {"soft_labels"}


def _is_output(name: str) -> bool:
    words = words_of(name)
    return bool(words & OUTPUTS) or bool(words & SOFT and words & LABELS) or bool(words & {"softlabels", "softlabel"})


def _is_label(name: str) -> bool:
    return bool(words_of(name) & LABELS)


def _listed(found: Mapping[str, Stored], targets: bool = False) -> str:
    shown = [
        f"{name!r} {array}" + (" (class numbers)" if targets and len(array.shape) == 1 and _INTEGER.match(array.dtype) else "")
        for name, array in list(found.items())[:SHOWN]
    ]
    return ", ".join(shown) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
