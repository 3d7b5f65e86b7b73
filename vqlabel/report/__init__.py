"""Numbers first, pictures from them: where every byte of a `.vql` went, how far its labels are from the dump, and what others store."""

from os import PathLike
from typing import Any

from vqlabel.labels import LabelSource
from vqlabel.progress import Progress, silent
from vqlabel.report.account import Account, Row, account
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.file import VqlFile

__all__ = ["Account", "Row", "account", "stats"]


@check_argument_types
def stats(
    path: str | PathLike[str],
    *,
    against: str | PathLike[str] | LabelSource | None = None,
    teacher_bytes: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Account for a `.vql`, as one dictionary that JSON takes.

    Args:
        against: a dump (a path or a LabelSource): adds `distortion`, `calibration` and `same_dump`, see `compare`. Loads torch. It may
            hold other labels than the file was packed from, another teacher run's, as long as there are as many of as many classes.
        teacher_bytes: size of the teacher: adds `teacher`, the number of labels from which on it is the smaller thing to ship.

    Raises:
        UsageError: no such file, or `against` has another number of records or classes, or another domain.
        BadContainer: the file is damaged.
    """
    file = VqlFile(path)
    found = account(file).to_dict(teacher_bytes)
    if against is not None:
        from vqlabel.report.against import compare

        found |= compare(file, against, device=device, progress=progress)
    return found
