"""The command that writes a page about a `.vql`. It imports torch inside its body, so that --help is fast."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vqlabel.cli import terminal
from vqlabel.cli.app import app
from vqlabel.cli.help import INPUT, OUTPUT
from vqlabel.cli.options import Device, Head, Json, Layout, Overwrite, Threads, Vql
from vqlabel.cli.show_fit import judged
from vqlabel.threads import named_threads


@app.command()
@terminal.exit_with_errors
def report(
    path: Vql,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.html", rich_help_panel=OUTPUT, help="web page to write")],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="DUMP", rich_help_panel=INPUT, help="the original dump: adds distortion, calibration and sample labels"
        ),
    ] = None,
    head: Head = None,
    layout: Layout = None,
    device: Device = "cpu",
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write one web page about a .vql file: bytes, quality, codes and sample labels. It needs no network."""
    from vqlabel.errors import UsageError
    from vqlabel.report.page import write_report
    from vqlabel.report.plots import new_figure
    from vqlabel.storage.apart import check_apart
    from vqlabel.vql.text.file import is_text

    new_figure()  # raises if matplotlib is missing, before labels are compared
    check_apart(out, path, beside=(against, head))
    for flag, value in (("--head", head), ("--layout", layout)):
        if value is not None and against is None:
            raise UsageError(f"{flag} {value}: needs --against, the dump to compare with")
    wrong, kind = ("--layout", "images") if is_text(path) else ("--head", "documents")
    if (value := layout if wrong == "--layout" else head) is not None:
        raise UsageError(f"{wrong} {value}: is for labels of {kind}; {path} has others")
    with named_threads(threads), terminal.progress_bar() as progress:
        result = write_report(
            path, out, against=against, head=head, layout=layout, overwrite=overwrite, device=device, progress=progress
        )
    terminal.emit(result, json, show_report)


def show_report(result: dict[str, Any]) -> None:
    """Where the page is, and the judgement that it begins with."""
    typer.echo(f"{result['path']}: {terminal.size(result['bytes'])}, {len(result['sections'])} sections")
    verdict = result["stats"].get("baselines", {}).get("judgement")
    if verdict is not None:
        typer.echo(judged(verdict, has_gain=result["stats"]["baselines"].get("gain") is not None))
