"""The commands. Torch and everything above the container load inside a command's body, so that --help is instant."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from vqlabel.cli import show
from vqlabel.cli.options import LAYOUTS, BitsCommand, Temperature, fit_options, read_numbers, read_temperature
from vqlabel.codecs.registry import CODECS as REGISTRY
from vqlabel.config import FitConfig
from vqlabel.errors import UsageError
from vqlabel.threads import named_threads

app = typer.Typer(
    help="Teacher labels in a few bits each: fit a codec, pack a dump into a .vql file, read it back, account for every bit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

CODECS = f"{', '.join([*REGISTRY][:-1])} or {[*REGISTRY][-1]}"

Dump = Annotated[
    Path,
    typer.Argument(
        help=f"a dump of labels: .npy, .npz, .safetensors, .pt, .parquet, .h5, a folder of them, or of another layout: {LAYOUTS}"
    ),
]
Vql = Annotated[Path, typer.Argument(help="a .vql file")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the target if it is there")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, help="by default one for fits, whose operations are small, and else all processors that this process may use"
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")]
Layout = Annotated[str | None, typer.Option(help=f"of the dump: {LAYOUTS}; detected by default")]
Classes = Annotated[
    int | None, typer.Option(help="C, where a dump of the k largest numbers does not say it; by default its largest class, and one")
]
Images = Annotated[
    Path | None,
    typer.Option(
        help="the dump's images: finds out which of them each label is of where SRe2L's tree does not say it, and how sure that is"
    ),
]
ClassMap = Annotated[Path | None, typer.Option(help="JSON: folder of --images -> class of the teacher; by default the i-th is i")]
ImageDigest = Annotated[
    str | None,
    typer.Option(
        help="by what training tells the images from others: a digest of their names (the default), or of names and bytes"
    ),
]
Array = Annotated[
    str | None, typer.Option(help="array, column, dataset or member of labels where a file of the dump holds several; or DUMP:NAME")
]
Axes = Annotated[
    str | None,
    typer.Option(
        help="of an array: images,classes, epochs,images,classes (where it has three, the default) or images,views,classes"
    ),
]
Target = Annotated[
    str | None,
    typer.Option("--layout", help=f"{LAYOUTS}; with a form where there are several: lpqld:10, fkd:ms-k5, tinyvit:10"),
]
Kl = Annotated[
    float | None, typer.Option(help="instead of a budget: held-out KL in nats (times T^2) to reach with the fewest bytes")
]
Domain = Annotated[
    str | None,
    typer.Option(
        help="logits, probs, or sigmoid: logits of a teacher of several labels an image; by default as the file declares it, else logits"
    ),
]


@app.command()
@show.exit_with_errors
@fit_options
def fit(
    dump: Dump,
    out: Annotated[Path, typer.Option("-o", "--out", help="codec file to write")],
    config: FitConfig,
    codec: Annotated[
        str | None, typer.Option(help=f"{CODECS}; by default vqae, or sparse where k numbers of a label are known")
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
        bool, typer.Option("--resume", help="continue an interrupted fit, to the same bytes with the same number of threads")
    ] = False,
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Fit a codec to a dump of labels; the last epochs are kept out and judged by."""
    from vqlabel.labels import open_labels
    from vqlabel.storage.apart import check_apart
    from vqlabel.storage.formats import CODEC
    from vqlabel.storage.targets import check_target

    if kl is not None and resume:
        raise UsageError("--resume: a search for --kl leaves no state; run it again")
    check_target(out, CODEC, overwrite=overwrite)
    check_apart(out, dump, beside=(images, class_map))
    with named_threads(threads), show.progress_bar() as progress:
        source = show.report_order_evidence(
            open_labels(dump, layout, domain, classes=classes, images=images, class_map=class_map, array=array, axes=axes)
        )
        options = {} if kl is not None else {"resume": resume}
        report = _fitter(kl)(source, replace(config, codec=codec), out=out, overwrite=overwrite, progress=progress, **options)[1]
    show.notes(report)
    show.emit({**report, "path": str(out)}, json, show.show_fit)


