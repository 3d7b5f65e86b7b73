"""Rows of small integers -> a temporary file, and back in order, for streams that are written after others."""

import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPOOL_ROWS = 1 << 16  # rows of a temporary file that are in memory at a time


class Spool:
    """Rows of uint32 in an unnamed temporary file, and the largest value of every field."""

    def __init__(self, folder: Path, fields: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed with the object)
        weakref.finalize(self, self._file.close)
        self.fields, self.maxima = fields, np.zeros(fields, np.uint32)

    def add(self, rows: NDArray[np.uint32]) -> None:
        """Append rows [n, fields]."""
        self.maxima = np.maximum(self.maxima, rows.max(0, initial=0))
        self._file.write(np.ascontiguousarray(rows).tobytes())

    def __iter__(self) -> Iterator[NDArray[np.uint32]]:
        self._file.seek(0)
        while data := self._file.read(SPOOL_ROWS * 4 * self.fields):
            yield np.frombuffer(data, np.uint32).reshape(-1, self.fields)
