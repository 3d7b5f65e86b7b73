"""Codes of labels that have different numbers of them <-> their counts, and one run of codes, label after label. Numpy only."""

import numpy as np
from numpy.typing import NDArray

from vqlabel.bitstream.fixed import pack_fixed
from vqlabel.bitstream.planes import pack_planes

COUNTED_ROWS = 4096  # counts that a writer codes at a time

Codes = NDArray[np.unsignedinteger]


def split_counted(codes: Codes) -> tuple[Codes, Codes]:
    """[n, 1 + m], the count of a label and its codes -> counts [n, 1], run [sum of counts, 1]."""
    have = np.arange(codes.shape[1] - 1) < codes[:, :1]
    return codes[:, :1], codes[:, 1:][have][:, None]


def join_counted(counts: Codes, run: Codes, slots: int) -> Codes:
    """Inverse of `split_counted`: [n, 1 + slots], codes beyond a label's count 0.

    Args:
        counts: [n, 1], each at most `slots`; run: as many codes as they add up to, [sum of counts, 1].
    """
    out = np.zeros((len(counts), 1 + slots), np.promote_types(counts.dtype, run.dtype))
    out[:, :1] = counts
    out[:, 1:][np.arange(slots) < counts] = run[:, 0]
    return out


def counted_bits(counts: Codes, width: int) -> float:
    """Bits that a file takes for counts [n, 1] of `width` bits, in the coding that is smaller."""
    parts = [counts[at : at + COUNTED_ROWS] for at in range(0, len(counts), COUNTED_ROWS)]
    return 8.0 * min(sum(len(pack(part, [width])) for part in parts) for pack in (pack_fixed, pack_planes))
