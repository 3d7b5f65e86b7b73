"""Commands that measure: bytes, distortion, methods compared, the demo. Torch loads inside their bodies, so that --help is instant."""

from pathlib import Path
from typing import Annotated

import typer

from vqlabel.cli import show, terminal
from vqlabel.cli.app import app
from vqlabel.cli.arguments import Array, Axes, Classes, Device, Domain, Dump, Images, Json, Layout, Overwrite, Threads, Vql
from vqlabel.cli.options import BitsCommand, Temperature, read_temperature
from vqlabel.errors import UsageError
from vqlabel.threads import named_threads


@app.command()
@terminal.exit_with_errors
def stats(
    path: Vql,
    against: Annotated[
        Path | None,
        typer.Option(
            help="the dump, or another teacher's labels of the same records: adds KL at T = 1, 4, 20, top-1 agreement, relative squared "
            "error and calibration; stderr says so where these are not the labels that the file was packed from"
        ),
    ] = None,
    teacher_bytes: Annotated[int | None, typer.Option(help="size of the teacher: adds the break-even number of labels")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw the bits per label to this image file")] = None,
    plot_calibration: Annotated[
        Path | None, typer.Option(help="draw decoded against raw probabilities to this image file; needs --against")
    ] = None,
    layout: Layout = None,
    array: Array = None,
    axes: Axes = None,
    device: Device = "cpu",
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Account for every byte of a .vql file."""
    from vqlabel.labels import open_labels
    from vqlabel.labels.open import is_topk_layout
    from vqlabel.report import plots
    from vqlabel.report import stats as run
    from vqlabel.storage.apart import check_apart
    from vqlabel.vql.file import VqlFile

    if plot_calibration is not None and against is None:
        raise UsageError(f"--plot-calibration {plot_calibration}: needs --against, the dump to compare with")
    for flag, value in (("--layout", layout), ("--array", array), ("--axes", axes)):
        if value is not None and against is None:
            raise UsageError(f"{flag} {value}: tells how to read a dump; needs --against, the dump to compare with")
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
        found = run(path, against=source, teacher_bytes=teacher_bytes, device=device, progress=progress)
    if plot is not None:
        plots.plot_account(found, plot, overwrite=overwrite)
    if plot_calibration is not None:
        plots.plot_calibration(found, plot_calibration, overwrite=overwrite)
    if found.get("same_dump") is False:
        terminal.note(
            f"{against}: its labels are not those that {path} was packed from (their sha256 differs); compared all the same"
        )
    terminal.emit(found, json, show.show_stats)


@app.command(cls=BitsCommand)
@terminal.exit_with_errors
def compare(
    dump: Dump,
    bits: Annotated[list[str] | None, typer.Option(help="code bits per label (default: 8 16 32 64 128 256)")] = None,
    methods: Annotated[
        list[str] | None, typer.Option(help="methods to compare, e.g. vqae,topk,rq (default: all that are installed)")
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="the teacher's file; its size is compared with the labels'")] = None,
    teacher_bytes: Annotated[int | None, typer.Option(help="size of the teacher in bytes, instead of --teacher")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw the rate-distortion curves to this image file")] = None,
    student: Annotated[
        Path | None, typer.Option(help="the dump's images: train a student from every method's labels, minutes each; needs --val")
    ] = None,
    val: Annotated[Path | None, typer.Option(help="new images to test students on, one folder per class")] = None,
    val_labels: Annotated[
        Path | None, typer.Option(help=".npy: the teacher's logits for --val, sorted by path; adds students' KL to the teacher")
    ] = None,
    class_map: Annotated[
        Path | None,
        typer.Option(help="JSON: folder of --val and --images -> class of the teacher (default: class i is the i-th folder)"),
    ] = None,
    view: Annotated[int, typer.Option(help="side in pixels of the views that the teacher labelled")] = 224,
    passes: Annotated[int, typer.Option(help="passes of each student over all views")] = 4,
    temperature: Temperature = None,
    seed: Annotated[int, typer.Option(help="same seed, same figures on the same machine with the same number of threads")] = 0,
    layout: Layout = None,
    domain: Domain = None,
    classes: Classes = None,
    images: Images = None,
    array: Array = None,
    axes: Axes = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Distortion over bytes of vqae and of the baselines for one dump; takes minutes per rate."""
    rates, degrees = _rates(bits), read_temperature(temperature)
    if teacher is not None and teacher_bytes is not None:
        raise UsageError("--teacher and --teacher-bytes both give the size of the teacher; use one of them")
    if teacher is not None and not teacher.is_file():
        raise UsageError(f"{teacher}: no such file; name the teacher's weights, or use --teacher-bytes")
    size = teacher_bytes if teacher is None else teacher.stat().st_size
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
        bits=rates or DEFAULT_BITS, methods=_words(methods), temperature=degrees, seed=seed, teacher_bytes=size, passes=passes
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
        comparison = compare_methods(
            source, config, benchmark=benchmark, notify=lambda line: typer.echo(line, err=True), progress=progress
        )
    if plot is not None:
        plot_rate_distortion(comparison, plot, overwrite=overwrite)
    terminal.emit(comparison, json, show.show_compare)


def _words(values: list[str] | None) -> list[str] | None:
    """--option a,b --option "c d" -> [a, b, c, d]."""
    return None if values is None else [word for value in values for word in value.replace(",", " ").split()]


def _rates(values: list[str] | None) -> list[int] | None:
    words = _words(values)
    if words is not None and not (words and all(word.isdecimal() for word in words)):
        raise UsageError(f"--bits {' '.join(values or ())!r}: must be whole numbers, such as 8 16 32 or 8,16,32")
    return None if words is None else [int(word) for word in words]


@app.command()
@terminal.exit_with_errors
def demo(
    folder: Annotated[Path | None, typer.Option(help="keep dump, codec and .vql here; by default they are deleted")] = None,
    bits: Annotated[int, typer.Option(help="code bits per label")] = 32,
    seed: Annotated[int, typer.Option(help="same seed, same figures on the same machine with the same number of threads")] = 0,
    json: Json = False,
) -> None:
    """Teacher, labels, codec, .vql and two students on 1,000 drawn characters: the whole story in minutes, no download."""
    from vqlabel.demo import run_demo

    with terminal.progress_bar() as progress:
        found = run_demo(folder, bits=bits, seed=seed, notify=lambda line: typer.echo(line, err=True), progress=progress)
    terminal.emit(found, json, show.show_demo)
