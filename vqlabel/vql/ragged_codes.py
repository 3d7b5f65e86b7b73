"""A stream of counts and a stream of codes -> the codes of any labels, at a variable rate. No torch."""

import numpy as np
from numpy.typing import NDArray

from vqlabel.bitstream import join_ragged
from vqlabel.codecs.config import CODES, COUNTS
from vqlabel.container import ContainerReader
from vqlabel.errors import BadContainer

VARIABLE_SLOTS = "variable_slots"  # in `vql.requires`: each label has its own number of codes

Codes = NDArray[np.unsignedinteger]


class RaggedCodes:
    """Reads codes as [n, 1 + m]: the count of a label, its codes, and zeros.

    The first read makes one pass over all counts, to find the first code of every chunk of counts; memory holds one
    number per chunk.

    Args:
        slots: m, the maximum number of codes of a label.

    Raises:
        BadContainer: when codes are read: a count is above m, or the counts do not add up to the number of codes.
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
        lengths = counts[:, 0].astype(np.int64)
        before = np.repeat(np.cumsum(lengths) - lengths, lengths)  # codes of the labels before, in the result
        rows = np.repeat(self._firsts_of(index), lengths) + np.arange(lengths.sum()) - before
        return join_ragged(counts, self._container.take(CODES, rows), self._slots)

    def _first_of(self, record: int) -> int:
        """Row of the first code of `record`, 0..records."""
        size = self._container.streams[COUNTS].chunk_rows
        chunk = record // size
        return int(self._starts()[chunk]) + int(self._container.rows(COUNTS, chunk * size, record).sum())

    def _firsts_of(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n] row of the first code of each label at `index`."""
        stream, starts, out = self._container.streams[COUNTS], self._starts(), np.empty(len(index), np.int64)
        chunk = index // stream.chunk_rows
        for i in np.unique(chunk).tolist():
            in_chunk, first = chunk == i, i * stream.chunk_rows
            counts = self._container.rows(COUNTS, first, min(first + stream.chunk_rows, stream.rows))[:, 0].astype(np.int64)
            out[in_chunk] = starts[i] + (np.cumsum(counts) - counts)[index[in_chunk] - first]
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
        largest = int(counts.max(initial=0))
        if largest > self._slots:
            raise BadContainer(
                f"{self._container.path}: a label has {largest} codes, the codec {self._slots} slots; damaged or forged"
            )
        return counts
