"""Bits per label as a picture: one bar, cut by part. Needs matplotlib (extra `plot`)."""

from pathlib import Path
from typing import Any

from vqlabel.errors import MissingExtra, UsageError

COLOURS = {"codes": "#2b6cb0", "codec": "#dd8a2d", "augmentation": "#4a9d6f", "order": "#8e6bbf", "container": "#9aa0a6"}


def plot_bits(stats: dict[str, Any], out: Path) -> None:
    """Draw `stats(...)` to an image file (the suffix names its format).

    Raises:
        MissingExtra: matplotlib is not installed.
        UsageError: the suffix names no format that matplotlib writes.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", extra="plot") from None
    rows = [row for row in stats["rows"] if row["bytes"]]
    bits = [8 * row["bytes"] / max(1, stats["records"]) for row in rows]
    figure = Figure(figsize=(8, 0.6 + 0.34 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh([row["part"] for row in rows], bits, color=[COLOURS[row["group"]] for row in rows])
    axes.bar_label(bars, [f"{b:.3g}" for b in bits], padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(
        f"bits per label, {stats['records']:,} labels of {stats['classes']:,} classes (fp16: {16 * stats['classes']:,})"
    )
    total, ratio = stats["bits_per_label"]["all_in"], stats["ratio_to_fp16"].get("all_in", 0)
    axes.set_title(f"{Path(stats['path']).name}: {total:.4g} bits per label all-in, 1/{ratio:.0f} of fp16", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    names = list(dict.fromkeys(row["group"] for row in rows))
    handles = [bars.patches[next(i for i, row in enumerate(rows) if row["group"] == name)] for name in names]
    axes.legend(handles, names, frameon=False, loc="lower right")
    try:
        figure.savefig(out, dpi=120)
    except ValueError as error:
        raise UsageError(f"{out}: no picture can be written there ({error}); end the name in .png, .svg or .pdf") from None
