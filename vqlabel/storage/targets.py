"""A target appears whole or not at all, and is replaced only where the user asked for it.

A run writes into a folder of its own beside the target, `<target>.<8 hex digits>.partial`, and publishes by one rename. The folder holds a
file that is locked as long as the run lives: so two runs never share a file, and what a killed run left is told from what a living one writes.
"""

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

from vqlabel.errors import TargetExists, UsageError, VqlabelError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CLAIMS = 16  # names that are tried for a folder of our own
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux' renameat2


class Form(NamedTuple):
    """What is written: in words, and the suffixes that name it."""

    words: str
    suffixes: tuple[str, ...] = ()
    folder: bool = False


VQL = Form("a .vql file", (".vql",))
CODEC = Form("a codec file", (".safetensors", ".codec"))
NPY = Form("a NumPy array", (".npy",))
SAFETENSORS = Form("an array in a .safetensors file", (".safetensors",))
TENSOR = Form("a torch.save file", (".pt", ".pth"))
PICTURE = Form("a picture", (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".eps", ".ps", ".tif", ".tiff", ".webp", ".gif"))
TREE = Form("a folder", folder=True)
RECORD = Form("a file of vqlabel's own")  # beside a target, under the target's name with a suffix of its own
_NEVER_WRITTEN = {
    "NumPy arrays": (".npz",),
    "a table": (".csv", ".tsv", ".parquet", ".arrow", ".feather", ".h5", ".hdf5"),
    "an archive": (".tar", ".zip", ".gz", ".tgz", ".xz", ".bz2", ".zst"),
    "text": (".txt", ".json", ".jsonl", ".yaml", ".md", ".py"),
    "a pickle": (".pkl", ".pickle"),
    "a network": (".pt2", ".onnx", ".ckpt"),
}
NAMED_BY = {suffix: words for words, suffixes in _NEVER_WRITTEN.items() for suffix in suffixes} | {
    suffix: form.words for form in (CODEC, NPY, SAFETENSORS, TENSOR, PICTURE, VQL) for suffix in form.suffixes
}


