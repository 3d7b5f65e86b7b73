"""Counters -> random bits: the published values, distinct at every address, uniform and below their limit."""

import numpy as np
import pytest

from vqlabel.philox import below, bits, philox, uniform

ONES = 0xFFFFFFFF
KNOWN = (  # Random123's known answers for philox4x32, 10 rounds: counter, key, output
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_the_published_values_are_reproduced(counter: tuple[int, ...], key: tuple[int, int], output: tuple[int, ...]) -> None:
    words = philox([np.array([word], np.uint64) for word in counter], key[0] | key[1] << 32)
    assert tuple(int(word[0]) for word in words) == output


def test_an_address_is_draw_item_epoch_and_purpose_from_the_lowest_word_up() -> None:
    counter, (low, high), (a, b, c, d) = KNOWN[2]
    draw, item, epoch, purpose = counter
    first, second = bits(low | high << 32, purpose, epoch, item, draw)
    assert (int(first), int(second)) == (b << 32 | a, d << 32 | c)


def test_the_bits_of_an_address_do_not_depend_on_the_shape_of_the_call() -> None:
    epoch, item, draw = np.array([[0], [5], [1 << 31]]), np.arange(40), np.arange(3)[:, None, None]
    first, second = bits(9, 2, epoch, item, draw)
    assert first.shape == second.shape == (3, 3, 40) and len(np.unique([first, second])) == 2 * first.size
    for index in np.ndindex(first.shape):
        alone = bits(9, 2, int(epoch[index[1], 0]), int(item[index[2]]), int(draw[index[0], 0, 0]))
        assert (alone[0], alone[1]) == (first[index], second[index])
    other_seed, other_purpose = bits(9 + (1 << 32), 2, epoch, item, draw), bits(9, 3, epoch, item, draw)
    assert not (np.isin(first, other_seed) | np.isin(first, other_purpose)).any()


def test_uniform_is_the_upper_53_bits() -> None:
    number = np.array([0, (1 << 11) - 1, 1 << 11, 1 << 63, (1 << 64) - 1], np.uint64)
    assert uniform(number).tolist() == [0, 0, 2.0**-53, 0.5, 1 - 2.0**-53]


def test_integers_are_uniform_and_below_their_limit() -> None:
    limits = np.concatenate([np.arange(1, 70_000), 2 ** np.arange(33), 2 ** np.arange(2, 33) - 1])
    assert (below(np.full(len(limits), (1 << 64) - 1, np.uint64), limits) == limits - 1).all()
    number = bits(0, 1, 0, np.arange(70_000), 0)[0]
    assert (below(number, 1) == 0).all()
    counts = np.bincount(below(number, 7), minlength=7)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 24  # chi-squared with 6 degrees of freedom: exceeded with probability 1/2,000


def test_bits_of_neighbouring_addresses_are_independent() -> None:
    first, second = bits(3, 1, 0, np.arange(4000), 0)
    for left, right in ((first[:-1], first[1:]), (first, second), (first, bits(3, 1, 1, np.arange(4000), 0)[0])):
        flips = np.unpackbits((left ^ right).view(np.uint8).reshape(-1, 8), axis=1).mean(0)  # of each of the 64 bits
        assert abs(flips - 0.5).max() < 0.04
