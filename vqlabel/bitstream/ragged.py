"""Codes of labels that have different numbers of them <-> their counts, and one run of codes, label after label. Numpy only."""

import numpy as np
from numpy.typing import NDArray

from vqlabel.bitstream.fixed import check_count, integers, pack_fixed
from vqlabel.bitstream.planes import pack_planes
from vqlabel.errors import CodeOutOfRange

COUNT_ROWS = 4096  # counts that a writer codes at a time

Codes = NDArray[np.unsignedinteger]


def split_ragged(codes: Codes) -> tuple[Codes, Codes]:
    """[n, 1 + m], the count of a label and its codes -> counts [n, 1], run [sum of counts, 1].

    Raises:
        CodeOutOfRange: `codes` is something else, or a count is not 0..m.
    """
    codes = integers("codes", codes, 2)
    _check_counts(codes[:, :1], codes.shape[1] - 1)
    have = np.arange(codes.shape[1] - 1) < codes[:, :1]
    return codes[:, :1], codes[:, 1:][have][:, None]


def join_ragged(counts: Codes, run: Codes, slots: int) -> Codes:
    """Inverse of `split_ragged`: [n, 1 + slots], codes beyond a label's count 0.

    Args:
        counts: [n, 1], each at most `slots`; run: as many codes as they add up to, [sum of counts, 1].

    Raises:
        CodeOutOfRange: they are something else, or contradict each other.
    """
    counts, run = integers("counts", counts, 2), integers("run", run, 2)
    check_count("slots", slots)
    _check_counts(counts, slots)
    if run.shape != (total := int(counts.sum()), 1):
        raise CodeOutOfRange(f"the run has shape {list(run.shape)}; its counts add up to [{total}, 1]")
    out = np.zeros((len(counts), 1 + slots), np.promote_types(counts.dtype, run.dtype))
    out[:, :1] = counts
    out[:, 1:][np.arange(slots) < counts] = run[:, 0]
    return out


def _check_counts(counts: NDArray[np.integer], slots: int) -> None:
    """Raises CodeOutOfRange unless `counts` is [n, 1], each 0..slots."""
    if counts.shape[1:] != (1,):
        raise CodeOutOfRange(f"counts have shape {list(counts.shape)}; they must be [n, 1]")
    least, most = int(counts.min(initial=0)), int(counts.max(initial=0))
    if least < 0 or most > slots:
        raise CodeOutOfRange(f"counts lie in {least}..{most}; a label has 0..{slots} codes")


def stored_count_bits(counts: Codes, width: int) -> float:
    """Bits that a file takes for counts [n, 1] of `width` bits, in the coding that is smaller.

    Raises:
        CodeOutOfRange: they are something else, or one needs more bits.
    """
    counts = integers("counts", counts, 2)
    parts = [counts[at : at + COUNT_ROWS] for at in range(0, len(counts), COUNT_ROWS)]
    return 8.0 * min(sum(len(pack(part, [width])) for part in parts) for pack in (pack_fixed, pack_planes))
