"""Commands that measure: stats, compare and demo. They import torch inside their bodies, so that --help is fast."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vqlabel.cli import show, terminal
from vqlabel.cli.app import app
from vqlabel.cli.help import CODEC, INPUT, OUTPUT, RATE, TRAINING
from vqlabel.cli.help import TEXT as TEXT_PANEL
from vqlabel.cli.options import (
    DEFAULT_VIEW,
    Array,
    Axes,
    Classes,
    Device,
    Domain,
    Dump,
    Head,
    Images,
    Json,
    Layer,
    Layout,
    Overwrite,
    Passes,
    Seed,
    StudentImages,
    Threads,
    Val,
    ValClassMap,
    ValLabels,
    View,
    Vql,
)
from vqlabel.cli.parse import read_rates, read_size, read_temperature, read_words
from vqlabel.cli.show_text_comparison import show_text_comparison
from vqlabel.errors import UsageError
from vqlabel.threads import named_threads

DEMO_PICTURE = Path("vqlabel-demo.png")  # in the current folder


@app.command()
@terminal.exit_with_errors
def stats(
    path: Vql,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="DUMP",
            rich_help_panel=INPUT,
            help="the original dump, or another teacher's labels of the same records: adds KL at T = 1, 4 and 20 (documents: 1, 2 and 4), top-1 "
            "agreement, squared error and calibration; a note on stderr reports labels that are not those of the file",
        ),
    ] = None,
    head: Head = None,
    labels: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="labels to compare with --against, of random documents; all, if there are not more (default: 100000)",
            rich_help_panel=TEXT_PANEL,
        ),
    ] = None,
    teacher_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            rich_help_panel=INPUT,
            help="size of the teacher, such as 90MB: adds the number of labels above which the teacher is smaller",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", rich_help_panel=OUTPUT, help="image file to write: plot of the bits per label")
    ] = None,
    plot_calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=OUTPUT,
            help="image file to write: plot of decoded against raw probabilities; needs --against",
        ),
    ] = None,
    layout: Layout = None,
    array: Array = None,
    axes: Axes = None,
    device: Device = "cpu",
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Report the bytes of each part of a .vql file. With --against, report the distortion of its labels too."""
    from vqlabel.cli import text
    from vqlabel.labels import open_labels
    from vqlabel.labels.open import is_topk_layout
    from vqlabel.report import plots
    from vqlabel.report import stats as run
    from vqlabel.storage.apart import check_apart
    from vqlabel.vql.file import VqlFile
    from vqlabel.vql.text.file import is_text

    if plot_calibration is not None and against is None:
        raise UsageError(f"--plot-calibration {plot_calibration}: needs --against, the dump to compare with")
    if is_text(path):
        text.refuse_others({"--teacher-bytes": teacher_bytes, "--plot": plot, "--layout": layout, "--array": array, "--axes": axes})
        if plot_calibration is not None:
            plots.check_plot_file(plot_calibration, overwrite=overwrite)
            check_apart(plot_calibration, path, beside=(against, head))
        with named_threads(threads), terminal.progress_bar() as progress:
            result = text.stats(path, against, head, labels, device, progress)
        if plot_calibration is not None:
            plots.plot_calibration(result, plot_calibration, overwrite=overwrite)
        terminal.emit(result, json, text.show_stats)
        return
    for flag, given in (("--head", head), ("--labels", labels)):
        if given is not None:
            raise UsageError(f"{flag} {given}: is for labels of documents; {path} has labels of images")
    for flag, value in (("--layout", layout), ("--array", array), ("--axes", axes)):
        if value is not None and against is None:
            raise UsageError(f"{flag} {value}: needs --against, the dump that it applies to")
    if plot is not None and plot == plot_calibration:
        raise UsageError(f"--plot and --plot-calibration are both {plot}; name two files")
    for plot_file in (plot, plot_calibration):
        if plot_file is not None:
            plots.check_plot_file(plot_file, overwrite=overwrite)
            check_apart(plot_file, path, against)
    with named_threads(threads), terminal.progress_bar() as progress:
        file = VqlFile(path)
        classes = file.classes if file.about.support is not None and is_topk_layout(file.about.layout) else None
        source = (
            None if against is None else open_labels(against, layout, file.label["domain"], classes=classes, array=array, axes=axes)
        )
        result = run(
            path,
            against=source,
            teacher_bytes=None if teacher_bytes is None else read_size(teacher_bytes, "--teacher-bytes"),
            device=device,
            progress=progress,
        )
    if plot is not None:
        plots.plot_account(result, plot, overwrite=overwrite)
    if plot_calibration is not None:
        plots.plot_calibration(result, plot_calibration, overwrite=overwrite)
    if result.get("same_dump") is False:
        terminal.note(f"{against}: its labels differ from those that {path} was packed from (by sha256); the comparison continues")
    terminal.emit(result, json, show.show_stats)


