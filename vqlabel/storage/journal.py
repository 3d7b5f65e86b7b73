"""Batches of codes <-> a file that an interrupted run can go on with: what is whole of it counts, the rest is made again."""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import UsageError, VqlabelError
from vqlabel.storage.locks import try_lock

HEADER = 4096  # bytes in front of the batches: what they are of
VERSION = 2  # of the layout below


class Journal:
    """Rows [n, width] of one unsigned type, batch by batch, each with a crc32 behind it: of the header, the batch's number and its rows, so
    that a batch that was lost, doubled, swapped or taken from another journal does not fit.

    Args:
        key: what the batches are of, as JSON takes it; a file of something else is refused.
        sizes: rows of every batch there will be.

    Attributes:
        done: batches that are in the file.

    Raises:
        UsageError: the file belongs to a run with another key, or to one that is still going.
        VqlabelError: it cannot be written (here, and in `append`).
    """

    def __init__(self, path: Path, key: dict[str, Any], sizes: Sequence[int], width: int, dtype: str) -> None:
        self.path, self._sizes, self._width, self._type = path, sizes, width, np.dtype(dtype).newbyteorder("<")
        said = json.dumps({**key, "journal": VERSION, "width": width, "type": dtype}, sort_keys=True).encode()
        self._head = head = (zlib.crc32(said).to_bytes(4, "little") + said)[: HEADER - 1].ljust(HEADER)
        self._file = _open(path)
        if try_lock(self._file) is False:
            self._file.close()
            raise UsageError(f"{path}: another run is writing it; wait for that, or stop it and go on where it was")
        if not os.fstat(self._file.fileno()).st_size:
            self._file.write(head)
        elif (found := self._file.read(HEADER)) != head:
            self._file.close()
            raise UsageError(
                f"{path}: is left of an interrupted run with other settings{_differences(found, said)}; repeat those to go on "
                "with it, or remove it, as one of another version of vqlabel"
            )
        self.done = self._whole()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not (self.done or self._file.closed):  # refused before there was a batch: nothing to go on with
            self.remove()
        with suppress(OSError):  # `append` has told what could not be written
            self._file.close()

    def append(self, rows: NDArray[np.unsignedinteger]) -> None:
        """The next batch's."""
        data = np.ascontiguousarray(rows, self._type).tobytes()
        try:
            self._file.write(data + self._sum(self.done, data))
            self._file.flush()  # so that a killed process loses this batch at most
        except OSError as error:
            raise VqlabelError(
                f"{self.path}: cannot be written ({error.strerror or error}); its {self.done} batches are kept: the same command goes on"
            ) from error
        self.done += 1

    def __iter__(self) -> Iterator[NDArray[np.unsignedinteger]]:
        """All batches, from the first; only when all are there."""
        self._file.seek(HEADER)
        for size in self._sizes:
            data = self._file.read(self._bytes(size))
            yield np.frombuffer(data[:-4], self._type).reshape(size, self._width)

    def _bytes(self, size: int) -> int:
        return size * self._width * self._type.itemsize + 4

    def _sum(self, number: int, data: bytes) -> bytes:
        """The 4 bytes behind batch `number`."""
        return zlib.crc32(data, zlib.crc32(number.to_bytes(8, "little"), zlib.crc32(self._head))).to_bytes(4, "little")

    def _whole(self) -> int:
        """The batches from the first on whose crc32 fits; what is behind them goes."""
        done, end = 0, HEADER
        self._file.seek(HEADER)
        for size in self._sizes:
            data = self._file.read(self._bytes(size))
            if len(data) < self._bytes(size) or self._sum(done, data[:-4]) != data[-4:]:
                break
            done, end = done + 1, end + len(data)
        self._file.seek(end)
        self._file.truncate()
        return done

    def remove(self) -> None:
        """The run is over."""
        self._file.close()
        os.unlink(self.path)


def _differences(found: bytes, wanted: bytes) -> str:
    """Which settings a header has that are not those of this run, for messages; "" where it is none of a journal."""
    try:
        before, now = json.loads(found[4:].rstrip()), json.loads(wanted)
        other = [name for name in now if before.get(name) != now[name]]
    except (ValueError, AttributeError):  # another file, or a header that was cut
        return ""
    said = ", ".join(f"{name} {str(before.get(name))[:60]}, now {str(now[name])[:60]}" for name in other)
    return f" ({said})" if said else ""


def _open(path: Path) -> IO[bytes]:
    """For reading and writing, made if it is not there; never what a link points to."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.fdopen(os.open(path, flags, 0o666), "r+b")
    except OSError as error:
        raise VqlabelError(f"{path}: cannot be opened ({error.strerror or error}); an interrupted run goes on from it") from error
