"""The command that packs dumps into `.vql` files. It imports torch inside its body, so that --help is fast."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqlabel.cli import show, terminal
from vqlabel.cli.app import app
from vqlabel.cli.fit_options import fit_options
from vqlabel.cli.help import CODEC, INPUT, OUTPUT
from vqlabel.cli.options import (
    CODECS,
    Array,
    Axes,
    Classes,
    ClassMap,
    Compression,
    Domain,
    Dump,
    Effort,
    Head,
    Ids,
    ImageDigest,
    Images,
    Json,
    Kl,
    Layer,
    Layout,
    NoFuture,
    Overwrite,
    ReferenceHead,
    Rest,
    Threads,
    Tokenizer,
    TopK,
    Vocab,
)
from vqlabel.config import FitConfig
from vqlabel.errors import UsageError
from vqlabel.threads import named_threads

if TYPE_CHECKING:
    from vqlabel.codecs import LabelCodec
    from vqlabel.labels import LabelSource
    from vqlabel.progress import Progress


@app.command()
@terminal.exit_with_errors
@fit_options
def pack(
    dump: Dump,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.vql", rich_help_panel=OUTPUT, help=".vql file to write")],
    config: FitConfig,
    codec: Annotated[
        str | None,
        typer.Option(
            metavar="KIND|FILE",
            rich_help_panel=CODEC,
            help=f"codec file, or the kind of codec to fit first: {CODECS} (default: sparse for top-k labels, otherwise vqae)",
        ),
    ] = None,
    kl: Kl = None,
    effort: Effort = "normal",
    augmentation: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            rich_help_panel=OUTPUT,
            help="keep: store the augmentation of the dump; seeded: store only its seed, at 0 bits per label",
        ),
    ] = "keep",
    keep: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION", rich_help_panel=INPUT, help="label pruning: fraction of the labels to keep, sampled with --seed"
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="UNIT", rich_help_panel=INPUT, help="unit of pruning with --keep: epoch, batch or view (default: epoch)"
        ),
    ] = None,
    layout: Layout = None,
    domain: Domain = None,
    classes: Classes = None,
    images: Images = None,
    class_map: ClassMap = None,
    image_digest: ImageDigest = None,
    array: Array = None,
    axes: Axes = None,
    head: Head = None,
    tokenizer: Tokenizer = None,
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
    json: Json = False,
) -> None:
    """Encode a dump into a .vql file. A codec is fitted first unless a codec file is given."""
    from vqlabel.cli import text
    from vqlabel.codecs import CODECS
    from vqlabel.storage.formats import VQL

    if text.is_text(dump, head, vocab, k, rest, compression):
        text.refuse_others(
            {"--keep": keep, "--by": by, "--domain": domain, "--classes": classes, "--images": images, "--class-map": class_map,
             "--image-digest": image_digest, "--axes": axes}
        )  # fmt: skip
        fit_config = text.text_config(config, ids=ids, no_future=no_future, reference_head=reference_head)
        with named_threads(threads), terminal.progress_bar() as progress:
            options = {"layer": layer, "vocab": vocab, "k": k, "rest": rest, "compression": compression, "array": array}
            documents = text.open_dump(dump, out, VQL, options, overwrite=overwrite)
            result = text.pack(
                documents, out, fit_config, kl, head=head, codec=codec, tokenizer=tokenizer, overwrite=overwrite, progress=progress
            )
        terminal.notes(result)
        terminal.emit(result, json, text.show_packed)
        return
    from vqlabel.labels import open_labels
    from vqlabel.storage.apart import check_apart
    from vqlabel.storage.formats import VQL
    from vqlabel.storage.targets import check_target
    from vqlabel.vql.seeded import read_recipe, recipe_file
    from vqlabel.workflows.pack import pack as run

    codec_file = None if codec is None or codec in CODECS else Path(codec)
    if by is not None and keep is None:
        raise UsageError(f"--by {by}: needs --keep, the fraction of labels to keep")
    if kl is not None and codec_file is not None:
        raise UsageError(f"--kl {kl:g}: {codec_file} is already fitted; remove --kl, or pass a kind of codec to fit")
    check_target(out, VQL, overwrite=overwrite)
    check_apart(out, dump, beside=(images, class_map, codec_file))
    if augmentation == "seeded":
        read_recipe(recipe_file(dump))  # raises before the dump is read
    rate, fit_report = replace(config, codec=codec if codec_file is None else None), dict[str, Any]()
    fitted: LabelCodec | None = None
    with named_threads(threads), terminal.progress_bar() as progress:
        source = terminal.report_order_evidence(
            open_labels(
                dump, layout, domain, classes=classes, images=images, class_map=class_map, image_digest=image_digest, array=array,
                axes=axes,
            )
        )  # fmt: skip
        if kl is not None:
            fitted, fit_report = _fit_to_kl(source, rate, kl, keep, by or "epoch", progress)
            rate = FitConfig(seed=config.seed, device=config.device)  # a fitted codec accepts no options of a fit
        result = run(
            source, out, rate, codec=codec_file if fitted is None else fitted, effort=effort, augmentation=augmentation, keep=keep,
            by=by or "epoch", overwrite=overwrite, progress=progress,
        )  # fmt: skip
    _show_packed(_with_fit(result, fitted, fit_report), json)


def _fit_to_kl(
    source: "LabelSource", config: FitConfig, kl: float, keep: float | None, by: str, progress: "Progress"
) -> "tuple[LabelCodec, dict[str, Any]]":
    """The smallest codec that reaches a held-out KL on the labels that `keep` keeps, and the report of its fit."""
    from vqlabel.labels.pruning import Pruned
    from vqlabel.workflows.tune import tune

    kept = source if keep is None else Pruned(source, keep, by, config.seed)
    return tune(kept, config, kl=kl, progress=progress)


def _with_fit(result: dict[str, Any], codec: "LabelCodec | None", report: dict[str, Any]) -> dict[str, Any]:
    """The result of `pack`, with the quality and the notes of the fit of `codec`, if the command fitted it."""
    if codec is None:
        return result
    from vqlabel.workflows.quality import fit_quality

    notes = list(dict.fromkeys([*result.get("notes", []), *report.get("notes", [])]))
    return {**result, "fit": fit_quality(report, sum(codec.code_bits)), "notes": notes}


def _show_packed(result: dict[str, Any], json: bool) -> None:
    terminal.notes(result)
    for warning in result["fit"].get("warnings", ()):
        terminal.note(warning)
    terminal.emit(result, json, show.show_pack)
