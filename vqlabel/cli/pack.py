"""The command that packs dumps into `.vql` files. It imports torch inside its body, so that --help is fast."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

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
    Restart,
    Threads,
    Tokenizer,
    TopK,
    Vocab,
)
from vqlabel.config import FitConfig
from vqlabel.errors import UsageError
from vqlabel.threads import named_threads


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
    save_codec: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=OUTPUT, help="codec file to write, with the codec that was fitted"),
    ] = None,
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
    restart: Restart = False,
    json: Json = False,
) -> None:
    """Encode a dump into a .vql file. A codec is fitted first unless a codec file is given. After an interruption, the
    same command resumes."""
    from vqlabel.cli import text
    from vqlabel.codecs import CODECS
    from vqlabel.storage.formats import VQL

    if text.is_text(dump, head, vocab, k, rest, compression):
        text.refuse_others(
            {"--keep": keep, "--by": by, "--domain": domain, "--classes": classes, "--images": images, "--class-map": class_map,
             "--image-digest": image_digest, "--axes": axes}
        )  # fmt: skip
        from vqlabel.workflows.text.pack import pack_text

        fit_config = text.text_config(config, ids=ids, no_future=no_future, reference_head=reference_head)
        with named_threads(threads), terminal.progress_bar() as progress:
            options = {"layer": layer, "vocab": vocab, "k": k, "rest": rest, "compression": compression, "array": array}
            documents = text.open_dump(dump, out, VQL, options, overwrite=overwrite)
            result = pack_text(
                documents, out, fit_config, head=head, codec=codec, kl=kl, save_codec=save_codec, tokenizer=tokenizer,
                overwrite=overwrite, restart=restart, progress=progress,
            )  # fmt: skip
        terminal.notes(result)
        terminal.emit(result, json, text.show_packed)
        terminal.fail_if_missed(result)
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
    check_target(out, VQL, overwrite=overwrite)
    check_apart(out, dump, beside=(images, class_map, codec_file))
    check_apart(save_codec, dump, beside=(images, class_map))
    if augmentation == "seeded":
        read_recipe(recipe_file(dump))  # raises before the dump is read
    with named_threads(threads), terminal.progress_bar() as progress:
        source = terminal.report_order_evidence(
            open_labels(
                dump, layout, domain, classes=classes, images=images, class_map=class_map, image_digest=image_digest, array=array,
                axes=axes,
            )
        )  # fmt: skip
        result = run(
            source, out, replace(config, codec=codec if codec_file is None else None), codec=codec_file, kl=kl, save_codec=save_codec,
            effort=effort, augmentation=augmentation, keep=keep, by=by or "epoch", overwrite=overwrite, restart=restart,
            progress=progress,
        )  # fmt: skip
    _show_packed(result, json)


def _show_packed(result: dict[str, Any], json: bool) -> None:
    terminal.notes(result)
    for warning in result["fit"].get("warnings", ()):
        terminal.note(warning)
    terminal.emit(result, json, show.show_pack)
    terminal.fail_if_missed(result)
