"""How evenly the codes of each slot are used: entropy and perplexity. Numpy only."""

import numpy as np
from numpy.typing import NDArray

from vqlabel.bitstream.fixed import as_integers, check_count
from vqlabel.errors import CodeOutOfRange


class CodeUsage:
    """Running histogram of codes, one for each slot.

    Args:
        slots: m, codes per label, 0 or more.
        codebook_size: k, values of a code, 1 or more.

    Raises:
        CodeOutOfRange: `slots` or `codebook_size` is not a whole number in its range.
    """

    def __init__(self, slots: int, codebook_size: int) -> None:
        check_count("slots", slots)
        check_count("codebook_size", codebook_size, 1)
        self._counts = np.zeros((slots, codebook_size), np.int64)

    def add(self, codes: NDArray[np.integer], used: NDArray[np.integer] | None = None) -> None:
        """Count more codes.

        Args:
            codes: [n, m] integers, each in [0, k).
            used: [n] number of leading codes of each label that count; None: all m.

        Raises:
            CodeOutOfRange: another shape, or a code outside [0, k).
        """
        slots, k = self._counts.shape
        codes = as_integers("codes", codes, 2)
        used = used if used is None else as_integers("used", used, 1)
        if codes.shape[1] != slots or (used is not None and len(used) != len(codes)):
            raise CodeOutOfRange(f"codes have shape {list(codes.shape)}; they must be [n, {slots}], and `used` must be [n]")
        if int(codes.min(initial=0)) < 0 or int(codes.max(initial=0)) >= k:
            raise CodeOutOfRange(f"codes lie in {codes.min()}..{codes.max()}; they must be 0..{k - 1}")
        bins = codes.astype(np.int64) + k * np.arange(slots)
        bins = bins.ravel() if used is None else bins[np.arange(slots) < used[:, None]]
        self._counts += np.bincount(bins, minlength=slots * k).reshape(slots, k)

    def entropy(self) -> NDArray[np.float64]:
        """[m] bits per code, 0..log2 k; 0 for a slot without a code."""
        share = self._counts / np.maximum(self._counts.sum(1, keepdims=True), 1)
        return np.asarray(-(share * np.log2(np.where(share > 0, share, 1))).sum(1))

    def perplexity(self) -> NDArray[np.float64]:
        """[m] 2 to the power of the entropy: k if all codes are equally frequent, 1 if only one is used."""
        return np.asarray(2 ** self.entropy())
