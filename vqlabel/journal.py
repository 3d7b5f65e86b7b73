"""Batches of codes <-> a file that an interrupted run can go on with: what is whole of it counts, the rest is made again."""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HEADER = 4096  # bytes in front of the batches: what they are of


class Journal:
    """Rows [n, width] of one unsigned type, batch by batch, each with its crc32 behind it.

    Args:
        key: what the batches are of, as JSON takes it; a file of something else is refused.
        sizes: rows of every batch there will be.

    Attributes:
        done: batches that are in the file.

    Raises:
        UsageError: the file belongs to a run with another key, or to one that is still going.
    """

    def __init__(self, path: Path, key: dict[str, Any], sizes: Sequence[int], width: int, dtype: str) -> None:
        self.path, self._sizes, self._width, self._type = path, sizes, width, np.dtype(dtype).newbyteorder("<")
        said = json.dumps({**key, "width": width, "type": dtype}, sort_keys=True).encode()
        head = (zlib.crc32(said).to_bytes(4, "little") + said)[: HEADER - 1].ljust(HEADER)
        self._file: IO[bytes] = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")
        if not _locked(self._file):
            self._file.close()
            raise UsageError(f"{path}: another run is writing it; wait for that, or stop it and go on where it was")
        if not os.fstat(self._file.fileno()).st_size:
            self._file.write(head)
        elif self._file.read(HEADER) != head:
            self._file.close()
            raise UsageError(
                f"{path}: is left of an interrupted run with other settings; repeat those to go on with it, or remove it"
            )
        self.done = self._whole()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not (self.done or self._file.closed):  # refused before there was a batch: nothing to go on with
            self.remove()
        self._file.close()

    def append(self, rows: NDArray[np.unsignedinteger]) -> None:
        """The next batch's."""
        data = np.ascontiguousarray(rows, self._type).tobytes()
        self._file.write(data + zlib.crc32(data).to_bytes(4, "little"))
        self._file.flush()  # so that a killed process loses this batch at most
        self.done += 1

    def __iter__(self) -> Iterator[NDArray[np.unsignedinteger]]:
        """All batches, from the first; only when all are there."""
        self._file.seek(HEADER)
        for size in self._sizes:
            data = self._file.read(self._bytes(size))
            yield np.frombuffer(data[:-4], self._type).reshape(size, self._width)

    def _bytes(self, size: int) -> int:
        return size * self._width * self._type.itemsize + 4

    def _whole(self) -> int:
        """The batches from the first on whose crc32 fits; what is behind them goes."""
        done, end = 0, HEADER
        self._file.seek(HEADER)
        for size in self._sizes:
            data = self._file.read(self._bytes(size))
            if len(data) < self._bytes(size) or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
                break
            done, end = done + 1, end + len(data)
        self._file.seek(end)
        self._file.truncate()
        return done

    def remove(self) -> None:
        """The run is over."""
        self._file.close()
        os.unlink(self.path)


def _locked(file: IO[bytes]) -> bool:
    """Whether `file` is ours alone, until it is closed or we are killed; where the system has no such locks, it is."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
    return True
