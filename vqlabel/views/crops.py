"""Crops as shares of height and width in float32 <-> whole pixels, bit for bit.

A share top/H is a fraction whose denominator divides H, so the least common multiple of the denominators over an image's views is a
size at which every view of it is whole; the image itself is not needed. docs/format.md, "Columns".
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SIDE = 1 << 16  # pixels of an image's side
DENOMINATOR_MOST = 4096  # of one share; see _denominators


def to_pixels(crop: NDArray[np.float32], size: NDArray[np.int64]) -> NDArray[np.uint32]:
    """[n, 4] shares top, left, height, width of images of [n, 2] height and width -> [n, 4] pixels."""
    return np.rint(crop.astype(np.float64) * size[:, [0, 1, 0, 1]]).astype(np.uint32)


def to_fractions(pixels: NDArray[np.unsignedinteger], size: NDArray[np.integer]) -> NDArray[np.float32]:
    """Inverse of `to_pixels`: the very floats that a dump had, where `SizeFinder` found the size."""
    return (pixels.astype(np.float64) / size[:, [0, 1, 0, 1]]).astype(np.float32)


class SizeFinder:
    """For every image the smallest (height, width) at which all its crops so far are whole pixels."""

    def __init__(self) -> None:
        self._sizes = np.ones((1, 2), np.int64)
        self._used = 1
        self._exact = True

    def add(self, crop: NDArray[np.float32], image: NDArray[np.int64] | None) -> None:
        """[n, 4] shares top, left, height, width, and which image each is of (None: unknown, one size must serve all)."""
        self._exact = self._exact and bool(((crop >= 0) & (crop <= 1) & ~np.signbit(crop)).all())
        if not self._exact:  # NaN, a share outside 0..1, or -0.0, which no integer keeps apart from 0
            return
        at = np.zeros(len(crop), np.int64) if image is None else image
        if at.size and int(at.max()) >= len(self._sizes):
            grown = np.ones((max(int(at.max()) + 1, 2 * len(self._sizes)), 2), np.int64)
            grown[: len(self._sizes)] = self._sizes
            self._sizes = grown
        self._used = max(self._used, int(at.max(initial=0)) + 1)
        for axis in (0, 1):  # top and height share H, left and width share W
            for column in (axis, axis + 2):
                share = crop[:, column]
                rest = np.flatnonzero(~_is_whole(share, self._sizes[at, axis]))
                if not len(rest):  # nearly always, once an image was seen a few times
                    continue
                for i, denominator in zip(rest.tolist(), _denominators(share[rest]), strict=True):
                    side = int(np.lcm(self._sizes[at[i], axis], denominator))
                    if not denominator or side >= MAX_SIDE:
                        self._exact = False
                        return
                    self._sizes[at[i], axis] = side

    def found(self) -> NDArray[np.int64] | None:
        """[images, 2], or [1, 2] where one size serves all; None where some crop is not whole at any size."""
        if not self._exact:
            return None
        sizes = self._sizes[: self._used]
        largest = sizes.max(0)
        return largest[None] if not (largest % sizes).any() else sizes


def _is_whole(share: NDArray[np.float32], side: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether float32(round(share * side) / side) is `share` again."""
    wide = share.astype(np.float64)
    return np.asarray((np.rint(wide * side) / side).astype(np.float32) == share)


def _denominators(shares: NDArray[np.float32]) -> NDArray[np.int64]:
    """The smallest denominator of a convergent that rounds to each share; 0 where none up to DENOMINATOR_MOST does.

    A fraction p/q with q <= 4096 is a convergent of its float32 rounding, which is nearer to it than 1 / (2 q^2) (Legendre).
    """
    found = np.zeros(len(shares), np.int64)
    before, now = np.zeros(len(shares)), np.ones(len(shares))  # denominators of the convergents
    rest = shares.astype(np.float64) % 1
    for _ in range(24):
        if found.all():
            break
        whole = (found == 0) & (now <= DENOMINATOR_MOST) & _is_whole(shares, now)
        found[whole] = now[whole].astype(np.int64)
        inverse = 1 / np.maximum(rest, 1e-9)
        before, now = now, np.minimum(np.floor(inverse) * now + before, 1e15)
        rest = inverse % 1
    return found
