"""Which classes come with which: lists of neighbours, by which the ids of a label become ranks that are mostly small.

Everything is integers, so the ids that a reader finds depend on no floating-point number of its own.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LENGTHS = (8, 16, 32, 64, 128)  # classes that a list may have
MAX_PAIRS = 1 << 24  # of a label's first class and another one, counted at most

Ids = NDArray[np.int64]


def choose_neighbours(seen: Ids, held: Ids, classes: int, labels: int) -> Ids:
    """[C, R] the R classes that most often come with each, the most frequent first; R is what makes a file of `labels` labels smallest.

    Args:
        seen: [n, k] ids, the largest class first, that are counted.
        held: [n, k] ids whose entropy decides about R: 0 where lists save less than they take.
    """
    each, id_bits = seen.shape[1] - 1, max(1, (classes - 1).bit_length())
    best, least = np.empty((classes, 0), np.int64), float(each * id_bits)
    if not each or not len(held):
        return best
    ranked = _ranked(seen, classes, min(max(LENGTHS), classes - 1))
    for length in LENGTHS:
        table = ranked[:, :length]
        if table.shape[1] < length:
            break
        symbols = np.minimum(to_ranks(held, table)[:, 1:], length)
        count = np.stack([np.bincount(column, minlength=length + 1) for column in symbols.T])
        share = count / len(held)
        entropy = -(share * np.log2(share, where=share > 0, out=np.zeros_like(share))).sum()
        cost = float(entropy + share[:, -1].sum() * id_bits + classes * length * id_bits / max(1, labels))
        if cost < least:
            best, least = table, cost
    return best


def _ranked(ids: Ids, classes: int, length: int) -> Ids:
    """[C, length] for every class those that came with it as a label's first class, or as whose first class it came; then the lowest ids."""
    ids = ids[: max(1, MAX_PAIRS // max(1, ids.shape[1]))]
    first, other = np.repeat(ids[:, 0], ids.shape[1] - 1), ids[:, 1:].ravel()
    pair, count = np.unique(np.concatenate([first * classes + other, other * classes + first]), return_counts=True)
    order = np.lexsort((pair % classes, -count, pair // classes))
    owner, near = pair[order] // classes, pair[order] % classes
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    table = np.full((classes, length), -1, np.int64)
    kept = place < length
    table[owner[kept], place[kept]] = near[kept]
    for at in np.flatnonzero((table < 0).any(1)):
        empty = table[at] < 0
        table[at, empty] = np.setdiff1d(np.arange(min(classes, 2 * length)), table[at])[: int(empty.sum())]
    return table


def to_ranks(ids: Ids, table: Ids) -> Ids:
    """[n, k] ids -> the first id, and of each other one its place in the first one's list, or R and its place among all classes that are
    not in it. Both are 0 .. C - 1."""
    length = table.shape[1]
    near, others = table[ids[:, 0]][:, None, :], ids[:, 1:, None]
    listed = near == others
    outside = length + ids[:, 1:] - (near < others).sum(2)
    return np.concatenate([ids[:, :1], np.where(listed.any(2), listed.argmax(2), outside)], 1)


def to_ids(ranks: Tensor, table: Tensor) -> Tensor:
    """Inverse of `to_ranks`: [n, k] int64 -> [n, k]."""
    length = table.shape[1]
    near, others = table[ranks[:, 0]], ranks[:, 1:]
    shift = near.sort(1).values - torch.arange(
        length, device=near.device
    )  # how many classes outside the list lie below each one of it
    outside = others - length
    outside = outside + (shift[:, None, :] <= outside[:, :, None]).sum(2)
    listed = near.gather(1, others.clamp(max=length - 1))
    return torch.cat([ranks[:, :1], torch.where(others < length, listed, outside)], 1)
