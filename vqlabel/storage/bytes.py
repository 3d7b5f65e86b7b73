"""A local file as bytes: its size, and reads at any position; shared by threads and by forked processes."""

import os
from os import PathLike
from pathlib import Path
from threading import Lock

from vqlabel.errors import BadInput, UsageError

READ_BYTES = 1 << 22  # of one system call; larger reads are split


class LocalFile:
    """Bytes of one file, opened on demand.

    Args:
        path: of a regular file; a pipe would block.
        tail: the last bytes of the intended file. If the file at this path has others when it is opened, it was
            replaced and is refused. None: no check.
        error: type of the error for a file that ends early or cannot be read.

    Attributes:
        path: as given.
        tail: as given; may be set later.

    Raises:
        UsageError: the file cannot be opened, or has another tail.
    """

    _close = staticmethod(os.close)  # when Python ends, `os` may be gone before the last file

    def __init__(self, path: str | PathLike[str], tail: bytes | None = None, error: type[BadInput] = BadInput) -> None:
        self.path, self.tail, self._error = Path(path), tail, error
        self._handle: int | None = None
        self.reset_lock()
        self.size = os.fstat(self._descriptor()).st_size

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None:
            self._close(handle)

    def reset_lock(self) -> None:
        """Make the lock anew. Needed in a forked child: a thread that exists only in the parent may hold the lock."""
        self._lock = Lock()

    def read_at(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes from `offset` on.

        Raises:
            UsageError: the file cannot be opened, or was replaced since it was last open.
            BadInput: of the type `error`: the file ends early, or cannot be read.
        """
        handle, parts = self._descriptor(), []
        while count:
            try:
                part = os.pread(handle, min(count, READ_BYTES), offset)  # no shared file position: threads may read at once
            except OSError as error:
                raise self._error(f"{self.path}: cannot be read at byte {offset} ({error.strerror})") from None
            if not part:
                raise self._error(f"{self.path}: ends {count} bytes early, at byte {offset}; the file is truncated: copy it again")
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return b"".join(parts)

    def _descriptor(self) -> int:
        """The open file; opens it if necessary."""
        with self._lock:
            if self._handle is None:
                self._handle = self._open()
            return self._handle

    def _open(self) -> int:
        expected = self.tail or b""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            tail = os.pread(handle, len(expected), max(0, os.fstat(handle).st_size - len(expected)))
        except OSError as error:
            raise UsageError(
                f"{self.path}: cannot be opened ({error.strerror}); it was moved or removed, or you lack the permission to read it"
            ) from None
        if tail != expected:
            os.close(handle)
            raise UsageError(f"{self.path}: was replaced while it was open; open the new file from the start")
        return handle
