"""Bits per label as a picture: one bar, cut by part; distortion over bytes: curves. Needs matplotlib (extra `plot`)."""

from pathlib import Path
from typing import Any

from vqlabel.errors import MissingExtra, UsageError
from vqlabel.files import appearing, refuse_existing

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


KL_LEAST = 1e-3  # nats; what is less is drawn there: a logarithmic axis has no place for the lossless
BYTES_LEAST = 1 / 64
PANELS = {  # part: title, name of the bytes
    "held out": ("held out; fixed parts cost nothing at scale", "bytes per label, codes only"),
    "all-in": ("all-in; fixed parts shared by this dump's labels", "bytes per label, every byte of codes and fixed parts"),
}
HUES = (
    "#1f77b4",
    "#7fb8e6",
    "#d62728",
    "#ff9896",
    "#555555",
    "#8c8c8c",
    "#bdbdbd",
    "#2ca02c",
    "#c5b0d5",
    "#9467bd",
    "#e377c2",
    "#bcbd22",
)


def check_plot(out: Path, overwrite: bool) -> None:
    """Refuse a picture that could not be written, before the minutes that its numbers take.

    Raises:
        MissingExtra: matplotlib is not installed.
        UsageError: the suffix names no format that matplotlib writes, or the folder is not there.
        TargetExists: `out` is there and `overwrite` is false.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise MissingExtra("matplotlib", extra="plot") from None
    refuse_existing(out, overwrite)
    if not out.resolve().parent.is_dir():
        raise UsageError(f"{out.resolve().parent}: no such folder; make it first")
    if out.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        raise UsageError(
            f"{out}: no picture can be written there ({out.suffix or 'no suffix'}); end the name in .png, .svg or .pdf"
        )


def plot_curve(found: dict[str, Any], out: Path, *, overwrite: bool = False) -> None:
    """Draw `compare(...)`: held out to the left, all-in to the right, bytes per label along x; KL at the student's temperatures of
    1, 4 and 20 (all three where it has none of them), and top-1 agreement.

    Raises:
        as `check_plot`; the picture appears whole or not at all.
    """
    check_plot(out, overwrite)
    from matplotlib.figure import Figure

    kls = [t for t in (1, 4, 20) if t in found["temperature"]] or [1, 4, 20]
    rows = [*(f"kl_T{t}" for t in kls), "top1_agreement"]
    figure = Figure(figsize=(12, 0.6 + 3.2 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 2, sharex=True, sharey="row", squeeze=False)
    for column, (part, (title, label)) in enumerate(PANELS.items()):
        for row, name in enumerate(rows):
            _draw(grid[row][column], found, part, name)
        grid[0][column].set_title(title, loc="left", fontsize="medium")
        grid[-1][column].set_xlabel(label)
    for row, t in enumerate(kls):
        grid[row][0].set_ylabel(f"T² · KL at T = {t}, nats (foot: {KL_LEAST:g} or less)")
    grid[-1][0].set_ylabel("top-1 agreement")
    figure.suptitle(
        f"{Path(found['dump']).name}: {found['labels']:,} labels of {found['classes']:,} classes, fitted for T = "
        f"{', '.join(f'{t:g}' for t in found['temperature'])}; held out: {found['held_out']}",
        x=0.01,
        ha="left",
        fontsize="medium",
    )
    figure.legend(*grid[0][1].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    with appearing(out, overwrite=overwrite) as partial:
        figure.savefig(partial, dpi=120, format=out.suffix[1:].lower())


def _draw(axes: Any, found: dict[str, Any], part: str, name: str) -> None:
    """One panel: a line per method with a rate, a mark per method without, the teacher's bytes as a vertical line."""
    for number, (method, title) in enumerate(found["methods"].items()):
        points = [p for p in found["points"] if (p["method"], p["part"]) == (method, part)]
        if not points:
            continue
        x = [max(p["code_bits" if part == "held out" else "all_in_bits"] / 8, BYTES_LEAST) for p in points]
        y = [p[name] if name == "top1_agreement" else max(p[name], KL_LEAST) for p in points]
        marker, wide = ("o", 2.2) if method.startswith("vqae") else (".", 1.1)
        axes.plot(x, y, marker=marker, linewidth=wide, color=HUES[number % len(HUES)], label=title)
    if found["teacher"] is not None and part == "all-in":
        axes.axvline(found["teacher"]["all_in_bits"] / 8, color="black", linestyle=":", label="the teacher itself")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    if name != "top1_agreement":
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
