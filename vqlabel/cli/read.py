"""Commands that read `.vql` files and dumps. They import torch inside their bodies, so that --help is fast."""

from pathlib import Path
from typing import Annotated

import typer

from vqlabel.cli import terminal
from vqlabel.cli.app import app
from vqlabel.cli.help import INPUT, OUTPUT
from vqlabel.cli.options import (
    LAYOUTS,
    Array,
    Axes,
    Classes,
    ClassMap,
    Device,
    Domain,
    Images,
    Json,
    Overwrite,
    Target,
    Threads,
    Vql,
)
from vqlabel.cli.parse import read_span
from vqlabel.threads import named_threads


@app.command()
@terminal.exit_with_errors
def unpack(
    path: Vql,
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", metavar="PATH", rich_help_panel=OUTPUT, help=".npy or .safetensors file, or a folder, to write"
        ),
    ],
    layout: Target = None,
    records: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:STOP",
            rich_help_panel=INPUT,
            help="range of records to decode, first:stop as in a Python slice (default: all)",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            rich_help_panel=OUTPUT,
            help="dtype of the labels: f16, bf16 or f32 (default: that of the original dump)",
        ),
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Decode a .vql file back into labels."""
    span = read_span(records)
    from vqlabel.workflows.unpack import unpack as run

    with named_threads(threads), terminal.progress_bar() as progress:
        result = run(path, out, layout=layout, records=span, dtype=dtype, device=device, overwrite=overwrite, progress=progress)
    terminal.notes(result)
    terminal.emit(
        result, json, lambda r: typer.echo(f"{r['path']}: {r['records']:,} labels of {r['classes']:,} classes, {r['dtype']}")
    )


@app.command()
@terminal.exit_with_errors
def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="dump, or .vql file")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="dump to write: a .npy, .safetensors or .pt file, or a folder with --layout")
    ],
    layout: Target = None,
    source_layout: Annotated[
        str | None,
        typer.Option("--from", metavar="LAYOUT", rich_help_panel=INPUT, help=f"layout of SOURCE: {LAYOUTS} (default: detected)"),
    ] = None,
    domain: Domain = None,
    classes: Classes = None,
    images: Images = None,
    class_map: ClassMap = None,
    array: Array = None,
    axes: Axes = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            rich_help_panel=OUTPUT,
            help="dtype of labels decoded from a .vql file: f16, bf16 or f32 (default: that of the original dump)",
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a dump in another layout. Fails if that layout cannot store all columns of the dump."""
    from vqlabel.labels.open import check_dump_target, output_layout
    from vqlabel.storage.apart import check_apart
    from vqlabel.workflows.convert import convert as run
    from vqlabel.workflows.convert import open_any

    check_dump_target(out, output_layout(out, layout), overwrite=overwrite)
    check_apart(out, source, beside=(images, class_map))
    with terminal.progress_bar() as progress:
        labels = terminal.report_order_evidence(
            open_any(source, source_layout, domain, images, classes, dtype, class_map, array, axes)
        )
        result = run(labels, out, layout=layout, overwrite=overwrite, progress=progress)
    terminal.notes(result)
    terminal.emit(
        result,
        json,
        lambda r: typer.echo(f"{r['path']}: {r['records']:,} labels of {r['classes']:,} classes, {r['layout']}, {r['dtype']}"),
    )


Files = Annotated[list[Path], typer.Argument(metavar="FILE", help=".vql files; - reads one from standard input")]
Things = Annotated[
    list[Path],
    typer.Argument(metavar="FILE", help=".vql files, codec files or dumps; - reads a .vql from standard input"),
]


@app.command()
@terminal.exit_with_errors
def info(paths: Things, json: Json = False) -> None:
    """Show what a .vql file, a codec file or a dump holds. No label of a .vql file is decoded; of a codec file, the
    report of its fit is shown; of a dump, two batches are read."""
    from vqlabel.cli.info import show_info
    from vqlabel.report.info import info as run

    terminal.for_each(paths, run, json, show_info)


@app.command()
@terminal.exit_with_errors
def verify(paths: Files, json: Json = False) -> None:
    """Check .vql files for damage. Reads every byte, checks every code and column, and loads the decoder."""
    from vqlabel.workflows.verify import verify as run

    terminal.for_each(
        paths,
        lambda path: {"path": str(path), **run(path)},
        json,
        lambda f: typer.echo(f"{f['path']}: {f['bytes']:,} bytes in {f['chunks']} chunks and {f['tensors']} tensors, all valid"),
    )
