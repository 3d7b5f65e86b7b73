"""The result of stats -> text: bytes, bits per label, distortion and calibration."""

from typing import Any

import typer

from vqlabel.cli.show_fit import judged
from vqlabel.cli.terminal import size, table
from vqlabel.metrics.judgement import topk_words


def show_stats(stats: dict[str, Any]) -> None:
    """How good the labels are; bytes of every part, bits per label, break-even with the teacher; all figures."""
    show_baselines(stats)
    labels = max(1, stats["records"])
    rows = [(row["part"], row["group"], f"{row['bytes']:,}", f"{8 * row['bytes'] / labels:.3f}") for row in stats["rows"]]
    total = stats["bytes"]["total"]
    table([*rows, ("total", "", f"{total:,}", f"{8 * total / labels:.3f}")], ("part", "group", "bytes", "bits/label"))
    typer.echo(
        f"\n{stats['records']:,} labels of {stats['classes']:,} classes; codec {stats['codec']}, {stats['code_bits']} code bits per label"
    )
    _show_bits_per_label(stats)
    if "pruned" in stats:
        pruned = stats["pruned"]
        typer.echo(
            f"the file has {100 * pruned['kept']:g} % of the dump's labels: {pruned['bits_per_label_before']['all_in']:.2f} bits all-in "
            "per label before pruning"
        )
    if stats["perplexity"]:
        typer.echo(f"perplexity per slot: {' '.join(f'{p:.0f}' for p in stats['perplexity'])} of {stats['codebook_size']}")
    if "teacher" in stats:
        teacher = stats["teacher"]
        verb = "are" if teacher["smaller"] == "labels" else "is"
        typer.echo(
            f"the {teacher['smaller']} {verb} smaller here; with more than {teacher['break_even_labels']:,} labels the teacher "
            f"({size(teacher['teacher_bytes'])}) is smaller"
        )
    show_distortion(stats)


def _show_bits_per_label(stats: dict[str, Any]) -> None:
    """Bits per label of this file, and extrapolated to 300 views per image."""
    at_300_views = stats["bits_per_label_at_300_views"] or {}
    titles = {"codes": "codes only", "labels": "labels: all except augmentation and order", "all_in": "all-in: the whole file"}
    rows = []
    for name, bits in stats["bits_per_label"].items():
        later = f"{at_300_views[name]:.2f}" if name in at_300_views else "-"
        ratio = ratio_words(stats["ratio_to_fp16"][name]) if name in stats["ratio_to_fp16"] else "-"
        rows.append((titles[name], f"{bits:.2f}", later, ratio))
    table(rows, ("bits per label", "this file", "at 300 views/image", "of fp16"))


def ratio_words(ratio: float) -> str:
    """A compression ratio as a share: 20 -> "1/20.0", 0.5 -> "2.0 x"."""
    return f"1/{ratio:.1f}" if ratio >= 1 else f"{1 / ratio:.1f} x"


def show_baselines(stats: dict[str, Any], heading: str = "against the dump") -> None:
    """KL beside that of one mean label and of top-k in as many bytes, and what that says; nothing without a dump."""
    if "baselines" not in stats:
        return
    found = stats["baselines"]
    names, topk = list(found["kl"]), found["topk"]
    own, gain = "these labels", found.get("gain")
    rows = [
        ("one mean label for all", "0.0", *(f"{found['mean_label'][name]:.4f}" for name in names)),
        (topk_words(topk), f"{topk['bits']:.1f}", *(f"{topk[name]:.4f}" for name in names)),
    ]
    if gain is not None:
        rows.insert(0, ("the same codes, --gain 1", "", *(f"{found['kl'][name]:.4f}" for name in names)))
        own += f", gain {gain:.2f}"
    whole = stats["distortion"] if gain is not None else found["kl"]
    kls = [f"{whole[name]:.4f}" if whole.get(name) is not None else "-" for name in names]
    rows.insert(0, (own, f"{topk['budget']:.1f}", *kls))
    typer.echo(f"{heading}; baselines are measured on {found['labels']:,} of these labels")
    table(rows, ("", "bits/label", *(f"KL at T = {name.rpartition('_T')[2]}" for name in names)))
    if found["judgement"] is not None:
        typer.echo(judged(found["judgement"], has_gain=gain is not None))
    if gain is not None:
        typer.echo(
            "a gain makes labels unbiased on purpose: students learn more from them, although their KL is not the least; the line with "
            "--gain 1 has the KL of the same codes without it"
        )
    typer.echo("")


def show_distortion(stats: dict[str, Any]) -> None:
    """Distortion and calibration against a dump, if they were measured."""
    if "distortion" in stats:
        typer.echo("distortion against the dump: " + _figures(stats["distortion"]))
    if stats.get("distortion", {}).get("mass_kept") is not None:
        typer.echo(
            "distortion is computed over the stored classes, renormalised; mass_kept is their share of the raw label's probability"
        )
    if "distortion_f32" in stats:
        typer.echo(f"  before labels are rounded to {stats['dtype']}: " + _figures(stats["distortion_f32"]))
    for name, calibration in stats.get("calibration", {}).items():
        slope = "none" if calibration["slope"] is None else f"{calibration['slope']:.4f}"
        error = f"{calibration['ece']:.4g} ({100 * calibration['relative_ece']:.2g} % of the mean probability)"
        entropy = f"{calibration['entropy']['raw']:.4f} raw, {calibration['entropy']['decoded']:.4f} decoded"
        typer.echo(f"calibration at {name}: slope {slope}  ECE {error}  entropy in nats {entropy}")


def _figures(values: dict[str, float | None]) -> str:
    """Names and values in one line; "-" for a value outside float32."""
    return "  ".join(f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in values.items())
