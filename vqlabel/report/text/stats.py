"""Bytes of a `.vql` of documents, and the distortion of its labels: `stats` for documents."""

from os import PathLike
from typing import Any

from vqlabel.labels.text.source import TextSource
from vqlabel.progress import Progress, silent
from vqlabel.report.text.account import account
from vqlabel.type_checks import check_argument_types


@check_argument_types
def stats_text(
    path: str | PathLike[str],
    *,
    against: str | PathLike[str] | TextSource | None = None,
    head: str | PathLike[str] | None = None,
    labels: int | None = None,
    seed: int = 0,
    samples: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Account for the bytes of a `.vql` of documents, as a JSON object: see `account`.

    Args:
        against: a dump (a path or a TextSource): adds `distortion`, `calibration`, `compared` and `same_head`, see
            `distortion_against`; loads torch.
        head: the teacher's output head, a path for `open_head`.
        labels: about how many are compared, of random documents; all, if there are not more; None: 100,000.
        seed: of the choice of documents.
        samples: adds so many labels, raw and decoded, as `samples`.

    Raises:
        UsageError: no such file; or the dump cannot be compared with it.
        BadContainer: the file is damaged.
        BadLabels: the dump is malformed, or its rows belong to other tokens.
    """
    result = account(path)
    if against is not None:
        from vqlabel.report.text.against import DEFAULT_LABELS, distortion_against
        from vqlabel.vql.text.file import TextVqlFile

        result |= distortion_against(
            TextVqlFile(path),
            against,
            head=head,
            labels=DEFAULT_LABELS if labels is None else labels,
            seed=seed,
            samples=samples,
            device=device,
            progress=progress,
        )
    return result
