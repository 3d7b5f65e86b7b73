"""How evenly the codes of each slot are used."""

import numpy as np
from numpy.typing import NDArray


class Usage:
    """Running histogram of codes: [m, k] counts."""

    def __init__(self, slots: int, codebook_size: int) -> None:
        self._count = np.zeros((slots, codebook_size), np.int64)

    def add(self, codes: NDArray[np.integer], used: NDArray[np.integer] | None = None) -> None:
        """Count in codes [n, m], each in [0, k); of a label only the first `used` [n] where that is given."""
        slots, k = self._count.shape
        flat = codes.astype(np.int64) + k * np.arange(slots)
        flat = flat.ravel() if used is None else flat[np.arange(slots) < used[:, None]]
        self._count += np.bincount(flat, minlength=slots * k).reshape(slots, k)

    def entropy(self) -> NDArray[np.float64]:
        """[m] bits per code."""
        share = self._count / np.maximum(self._count.sum(1, keepdims=True), 1)
        return np.asarray(-(share * np.log2(np.where(share > 0, share, 1))).sum(1))

    def perplexity(self) -> NDArray[np.float64]:
        """[m] 2 to the entropy: k where all codes are used alike, 1 where one is."""
        return np.asarray(2 ** self.entropy())
