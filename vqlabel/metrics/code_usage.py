"""How evenly the codes of each slot are used."""

import numpy as np
from numpy.typing import NDArray

from vqlabel.bitstream.fixed import check_count, integers
from vqlabel.errors import CodeOutOfRange


class Usage:
    """Running histogram of codes: [m, k] counts.

    Raises:
        CodeOutOfRange: codes that are not [n, m] integers in 0..k-1; slots or a codebook's size that is not a whole number.
    """

    def __init__(self, slots: int, codebook_size: int) -> None:
        check_count("slots", slots)
        check_count("codebook_size", codebook_size, 1)
        self._count = np.zeros((slots, codebook_size), np.int64)

    def add(self, codes: NDArray[np.integer], used: NDArray[np.integer] | None = None) -> None:
        """Count in codes [n, m], each in [0, k); of a label only the first `used` [n] where that is given."""
        slots, k = self._count.shape
        codes = integers("codes", codes, 2)
        used = used if used is None else integers("used", used, 1)
        if codes.shape[1] != slots or (used is not None and len(used) != len(codes)):
            raise CodeOutOfRange(f"codes have shape {list(codes.shape)}; they must be [n, {slots}], and `used` as many")
        if int(codes.min(initial=0)) < 0 or int(codes.max(initial=0)) >= k:
            raise CodeOutOfRange(f"codes lie in {codes.min()}..{codes.max()}; they must be 0..{k - 1}")
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
