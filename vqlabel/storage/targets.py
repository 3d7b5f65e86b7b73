"""Atomic targets: files and folders that are published whole or not at all, and replace others only if allowed.

A run writes in a folder of its own (run_folder.py) and publishes by one rename. docs/format.md, "Writing".
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from vqlabel.errors import TargetExists, UsageError, VqlabelError
from vqlabel.storage.durable import exchange, sync, sync_folder
from vqlabel.storage.formats import TargetFormat, check_suffix
from vqlabel.storage.run_folder import claim, clear_leftovers


class AtomicTarget:
    """A target while it is written: write to `path`, then `publish`; `close` removes what was not published.

    A target that is a link is written through: the file that it points to is replaced.

    Attributes:
        path: where to write the file or folder; nothing is there yet.

    Raises:
        TargetExists: `target` exists and `overwrite` is false.
        UsageError: its suffix names another format, its folder does not exist, a folder is in the place of a file or
            the other way round, or another run is writing it.
        VqlabelError: nothing can be written there.
    """

    def __init__(self, target: Path, form: TargetFormat, *, overwrite: bool) -> None:
        self.name, self._form, self._overwrite = target, form, overwrite
        check_suffix(target, form)
        try:
            self._target = Path(os.path.realpath(target))
            if not self._target.parent.is_dir():
                raise UsageError(f"{self._target.parent}: no such folder; make it first")
            clear_leftovers(self._target, target)
            self._check_replaceable()
            self._run = claim(self._target)
        except OSError as error:
            raise unwritable(target, error) from error
        self.path = self._run.output

    def publish(self) -> None:
        """Make what was written durable, and rename it to the target.

        Raises:
            TargetExists: another run published first, and `overwrite` is false.
            OSError: the disk is full, or what was written no longer exists.
        """
        sync(self.path)
        self._check_replaceable()
        if self._form.folder:
            self._publish_folder()
        else:
            os.replace(self.path, self._target)
        sync_folder(self._target.parent)

    def _publish_folder(self) -> None:
        try:
            os.replace(self.path, self._target)
            return
        except OSError as error:  # a folder can be renamed only to a free name or over an empty folder
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        self._check_replaceable()
        if exchange(self.path, self._target):
            return
        os.replace(self._target, self._run.replaced)
        try:
            os.replace(self.path, self._target)
        except OSError:
            os.replace(self._run.replaced, self._target)
            raise

    def close(self) -> None:
        """Remove what was not published."""
        try:
            self._run.remove()
        except KeyboardInterrupt:  # an interrupt, too, leaves nothing behind
            self._run.remove()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_replaceable(self) -> None:
        target = self._target
        if not target.exists():
            return
        if target.is_dir() and not self._form.folder:
            raise UsageError(f"{self.name}: is a folder, and what would be written is {self._form.words}; name a file")
        if not target.is_dir() and (self._form.folder or not target.is_file()):
            kind = "a file" if target.is_file() else "a device, a pipe or a socket"
            raise UsageError(f"{self.name}: is {kind}, and what would be written is {self._form.words}; choose another name")
        refuse_existing(self.name, self._overwrite)


@contextmanager
def atomic_target(target: Path, form: TargetFormat, *, overwrite: bool) -> Iterator[Path]:
    """Yields the path to write a file or folder to; it becomes `target` at the end, or is removed by any exception.

    Raises:
        TargetExists, UsageError: see `AtomicTarget`.
        VqlabelError: the disk is full, or another OSError; the message names the target.
    """
    with AtomicTarget(target, form, overwrite=overwrite) as partial:
        try:
            yield partial.path
            partial.publish()
        except OSError as error:
            raise unwritable(target, error) from error


def check_target(path: str | os.PathLike[str] | None, form: TargetFormat, *, overwrite: bool) -> None:
    """Refuse a target before a long run: everything that `AtomicTarget` refuses. None: nothing is written."""
    if path is not None:
        AtomicTarget(Path(path), form, overwrite=overwrite).close()


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raises TargetExists if `path` exists and `overwrite` is false."""
    if path.exists() and not overwrite:
        raise TargetExists(f"{path} exists; pass --overwrite (overwrite=True) to replace it, or name another file")


def unwritable(target: Path, error: OSError) -> VqlabelError:
    """The error to raise when the disk is full or another OSError stopped a write."""
    return VqlabelError(f"{target}: cannot be written ({error.strerror or error}); nothing was left behind")
