"""A target appears whole or not at all, and is replaced only where the user said so."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqlabel.errors import TargetExists, UsageError, VqlabelError


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raises TargetExists where `path` is there and may not be replaced."""
    if path.exists() and not overwrite:
        raise TargetExists(f"{path} exists; pass --overwrite (overwrite=True) to replace it, or name another file")


def check_target(path: str | os.PathLike[str] | None, overwrite: bool) -> None:
    """Refuse before minutes of work, not after.

    Raises:
        TargetExists: `path` is there and may not be replaced.
        UsageError: its folder is not there.
    """
    if path is None:
        return
    refuse_existing(Path(path), overwrite)
    if not Path(path).resolve().parent.is_dir():
        raise UsageError(f"{Path(path).resolve().parent}: no such folder; make it first")


def partial_of(target: Path) -> Path:
    """Where `target` grows until it is whole: beside it, so that a rename can publish it."""
    return target.with_name(target.name + ".partial")


@contextmanager
def appearing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields the path to write a file or a folder to; it becomes `target` at the end, or vanishes with any exception.

    Raises:
        TargetExists: `target` is there and `overwrite` is false.
        UsageError: its folder is not there.
        VqlabelError: the disk is full, or another OSError; the message names the target.
    """
    check_target(target, overwrite)
    partial = partial_of(target)
    try:
        remove(partial)
        yield partial
        publish(partial, target, overwrite=overwrite)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        remove(partial)


def publish(partial: Path, target: Path, *, overwrite: bool) -> None:
    """Make `partial` durable and rename it to `target`."""
    if partial.is_file():
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
    refuse_existing(target, overwrite)
    if partial.is_dir():  # a rename puts a folder only where nothing is
        remove(target)
    os.replace(partial, target)
    _sync_folder(target.resolve().parent)


def unwritable(target: Path, error: OSError) -> VqlabelError:
    """What to say when the disk is full, or another OSError stopped a write."""
    return VqlabelError(f"{target}: cannot be written ({error.strerror or error}); nothing was left behind")


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
