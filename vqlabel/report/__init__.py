"""Numbers first, pictures from them: where every byte of a `.vql` went, how far its labels are from the dump, and what others store."""

from os import PathLike
from typing import Any

from vqlabel.progress import Progress, silent
from vqlabel.report.account import Account, Row, account
from vqlabel.vql import VqlFile

__all__ = ["Account", "Row", "account", "stats"]


def stats(
    path: str | PathLike[str],
    *,
    against: Any = None,
    teacher_bytes: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Account for a `.vql`, as one dictionary that JSON takes.

    Args:
        against: the dump it was packed from (a path or a LabelSource): adds `distortion`. Loads torch.
        teacher_bytes: size of the teacher: adds `teacher`, the number of labels from which on it is the smaller thing to ship.

    Raises:
        UsageError: no such file, or `against` has other records.
        BadContainer: the file is damaged.
    """
    file = VqlFile(path)
    found = account(file).to_dict(teacher_bytes)
    if against is not None:
        from vqlabel.report.compare import distortion_against

        found["distortion"] = distortion_against(file, against, device=device, progress=progress)
    return found
