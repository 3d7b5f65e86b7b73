"""Crops as float32 fractions of height and width <-> integer pixels, bit for bit. NumPy only.

A fraction top/H has a reduced form whose denominator divides H, so the least common multiple of the denominators over
an image's views is a size at which every crop of it has integer coordinates; the image itself is not needed.
docs/format.md, "Columns".
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SIDE = 1 << 16  # pixels along a side of an image, exclusive; the format stores sides in 16 bits (docs/format.md, "Limits")
MAX_DENOMINATOR = 4096  # of one fraction; the bound up to which `_denominators` is exact


def to_pixels(crop: NDArray[np.float32], size: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Crops as fractions -> crops in pixels.

    Args:
        crop: [n, 4] top, left, height, width as fractions of the image's sides, 0..1.
        size: [n, 2] height and width of the images in pixels.

    Returns:
        [n, 4] pixels, rounded to the nearest integer.
    """
    return np.rint(crop.astype(np.float64) * size[:, [0, 1, 0, 1]]).astype(np.uint32)


def to_fractions(pixels: NDArray[np.unsignedinteger], size: NDArray[np.integer]) -> NDArray[np.float32]:
    """Inverse of `to_pixels`: [n, 4] float32, bit for bit those of the dump if `SizeFinder` found the sizes."""
    return (pixels.astype(np.float64) / size[:, [0, 1, 0, 1]]).astype(np.float32)


class SizeFinder:
    """For every image, the smallest (height, width) at which all its crops so far have integer coordinates."""

    def __init__(self) -> None:
        self._sizes = np.ones((1, 2), np.int64)
        self._used = 1
        self._exact = True

    def add(self, crop: NDArray[np.float32], image: NDArray[np.int64] | None) -> None:
        """Take more crops into account.

        Args:
            crop: [n, 4] top, left, height, width as fractions.
            image: [n] index of the image of each; None: unknown, so one size must hold for all.
        """
        self._exact = self._exact and bool(((crop >= 0) & (crop <= 1) & ~np.signbit(crop)).all())
        if not self._exact:  # NaN, outside 0..1, or -0.0, which integers cannot tell from 0
            return
        rows = np.zeros(len(crop), np.int64) if image is None else image
        self._grow(int(rows.max(initial=0)) + 1)
        for axis in (0, 1):  # top and height share H, left and width share W
            for column in (axis, axis + 2):
                if not self._fit(crop[:, column], rows, axis):
                    self._exact = False
                    return

    def _grow(self, count: int) -> None:
        """Make room for `count` images."""
        if count > len(self._sizes):
            grown = np.ones((max(count, 2 * len(self._sizes)), 2), np.int64)
            grown[: len(self._sizes)] = self._sizes
            self._sizes = grown
        self._used = max(self._used, count)

    def _fit(self, fraction: NDArray[np.float32], rows: NDArray[np.int64], axis: int) -> bool:
        """Enlarge the sides at which a fraction is no integer; False if a side would reach MAX_SIDE."""
        rest = np.flatnonzero(~_is_whole(fraction, self._sizes[rows, axis]))
        if not len(rest):  # nearly always, after the first few crops of an image
            return True
        for i, denominator in zip(rest.tolist(), _denominators(fraction[rest]), strict=True):
            side = int(np.lcm(self._sizes[rows[i], axis], denominator))
            if not denominator or side >= MAX_SIDE:
                return False
            self._sizes[rows[i], axis] = side
        return True

    def sizes(self) -> NDArray[np.int64] | None:
        """[images, 2] height and width, or [1, 2] if one size holds for all; None if there is none below MAX_SIDE."""
        if not self._exact:
            return None
        used = self._sizes[: self._used]
        largest = used.max(0)
        return largest[None] if not (largest % used).any() else used


def _is_whole(fraction: NDArray[np.float32], side: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether float32(round(fraction * side) / side) equals `fraction`."""
    wide = fraction.astype(np.float64)
    return np.asarray((np.rint(wide * side) / side).astype(np.float32) == fraction)


def _denominators(fractions: NDArray[np.float32]) -> NDArray[np.int64]:
    """[n] the smallest denominator of a convergent that rounds to each fraction; 0 if none up to MAX_DENOMINATOR does.

    A fraction p/q with q <= 4096 is a convergent of its float32 rounding, which is nearer to it than 1 / (2 q^2)
    (Legendre).
    """
    smallest = np.zeros(len(fractions), np.int64)
    before, now = np.zeros(len(fractions)), np.ones(len(fractions))  # denominators of two successive convergents
    rest = fractions.astype(np.float64) % 1
    for _ in range(24):
        if smallest.all():
            break
        whole = (smallest == 0) & (now <= MAX_DENOMINATOR) & _is_whole(fractions, now)
        smallest[whole] = now[whole].astype(np.int64)
        inverse = 1 / np.maximum(rest, 1e-9)
        before, now = now, np.minimum(np.floor(inverse) * now + before, 1e15)
        rest = inverse % 1
    return smallest
