"""Check that a target is apart from the inputs of the same run, so that nothing is replaced while it is read."""

import os
from collections.abc import Mapping
from pathlib import Path

from vqlabel.errors import UsageError


def check_apart(
    target: str | os.PathLike[str] | None,
    *sources: str | os.PathLike[str] | None,
    beside: tuple[str | os.PathLike[str] | None, ...] = (),
) -> None:
    """Refuse a target that would replace an input, by whatever name: links, hard links, names that differ in case.

    Args:
        target: the file or folder that will be written; None: nothing is written.
        sources: input files and folders; a target inside one of these folders is refused, too.
        beside: further inputs, such as a codec file or a folder of images; a target inside such a folder is accepted.

    Raises:
        UsageError: `target` is an input, a folder that contains one, or lies in one of `sources`.
    """
    if target is None:
        return
    real = Path(os.path.realpath(target))
    for source in (*sources, *beside):
        if source is None:
            continue
        read = Path(os.path.realpath(source))
        if real == read or _same_file(real, read):
            raise UsageError(f"{target}: is an input of this run ({source}), and would be replaced; name another target")
        if real in read.parents:
            raise UsageError(f"{target}: contains {source}, which is an input, and would be replaced; name another target")
        if source in sources and read in real.parents:
            raise UsageError(f"{target}: lies in {source}, which is an input; name a target outside that folder")


def check_distinct(targets: Mapping[str, str | os.PathLike[str]]) -> None:
    """Raises UsageError if two outputs of a run, name -> path, are one file."""
    names: dict[Path, str] = {}
    for name, path in targets.items():
        if (other := names.setdefault(Path(os.path.realpath(path)), name)) != name:
            raise UsageError(f"{path}: is the target of both {other} and {name}; name two files")


def _same_file(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file, for example by a hard link or by names that differ in case."""
    try:
        return first.samefile(second)
    except OSError:  # one of them does not exist
        return False
