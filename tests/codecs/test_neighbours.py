"""Neighbour lists: ids of a label <-> ranks among the neighbours of its first class."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vqlabel.codecs.sparse.neighbours import choose_neighbours, to_ids, to_ranks

CLASSES = 40


def grouped(labels: int, k: int = 4, seed: int = 0) -> NDArray[np.int64]:
    """[labels, k] ids, of which three in four are in the first id's group of eight."""
    rng = np.random.default_rng(seed)
    ids = np.empty((labels, k), np.int64)
    for row in ids:
        group = 8 * rng.integers(CLASSES // 8)
        inside, outside = (
            rng.permutation(8)[:k] + group,
            rng.permutation(np.setdiff1d(np.arange(CLASSES), np.arange(group, group + 8)))[:k],
        )
        row[:] = np.where(rng.random(k) < 0.75, inside, outside)
        row[0] = inside[0]
    return ids


@pytest.mark.parametrize("length", [1, 3, 8, CLASSES - 1])
def test_ranks_are_a_permutation_of_the_classes_and_decode_to_the_ids(length: int) -> None:
    rng = np.random.default_rng(length)
    table = np.stack([rng.permutation(CLASSES)[:length] for _ in range(CLASSES)])
    every = np.stack([[first, *range(CLASSES)] for first in range(CLASSES)])
    ranks = to_ranks(every, table)
    assert np.array_equal(np.sort(ranks[:, 1:], 1), np.tile(np.arange(CLASSES), (CLASSES, 1)))
    listed = np.take_along_axis(ranks[:, 1:], table, 1)
    assert np.array_equal(listed, np.tile(np.arange(length), (CLASSES, 1))), "the rank of a listed class is its index in the list"
    assert np.array_equal(to_ids(torch.from_numpy(ranks), torch.from_numpy(table)).numpy(), every)


def test_lists_contain_co_occurring_classes_and_minimise_the_file_size() -> None:
    train, held_out = grouped(4000), grouped(1000, seed=1)
    table = choose_neighbours(train, held_out, CLASSES, 1_000_000)
    assert table.shape[0] == CLASSES and table.shape[1] >= 8
    same = table[:, :7] // 8 == np.arange(CLASSES)[:, None] // 8
    assert same.all(), "the seven other classes of a group"
    assert all(len(set(row)) == len(row) for row in table.tolist())
    assert choose_neighbours(train, held_out, CLASSES, 300).shape == (CLASSES, 0), (
        "a list of 40 x 8 ids costs 300 labels more than it saves"
    )


def test_classes_without_training_labels_get_lists_of_distinct_classes() -> None:
    train = np.array([[3, 4], [4, 3]] * 50)
    table = choose_neighbours(train, train, 100, 10**9)
    assert table.shape[0] == 100 and all(len(set(row)) == len(row) for row in table.tolist())
    assert table[3, 0] == 4 and table[4, 0] == 3
    assert choose_neighbours(train[:, :1], train[:, :1], 100, 10**9).shape == (100, 0), "labels of one class have no ranks"
