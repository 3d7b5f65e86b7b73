"""Commands that fit codecs: fit and tune. They import torch inside their bodies, so that --help is fast."""

from dataclasses import replace
from typing import Annotated

import typer

from vqlabel.cli import show, terminal
from vqlabel.cli.app import app
from vqlabel.cli.fit_options import fit_options
from vqlabel.cli.options import (
    CODECS,
    Array,
    Axes,
    Classes,
    ClassMap,
    Domain,
    Dump,
    Images,
    Json,
    Kl,
    Layout,
    OutCodec,
    Overwrite,
    Threads,
)
from vqlabel.config import FitConfig
from vqlabel.errors import UsageError
from vqlabel.threads import named_threads


@app.command()
@terminal.exit_with_errors
@fit_options
def fit(
    dump: Dump,
    out: OutCodec,
    config: FitConfig,
    codec: Annotated[
        str | None, typer.Option(help=f"kind of codec: {CODECS} (default: sparse for top-k labels, otherwise vqae)")
    ] = None,
    kl: Kl = None,
    layout: Layout = None,
    domain: Domain = None,
    classes: Classes = None,
    images: Images = None,
    class_map: ClassMap = None,
    array: Array = None,
    axes: Axes = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="continue an interrupted fit; the result is the same if the number of threads is the same"),
    ] = False,
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Fit a codec to a dump of labels. The last epochs are held out for the reported distortion."""
    from vqlabel.labels import open_labels
    from vqlabel.storage.apart import check_apart
    from vqlabel.storage.formats import CODEC
    from vqlabel.storage.targets import check_target
    from vqlabel.workflows.fit import fit as run
    from vqlabel.workflows.tune import tune as search

    if kl is not None and resume:
        raise UsageError("--resume: a search for --kl saves no state; run it again without --resume")
    check_target(out, CODEC, overwrite=overwrite)
    check_apart(out, dump, beside=(images, class_map))
    config = replace(config, codec=codec)
    with named_threads(threads), terminal.progress_bar() as progress:
        source = terminal.report_order_evidence(
            open_labels(dump, layout, domain, classes=classes, images=images, class_map=class_map, array=array, axes=axes)
        )
        if kl is None:
            report = run(source, config, out=out, overwrite=overwrite, resume=resume, progress=progress)[1]
        else:
            report = search(source, config, kl=kl, out=out, overwrite=overwrite, progress=progress)[1]
    terminal.notes(report)
    terminal.emit({**report, "path": str(out)}, json, show.show_fit)


@app.command()
@terminal.exit_with_errors
@fit_options
def tune(
    dump: Dump,
    out: OutCodec,
    config: FitConfig,
    kl: Kl = None,
    minutes: Annotated[
        float, typer.Option(help="time budget in minutes, including the final fit, whose duration is estimated from its trial")
    ] = 10,
    layout: Layout = None,
    domain: Domain = None,
    classes: Classes = None,
    images: Images = None,
    class_map: ClassMap = None,
    array: Array = None,
    axes: Axes = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Search for the best codec within a budget. Budgets are --ratio, --bytes, --kl, or --bits, which here count all
    bits per label except those of the augmentation."""
    from vqlabel.labels import open_labels
    from vqlabel.storage.apart import check_apart
    from vqlabel.storage.formats import CODEC
    from vqlabel.storage.targets import check_target
    from vqlabel.workflows.tune import tune as run

    check_target(out, CODEC, overwrite=overwrite)
    check_apart(out, dump, beside=(images, class_map))
    with named_threads(threads), terminal.progress_bar() as progress:
        source = terminal.report_order_evidence(
            open_labels(dump, layout, domain, classes=classes, images=images, class_map=class_map, array=array, axes=axes)
        )
        report = run(
            source, replace(config, bits=None), kl=kl, bits=config.bits, minutes=minutes, out=out, overwrite=overwrite, progress=progress,
            on_trial=show.show_trial,
        )[1]  # fmt: skip
    terminal.notes(report)
    terminal.emit({**report, "path": str(out)}, json, show.show_tuned)
