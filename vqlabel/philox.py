"""Counters -> random bits, the same on every machine and in every version: Philox 4x32-10. NumPy only.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011);
docs/augmentation.md, "Random bits".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85  # added to the words of the key after every round
CHUNK = 1 << 15  # items drawn at a time, so that their random bits stay in a core's cache
_LOW, _HIGH = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: Sequence[NDArray[np.uint64]], seed: int) -> tuple[NDArray[np.uint64], ...]:
    """Encrypt counters with a key: the random function itself.

    Args:
        counter: four words of 32 bits, in uint64 arrays whose shapes broadcast.
        seed: the key, 64 bits.

    Returns:
        four words of 32 bits, in uint64 arrays.
    """
    a, b, c, d = counter
    low, high = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(ROUNDS):
        first, second = _MULTIPLIERS[0] * a, _MULTIPLIERS[1] * c  # below 2^64
        a, b = (second >> _HIGH) ^ b ^ np.uint64(low), second & _LOW
        c, d = (first >> _HIGH) ^ d ^ np.uint64(high), first & _LOW
        low, high = (low + _KEY_STEPS[0]) & 0xFFFFFFFF, (high + _KEY_STEPS[1]) & 0xFFFFFFFF
    return a, b, c, d


def bits(
    seed: int, purpose: int, epoch: ArrayLike, item: ArrayLike, draw: ArrayLike
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Two numbers of 64 random bits at every address (purpose, epoch, item, draw).

    Args:
        seed: 0 .. 2^64 - 1.
        purpose, epoch, item, draw: integers in 0 .. 2^32 - 1, of shapes that broadcast.

    Returns:
        two uint64 arrays of the broadcast shape.
    """
    a, b, c, d = philox([np.asarray(word, np.uint64) for word in (draw, item, epoch, purpose)], seed)
    return b << _HIGH | a, d << _HIGH | c


def uniform(number: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Random bits uint64 -> float64 in [0, 1): the upper 53 bits as a multiple of 2^-53."""
    return np.asarray((number >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def below(number: NDArray[np.uint64], limit: NDArray[Any] | int) -> NDArray[np.int64]:
    """Random bits uint64 -> int64 in [0, limit), with probabilities that differ by at most 2^-21 of their mean.

    floor(u * limit) never reaches `limit`: the largest u is 1 - 2^-53, and the product rounds to a number below it.

    Args:
        limit: 1 .. 2^32, of a shape that broadcasts.
    """
    return np.floor(uniform(number) * limit).astype(np.int64)


def shuffled(seed: int, purpose: int, epoch: int, count: int, draw: int = 0) -> NDArray[np.int64]:
    """[count] int64, a permutation of 0 .. count - 1: the items sorted by their first random number, ties by index."""
    first = np.empty(count, np.uint64)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        first[start:stop] = bits(seed, purpose, epoch, np.arange(start, stop), draw)[0]
    return np.argsort(first, kind="stable")
