"""Commands that fit codecs: fit and tune. They import torch inside their bodies, so that --help is fast."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqlabel.cli import show, terminal
from vqlabel.cli.app import app
from vqlabel.cli.fit_options import fit_options
from vqlabel.cli.help import CODEC, RATE, STUDENTS
from vqlabel.cli.options import (
    CODECS,
    DEFAULT_VIEW,
    Array,
    Axes,
    Classes,
    ClassMap,
    Compression,
    Domain,
    Dump,
    Head,
    Ids,
    Images,
    Json,
    Kl,
    Layer,
    Layout,
    NoFuture,
    OutCodec,
    Overwrite,
    Passes,
    ReferenceHead,
    Rest,
    Restart,
    StudentImages,
    Threads,
    TopK,
    Val,
    ValClassMap,
    ValLabels,
    View,
    Vocab,
)
from vqlabel.config import FitConfig, TextFitConfig
from vqlabel.errors import UsageError
from vqlabel.threads import named_threads

if TYPE_CHECKING:
    from vqlabel.workflows.text.tune import TextGoal


@app.command()
@terminal.exit_with_errors
@fit_options
def fit(
    dump: Dump,
    out: OutCodec,
    config: FitConfig,
    codec: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            rich_help_panel=CODEC,
            help=f"kind of codec: {CODECS} (default: sparse for top-k labels, otherwise vqae)",
        ),
    ] = None,
    kl: Kl = None,
    layout: Layout = None,
    domain: Domain = None,
    classes: Classes = None,
    images: Images = None,
    class_map: ClassMap = None,
    array: Array = None,
    axes: Axes = None,
    head: Head = None,
    layer: Layer = None,
    vocab: Vocab = None,
    k: TopK = None,
    rest: Rest = None,
    compression: Compression = None,
    ids: Ids = None,
    no_future: NoFuture = False,
    reference_head: ReferenceHead = False,
    threads: Threads = None,
    overwrite: Overwrite = False,
    restart: Restart = False,
    json: Json = False,
) -> None:
    """Fit a codec to a dump of labels. The last epochs are held out for the reported distortion. After an interruption,
    the same command resumes."""
    from vqlabel.cli import text

    if text.is_text(dump, head, vocab, k, rest, compression):
        text.refuse_others(
            {"--domain": domain, "--classes": classes, "--images": images, "--class-map": class_map, "--array": array, "--axes": axes}
        )  # fmt: skip
        fit_config = text.text_config(config, ids=ids, no_future=no_future, reference_head=reference_head)
        options = {"layer": layer, "vocab": vocab, "k": k, "rest": rest, "compression": compression}
        goal = None if kl is None else text.goal(fit_config, kl=kl)
        _fit_text(dump, options, fit_config, goal, head, out, overwrite=overwrite, restart=restart, threads=threads, json=json)
        return
    from vqlabel.labels import open_labels
    from vqlabel.storage.apart import check_apart
    from vqlabel.storage.formats import CODEC
    from vqlabel.storage.targets import check_target
    from vqlabel.workflows.fit import fit as run
    from vqlabel.workflows.tune import tune as search

    check_target(out, CODEC, overwrite=overwrite)
    check_apart(out, dump, beside=(images, class_map))
    config = replace(config, codec=codec)
    with named_threads(threads), terminal.progress_bar() as progress:
        source = terminal.report_order_evidence(
            open_labels(dump, layout, domain, classes=classes, images=images, class_map=class_map, array=array, axes=axes)
        )
        if kl is None:
            report = run(source, config, out=out, overwrite=overwrite, restart=restart, progress=progress)[1]
        else:
            report = search(source, config, kl=kl, out=out, overwrite=overwrite, restart=restart, progress=progress)[1]
    terminal.notes(report)
    terminal.emit({**report, "path": str(out)}, json, show.show_fit)
    terminal.fail_if_missed(report)


@app.command()
@terminal.exit_with_errors
@fit_options
def tune(
    dump: Dump,
    out: OutCodec,
    config: FitConfig,
    kl: Kl = None,
    minutes: Annotated[
        float,
        typer.Option(
            metavar="MINUTES",
            rich_help_panel=RATE,
            help="time budget in minutes, including the final fit, whose duration is estimated from its trial",
        ),
    ] = 10,
    judge: Annotated[
        str,
        typer.Option(
            metavar="JUDGE",
            rich_help_panel=STUDENTS,
            help="what decides between two codecs: kl, that of held-out labels; or student, the scores of a small student that is trained on "
            "their labels (needs --student and --val; also tries other temperatures)",
        ),
    ] = "kl",
    student: StudentImages = None,
    val: Val = None,
    val_labels: ValLabels = None,
    view: View = DEFAULT_VIEW,
    passes: Passes = 4,
    student_temperature: Annotated[
        float | None,
        typer.Option(
            metavar="T",
            rich_help_panel=STUDENTS,
            help="temperature of the student's loss (default: that of the layout's recipe, otherwise 1)",
        ),
    ] = None,
    layout: Layout = None,
    domain: Domain = None,
    classes: Classes = None,
    images: Images = None,
    class_map: ValClassMap = None,
    array: Array = None,
    axes: Axes = None,
    head: Head = None,
    layer: Layer = None,
    ids: Ids = None,
    no_future: NoFuture = False,
    reference_head: ReferenceHead = False,
    threads: Threads = None,
    overwrite: Overwrite = False,
    restart: Restart = False,
    json: Json = False,
) -> None:
    """Search for the best codec within a budget. Budgets are --ratio, --bytes, --kl, or --bits, which here count all
    bits per label except those of the augmentation. After an interruption, the same command resumes."""
    from vqlabel.cli import text

    if text.is_text(dump, head):
        text.refuse_others(
            {"--judge": None if judge == "kl" else judge, "--student": student, "--val": val, "--val-labels": val_labels,
             "--view": None if view == DEFAULT_VIEW else view, "--student-temperature": student_temperature, "--layout": layout,
             "--domain": domain, "--classes": classes, "--images": images, "--class-map": class_map, "--array": array, "--axes": axes}
        )  # fmt: skip
        fit_config = text.text_config(config, ids=ids, no_future=no_future, reference_head=reference_head)
        goal = text.goal(fit_config, kl=kl, minutes=minutes)
        _fit_text(
            dump, {"layer": layer}, fit_config, goal, head, out, overwrite=overwrite, restart=restart, threads=threads, json=json
        )
        return
    from vqlabel.labels import open_labels
    from vqlabel.report.student_benchmark import StudentBenchmark, StudentJudge
    from vqlabel.storage.apart import check_apart
    from vqlabel.storage.formats import CODEC
    from vqlabel.storage.targets import check_target
    from vqlabel.workflows.tune import check_budget
    from vqlabel.workflows.tune import tune as run

    if judge not in ("kl", "student"):
        raise UsageError(f"--judge {judge}: must be kl or student")
    given = [option is not None for option in (student, val, val_labels, student_temperature)]
    if any(given) if judge == "kl" else not all(given[:2]):
        raise UsageError(
            f"--judge {judge}: students need --judge student, --student (the images of the dump) and --val (new images to test them on)"
        )
    check_target(out, CODEC, overwrite=overwrite)
    check_apart(out, dump, beside=(images, class_map, student, val, val_labels))
    check_budget(replace(config, bits=None), config.bits, kl, minutes, judged=judge == "student")
    with named_threads(threads), terminal.progress_bar() as progress:
        labels_map = class_map if images or judge == "kl" else None
        source = terminal.report_order_evidence(
            open_labels(dump, layout, domain, classes=classes, images=images, class_map=labels_map, array=array, axes=axes)
        )
        students = None
        if student is not None and val is not None:
            benchmark = StudentBenchmark(
                source, student, val, val_labels=val_labels, class_map=class_map, view=view, progress=progress
            )
            if student_temperature is None:
                student_temperature = source.about.temperature or 1.0
            students = StudentJudge(
                benchmark=benchmark, temperature=student_temperature, passes=passes, seed=config.seed, progress=progress
            )
        report = run(
            source, replace(config, bits=None), kl=kl, bits=config.bits, minutes=minutes, judge=students, out=out, overwrite=overwrite,
            restart=restart, progress=progress, on_trial=show.show_trial,
        )[1]  # fmt: skip
    terminal.notes(report)
    terminal.emit({**report, "path": str(out)}, json, show.show_tuned)
    terminal.fail_if_missed(report)


def _fit_text(
    dump: Path,
    options: dict[str, Any],
    config: TextFitConfig,
    goal: "TextGoal | None",
    head: str | None,
    out: Path,
    *,
    overwrite: bool,
    restart: bool,
    threads: int | None,
    json: bool,
) -> None:
    """Fit a codec of documents, or search for one that reaches a goal; write it and print the result.

    Args:
        options: of `open_text_labels`.
    """
    from vqlabel.cli import text
    from vqlabel.storage.formats import CODEC
    from vqlabel.workflows.text.fit import fit_text
    from vqlabel.workflows.text.tune import tune_text

    with named_threads(threads), terminal.progress_bar() as progress:
        source = text.open_dump(dump, out, CODEC, options, overwrite=overwrite)
        if goal is None:
            report = fit_text(source, config, head=head, out=out, overwrite=overwrite, restart=restart, progress=progress)[1]
        else:
            report = tune_text(source, goal, config, head=head, out=out, overwrite=overwrite, restart=restart, progress=progress)[1]
    terminal.notes(report)
    terminal.emit({**report, "path": str(out)}, json, text.show_fit if goal is None else text.show_tuned)
    terminal.fail_if_missed(report)
