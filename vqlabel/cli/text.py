"""The labels of documents on the command line: options of a fit, packing, and results."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vqlabel.cli.show_fit import share_of_budget
from vqlabel.cli.show_stats import ratio_words, show_baselines, show_distortion
from vqlabel.cli.terminal import note, size, table
from vqlabel.config import FitConfig, TextFitConfig
from vqlabel.errors import UsageError
from vqlabel.storage.formats import TargetFormat

if TYPE_CHECKING:
    from vqlabel.labels.text.source import TextSource
    from vqlabel.progress import Progress
    from vqlabel.workflows.text.tune import TextGoal

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


def goal(config: TextFitConfig, *, kl: float | None, minutes: float = 10) -> "TextGoal":
    """The goal of a search, from its options.

    Raises:
        UsageError: none or several are given.
    """
    from vqlabel.workflows.text.tune import TextGoal

    return TextGoal(kl=kl, bits=config.bits, bytes=config.bytes, ratio=config.ratio, minutes=minutes)


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
    restart: bool,
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
    return relabel_text(
        documents, loaded, out, config, codec=codec, **size_of_batch, overwrite=overwrite, restart=restart, progress=progress
    )


def stats(
    path: Path, against: Path | None, head: str | None, labels: int | None, device: str, progress: "Progress"
) -> dict[str, Any]:
    """Account for a file of documents' labels, and compare them with a dump: see `stats_text`."""
    from vqlabel.report.text.stats import stats_text

    for flag, value in (("--head", head), ("--labels", labels)):
        if value is not None and against is None:
            raise UsageError(f"{flag} {value}: needs --against, the dump to compare with")
    result = stats_text(path, against=against, head=head, labels=labels, device=device, progress=progress)
    if result.get("same_head") is False:
        note(f"{head}: this head differs from that of {path} (by sha256); the comparison continues")
    return result


def show_stats(stats: dict[str, Any]) -> None:
    """How good the labels are; bytes of every part of a file, bits per label, and distortion against a dump."""
    show_baselines(stats)
    labels = max(1, stats["labels"])
    rows = [(row["part"], row["grows"], f"{row['bytes']:,}", f"{8 * row['bytes'] / labels:.3f}") for row in stats["rows"]]
    table(
        [*rows, ("total", "", f"{stats['bytes']:,}", f"{8 * stats['bytes'] / labels:.3f}")], ("part", "size", "bytes", "bits/label")
    )
    typer.echo(
        f"\n{stats['labels']:,} labels of {stats['documents']:,} documents, {stats['vocabulary']:,} tokens in the vocabulary; "
        f"{ratio_words(stats['ratio_to_fp16'])} of fp16 logits"
    )
    bits = stats["bits_per_label"]
    figures = [
        ("codes, counts and ids", bits["codes"]),
        ("with the table of documents", bits["labels"]),
        ("all-in: the whole file", bits["all_in"]),
    ]
    figures += [(f"all-in with {int(count):,} labels", value) for count, value in stats["all_in_at"].items()]
    table([(name, f"{value:.2f}") for name, value in figures], ("bits per label", ""))
    if "compared" in stats:
        compared = stats["compared"]
        typer.echo(
            f"\n{compared['labels']:,} labels of {compared['documents']:,} documents are compared, seed {compared['seed']}; "
            f"{compared['only_in_file']:,} documents of the file are not in the dump, {compared['only_in_dump']:,} of the dump not in the file"
        )
    show_distortion(stats)


def compare(
    dump: Path,
    head: str | None,
    layer: int | None,
    options: dict[str, Any],
    *,
    student: Path | None,
    plot: Path | None,
    overwrite: bool,
    progress: "Progress",
) -> dict[str, Any]:
    """Compare token_vqae with its peers on a dump, and plot the result.

    Args:
        options: fields of `TextCompareConfig`.
        student: "text" trains students; None: none.

    Raises:
        UsageError: `student` is another word.
    """
    if student is not None and str(student) != "text":
        raise UsageError(
            f"--student {student}: must be text for labels of documents: students learn from the documents of the dump"
        )
    if plot is not None:
        from vqlabel.report.plots import check_plot_file
        from vqlabel.storage.apart import check_apart

        check_plot_file(plot, overwrite=overwrite)
        check_apart(plot, dump, beside=(head,))
    from vqlabel.report.text.compare import TextCompareConfig, compare_text

    config = TextCompareConfig(**options, students=student is not None)
    comparison = compare_text(dump, config, head=head, layer=layer, progress=progress)
    if plot is not None:
        from vqlabel.report.plots import plot_text_comparison

        plot_text_comparison(comparison, plot, overwrite=overwrite)
    return comparison


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
    _show_rate(report)
    if report["codec"] == "sparse":
        kept = f"the {config['k']} likeliest of a label kept, {config['rest']} tail, lists of {config['neighbours']} neighbours"
    else:
        kept = (
            f"hidden states of {config['hidden']}, {config['latent']} directions kept, up to {config['slots']} codes and {config['ids']} exact "
            f"ids per label, head {config['head']}"
        )
    typer.echo(f"{report['codec']}: {config['classes']:,} tokens, {kept}")
    if report["codec"] == "sparse":
        return
    for rate in report["rates"][::6]:
        typer.echo(f"  {rate['bits']:6.1f} code bits: KL {rate['kl']:.4f}  ({rate['slots']:.1f} codes, {rate['ids']:.1f} ids)")


def show_tuned(report: dict[str, Any]) -> None:
    """The result of a search, and its size relative to the budget."""
    show_fit(report)
    rows = [
        (
            str(trial["slots"]), str(trial["ids"]), str(trial["latent"]), str(trial["prior_width"]), size(trial["fixed_bytes"]), size(trial["bytes"]),
            *(("-", "-") if trial["rate"] is None else (f"{trial['rate']['bits']:.1f}", f"{trial['rate']['kl']:.4f}")),
            f"{trial['seconds']:.0f} s",
        )
        for trial in report["trials"]
    ]  # fmt: skip
    table(rows, ("codes", "ids", "latent", "prior's width", "fixed parts", "file", "code bits", "KL", "time"))
    typer.echo(
        f"{size(report['bytes'])} for this dump, {share_of_budget(report)}1/{report['ratio']:g} of fp16; {report['seconds']:.0f} s"
    )


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
        if report.get("baselines", {}).get("kl", {}).get("kl_T1") == rate["kl"]:  # not if it is packed at another rate
            show_baselines(report, "held out")
