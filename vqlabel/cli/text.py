"""The labels of documents on the command line: options of a fit, packing, and results."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vqlabel.cli.terminal import size
from vqlabel.config import FitConfig, TextFitConfig
from vqlabel.errors import UsageError
from vqlabel.storage.formats import TargetFormat

if TYPE_CHECKING:
    from vqlabel.labels.text.source import TextSource
    from vqlabel.progress import Progress

SHARED = (
    "bits",
    "bytes",
    "ratio",
    "slots",
    "codebook_size",
    "latent",
    "weight_bits",
    "prior",
    "epochs",
    "seed",
    "device",
)  # fields of both configurations


def is_text(dump: Path, *options: object) -> bool:
    """Whether a dump has the labels of documents: its files show it, or one of the options that only such dumps have is
    given.
    """
    from vqlabel.labels.text.open import is_text_dump

    return any(option is not None for option in options) or is_text_dump(dump)


def open_dump(dump: Path, out: Path, form: TargetFormat, options: Mapping[str, Any], *, overwrite: bool) -> "TextSource":
    """Open a dump by the options of `open_text_labels`; the target is checked before all documents are listed."""
    from vqlabel.labels.text.open import open_text_labels
    from vqlabel.storage.targets import check_target

    check_target(out, form, overwrite=overwrite)
    return open_text_labels(dump, **options)


def text_config(config: FitConfig, *, ids: int | None, no_future: bool, reference_head: bool) -> TextFitConfig:
    """The configuration of a fit to documents, from the options that all fits share and those of its own.

    Raises:
        UsageError: an option is for labels of images.
    """
    default = FitConfig()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in (*SHARED, "codec") and value != getattr(default, field.name):
            raise UsageError(f"--{field.name.replace('_', '-')} {value}: is for labels of images; these are labels of documents")
    values: dict[str, Any] = {name: getattr(config, name) for name in SHARED}
    values |= {"prior": config.prior is not False, "future": not no_future, "embed_head": not reference_head, "ids": ids}
    return TextFitConfig(**{name: value for name, value in values.items() if value is not None})


def refuse_others(options: Mapping[str, object]) -> None:
    """Raises UsageError if one of these options, flag -> value, was given: they are for labels of images."""
    for flag, value in options.items():
        if value is not None:
            raise UsageError(f"{flag} {value}: is for labels of images; these are labels of documents")


def relabel(
    corpus: Path,
    out: Path,
    teacher: str,
    config: TextFitConfig,
    *,
    codec: str | None,
    head: str | None,
    tokenizer: Path | None,
    document_length: int | None,
    batch: int | None,
    overwrite: bool,
    progress: "Progress",
) -> dict[str, Any]:
    """Label the documents of a corpus, see `relabel_text`; the target is checked before the teacher is loaded."""
    from vqlabel.labels.text.corpus.open import open_corpus
    from vqlabel.storage.apart import check_apart
    from vqlabel.storage.formats import VQL
    from vqlabel.storage.targets import check_target
    from vqlabel.workflows.text.relabel import relabel_text
    from vqlabel.workflows.text.teachers import load_text_teacher

    check_target(out, VQL, overwrite=overwrite)
    check_apart(out, corpus, beside=(teacher, codec, head, tokenizer))
    loaded = load_text_teacher(teacher, head=head, device=config.device)
    documents = open_corpus(corpus, document_length=document_length, tokenizer=tokenizer or loaded.tokenizer)
    size_of_batch = {} if batch is None else {"batch": batch}
    return relabel_text(documents, loaded, out, config, codec=codec, **size_of_batch, overwrite=overwrite, progress=progress)


def show_packed(result: dict[str, Any]) -> None:
    """Numbers of labels and documents, the size, and the held-out KL."""
    labels = f"{result['labels']:,} labels of {result['documents']:,} documents"
    bits = 8 * result["bytes"] / max(1, result["labels"])
    typer.echo(
        f"{result['path']}: {labels}, in {size(result['bytes'])}: {result['code_bits']:.1f} code bits each, {bits:.1f} all-in"
    )
    if result["repeated"]:
        typer.echo(f"{result['repeated']:,} documents occur more than once and are stored once")
    _show_rate(result["fit"])


def show_fit(report: dict[str, Any]) -> None:
    """The rate that was asked for, and the others that the codec has."""
    config = report["config"]
    if report["codec"] == "sparse":
        kept = f"the {config['k']} likeliest of a label kept, {config['rest']} tail, lists of {config['neighbours']} neighbours"
    else:
        kept = (
            f"hidden states of {config['hidden']}, {config['latent']} directions kept, up to {config['slots']} codes and {config['ids']} exact "
            f"ids per label, head {config['head']}"
        )
    typer.echo(f"{report['codec']}: {config['classes']:,} tokens, {kept}")
    _show_rate(report)
    if report["codec"] == "sparse":
        return
    for rate in report["rates"][::6]:
        typer.echo(f"  {rate['bits']:6.1f} code bits: KL {rate['kl']:.4f}  ({rate['slots']:.1f} codes, {rate['ids']:.1f} ids)")


def _show_rate(report: dict[str, Any]) -> None:
    if "held_out" in report:
        rate = report["held_out"]
        origin = (
            "held out" if "codec_file" not in report else f"{report['codec_file']}, on the dump that it was fitted to: held out"
        )
        of = "" if report["codec"] == "sparse" else f", {rate['slots']:.2f} codes and {rate['ids']:.2f} exact ids per label"
        kl = "KL of the dump's labels" if report["codec"] == "sparse" else "KL"
        typer.echo(
            f"{origin} ({report['labels']['held_out']:,} labels of other documents): {kl} {rate['kl']:.4f} at {rate['bits']:.1f} code bits{of}"
        )
