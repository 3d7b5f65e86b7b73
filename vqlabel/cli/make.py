"""Commands that make codecs and `.vql` files. Torch loads inside their bodies, so that --help is instant."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from vqlabel.cli import show, terminal
from vqlabel.cli.app import app
from vqlabel.cli.arguments import (
    CODECS,
    Array,
    Axes,
    Classes,
    ClassMap,
    Device,
    Domain,
    Dump,
    ImageDigest,
    Images,
    Json,
    Kl,
    Layout,
    Overwrite,
    Threads,
)
from vqlabel.cli.options import fit_options, read_numbers
from vqlabel.config import FitConfig
from vqlabel.errors import UsageError
from vqlabel.threads import named_threads


@app.command()
@terminal.exit_with_errors
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
    with named_threads(threads), terminal.progress_bar() as progress:
        source = terminal.report_order_evidence(
            open_labels(dump, layout, domain, classes=classes, images=images, class_map=class_map, array=array, axes=axes)
        )
        options = {} if kl is not None else {"resume": resume}
        report = _fitter(kl)(source, replace(config, codec=codec), out=out, overwrite=overwrite, progress=progress, **options)[1]
    terminal.notes(report)
    terminal.emit({**report, "path": str(out)}, json, show.show_fit)


def _fitter(kl: float | None) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """What fits a codec: to a rate or a budget at once, to a distortion by a few quick fits."""
    if kl is None:
        from vqlabel.workflows.fit import fit as run

        return run
    from vqlabel.workflows.tune import tune as search

    return functools.partial(search, kl=kl)


@app.command()
@terminal.exit_with_errors
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
    with named_threads(threads), terminal.progress_bar() as progress:
        source = terminal.report_order_evidence(
            open_labels(dump, layout, domain, classes=classes, images=images, class_map=class_map, array=array, axes=axes)
        )
        found = run(
            source, replace(config, bits=None), kl=kl, bits=config.bits, minutes=minutes, out=out, overwrite=overwrite, progress=progress,
            tried=show.show_trial,
        )[1]  # fmt: skip
    terminal.notes(found)
    terminal.emit({**found, "path": str(out)}, json, show.show_tuned)


@app.command()
@terminal.exit_with_errors
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
    with named_threads(threads), terminal.progress_bar() as progress:
        source = terminal.report_order_evidence(
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
    terminal.notes(found)
    for warning in found["fit"].get("warnings", ()):
        terminal.note(warning)
    terminal.emit(found, json, show.show_pack)


@app.command()
@terminal.exit_with_errors
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
    from vqlabel.workflows.relabel import check_relabel_target
    from vqlabel.workflows.relabel import relabel as run
    from vqlabel.workflows.teacher_source import TeacherSource
    from vqlabel.workflows.teachers import load_teacher

    check_relabel_target(out, layout, overwrite=overwrite)
    check_apart(out, images, beside=(codec, teacher))
    pictures = ImageFolder(images)
    recipe = Recipe(seed=seed, images=len(pictures), epochs=epochs, batch=batch, view=view, scale=scale, flip=flip, mix=mix)
    looked = load_teacher(teacher, mean=read_numbers("--mean", mean), deviation=read_numbers("--std", std), device=device)
    with named_threads(threads), terminal.progress_bar() as progress:
        source = TeacherSource(pictures, looked, recipe, dtype=dtype.upper(), device=device, image_digest=image_digest or "names")
        loaded, report = (None, {}) if codec is None else load_codec(codec)
        found = run(
            source, out, codec=loaded, layout=layout, effort=effort, device=device, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if loaded is not None:
        found["fit"] = fit_quality(report, sum(loaded.code_bits), codec)
    terminal.notes(found)
    terminal.emit(found, json, show.show_relabelled)
