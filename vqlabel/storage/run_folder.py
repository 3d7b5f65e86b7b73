"""The folder in which one run writes its target before publishing it: claimed under a lock, cleared after a kill.

It lies beside the target as `<target>.<8 hex digits>.partial` and holds the unfinished file or folder under the
target's own name, and a lock file. The lock is held as long as the run lives, so that the next run can tell a living
run from what a killed one left behind.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import IO, NamedTuple

from vqlabel.errors import UsageError
from vqlabel.storage.locks import try_lock

CLAIM_ATTEMPTS = 16  # random names tried; a collision needs two runs with the same 32 random bits


class RunFolder(NamedTuple):
    """A claimed folder for `target`, and its open lock file."""

    folder: Path
    target: Path
    lock: IO[bytes]

    @property
    def output(self) -> Path:
        """Where the run writes; nothing is there at first."""
        return self.folder / self.target.name

    @property
    def replaced(self) -> Path:
        """Where a folder that the target replaces waits until the new one is in its place."""
        return _replaced(self.folder, self.target)

    def remove(self) -> None:
        """Remove as much of it as possible.

        The lock file goes last, while it is still locked: after a kill in the middle, the next run recognises the rest.
        """
        for entry in (self.output, self.replaced):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    entry.unlink()
        with contextlib.suppress(OSError):
            _lock_file(self.folder, self.target).unlink()
        self.lock.close()  # some network file systems keep a removed file until it is closed
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def claim(target: Path) -> RunFolder:
    """Make a new run folder beside `target` and lock it.

    Raises:
        OSError: it cannot be made, or CLAIM_ATTEMPTS names were taken.
    """
    for _ in range(CLAIM_ATTEMPTS):
        folder = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
        try:
            folder.mkdir()
            lock = _lock_file(folder, target).open("xb")
        except (FileExistsError, FileNotFoundError):  # the name is taken, or another run cleared the folder as a leftover
            continue
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise
        if try_lock(lock) is not False and _lock_file(folder, target).exists():
            return RunFolder(folder, target, lock)
        lock.close()
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def clear_leftovers(target: Path, name: Path) -> None:
    """Remove the run folders that killed runs left beside `target`, and restore a folder that one had put aside.

    Args:
        target: the real path.
        name: the target as the user named it, for messages.

    Raises:
        UsageError: one of the runs is alive.
    """
    run_folder = re.compile(re.escape(target.name) + r"\.[0-9a-f]{8}\.partial")
    with os.scandir(target.parent) as entries:
        folders = [Path(entry) for entry in entries if run_folder.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]
    for folder in folders:
        try:
            with _lock_file(folder, target).open("r+b") as lock:
                locked = try_lock(lock)
                if locked:
                    if not target.exists() and _replaced(folder, target).exists():
                        os.replace(_replaced(folder, target), target)
                    RunFolder(folder, target, lock).remove()
        except FileNotFoundError:  # killed before it had a lock file
            with contextlib.suppress(OSError):
                folder.rmdir()
            continue
        except OSError:  # owned by another user
            continue
        if locked is False:
            raise UsageError(f"{name}: another run is writing it, in {folder.name}; wait until it ends, or stop it")


def _lock_file(folder: Path, target: Path) -> Path:
    return folder / f"{target.name}.lock"


def _replaced(folder: Path, target: Path) -> Path:
    return folder / f"{target.name}.replaced"
