"""Neighbour lists: the classes that often occur with each class, by which the ids of a label become mostly small ranks.

All arithmetic is on integers, so that decoded ids do not depend on the machine.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LENGTHS = (8, 16, 32, 64, 128)  # lengths R of a list to choose from
FILLED_ROWS = 4096  # lists that are completed together
MAX_PAIRS = 1 << 24  # pairs of a label's first class and another one that are counted, at most; bounds memory

Ids = NDArray[np.int64]


def choose_neighbours(train: Ids, held_out: Ids, classes: int, labels: int) -> Ids:
    """The R classes that most often occur with each class, with R such that a file of `labels` labels is smallest.

    Args:
        train: [n, k] ids to count, the largest class of a label first.
        held_out: [n, k] ids whose entropy determines R.

    Returns:
        [C, R] classes, the most frequent first; R = 0 if lists save fewer bits than they take.
    """
    ranks_per_label, id_bits = train.shape[1] - 1, max(1, (classes - 1).bit_length())
    best, least_bits = np.empty((classes, 0), np.int64), float(ranks_per_label * id_bits)
    lengths = [length for length in LENGTHS if length < classes and classes * length / max(1, labels) < ranks_per_label]
    if not lengths or not len(held_out):
        return best
    ranked = _most_frequent(train, classes, max(lengths))
    for length in lengths:  # longer lists alone take more bits than ids
        table = ranked[:, :length]
        symbols = np.minimum(to_ranks(held_out, table)[:, 1:], length)
        count = np.stack([np.bincount(column, minlength=length + 1) for column in symbols.T])
        share = count / len(held_out)
        entropy = -(share * np.log2(share, where=share > 0, out=np.zeros_like(share))).sum()
        bits = float(entropy + share[:, -1].sum() * id_bits + classes * length * id_bits / max(1, labels))
        if bits < least_bits:
            best, least_bits = table, bits
    return best


def _most_frequent(ids: Ids, classes: int, length: int) -> Ids:
    """[C, length] classes that most often form a pair with each class, where one of both is a label's first; then the
    lowest other ids.
    """
    ids = ids[: max(1, MAX_PAIRS // max(1, ids.shape[1]))]
    first, other = np.repeat(ids[:, 0], ids.shape[1] - 1), ids[:, 1:].ravel()
    pair, count = np.unique(np.concatenate([first * classes + other, other * classes + first]), return_counts=True)
    order = np.lexsort((pair % classes, -count, pair // classes))
    owner, neighbour = pair[order] // classes, pair[order] % classes
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    table = np.full((classes, length), -1, np.int64)
    listed = rank < length
    table[owner[listed], rank[listed]] = neighbour[listed]
    for start in range(0, classes, FILLED_ROWS):
        _fill(table[start : start + FILLED_ROWS])
    return table


def _fill(table: Ids) -> None:
    """Replace the -1 at the end of every list by the lowest classes that the list does not have."""
    rows, length = table.shape
    is_listed = np.zeros((rows, 2 * length + 1), bool)  # the last column stands for all higher classes, and for -1
    np.put_along_axis(is_listed, np.where((table < 0) | (table >= 2 * length), 2 * length, table), True, 1)
    lowest = np.argsort(is_listed[:, :-1], axis=1, kind="stable")
    filled = (table >= 0).sum(1, keepdims=True)
    others = np.take_along_axis(lowest, np.maximum(np.arange(length) - filled, 0), 1)
    table[:] = np.where(table < 0, others, table)


def to_ranks(ids: Ids, table: Ids) -> Ids:
    """[n, k] ids -> [n, k]: the first id, then the ranks of the others, each 0 .. C - 1.

    The rank of a class is its index in the first class's list; of a class outside the list R plus its index among all
    such classes.
    """
    length = table.shape[1]
    neighbours, others = table[ids[:, 0]][:, None, :], ids[:, 1:, None]
    listed = neighbours == others
    outside = length + ids[:, 1:] - (neighbours < others).sum(2)
    return np.concatenate([ids[:, :1], np.where(listed.any(2), listed.argmax(2), outside)], 1)


def to_ids(ranks: Tensor, table: Tensor) -> Tensor:
    """Inverse of `to_ranks`: [n, k] int64 -> [n, k]."""
    length = table.shape[1]
    neighbours, others = table[ranks[:, 0]], ranks[:, 1:]
    # Number of classes outside the list below each class of it.
    shift = neighbours.sort(1).values - torch.arange(length, device=neighbours.device)
    outside = others - length
    outside = outside + (shift[:, None, :] <= outside[:, :, None]).sum(2)
    listed = neighbours.gather(1, others.clamp(max=length - 1))
    return torch.cat([ranks[:, :1], torch.where(others < length, listed, outside)], 1)
