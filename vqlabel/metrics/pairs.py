"""Raw and decoded labels, dense or sparse -> tensors with the same columns, which the metrics compare.

Sparse labels whose other classes are absent are compared on the classes that either label stores. If the other classes
share a probability, every class counts, and rows are widened a few at a time.
"""

from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor

from vqlabel.labels.batch import NOWHERE
from vqlabel.labels.sparse import SparseLabels

FAR = -NOWHERE / 2  # nats below the largest logit from which a class has probability 0 at temperatures up to 50
WIDE_ROWS, WIDE_NUMBERS = 64, 1 << 21  # rows of C classes that are compared at a time, at most: rows, and their numbers
Labels = Tensor | SparseLabels


def pairs(raw: Labels, decoded: Labels, domain: str, *, sets: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield parts of raw and decoded labels [n, C] as two tensors with equal columns.

    Args:
        domain: of the labels.
        sets: whether the metric ignores classes that are absent from both labels; columns may then be left out.
    """
    if isinstance(raw, Tensor) and isinstance(decoded, Tensor):
        yield raw, decoded
    elif sets and _others_absent(raw, domain) and _others_absent(decoded, domain):
        yield on_stored_classes(raw, decoded)
    else:
        step = max(1, min(WIDE_ROWS, WIDE_NUMBERS // raw.shape[1]))
        for start in range(0, len(raw), step):
            rows = slice(start, start + step)
            yield wide(raw[rows]), wide(decoded[rows])


def wide(labels: Labels) -> Tensor:
    """A few labels as a dense tensor [n, C]."""
    return labels.as_dense() if isinstance(labels, SparseLabels) else labels


def _others_absent(labels: Labels, domain: str) -> TypeGuard[SparseLabels]:
    """Whether labels are sparse, and the classes that they do not store have probability 0."""
    if not isinstance(labels, SparseLabels):
        return False
    if domain == "probs":
        return bool((labels.rest <= 0).all())
    return bool((labels.values.amax(1, keepdim=True) - labels.rest >= FAR).all())


def on_stored_classes(raw: SparseLabels, decoded: SparseLabels) -> tuple[Tensor, Tensor]:
    """The values of two sparse labels at the classes that either stores, in order of their ids.

    Returns:
        Two tensors [n, k + l]; a class that both store has one column, and its second column has the value of classes
        that neither stores.
    """
    ids, order = torch.cat([raw.ids, decoded.ids], 1).sort(dim=1, stable=True)
    x = torch.cat([raw.values, raw.rest.expand(decoded.ids.shape)], 1).gather(1, order)
    y = torch.cat([decoded.rest.expand(raw.ids.shape), decoded.values], 1).gather(1, order)
    stored_twice = ids[:, :-1] == ids[:, 1:]  # [n, k + l - 1], at the column of the raw label
    y[:, :-1] = torch.where(stored_twice, y[:, 1:], y[:, :-1])
    y[:, 1:] = torch.where(stored_twice, decoded.rest, y[:, 1:])
    return x, y
