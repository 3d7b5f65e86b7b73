"""Top-k labels (class ids and values [n, k]) <-> dense labels [n, C], for layouts that store only the top k."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels.checks import SUM_TOLERANCE
from vqlabel.labels.layouts.axes import MAX_CLASSES
from vqlabel.labels.source import About

MAX_DENSE_BYTES = 1 << 28  # of one batch of dense labels: a forged class id in a small file must not exhaust the memory
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


def scatter_probs(
    ids: NDArray[np.int64], values: NDArray[np.floating], classes: int, name: str, rest: str = "uniform"
) -> NDArray[np.floating]:
    """Dense probabilities of top-k ones; others get 0 (`rest` "zero") or equal shares of what is left of 1 ("uniform").

    A share stays below the smallest stored value of its row. The stored values were rounded, so their sum may leave
    more than another class can have had, and the k stored values must stay the k largest. Where the smallest stored
    value is 0 (fp16 rounds probabilities below 3e-8 to 0), the other classes get -0, which `topk` with `signed_zeros`
    orders below 0.

    Args:
        ids, values: [n, k].
        classes: C.
        name: of the file, for messages.

    Returns:
        [n, C] of the type of `values`.

    Raises:
        BadLabels: an id is outside 0..C-1, shares below the smallest value cannot sum to the rest, or the dense labels
            take more than MAX_DENSE_BYTES.
    """
    k = ids.shape[1]
    others = classes - k
    if rest == "zero" or others <= 0:
        return scatter(ids, values, classes, name, 0.0)
    left, smallest = 1 - values.sum(1, dtype=np.float64), values.min(1)
    below = np.where(smallest > 0, np.nextafter(smallest, values.dtype.type(0)), values.dtype.type(-0.0))
    share = np.where(smallest > 0, np.minimum(np.maximum(left / others, 0).astype(values.dtype), below), below)
    unexplained = left - others * share.astype(np.float64) > SUM_TOLERANCE
    labels = scatter(ids, values, classes, name, share[:, None])
    if unexplained.any():
        row = int(unexplained.argmax())
        raise BadLabels(
            f"{name}, row {row}: its {k} probabilities leave {left[row]:.4g} for {others} other classes, none of which can have "
            f"more than {smallest[row]:.4g}; the teacher may have more than {classes} classes: pass --classes"
        )
    return labels


def scatter(
    ids: NDArray[np.int64], values: NDArray[np.floating], classes: int, name: str, rest: NDArray[np.floating] | float
) -> NDArray[np.floating]:
    """Dense labels: `values` [n, k] at the classes `ids` [n, k], and `rest` (a number, or [n, 1]) at all other classes.

    Returns:
        [n, C] of the type of `values`.

    Raises:
        BadLabels: an id is outside 0..C-1, or the dense labels take more than MAX_DENSE_BYTES.
    """
    n = len(ids)
    if n and int(ids.max()) >= classes:
        raise BadLabels(f"{name}: contains class {int(ids.max())}, but the dump has {classes} classes; pass --classes")
    size = n * classes * values.itemsize
    if size > MAX_DENSE_BYTES:
        raise BadLabels(
            f"{name}: {n} labels of {classes} classes take {size} bytes; the limit is {MAX_DENSE_BYTES}: split the file"
        )
    labels = np.empty((n, classes), values.dtype)
    labels[:] = rest
    np.put_along_axis(labels, ids, values, 1)
    return labels


def topk(labels: NDArray[np.floating], k: int, *, signed_zeros: bool = False) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """The k largest values of every label, in descending order; of equal values the lower class comes first.

    Args:
        labels: [n, C].
        signed_zeros: order -0 below 0: `scatter_probs` marks classes that were not stored by -0.

    Returns:
        Class ids [n, k] and values [n, k].
    """
    classes = labels.shape[1]
    floats = np.ascontiguousarray(labels, np.float32)
    if not signed_zeros:
        floats = floats + np.float32(0)  # -0 becomes 0
    bits = floats.view(np.int32).astype(np.int64)
    bits = np.where(bits < 0, ~(bits & 0x7FFFFFFF), bits) + (1 << 31)  # integers that sort as the floats do
    keys = bits.astype(np.uint64) << np.uint64(32) | _LOW_WORD - np.arange(classes, dtype=np.uint64)
    largest = np.sort(np.partition(keys, classes - k, axis=1)[:, classes - k :], axis=1)[:, ::-1]
    ids = (_LOW_WORD - (largest & _LOW_WORD)).astype(np.int64)
    return ids, np.take_along_axis(labels, ids, 1)


def to_probabilities(labels: NDArray[np.floating], about: About) -> NDArray[np.float32]:
    """Probabilities [n, C] of labels [n, C]: the softmax of logits at temperature 1.

    Probabilities are returned as they are; top-k ones whose other classes are 0 are normalised to sum to 1.
    """
    if about.domain == "probs" and (about.support is None or about.support.rest == "uniform"):
        return labels.astype(np.float32)
    probs = labels.astype(np.float64)
    if about.domain == "logits":
        probs = np.exp(probs - probs.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    return probs.astype(np.float32)
