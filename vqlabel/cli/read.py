"""Commands that read `.vql` files and dumps. They import torch inside their bodies, so that --help is fast."""

from pathlib import Path
from typing import Annotated

import typer

from vqlabel.cli import show, terminal
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


@app.command()
@terminal.exit_with_errors
def info(path: Annotated[Path, typer.Argument(help=".vql file, or codec file")], json: Json = False) -> None:
    """Show the header of a .vql file or codec file. No label is decoded; a codec file's fit report is included."""
    from vqlabel.container import is_codec_file

    if is_codec_file(path):
        _codec_info(path, json)
        return
    from vqlabel.vql.text.file import is_text

    if is_text(path):
        _text_info(path, json)
        return
    import numpy as np

    from vqlabel.labels.schema import MIX_COLUMNS, OWN_COLUMNS, PARTNER_COLUMNS
    from vqlabel.vql.column_limits import PREFIX
    from vqlabel.vql.file import VqlFile

    file, column_names = VqlFile(path), (*OWN_COLUMNS, *PARTNER_COLUMNS, *MIX_COLUMNS, "image_size", "drawn", "names")
    stored = file.container.json_object("vql.columns")
    is_seeded = stored.get("order") == "seeded"
    header = {
        "path": str(path),
        "bytes": file.container.size,
        "version": file.container.metadata["vql.version"],
        "records": file.records,
        "label": file.label,
        "codec": file.codec,
        "epochs": len({place.epoch for place in file.columns.places}),
        "batches": len(file.columns.places),
        "batch_size": int(np.diff(file.columns.starts).max(initial=0)),
        "order": "seeded" if is_seeded else file.columns.order,
        "columns": [name for name in column_names if PREFIX + name in file.container.streams],
        "drawn": [name for name in column_names if file.columns.has(name)] if is_seeded else [],
        "recipe": stored.get("recipe"),
        "source": file.source,
        "writer": file.container.metadata.get("vql.writer"),
    }
    terminal.emit(header, json, lambda h: terminal.table([(key, str(value)) for key, value in h.items()], ("field", "value")))


def _text_info(path: Path, json: bool) -> None:
    from vqlabel.vql.text.file import TextVqlFile

    file = TextVqlFile(path)
    header = {
        "path": str(path),
        "bytes": file.container.size,
        "version": file.container.metadata["vql.version"],
        "labels": file.rows,
        "documents": len(file.documents),
        "bits_per_label": file.label_bits,
        "label": file.label,
        "codec": file.codec,
        "text": file.text,
        "writer": file.container.metadata.get("vql.writer"),
    }
    terminal.emit(header, json, lambda h: terminal.table([(key, str(value)) for key, value in h.items()], ("field", "value")))


def _codec_info(path: Path, json: bool) -> None:
    from vqlabel.codecs import load_codec
    from vqlabel.workflows.quality import with_current_names

    codec, report = load_codec(path)
    description = {
        "path": str(path), "bytes": path.stat().st_size, "codec": codec.kind, "config": codec.config.to_dict(), "code_bits": sum(codec.code_bits),
        "report": with_current_names(report),
    }  # fmt: skip
    terminal.emit(description, json, show.show_codec)


@app.command()
@terminal.exit_with_errors
def verify(path: Vql, json: Json = False) -> None:
    """Check a .vql file for damage. Reads every byte, checks every code and column, and loads the decoder."""
    from vqlabel.workflows.verify import verify as run

    terminal.emit(
        {"path": str(path), **run(path)},
        json,
        lambda f: typer.echo(f"{f['path']}: {f['bytes']:,} bytes in {f['chunks']} chunks and {f['tensors']} tensors, all valid"),
    )
