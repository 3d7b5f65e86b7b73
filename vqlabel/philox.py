"""Counters -> random bits, the same on every machine and for ever: Philox 4x32-10. NumPy only.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); docs/augmentation.md, "Random bits".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDS = 10
_MULTIPLY = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_ADD = 0x9E3779B9, 0xBB67AE85  # to the words of the key, after every round
_PIECE = 1 << 15  # items drawn at a time, so that their random bits stay in a core's cache
_LOW, _HIGH = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: Sequence[NDArray[np.uint64]], seed: int) -> tuple[NDArray[np.uint64], ...]:
    """Encrypt counters of four words of 32 bits, held in uint64 and of shapes that broadcast, with a key of 64 bits."""
    a, b, c, d = counter
    low, high = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(ROUNDS):
        first, second = _MULTIPLY[0] * a, _MULTIPLY[1] * c  # below 2^64
        a, b = (second >> _HIGH) ^ b ^ np.uint64(low), second & _LOW
        c, d = (first >> _HIGH) ^ d ^ np.uint64(high), first & _LOW
        low, high = (low + _ADD[0]) & 0xFFFFFFFF, (high + _ADD[1]) & 0xFFFFFFFF
    return a, b, c, d


def bits(
    seed: int, purpose: int, epoch: ArrayLike, item: ArrayLike, draw: ArrayLike
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Two numbers of 64 random bits at every address, whose parts are integers below 2^32, of shapes that broadcast."""
    a, b, c, d = philox([np.asarray(word, np.uint64) for word in (draw, item, epoch, purpose)], seed)
    return b << _HIGH | a, d << _HIGH | c


def uniform(number: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The upper 53 of 64 bits as a multiple of 2^-53 in [0, 1)."""
    return np.asarray((number >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def below(number: NDArray[np.uint64], most: NDArray[Any] | int) -> NDArray[np.int64]:
    """Integers in [0, most), of 64 random bits each; `most` is at most 2^32, so one is likelier than another by 2^-21 at most.

    floor(u * most) never reaches `most`: the largest u falls short of 1 by 2^-53, and the product rounds to a number below.
    """
    return np.floor(uniform(number) * most).astype(np.int64)


def shuffled(seed: int, purpose: int, epoch: int, count: int, draw: int = 0) -> NDArray[np.int64]:
    """[count] a permutation of 0 .. count - 1: the items sorted by their first numbers, ties by index."""
    first = np.empty(count, np.uint64)
    for at in range(0, count, _PIECE):
        first[at : at + _PIECE] = bits(seed, purpose, epoch, np.arange(at, min(at + _PIECE, count)), draw)[0]
    return np.argsort(first, kind="stable")