@app.command()
@terminal.exit_with_errors
def compare(
    dump: Dump,
    bits: Annotated[
        list[str] | None,
        typer.Option(metavar="N,...", rich_help_panel=RATE, help="code bits per label (default: 8 16 32 64 128 256)"),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            rich_help_panel=CODEC,
            help="methods to compare, e.g. vqae,topk,rq; of documents, e.g. token_vqae,topk,sampling (default: all that are installed)",
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", rich_help_panel=INPUT, help="file of the teacher's weights, to compare its size with that of the labels"
        ),
    ] = None,
    teacher_bytes: Annotated[
        str | None,
        typer.Option(metavar="SIZE", rich_help_panel=INPUT, help="size of the teacher, such as 90MB, instead of --teacher"),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=OUTPUT, help="image file to write: plot of the rate-distortion curves"),
    ] = None,
    student: StudentImages = None,
    val: Val = None,
    val_labels: ValLabels = None,
    class_map: ValClassMap = None,
    view: View = DEFAULT_VIEW,
    passes: Passes = 4,
    temperature: Annotated[
        str | None,
        typer.Option(
            metavar="T,...",
            rich_help_panel=TRAINING,
            help="temperatures of the student's loss, for which methods are fitted and compared, such as 1,4,20; a schedule, such as 20:2; or "
            "mse for squared error of logits (default: that of the layout's recipe, such as 20 for sre2l, otherwise 1,4,20)",
        ),
    ] = None,
    seed: Seed = 0,
    layout: Layout = None,
    domain: Domain = None,
    classes: Classes = None,
    images: Images = None,
    array: Array = None,
    axes: Axes = None,
    head: Head = None,
    layer: Layer = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Compare vqae with the baselines on one dump. Reports rate-distortion curves; takes minutes per rate."""
    from vqlabel.cli import text

    rates, temperatures = read_rates(bits), read_temperature(temperature)
    size = _teacher_size(teacher, None if teacher_bytes is None else read_size(teacher_bytes, "--teacher-bytes"))
    if text.is_text(dump, head):
        text.refuse_others(
            {"--val": val, "--val-labels": val_labels, "--class-map": class_map, "--view": None if view == DEFAULT_VIEW else view,
             "--temperature": temperature, "--layout": layout, "--domain": domain, "--classes": classes, "--images": images, "--array": array,
             "--axes": axes}
        )  # fmt: skip
        options: dict[str, Any] = {"methods": read_words(methods), "seed": seed, "teacher_bytes": size, "passes": passes}
        if rates is not None:
            options["bits"] = rates
        with named_threads(threads), terminal.progress_bar() as progress:
            comparison = text.compare(
                dump, head, layer, options, student=student, plot=plot, overwrite=overwrite, progress=progress
            )
        terminal.notes(comparison)
        terminal.emit(comparison, json, show_text_comparison)
        return
    if layer is not None:
        raise UsageError(f"--layer {layer}: is for labels of documents; {dump} has labels of images")
    if plot is not None:
        from vqlabel.report.plots import check_plot_file, plot_rate_distortion
        from vqlabel.storage.apart import check_apart

        check_plot_file(plot, overwrite=overwrite)
        check_apart(plot, dump, beside=(teacher, images, class_map, student, val, val_labels))
    if (student is None) != (val is None):
        raise UsageError("--student and --val need each other: the images of the dump, and new images to test students on")
    from vqlabel.labels import open_labels
    from vqlabel.report.rate_distortion import DEFAULT_BITS, CompareConfig, compare_methods
    from vqlabel.report.student_benchmark import StudentBenchmark

    config = CompareConfig(
        bits=rates or DEFAULT_BITS,
        methods=read_words(methods),
        temperature=temperatures,
        seed=seed,
        teacher_bytes=size,
        passes=passes,
    )
    with named_threads(threads), terminal.progress_bar() as progress:
        source = terminal.report_order_evidence(
            open_labels(
                dump,
                layout,
                domain,
                classes=classes,
                images=images,
                class_map=class_map if images else None,
                array=array,
                axes=axes,
            )
        )
        benchmark = None
        if student is not None and val is not None:
            benchmark = StudentBenchmark(
                source, student, val, val_labels=val_labels, class_map=class_map, view=view, progress=progress
            )
        comparison = compare_methods(source, config, benchmark=benchmark, notify=terminal.line, progress=progress)
    if plot is not None:
        plot_rate_distortion(comparison, plot, overwrite=overwrite)
    terminal.emit(comparison, json, show.show_compare)


def _teacher_size(weights: Path | None, teacher_bytes: int | None) -> int | None:
    """Size of the teacher in bytes, from the file of its weights or as given; None: neither is."""
    if weights is None:
        return teacher_bytes
    if teacher_bytes is not None:
        raise UsageError("--teacher and --teacher-bytes both give the size of the teacher; use one of them")
    if not weights.is_file():
        raise UsageError(f"{weights}: no such file; name the teacher's weights, or use --teacher-bytes")
    return weights.stat().st_size


@app.command()
@terminal.exit_with_errors
def demo(
    text: Annotated[
        bool,
        typer.Option(
            "--text",
            rich_help_panel=INPUT,
            help="run the steps for a language model, on the help texts of Python, instead of for images",
        ),
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", rich_help_panel=OUTPUT, help="folder for the dump, codec and .vql file (default: a temporary folder)"
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=RATE,
            help="code bits per label (default: 32; with --text 16, and a second file of half of them)",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=OUTPUT,
            help="image file for the picture, replaced if it exists (default: vqlabel-demo.png; none with --text or --json)",
        ),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run all steps on 1,000 rendered characters or, with --text, on a small language model. Trains a teacher, dumps
    its labels, fits a codec, packs a .vql file and trains students, in minutes and without downloads."""
    from vqlabel.demo import run_demo, run_text_demo

    run, show_result = (run_text_demo, show.show_text_demo) if text else (run_demo, show.show_demo)
    rate = {} if bits is None else {"bits": bits}
    if text and plot is not None:
        raise UsageError(f"--plot {plot}: --text draws no picture")
    picture = None if text else plot or (None if json else DEMO_PICTURE)
    if picture is not None:
        from vqlabel.report.plots import check_plot_file

        check_plot_file(picture, overwrite=True)
    with terminal.progress_bar() as progress:
        result = run(folder, **rate, seed=seed, notify=terminal.line, progress=progress)
    if picture is not None:
        from vqlabel.demo.picture import draw_demo

        draw_demo(result, picture)
        result["plot"] = str(picture)
    terminal.emit(result, json, show_result)
