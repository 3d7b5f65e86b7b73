"""Batches of codes <-> a file from which an interrupted run continues, after the last complete batch."""

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

HEADER_BYTES = 4096  # in front of the batches: crc32 and JSON of the run's settings, padded with spaces
VERSION = 2  # of the layout of this file
CRC_BYTES = 4  # behind each batch


class Journal:
    """Batches of rows [n, width] of one unsigned type, each followed by a crc32 of the header, its number and its rows.

    So a batch that is lost, repeated, swapped or from another journal is detected.

    Args:
        path: opened, or made if it does not exist.
        key: settings of the run, JSON-compatible; a file with other settings is refused.
        sizes: number of rows of every batch of the run.
        width: numbers in a row.
        dtype: NumPy's name of the unsigned type of a number.
        restart: discards the journal of an interrupted run, whatever its settings.

    Attributes:
        done: number of batches in the file.

    Raises:
        UsageError: the file belongs to a run with another key, or to a run that is still alive.
        VqlabelError: it cannot be opened, or not be written (`append`).
    """

    def __init__(
        self, path: Path, key: dict[str, Any], sizes: Sequence[int], width: int, dtype: str, *, restart: bool = False
    ) -> None:
        self.path, self._sizes, self._width, self._type = path, sizes, width, np.dtype(dtype).newbyteorder("<")
        settings = json.dumps({**key, "journal": VERSION, "width": width, "type": dtype}, sort_keys=True).encode()
        self._head = head = (zlib.crc32(settings).to_bytes(4, "little") + settings)[: HEADER_BYTES - 1].ljust(HEADER_BYTES)
        self._file = _open(path)
        if try_lock(self._file) is False:
            self._file.close()
            raise UsageError(f"{path}: another run is writing it; wait until it ends, or stop it and continue from its last batch")
        if restart and _is_header(self._file.read(HEADER_BYTES)):
            self._file.truncate(0)
        self._file.seek(0)
        if not os.fstat(self._file.fileno()).st_size:
            self._file.write(head)
        elif (stored := self._file.read(HEADER_BYTES)) != head:
            self._file.close()
            raise UsageError(f"{path}: {_fault(stored, settings)}")
        self.done = self._count_complete()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not (self.done or self._file.closed):  # nothing to continue from
            self.remove()
        with suppress(OSError):  # `append` has raised the error that matters
            self._file.close()

    def append(self, rows: NDArray[np.unsignedinteger]) -> None:
        """Write the rows [n, width] of the next batch.

        Raises:
            VqlabelError: they cannot be written.
        """
        data = np.ascontiguousarray(rows, self._type).tobytes()
        try:
            self._file.write(data + self._crc(self.done, data))
            self._file.flush()  # so that a killed process loses at most this batch
        except OSError as error:
            raise VqlabelError(
                f"{self.path}: cannot be written ({error.strerror or error}); its {self.done} batches are kept: repeat the command to continue"
            ) from error
        self.done += 1

    def __iter__(self) -> Iterator[NDArray[np.unsignedinteger]]:
        """All batches [n, width] in order; only when all have been written."""
        self._file.seek(HEADER_BYTES)
        for size in self._sizes:
            data = self._file.read(self._bytes(size))
            yield np.frombuffer(data[:-CRC_BYTES], self._type).reshape(size, self._width)

    def _bytes(self, size: int) -> int:
        return size * self._width * self._type.itemsize + CRC_BYTES

    def _crc(self, number: int, data: bytes) -> bytes:
        """The CRC_BYTES behind batch `number`."""
        return zlib.crc32(data, zlib.crc32(number.to_bytes(8, "little"), zlib.crc32(self._head))).to_bytes(CRC_BYTES, "little")

    def _count_complete(self) -> int:
        """Number of leading batches whose crc32 matches; truncates the file behind them."""
        done, end = 0, HEADER_BYTES
        self._file.seek(HEADER_BYTES)
        for size in self._sizes:
            data = self._file.read(self._bytes(size))
            if len(data) < self._bytes(size) or self._crc(done, data[:-CRC_BYTES]) != data[-CRC_BYTES:]:
                break
            done, end = done + 1, end + len(data)
        self._file.seek(end)
        self._file.truncate()
        return done

    def remove(self) -> None:
        """Close and delete the file: the run is complete."""
        self._file.close()
        os.unlink(self.path)


def _is_header(data: bytes) -> bool:
    """Whether a file that begins with these bytes is a journal, of any run."""
    return len(data) == HEADER_BYTES and data[4:14].startswith(b'{"')


def _fault(stored: bytes, settings: bytes) -> str:
    """Why a run with these settings cannot continue from a file with this header."""
    if not _is_header(stored):
        return "is not a readable journal, and a run keeps its journal under this name; remove it, or name another output"
    try:
        different = differences(json.loads(stored[4:].rstrip()), json.loads(settings))
    except ValueError:  # the header is cut or damaged
        different = ""
    return (
        f"is the journal of an interrupted run with other settings{different}; repeat those settings to continue that run, or discard it "
        "with --restart (restart=True), also if another version of vqlabel wrote it"
    )


def differences(before: Any, now: dict[str, Any]) -> str:
    """The settings of an interrupted run that differ from those of this run, in parentheses, for messages; "" if the
    former are unknown.
    """
    if not isinstance(before, dict):
        return ""
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    words = ", ".join(f"{name} {str(before.get(name))[:60]}, now {str(now.get(name))[:60]}" for name in names)
    return f" ({words})" if words else ""


def _open(path: Path) -> IO[bytes]:
    """Open for reading and writing, or make it; a symbolic link is not followed."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.fdopen(os.open(path, flags, 0o666), "r+b")
    except OSError as error:
        raise VqlabelError(
            f"{path}: cannot be opened ({error.strerror or error}); an interrupted run continues from this file"
        ) from error
