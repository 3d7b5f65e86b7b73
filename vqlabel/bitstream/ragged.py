"""Codes of labels with different numbers of codes <-> counts, and one run of codes, label after label. Numpy only."""

import numpy as np
from numpy.typing import NDArray

from vqlabel.bitstream.codings import FIXED, ZSTD
from vqlabel.bitstream.fixed import as_integers, check_count
from vqlabel.errors import CodeOutOfRange

COUNT_ROWS = 4096  # counts in a chunk: rows that a container writes at a time

Codes = NDArray[np.unsignedinteger]


def split_ragged(codes: Codes) -> tuple[Codes, Codes]:
    """Separate counts and codes.

    Args:
        codes: [n, 1 + m] integers: the count of a label, 0..m, and its codes; codes beyond the count are ignored.

    Returns:
        counts [n, 1]; run [sum of counts, 1].

    Raises:
        CodeOutOfRange: another shape or type, or a count outside 0..m.
    """
    codes = as_integers("codes", codes, 2)
    _check_counts(codes[:, :1], codes.shape[1] - 1)
    used = np.arange(codes.shape[1] - 1) < codes[:, :1]
    return codes[:, :1], codes[:, 1:][used][:, None]


def join_ragged(counts: Codes, run: Codes, slots: int) -> Codes:
    """Inverse of `split_ragged`.

    Args:
        counts: [n, 1] integers, each in 0..slots.
        run: [sum of counts, 1] integers.
        slots: m, the largest count allowed.

    Returns:
        [n, 1 + slots]; codes beyond a label's count are 0.

    Raises:
        CodeOutOfRange: another shape or type, a count outside 0..slots, or a run of another length.
    """
    counts, run = as_integers("counts", counts, 2), as_integers("run", run, 2)
    check_count("slots", slots)
    _check_counts(counts, slots)
    if run.shape != (total := int(counts.sum()), 1):
        raise CodeOutOfRange(f"the run has shape {list(run.shape)}; its counts add up to [{total}, 1]")
    joined = np.zeros((len(counts), 1 + slots), np.promote_types(counts.dtype, run.dtype))
    joined[:, :1] = counts
    joined[:, 1:][np.arange(slots) < counts] = run[:, 0]
    return joined


def _check_counts(counts: NDArray[np.integer], slots: int) -> None:
    """Raises CodeOutOfRange unless `counts` is [n, 1], each 0..slots."""
    if counts.shape[1:] != (1,):
        raise CodeOutOfRange(f"counts have shape {list(counts.shape)}; they must be [n, 1]")
    low, high = int(counts.min(initial=0)), int(counts.max(initial=0))
    if low < 0 or high > slots:
        raise CodeOutOfRange(f"counts lie in {low}..{high}; a label has 0..{slots} codes")


def stored_count_bits(counts: Codes, width: int) -> float:
    """Bits of counts [n, 1] of `width` bits in a file, without tables and padding, in the smaller of two codings.

    The codings are fixed and zstd, as in a container.

    Raises:
        CodeOutOfRange: another shape or type, or a count that needs more bits.
    """
    counts = as_integers("counts", counts, 2)
    chunks = [counts[start : start + COUNT_ROWS] for start in range(0, len(counts), COUNT_ROWS)]
    return 8.0 * min(sum(len(coding.pack(chunk, [width])) for chunk in chunks) for coding in (FIXED, ZSTD))
