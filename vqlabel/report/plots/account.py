"""`stats(...)` -> a bar chart of the bits per label of every part of the file."""

from pathlib import Path
from typing import Any

from vqlabel.report.plots.figure import check_plot_file, hide_upper_right_frame, new_figure, save_figure

COLORS = {"codes": "#2b6cb0", "codec": "#dd8a2d", "augmentation": "#4a9d6f", "order": "#8e6bbf", "container": "#9aa0a6",
          "per label": "#2b6cb0", "per document": "#4a9d6f", "fixed": "#dd8a2d"}  # fmt: skip


def plot_account(stats: dict[str, Any], out: Path, *, overwrite: bool = False) -> None:
    """Draw the bits per label of every part; the suffix of `out` names the image format.

    Raises:
        TargetExists, UsageError, MissingExtra: see `check_plot_file`.
    """
    check_plot_file(out, overwrite=overwrite)
    save_figure(draw_account(stats), out, overwrite=overwrite)


def draw_account(stats: dict[str, Any]) -> Any:
    """A figure with a bar for every part of a file, of labels of images or of documents; colours are groups."""
    text = "vocabulary" in stats
    labels, classes = (stats["labels"], stats["vocabulary"]) if text else (stats["records"], stats["classes"])
    by = "grows" if text else "group"
    rows = [row for row in stats["rows"] if row["bytes"]]
    bits = [8 * row["bytes"] / max(1, labels) for row in rows]
    figure = new_figure(figsize=(8, 1.0 + 0.34 * len(rows)))
    axes = figure.add_subplot()
    bars = axes.barh([row["part"] for row in rows], bits, color=[COLORS[row[by]] for row in rows])
    axes.bar_label(bars, [f"{b:.3g}" for b in bits], padding=3)
    axes.invert_yaxis()
    words = f"{classes:,} {'tokens' if text else 'classes'}"
    axes.set_xlabel(f"bits per label, {labels:,} labels of {words} (fp16: {16 * classes:,})")
    total = stats["bits_per_label"]["all_in"]
    axes.set_title(
        f"{Path(stats['path']).name}: {total:.4g} bits per label all-in, 1/{16 * classes / total if total else 0:.3g} of fp16",
        loc="left",
    )
    hide_upper_right_frame(axes)
    axes.margins(x=0.12)
    groups = list(dict.fromkeys(row[by] for row in rows))
    handles = [bars.patches[next(i for i, row in enumerate(rows) if row[by] == group)] for group in groups]
    axes.legend(handles, groups, frameon=False, loc="lower right")
    return figure
