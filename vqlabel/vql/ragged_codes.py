"""Where the codes of a label lie whose number differs from label to label: a stream of counts, and one of all codes. No torch."""

import numpy as np
from numpy.typing import NDArray

from vqlabel.bitstream import join_ragged
from vqlabel.container import ContainerReader
from vqlabel.errors import BadContainer

COUNTS, CODES = "counts", "codes"
VARIABLE_SLOTS = "variable_slots"  # in `vql.requires` of such a file

Codes = NDArray[np.unsignedinteger]


class CountedCodes:
    """Codes of any labels, as [n, 1 + m]: a label's count, its codes, and 0 beyond them.

    The first code of every chunk of counts is found by one pass when a code is first read; a number a chunk is kept.

    Args:
        slots: m, the most codes that a label may have.

    Raises:
        BadContainer: when codes are read: a count above m, or counts that do not add up to the codes.
    """

    def __init__(self, container: ContainerReader, slots: int) -> None:
        self._container, self._slots = container, slots
        self._first: NDArray[np.int64] | None = None

    def rows(self, start: int, stop: int) -> Codes:
        """[stop - start, 1 + m] of the labels start:stop."""
        counts = self._checked(self._container.rows(COUNTS, start, stop))
        first = self._first_of(start)
        return join_ragged(counts, self._container.rows(CODES, first, first + int(counts.sum())), self._slots)

    def take(self, index: NDArray[np.int64]) -> Codes:
        """[n, 1 + m] of the labels at `index`, each in [0, records)."""
        counts = self._checked(self._container.take(COUNTS, index))
        many = counts[:, 0].astype(np.int64)
        before = np.repeat(np.cumsum(many) - many, many)
        run = np.repeat(self._firsts_of(index), many) + np.arange(many.sum()) - before
        return join_ragged(counts, self._container.take(CODES, run), self._slots)

    def _first_of(self, record: int) -> int:
        """Row of the first code of `record`, 0..records."""
        size = self._container.streams[COUNTS].chunk_rows
        chunk = record // size
        return int(self._starts()[chunk]) + int(self._container.rows(COUNTS, chunk * size, record).sum())

    def _firsts_of(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n] rows of their first codes."""
        stream, starts, out = self._container.streams[COUNTS], self._starts(), np.empty(len(index), np.int64)
        chunk = index // stream.chunk_rows
        for i in np.unique(chunk).tolist():
            here, at = chunk == i, i * stream.chunk_rows
            counts = self._container.rows(COUNTS, at, min(at + stream.chunk_rows, stream.rows))[:, 0].astype(np.int64)
            out[here] = starts[i] + (np.cumsum(counts) - counts)[index[here] - at]
        return out

    def _starts(self) -> NDArray[np.int64]:
        """[chunks + 1] row of the first code of every chunk of counts, and the number of codes."""
        if self._first is None:
            stream, codes = self._container.streams[COUNTS], self._container.streams[CODES].rows
            sums = [self._checked(self._container.read_chunk(COUNTS, i)).sum(dtype=np.int64) for i in range(stream.chunks)]
            first = np.concatenate([[0], np.cumsum(np.array(sums, np.int64))]).astype(np.int64)
            if first[-1] != codes:
                raise BadContainer(
                    f"{self._container.path}: its counts add up to {first[-1]} codes, the file has {codes}; damaged or forged"
                )
            self._first = first
        return self._first

    def _checked(self, counts: Codes) -> Codes:
        most = int(counts.max(initial=0))
        if most > self._slots:
            raise BadContainer(
                f"{self._container.path}: a label has {most} codes, the codec {self._slots} slots; damaged or forged"
            )
        return counts