def _fitter(kl: float | None) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """What fits a codec: to a rate or a budget at once, to a distortion by a few quick fits."""
    if kl is None:
        from vqlabel.workflows.fit import fit as run

        return run
    from vqlabel.workflows.tune import tune as search

    return functools.partial(search, kl=kl)


@app.command()
@show.exit_with_errors
@fit_options
def tune(
    dump: Dump,
    out: Annotated[Path, typer.Option("-o", "--out", help="codec file to write")],
    config: FitConfig,
    kl: Kl = None,
    minutes: Annotated[float, typer.Option(help="time for trials and the last fit")] = 10,
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
    """Find the best codec inside a budget: --ratio, --bytes, --kl, or --bits per label, here with everything but augmentation counted."""
    from vqlabel.labels import open_labels
    from vqlabel.storage.apart import check_apart
    from vqlabel.storage.formats import CODEC
    from vqlabel.storage.targets import check_target
    from vqlabel.workflows.tune import tune as run

    check_target(out, CODEC, overwrite=overwrite)
    check_apart(out, dump, beside=(images, class_map))
    with named_threads(threads), show.progress_bar() as progress:
        source = show.report_order_evidence(
            open_labels(dump, layout, domain, classes=classes, images=images, class_map=class_map, array=array, axes=axes)
        )
        found = run(
            source, replace(config, bits=None), kl=kl, bits=config.bits, minutes=minutes, out=out, overwrite=overwrite, progress=progress,
            tried=show.show_trial,
        )[1]  # fmt: skip
    show.notes(found)
    show.emit({**found, "path": str(out)}, json, show.show_tuned)


@app.command()
@show.exit_with_errors
@fit_options
def pack(
    dump: Dump,
    out: Annotated[Path, typer.Option("-o", "--out", help=".vql file to write")],
    config: FitConfig,
    codec: Annotated[
        str | None,
        typer.Option(
            help=f"codec file; or {CODECS}, fitted first; by default vqae, or sparse where k numbers of a label are known"
        ),
    ] = None,
    kl: Kl = None,
    effort: Annotated[str, typer.Option(help="fast, normal or best: how hard to look for the best codes")] = "normal",
    augmentation: Annotated[
        str, typer.Option(help="keep it as the dump has it, or seeded: draw it again, at 0 bits a label")
    ] = "keep",
    keep: Annotated[float | None, typer.Option(help="share of the dump to keep, chosen by --seed: label pruning")] = None,
    by: Annotated[
        str | None, typer.Option(help="with --keep: epoch (the default), batch or view, which are kept or dropped whole")
    ] = None,
    layout: Layout = None,
    domain: Domain = None,
    classes: Classes = None,
    images: Images = None,
    class_map: ClassMap = None,
    image_digest: ImageDigest = None,
    array: Array = None,
    axes: Axes = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Encode a dump into a .vql file, fitting a codec first where none is given."""
    from vqlabel.codecs import CODECS
    from vqlabel.labels import open_labels
    from vqlabel.labels.pruning import Pruned
    from vqlabel.storage.apart import check_apart
    from vqlabel.storage.formats import VQL
    from vqlabel.storage.targets import check_target
    from vqlabel.vql.seeded import read_recipe, recipe_file
    from vqlabel.workflows.pack import pack as run
    from vqlabel.workflows.quality import fit_quality

    codec_file = None if codec is None or codec in CODECS else Path(codec)
    if by is not None and keep is None:
        raise UsageError(f"--by {by}: says what --keep keeps; name a share to keep")
    if kl is not None and codec_file is not None:
        raise UsageError(f"--kl {kl:g}: is for a fit, and this codec is fitted; leave it out, or name no codec file")
    check_target(out, VQL, overwrite=overwrite)
    check_apart(out, dump, beside=(images, class_map, codec_file))
    if augmentation == "seeded":
        read_recipe(recipe_file(dump))  # refused before the dump is read
    with named_threads(threads), show.progress_bar() as progress:
        source = show.report_order_evidence(
            open_labels(
                dump,
                layout,
                domain,
                classes=classes,
                images=images,
                class_map=class_map,
                image_digest=image_digest,
                array=array,
                axes=axes,
            )
        )
        code_bits, given = 0, cast(Any, codec_file)
        rate, report = replace(config, codec=codec if codec_file is None else None), dict[str, Any]()
        if kl is not None:
            some = source if keep is None else Pruned(source, keep, by or "epoch", config.seed)
            fitted, report = _fitter(kl)(some, rate, progress=progress)
            given, code_bits = fitted, sum(fitted.code_bits)
            rate = FitConfig(seed=config.seed, device=config.device)
        found = run(
            source, out, rate, codec=given, effort=effort, augmentation=augmentation, keep=keep, by=by or "epoch", overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    if report:
        found["fit"] = fit_quality(report, code_bits)
        found["notes"] = list(dict.fromkeys([*found.get("notes", []), *report.get("notes", [])]))
    show.notes(found)
    for warning in found["fit"].get("warnings", ()):
        show.note(warning)
    show.emit(found, json, show.show_pack)


@app.command()
@show.exit_with_errors
def unpack(
    path: Vql,
    out: Annotated[
        Path, typer.Option("-o", "--out", help=".npy, .safetensors, or a folder; by default in the layout that the labels came in")
    ],
    layout: Target = None,
    records: Annotated[str | None, typer.Option(help="first:stop, as in Python")] = None,
    dtype: Annotated[str | None, typer.Option(help="f16, bf16 or f32; the dump's by default")] = None,
    device: Device = "cpu",
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Decode a .vql file back into labels."""
    span = _span(records)
    from vqlabel.workflows.unpack import unpack as run

    with named_threads(threads), show.progress_bar() as progress:
        found = run(path, out, layout=layout, records=span, dtype=dtype, device=device, overwrite=overwrite, progress=progress)
    show.notes(found)
    show.emit(found, json, lambda f: typer.echo(f"{f['path']}: {f['records']:,} labels of {f['classes']:,} classes, {f['dtype']}"))


@app.command()
@show.exit_with_errors
def convert(
    source: Annotated[Path, typer.Argument(help="a dump, or a .vql file")],
    out: Annotated[Path, typer.Argument(help="what to write: .npy, .safetensors, .pt, or a folder with --layout")],
    layout: Target = None,
    source_layout: Annotated[str | None, typer.Option("--from", help=f"of the dump: {LAYOUTS}; detected by default")] = None,
    domain: Domain = None,
    classes: Classes = None,
    images: Images = None,
    class_map: ClassMap = None,
    array: Array = None,
    axes: Axes = None,
    dtype: Annotated[str | None, typer.Option(help="f16, bf16 or f32, of a .vql's labels; the dump's by default")] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a dump in another layout, where that can hold the same things; nothing is dropped in silence."""
    from vqlabel.labels.open import check_dump_target, output_layout
    from vqlabel.storage.apart import check_apart
    from vqlabel.workflows.convert import convert as run
    from vqlabel.workflows.convert import open_any

    check_dump_target(out, output_layout(out, layout), overwrite=overwrite)
    check_apart(out, source, beside=(images, class_map))
    with show.progress_bar() as progress:
        labels = show.report_order_evidence(open_any(source, source_layout, domain, images, classes, dtype, class_map, array, axes))
        found = run(labels, out, layout=layout, overwrite=overwrite, progress=progress)
    show.notes(found)
    show.emit(
        found,
        json,
        lambda f: typer.echo(f"{f['path']}: {f['records']:,} labels of {f['classes']:,} classes, {f['layout']}, {f['dtype']}"),
    )


@app.command()
@show.exit_with_errors
def relabel(
    images: Annotated[Path, typer.Argument(help="a folder of images; image i is the i-th of its sorted files")],
    out: Annotated[Path, typer.Option("-o", "--out", help="a .vql, or a dump with --layout")],
    teacher: Annotated[
        str,
        typer.Option(
            help="module:function, a TorchScript or torch.export file, timm:NAME, torchvision:NAME, transformers:NAME; it is run"
        ),
    ],
    codec: Annotated[str | None, typer.Option(help="codec file for a .vql; by default labels are stored as they are")] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="of a dump: sre2l (in the order that its script shuffles), lpld, lpqld, lpqld:K, gvbsm or edc"),
    ] = None,
    epochs: Annotated[int, typer.Option(help="views of every image")] = 300,
    batch: Annotated[int, typer.Option(help="images of a batch, among which views are mixed")] = 128,
    view: Annotated[int, typer.Option(help="side of a view in pixels")] = 224,
    mix: Annotated[str, typer.Option(help="cutmix, mixup or none")] = "cutmix",
    scale: Annotated[tuple[float, float], typer.Option(help="a crop's share of the image, at least and at most")] = (0.08, 1.0),
    flip: Annotated[float, typer.Option(help="probability of a flip")] = 0.5,
    mean: Annotated[
        str | None, typer.Option(help="of pixels in 0..1, such as 0.5 or 0.485,0.456,0.406; ImageNet's by default")
    ] = None,
    std: Annotated[str | None, typer.Option(help="likewise")] = None,
    seed: Annotated[int, typer.Option(help="of the views: with it the file needs no bits for them")] = 0,
    dtype: Annotated[str, typer.Option(help="f16 or f32")] = "f16",
    image_digest: ImageDigest = None,
    effort: Annotated[str, typer.Option(help="fast, normal or best: how hard to look for the best codes")] = "normal",
    device: Device = "cpu",
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Label seeded views of images with a teacher; interrupted, the same command goes on where it was."""
    from vqlabel.codecs import load_codec
    from vqlabel.storage.apart import check_apart
    from vqlabel.views.image_folder import ImageFolder
    from vqlabel.views.recipe import Recipe
    from vqlabel.workflows.quality import fit_quality
    from vqlabel.workflows.relabel import TeacherSource, check_relabel_target
    from vqlabel.workflows.relabel import relabel as run
    from vqlabel.workflows.teachers import load_teacher

    check_relabel_target(out, layout, overwrite=overwrite)
    check_apart(out, images, beside=(codec, teacher))
    pictures = ImageFolder(images)
    recipe = Recipe(seed=seed, images=len(pictures), epochs=epochs, batch=batch, view=view, scale=scale, flip=flip, mix=mix)
    looked = load_teacher(teacher, mean=read_numbers("--mean", mean), deviation=read_numbers("--std", std), device=device)
    with named_threads(threads), show.progress_bar() as progress:
        source = TeacherSource(pictures, looked, recipe, dtype=dtype.upper(), device=device, image_digest=image_digest or "names")
        loaded, report = (None, {}) if codec is None else load_codec(codec)
        found = run(
            source, out, codec=loaded, layout=layout, effort=effort, device=device, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if loaded is not None:
        found["fit"] = fit_quality(report, sum(loaded.code_bits), codec)
    show.notes(found)
    show.emit(found, json, show.show_relabelled)


def _span(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    try:
        first, stop = text.split(":")
        return int(first) if first else None, int(stop) if stop else None
    except ValueError:
        raise UsageError(f"--records {text!r}: must be first:stop, such as 0:1000, 500: or :-100") from None


@app.command()
@show.exit_with_errors
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
    from vqlabel.labels.open import TOPK_LAYOUTS
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
    with named_threads(threads), show.progress_bar() as progress:
        file = VqlFile(path)
        classes = file.classes if file.about.support is not None and file.about.layout in TOPK_LAYOUTS else None
        source = (
            None if against is None else open_labels(against, layout, file.label["domain"], classes=classes, array=array, axes=axes)
        )
        found = run(path, against=source, teacher_bytes=teacher_bytes, device=device, progress=progress)
    if plot is not None:
        plots.plot_account(found, plot, overwrite=overwrite)
    if plot_calibration is not None:
        plots.plot_calibration(found, plot_calibration, overwrite=overwrite)
    if found.get("same_dump") is False:
        show.note(f"{against}: its labels are not those that {path} was packed from (their sha256 differs); compared all the same")
    show.emit(found, json, show.show_stats)


@app.command(cls=BitsCommand)
@show.exit_with_errors
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
    with named_threads(threads), show.progress_bar() as progress:
        source = show.report_order_evidence(
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
    show.emit(comparison, json, show.show_compare)


def _words(values: list[str] | None) -> list[str] | None:
    """--option a,b --option "c d" -> [a, b, c, d]."""
    return None if values is None else [word for value in values for word in value.replace(",", " ").split()]


def _rates(values: list[str] | None) -> list[int] | None:
    words = _words(values)
    if words is not None and not (words and all(word.isdecimal() for word in words)):
        raise UsageError(f"--bits {' '.join(values or ())!r}: must be whole numbers, such as 8 16 32 or 8,16,32")
    return None if words is None else [int(word) for word in words]


@app.command()
@show.exit_with_errors
def info(path: Annotated[Path, typer.Argument(help="a .vql file, or a codec file")], json: Json = False) -> None:
    """Show what a .vql file holds, without decoding a label, or a codec file and the report of its fit."""
    from vqlabel.container import is_codec_file

    if is_codec_file(path):
        _codec_info(path, json)
        return
    import numpy as np

    from vqlabel.labels.schema import MIX_COLUMNS, OWN_COLUMNS, PARTNER_COLUMNS
    from vqlabel.vql.column_limits import PREFIX
    from vqlabel.vql.file import VqlFile

    file, known = VqlFile(path), (*OWN_COLUMNS, *PARTNER_COLUMNS, *MIX_COLUMNS, "image_size", "drawn", "names")
    says = file.container.json_object("vql.columns")
    drawn = says.get("order") == "seeded"
    found = {
        "path": str(path),
        "bytes": file.container.size,
        "version": file.container.metadata["vql.version"],
        "records": file.records,
        "label": file.label,
        "codec": file.codec,
        "epochs": len({place.epoch for place in file.columns.places}),
        "batches": len(file.columns.places),
        "batch_size": int(np.diff(file.columns.starts).max(initial=0)),
        "order": "seeded" if drawn else file.columns.order,
        "columns": [name for name in known if PREFIX + name in file.container.streams],
        "drawn": [name for name in known if file.columns.has(name)] if drawn else [],
        "recipe": says.get("recipe"),
        "source": file.source,
        "writer": file.container.metadata.get("vql.writer"),
    }
    show.emit(found, json, lambda f: show.table([(key, str(value)) for key, value in f.items()], ("field", "value")))


def _codec_info(path: Path, json: bool) -> None:
    from vqlabel.codecs import load_codec

    codec, report = load_codec(path)
    found = {
        "path": str(path), "bytes": path.stat().st_size, "codec": codec.kind, "config": codec.config.to_dict(), "code_bits": sum(codec.code_bits),
        "report": report,
    }  # fmt: skip
    show.emit(found, json, show.show_codec)


@app.command()
@show.exit_with_errors
def verify(path: Vql, json: Json = False) -> None:
    """Read and check every byte of a .vql file, every code, and that its decoder can be built."""
    from vqlabel.workflows.verify import verify as run

    show.emit(
        {"path": str(path), **run(path)},
        json,
        lambda f: typer.echo(f"{f['path']}: {f['bytes']:,} bytes in {f['chunks']} chunks and {f['tensors']} tensors, all sound"),
    )


@app.command()
@show.exit_with_errors
def demo(
    folder: Annotated[Path | None, typer.Option(help="keep dump, codec and .vql here; by default they are deleted")] = None,
    bits: Annotated[int, typer.Option(help="code bits per label")] = 32,
    seed: Annotated[int, typer.Option(help="same seed, same figures on the same machine with the same number of threads")] = 0,
    json: Json = False,
) -> None:
    """Teacher, labels, codec, .vql and two students on 1,000 drawn characters: the whole story in minutes, no download."""
    from vqlabel.demo import run_demo

    with show.progress_bar() as progress:
        found = run_demo(folder, bits=bits, seed=seed, notify=lambda line: typer.echo(line, err=True), progress=progress)
    show.emit(found, json, show.show_demo)
