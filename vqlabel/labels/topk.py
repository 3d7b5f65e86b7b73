"""Top-k labels (class ids and values [n, k]): checks, the value of the other classes, and the k largest of a label."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels.checks import SUM_TOLERANCE
from vqlabel.labels.layouts.axes import MAX_CLASSES
from vqlabel.labels.source import About
from vqlabel.labels.sparse import Labels, SparseLabels, every_value, row_sums

_LOW_WORD = np.uint64((1 << 32) - 1)


def check_topk_probs(ids: NDArray[Any], values: NDArray[np.floating], name: str) -> NDArray[np.int64]:
    """Check stored top-k probabilities and return their class ids as integers.

    Args:
        ids: [n, k] class ids; some layouts store them as floats.
        values: [n, k] probabilities.
        name: of the file, for messages.

    Returns:
        [n, k] the ids as int64.

    Raises:
        BadLabels: an id is not a whole number in 0..MAX_CLASSES - 1 or occurs twice in a row; a value is outside 0..1,
            or a row sums to more than 1.
    """
    numbers = ids.astype(np.float64)
    valid_ids = (numbers >= 0) & (numbers < MAX_CLASSES) & (numbers == np.floor(numbers))
    valid = valid_ids & (values >= 0) & (values <= 1 + SUM_TOLERANCE)
    if not valid.all():
        row, column = (int(i) for i in np.argwhere(~valid)[0])
        raise BadLabels(
            f"{name}, row {row}: class {ids[row, column]} with probability {values[row, column]:.4g}; classes must be integers in "
            f"0..{MAX_CLASSES - 1}, probabilities must be in 0..1"
        )
    repeated = (np.diff(np.sort(ids, axis=1), axis=1) == 0).any(1)
    if repeated.any():
        raise BadLabels(f"{name}, row {int(repeated.argmax())}: contains a class twice; the top k classes must be k different ones")
    total = values.sum(1, dtype=np.float64)
    if (total > 1 + SUM_TOLERANCE).any():
        raise BadLabels(f"{name}, row {int(total.argmax())}: its probabilities sum to {total.max():.4g}, more than 1")
    return ids.astype(np.int64)


def sparse_probs(
    ids: NDArray[np.int64], values: NDArray[np.floating], classes: int, name: str, rest: str = "uniform"
) -> SparseLabels:
    """Top-k probabilities; other classes have 0 (`rest` "zero") or equal shares of what is left of 1 ("uniform").

    A share stays below the smallest stored value of its row. The stored values were rounded, so their sum may leave
    more than another class can have had, and the k stored values must stay the k largest. Where the smallest stored
    value is 0 (fp16 rounds probabilities below 3e-8 to 0), the other classes get -0, which `topk` with `signed_zeros`
    orders below 0.

    Args:
        ids, values: [n, k].
        classes: C.
        name: of the file, for messages.

    Raises:
        BadLabels: an id is outside 0..C-1, or shares below the smallest value cannot sum to the rest.
    """
    k = ids.shape[1]
    others = classes - k
    if rest == "zero" or others <= 0:
        return sparse_labels(ids, values, classes, name, 0.0)
    left, smallest = 1 - values.sum(1, dtype=np.float64), values.min(1)
    below = np.where(smallest > 0, np.nextafter(smallest, values.dtype.type(0)), values.dtype.type(-0.0))
    share = np.where(smallest > 0, np.minimum(np.maximum(left / others, 0).astype(values.dtype), below), below)
    unexplained = left - others * share.astype(np.float64) > SUM_TOLERANCE
    labels = sparse_labels(ids, values, classes, name, share[:, None])
    if unexplained.any():
        row = int(unexplained.argmax())
        raise BadLabels(
            f"{name}, row {row}: its {k} probabilities leave {left[row]:.4g} for {others} other classes, none of which can have "
            f"more than {smallest[row]:.4g}; the teacher may have more than {classes} classes: pass --classes"
        )
    return labels


def sparse_labels(
    ids: NDArray[np.int64], values: NDArray[np.floating], classes: int, name: str, rest: NDArray[np.floating] | float
) -> SparseLabels:
    """Labels with `values` [n, k] at the classes `ids` [n, k], and `rest` (a number, or [n, 1]) at all other classes.

    Raises:
        BadLabels: an id is outside 0..C-1.
    """
    if len(ids) and int(ids.max()) >= classes:
        raise BadLabels(f"{name}: contains class {int(ids.max())}, but the dump has {classes} classes; pass --classes")
    column = np.empty((len(ids), 1), values.dtype)
    column[:] = rest
    return SparseLabels(ids=ids, values=np.ascontiguousarray(values), rest=column, classes=classes)


def topk(labels: Labels, k: int, *, signed_zeros: bool = False) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """The k largest values of every label, in descending order; of equal values the lower class comes first.

    Args:
        labels: [n, C], dense or sparse.
        k: at most C.
        signed_zeros: order -0 below 0: `sparse_probs` marks classes that were not stored by -0.

    Returns:
        Class ids [n, k] and values [n, k].
    """
    if isinstance(labels, SparseLabels):
        return _topk_of_sparse(labels, k, signed_zeros)
    classes = labels.shape[1]
    keys = _sort_keys(labels, np.arange(classes), signed_zeros)
    largest = np.sort(np.partition(keys, classes - k, axis=1)[:, classes - k :], axis=1)[:, ::-1]
    ids = (_LOW_WORD - (largest & _LOW_WORD)).astype(np.int64)
    return ids, np.take_along_axis(labels, ids, 1)


def _topk_of_sparse(labels: SparseLabels, k: int, signed_zeros: bool) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """As `topk`. Of the other classes, which are equal, the lowest come first: at most k of them are candidates."""
    stored = labels.ids.shape[1]
    lowest = np.tile(np.arange(min(labels.classes, stored + k)), (len(labels), 1))
    ids = np.concatenate([labels.ids, lowest], 1)
    values = np.concatenate([labels.values, np.broadcast_to(labels.rest, lowest.shape)], 1)
    keys = _sort_keys(values, ids, signed_zeros)
    row, column = np.nonzero(labels.ids < lowest.shape[1])
    keys[row, stored + labels.ids[row, column]] = 0  # a stored class, which is no other one; below all keys
    largest = np.argsort(keys, axis=1)[:, : -k - 1 : -1]
    return np.take_along_axis(ids, largest, 1), np.take_along_axis(values, largest, 1)


def _sort_keys(values: NDArray[np.floating], ids: NDArray[np.int64], signed_zeros: bool) -> NDArray[np.uint64]:
    """[n, m] values and their classes -> integers that sort as the values do, of equal values the lower class last."""
    floats = np.ascontiguousarray(values, np.float32)
    if not signed_zeros:
        floats = floats + np.float32(0)  # -0 becomes 0
    bits = floats.view(np.int32).astype(np.int64)
    bits = np.where(bits < 0, ~(bits & 0x7FFFFFFF), bits) + (1 << 31)
    keys: NDArray[np.uint64] = bits.astype(np.uint64) << np.uint64(32) | _LOW_WORD - ids.astype(np.uint64)
    return keys


def to_probabilities(labels: Labels, about: About) -> Labels:
    """float32 probabilities of labels [n, C], in the same form: the softmax of logits at temperature 1.

    Probabilities are returned as they are; top-k ones whose other classes are 0 are normalised to sum to 1.
    """
    if about.domain == "probs" and (about.support is None or about.support.rest == "uniform"):
        return _map_values(labels, lambda values: values.astype(np.float32))
    probs = _map_values(labels, lambda values: values.astype(np.float64))
    if about.domain == "logits":
        top = every_value(probs).max(1, keepdims=True)
        probs = _map_values(probs, lambda values: np.exp(values - top))
    total = row_sums(probs, np.float64)[:, None]
    return _map_values(probs, lambda values: (values / total).astype(np.float32))


def _map_values(labels: Labels, function: Callable[[NDArray[np.floating]], NDArray[np.floating]]) -> Labels:
    return labels.map_values(function) if isinstance(labels, SparseLabels) else function(labels)
