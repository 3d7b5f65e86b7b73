"""Advisory locks on open files: one process at a time writes a target, or continues a journal."""

from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def try_lock(file: IO[bytes]) -> bool | None:
    """Lock an open file until it is closed or its process ends, without waiting.

    Returns:
        True: this process holds the lock. False: another process holds it. None: the system or the file system has no
            such locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
