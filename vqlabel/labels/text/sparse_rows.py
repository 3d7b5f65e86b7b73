"""Log-probabilities of the k likeliest tokens -> sparse labels of probabilities over V tokens."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, require
from vqlabel.labels.checks import SUM_TOLERANCE
from vqlabel.labels.sparse import SparseLabels

RESTS = ("uniform", "zero")  # what the other V - k tokens have: equal shares of the remaining probability, or 0


def sparse_rows(
    ids: NDArray[np.integer],
    logprobs: NDArray[np.floating],
    vocabulary: int,
    rest: str,
    name: str,
    tolerance: float = SUM_TOLERANCE,
) -> SparseLabels:
    """Labels with exp(logprobs) at the ids; pairs stay in stored order.

    Where the k probabilities sum to more than 1, which rounding can cause, they are divided by their sum.

    Args:
        ids: [n, k] token ids.
        logprobs: [n, k]; -inf is a probability of 0.
        rest: one of RESTS.
        name: of the document, for messages.
        tolerance: by which the probabilities of a row may sum to more than 1.

    Returns:
        n labels with float32 values [n, k] and rest [n, 1].

    Raises:
        BadLabels: an id is outside 0..V - 1, or occurs twice in a row; a value is NaN or Inf; the probabilities of a
            row sum to more than 1.
    """
    bad = np.isnan(logprobs) | np.isposinf(logprobs)
    if bad.any():
        row, column = (int(at) for at in np.argwhere(bad)[0])
        raise BadLabels(
            f"{name}, row {row}: token {ids[row, column]} has the log-probability {logprobs[row, column]}; label this document again"
        )
    _check_ids(ids, vocabulary, name)
    with np.errstate(over="ignore"):
        values = np.exp(logprobs.astype(np.float64))
    total = values.sum(1, keepdims=True)
    if len(total) and total.max() > 1 + tolerance:
        row = int(total.argmax())
        raise BadLabels(
            f"{name}, row {row}: its {ids.shape[1]} probabilities sum to {total[row, 0]:.4g}, more than 1; are the values logits? They must be "
            "log-probabilities over the whole vocabulary at temperature 1"
        )
    values /= np.maximum(total, 1)
    others = vocabulary - ids.shape[1]
    share = np.maximum(1 - total, 0) / others if rest == "uniform" and others else np.zeros_like(total)
    share = share.astype(np.float32)
    share[share == 0] = -0.0  # below a stored 0, so that `topk` keeps the stored tokens
    return SparseLabels(ids=ids.astype(np.int64), values=values.astype(np.float32), rest=share, classes=vocabulary)


def _check_ids(ids: NDArray[np.integer], vocabulary: int, name: str) -> None:
    outside = (ids < 0) | (ids >= vocabulary)
    if outside.any():
        row, column = (int(at) for at in np.argwhere(outside)[0])
        raise BadLabels(
            f"{name}, row {row}: token {ids[row, column]} is outside 0..{vocabulary - 1}, the vocabulary: pass that of the teacher"
        )
    ordered = np.sort(ids, 1)
    repeated = ordered[:, 1:] == ordered[:, :-1]
    if repeated.any():
        row, column = (int(at) for at in np.argwhere(repeated)[0])
        raise BadLabels(f"{name}, row {row}: has token {ordered[row, column]} twice; its tokens must be different ones")


def settle_rest(rest: str | None) -> str:
    """One of RESTS: as the user says, else "uniform"."""
    require(rest is None or rest in RESTS, "rest", rest, f"must be one of {', '.join(RESTS)}")
    return rest or "uniform"


def need_vocabulary(vocabulary: int | None, path: Any, layout: str) -> int:
    """V; raises UsageError if neither the dump nor the user says it."""
    if vocabulary is None:
        require(
            False,
            "vocab",
            None,
            f"must be passed: {path} ({layout}) does not record how many tokens share the rest of a row's probability",
        )
    assert vocabulary is not None
    return vocabulary


def settle_k(stored: int, requested: int | None, path: Any) -> int:
    """Tokens of a row to read: as the user says, else all that are stored; raises UsageError if fewer are stored."""
    require(
        requested is None or 1 <= requested <= stored,
        "k",
        requested,
        f"must be 1..{stored}: {path} stores {stored} tokens of a row",
    )
    return stored if requested is None else requested