class AtomicTarget:
    """A target while it is written: a path of one's own, which `publish` renames to the target and `close` removes.

    A target that is a link is written through: the file that it points to is replaced.

    Attributes:
        path: where to write the file or folder; nothing is there yet.

    Raises:
        TargetExists: `target` is there and `overwrite` is false.
        UsageError: its suffix names another format, its folder is not there, it is a folder where a file is to be written or the other way
            round, or another run is writing it.
        VqlabelError: nothing can be written there.
    """

    def __init__(self, target: Path, form: Form, *, overwrite: bool) -> None:
        self.name, self._form, self._overwrite = target, form, overwrite
        check_suffix(target, form)
        try:
            self._target = Path(os.path.realpath(target))
            if not self._target.parent.is_dir():
                raise UsageError(f"{self._target.parent}: no such folder; make it first")
            _clear_leftovers(self._target, target)
            self._refuse_target()
            self._folder, self._lock = _claim(self._target)
        except OSError as error:
            raise unwritable(target, error) from error
        self.path = self._folder / self._target.name

    def publish(self) -> None:
        """Make what was written durable, and rename it to the target.

        Raises:
            TargetExists: another run was faster, and `overwrite` is false.
            OSError: the disk is full, or what was written is no longer there.
        """
        _sync(self.path)
        self._refuse_target()
        if self._form.folder:
            self._publish_folder()
        else:
            os.replace(self.path, self._target)
        _sync_folder(self._target.parent)

    def _publish_folder(self) -> None:
        try:
            os.replace(self.path, self._target)
            return
        except OSError as error:  # a rename puts a folder only where nothing, or an empty folder, is
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        self._refuse_target()
        if _exchange(self.path, self._target):
            return
        aside = _aside(self._folder, self._target)
        os.replace(self._target, aside)
        try:
            os.replace(self.path, self._target)
        except OSError:
            os.replace(aside, self._target)
            raise

    def close(self) -> None:
        """Remove what was not published."""
        try:
            _remove_partial(self._folder, self._target, self._lock)
        except KeyboardInterrupt:  # nothing is left even so
            _remove_partial(self._folder, self._target, self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _refuse_target(self) -> None:
        target = self._target
        if not target.exists():
            return
        if target.is_dir() and not self._form.folder:
            raise UsageError(f"{self.name}: is a folder, and what would be written is {self._form.words}; name a file")
        if not target.is_dir() and (self._form.folder or not target.is_file()):
            kind = "a file" if target.is_file() else "a device, a pipe or a socket"
            raise UsageError(f"{self.name}: is {kind}, and what would be written is {self._form.words}; choose another name")
        refuse_existing(self.name, self._overwrite)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raises TargetExists where `path` is there and may not be replaced."""
    if path.exists() and not overwrite:
        raise TargetExists(f"{path} exists; pass --overwrite (overwrite=True) to replace it, or name another file")


def check_suffix(target: Path, form: Form) -> None:
    """Raises UsageError where the name of `target` ends as that of another format does."""
    suffix = target.suffix.lower()
    if form is not RECORD and suffix in NAMED_BY and suffix not in form.suffixes:
        ends = f"end its name in {' or '.join(form.suffixes)}" if form.suffixes else f"leave {suffix} out of its name"
        raise UsageError(f"{target}: {suffix} is for {NAMED_BY[suffix]}, and what would be written is {form.words}; {ends}")


def check_target(path: str | os.PathLike[str] | None, form: Form, *, overwrite: bool) -> None:
    """Refuse a target before minutes of work, not after: all that `AtomicTarget` refuses, found by making one."""
    if path is not None:
        AtomicTarget(Path(path), form, overwrite=overwrite).close()


def check_apart(
    target: str | os.PathLike[str] | None,
    *sources: str | os.PathLike[str] | None,
    beside: tuple[str | os.PathLike[str] | None, ...] = (),
) -> None:
    """Refuse to write a target over what is read.

    Args:
        sources: files or folders that are read; a target may not lie in such a folder either.
        beside: what is read besides, such as a codec file or a folder of images: a target may lie in that folder.

    Raises:
        UsageError: `target` is one of them, by any name, or a folder that one of them lies in, or lies in one of `sources`.
    """
    if target is None:
        return
    real = Path(os.path.realpath(target))
    for source in (*sources, *beside):
        if source is None:
            continue
        read = Path(os.path.realpath(source))
        if real == read or _same_file(real, read):
            raise UsageError(f"{target}: is what is read ({source}), and would be replaced; name another target")
        if real in read.parents:
            raise UsageError(f"{target}: holds {source}, which is read, and would be replaced; name another target")
        if source in sources and read in real.parents:
            raise UsageError(f"{target}: lies in {source}, which is read; name a target outside that folder")


def _same_file(one: Path, other: Path) -> bool:
    """Also under another name: a hard link, a name that differs in case."""
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return False


@contextmanager
def atomic_target(target: Path, form: Form, *, overwrite: bool) -> Iterator[Path]:
    """Yields the path to write a file or a folder to; it becomes `target` at the end, or vanishes with any exception.

    Raises:
        What `AtomicTarget` does.
        VqlabelError: the disk is full, or another OSError; the message names the target.
    """
    with AtomicTarget(target, form, overwrite=overwrite) as partial:
        try:
            yield partial.path
            partial.publish()
        except OSError as error:
            raise unwritable(target, error) from error


def unwritable(target: Path, error: OSError) -> VqlabelError:
    """The refusal where the disk is full, or another OSError stopped a write."""
    return VqlabelError(f"{target}: cannot be written ({error.strerror or error}); nothing was left behind")


def lock(file: IO[bytes]) -> bool | None:
    """Whether `file` is now locked by us, until it is closed or we are killed; None where the system has no such locks."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
    return None


def _lock_file(folder: Path, target: Path) -> Path:
    return folder / f"{target.name}.lock"


def _aside(folder: Path, target: Path) -> Path:
    """Where a folder that is replaced waits until the new one is in its place."""
    return folder / f"{target.name}.replaced"


def _claim(target: Path) -> tuple[Path, IO[bytes]]:
    """A new folder beside `target`, and the open lock that says that it is ours."""
    for _ in range(CLAIMS):
        folder = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
        try:
            folder.mkdir()
            file = _lock_file(folder, target).open("xb")
        except (FileExistsError, FileNotFoundError):  # the name is taken; or a run that clears leftovers was faster
            continue
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise
        if lock(file) is not False and _lock_file(folder, target).exists():
            return folder, file
        file.close()
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _clear_leftovers(target: Path, name: Path) -> None:
    """Remove what killed runs left beside `target`; a folder that one of them had put aside goes back to its place.

    Raises:
        UsageError: one of the runs is alive.
    """
    ours = re.compile(re.escape(target.name) + r"\.[0-9a-f]{8}\.partial")
    with os.scandir(target.parent) as entries:
        folders = [Path(entry) for entry in entries if ours.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]
    for folder in folders:
        try:
            with _lock_file(folder, target).open("r+b") as file:
                locked = lock(file)
                if locked:
                    if not target.exists() and _aside(folder, target).exists():
                        os.replace(_aside(folder, target), target)
                    _remove_partial(folder, target, file)
        except FileNotFoundError:  # killed before it had a lock
            with contextlib.suppress(OSError):
                folder.rmdir()
            continue
        except OSError:  # another user's
            continue
        if locked is False:
            raise UsageError(f"{name}: another run is writing it, in {folder.name}; wait until it ends, or stop it")


def _remove_partial(folder: Path, target: Path, lock_file: IO[bytes]) -> None:
    """What can be removed of it; the lock last, and while it is ours, so that a kill leaves something that the next run can tell."""
    for entry in (folder / target.name, _aside(folder, target)):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                entry.unlink()
    with contextlib.suppress(OSError):
        _lock_file(folder, target).unlink()
    lock_file.close()  # some network file systems keep a removed file until then
    with contextlib.suppress(OSError):
        folder.rmdir()


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, where the system can (Linux, most file systems)."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return bool(renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


def _sync(path: Path) -> None:
    """Make a file, or a folder with all that is in it, durable."""
    if not path.is_dir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        return
    for folder, _, files in os.walk(path):
        for name in files:
            _sync(Path(folder, name))
        _sync_folder(Path(folder))


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
