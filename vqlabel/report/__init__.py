"""Figures of a `.vql` and plots of them: bytes by part, distortion, comparisons with baselines and other systems."""

from os import PathLike
from typing import Any

from vqlabel.labels.memory import Dump
from vqlabel.progress import Progress, silent
from vqlabel.report.account import Account, Row, account
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.file import VqlFile

__all__ = ["Account", "Row", "account", "stats"]


@check_argument_types
def stats(
    path: str | PathLike[str],
    *,
    against: Dump | None = None,
    teacher_bytes: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Account for the bytes of a `.vql`, as a JSON object.

    Args:
        against: a dump (a path, a LabelSource, or labels in memory): adds `distortion`, `calibration` and `same_dump`,
            see `distortion_against`; loads torch. Its labels may differ from those that the file was packed from
            (another teacher, another run), but not in number, classes or domain.
        teacher_bytes: size of the teacher: adds `teacher`, the number of labels above which the teacher is smaller than
            their file.

    Raises:
        UsageError: no such file; `against` has another number of records or classes, or another domain.
        BadContainer: the file is damaged.
    """
    file = VqlFile(path)
    result = account(file).to_dict(teacher_bytes)
    if against is not None:
        from vqlabel.report.against import distortion_against

        result |= distortion_against(file, against, device=device, progress=progress)
    return result
