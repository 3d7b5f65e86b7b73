"""The result of stats -> text: bytes, bits per label, distortion and calibration."""

from typing import Any

import typer

from vqlabel.cli.terminal import size, table


def show_stats(stats: dict[str, Any]) -> None:
    """Bytes of every part, bits per label, compression ratio, break-even with the teacher, and distortion."""
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
        ratio = f"1/{stats['ratio_to_fp16'][name]:.1f}" if name in stats["ratio_to_fp16"] else "-"
        rows.append((titles[name], f"{bits:.2f}", later, ratio))
    table(rows, ("bits per label", "this file", "at 300 views/image", "of fp16"))


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
