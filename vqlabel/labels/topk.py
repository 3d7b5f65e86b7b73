"""The k largest numbers of a label <-> all of them, for the layouts that store no more."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels.layouts.axes import CLASSES_MOST
from vqlabel.labels.source import SUM_TOLERANCE, About

DENSE_MOST = 1 << 28  # bytes of one batch once it is spread out: a few stored numbers name any number of classes
_LAST = np.uint64((1 << 32) - 1)


def check_pairs(ids: NDArray[Any], values: NDArray[np.floating], name: str) -> NDArray[np.int64]:
    """The classes [n, k] of these probabilities as integers; they may have been stored as floats.

    Raises:
        BadLabels: a class is no class, or stands twice in a row; a value is no probability, or those of a row are more than 1.
    """
    numbers = ids.astype(np.float64)
    whole = (numbers >= 0) & (numbers < CLASSES_MOST) & (numbers == np.floor(numbers))
    good = whole & (values >= 0) & (values <= 1 + SUM_TOLERANCE)
    if not good.all():
        row, column = (int(i) for i in np.argwhere(~good)[0])
        raise BadLabels(
            f"{name}, row {row}: class {ids[row, column]} with probability {values[row, column]:.4g}; classes are integers in "
            f"0..{CLASSES_MOST - 1}, probabilities numbers in 0..1"
        )
    twice = (np.diff(np.sort(ids, axis=1), axis=1) == 0).any(1)
    if twice.any():
        raise BadLabels(f"{name}, row {int(twice.argmax())}: names a class twice; the k largest are of k classes")
    total = values.sum(1, dtype=np.float64)
    if (total > 1 + SUM_TOLERANCE).any():
        raise BadLabels(f"{name}, row {int(total.argmax())}: its probabilities sum to {total.max():.4g}, which is more than 1")
    return ids.astype(np.int64)


def spread(
    ids: NDArray[np.int64], values: NDArray[np.floating], classes: int, name: str, rest: str = "uniform"
) -> NDArray[np.floating]:
    """[n, C] of the type of `values`: those [n, k] at the classes `ids`; the others have 0, or share what is left of 1.

    A share stays below the smallest value of its row: a sum of k values that were rounded may leave more than a class can have had, and the k
    stored ones must remain the k largest. Below a stored 0, which fp16 made of a probability under 3e-8, is -0: see `largest`.

    Raises:
        BadLabels: a class is outside 0..C-1, shares below the smallest value cannot make up 1, or the labels need more than DENSE_MOST bytes.
    """
    k = ids.shape[1]
    others = classes - k
    if rest == "zero" or others <= 0:
        return whole(ids, values, classes, name, 0.0)
    left, least = 1 - values.sum(1, dtype=np.float64), values.min(1)
    below = np.where(least > 0, np.nextafter(least, values.dtype.type(0)), values.dtype.type(-0.0))
    share = np.where(least > 0, np.minimum(np.maximum(left / others, 0).astype(values.dtype), below), below)
    short = left - others * share.astype(np.float64) > SUM_TOLERANCE
    labels = whole(ids, values, classes, name, share[:, None])
    if short.any():
        row = int(short.argmax())
        raise BadLabels(
            f"{name}, row {row}: its {k} probabilities leave {left[row]:.4g} to {others} other classes, of which none can have "
            f"more than {least[row]:.4g}; the teacher may have had more than {classes} classes: name them with --classes"
        )
    return labels


def whole(
    ids: NDArray[np.int64], values: NDArray[np.floating], classes: int, name: str, rest: NDArray[np.floating] | float
) -> NDArray[np.floating]:
    """[n, C] of the type of `values`: those [n, k] at the classes `ids`, elsewhere `rest`, a number or [n, 1].

    Raises:
        BadLabels: a class is outside 0..C-1, or the labels need more than DENSE_MOST bytes.
    """
    n = len(ids)
    if n and int(ids.max()) >= classes:
        raise BadLabels(f"{name}: names class {int(ids.max())}, and the dump has {classes} classes; name them with --classes")
    if n * classes * values.itemsize > DENSE_MOST:
        raise BadLabels(
            f"{name}: {n} labels of {classes} classes are {n * classes * values.itemsize} bytes; {DENSE_MOST} is the most: split it"
        )
    labels = np.empty((n, classes), values.dtype)
    labels[:] = rest
    np.put_along_axis(labels, ids, values, 1)
    return labels


def largest(labels: NDArray[np.floating], k: int, *, signed: bool = False) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """Classes [n, k] and values [n, k] of the k largest numbers of labels [n, C], falling; of equal ones the lower class first.

    -0 equals 0, or where zeros are `signed` is less: so `spread` tells classes that were not stored from stored zeros.
    """
    classes = labels.shape[1]
    wide = np.ascontiguousarray(labels, np.float32)
    if not signed:
        wide = wide + np.float32(0)
    bits = wide.view(np.int32).astype(np.int64)
    bits = np.where(bits < 0, ~(bits & 0x7FFFFFFF), bits) + (1 << 31)  # they sort as the floats do
    keys = bits.astype(np.uint64) << np.uint64(32) | _LAST - np.arange(classes, dtype=np.uint64)
    top = np.sort(np.partition(keys, classes - k, axis=1)[:, classes - k :], axis=1)[:, ::-1]
    ids = (_LAST - (top & _LAST)).astype(np.int64)
    return ids, np.take_along_axis(labels, ids, 1)


def probabilities(labels: NDArray[np.floating], about: About) -> NDArray[np.float32]:
    """[n, C]: softmax of logits at temperature 1; probabilities as they are, those of which the rest is 0 made to sum to 1."""
    if about.domain == "probs" and (about.support is None or about.support.rest == "uniform"):
        return labels.astype(np.float32)
    wide = labels.astype(np.float64)
    if about.domain == "logits":
        wide = np.exp(wide - wide.max(1, keepdims=True))
    wide /= wide.sum(1, keepdims=True)
    return wide.astype(np.float32)
