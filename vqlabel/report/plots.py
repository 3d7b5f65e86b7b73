"""`stats` as pictures: bits per label by part; decoded against raw probabilities. Needs matplotlib (extra `plot`)."""

from pathlib import Path
from typing import Any

from vqlabel.errors import MissingExtra, UsageError
from vqlabel.storage.formats import IMAGE
from vqlabel.storage.targets import atomic_target, check_target

COLOURS = {"codes": "#2b6cb0", "codec": "#dd8a2d", "augmentation": "#4a9d6f", "order": "#8e6bbf", "container": "#9aa0a6"}


def check_picture(out: Path, *, overwrite: bool) -> None:
    """Refuse a picture before the work that leads to it.

    Raises:
        What `check_target` does.
        MissingExtra: matplotlib is not installed.
        UsageError: its suffix names no format that matplotlib writes.
    """
    known = figure_of().canvas.get_supported_filetypes()
    if out.suffix[1:].lower() not in known:
        raise UsageError(
            f"{out}: no picture can be written there (formats: {', '.join(sorted(known))}); end the name in .png, .svg or .pdf"
        )
    check_target(out, IMAGE, overwrite=overwrite)


def figure_of(**options: Any) -> Any:
    """A matplotlib figure that belongs to no window.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", extra="plot") from None
    return Figure(layout="constrained", **options)


def save(figure: Any, out: Path, *, overwrite: bool) -> None:
    """Write the figure; it appears whole or not at all."""
    with atomic_target(out, IMAGE, overwrite=overwrite) as partial:
        figure.savefig(partial, format=out.suffix[1:].lower(), dpi=120)


def plot_bits(stats: dict[str, Any], out: Path, *, overwrite: bool = False) -> None:
    """Draw the bytes of `stats(...)` to an image file; the suffix names its format. It appears whole or not at all.

    Raises:
        What `check_picture` does.
    """
    check_picture(out, overwrite=overwrite)
    rows = [row for row in stats["rows"] if row["bytes"]]
    bits = [8 * row["bytes"] / max(1, stats["records"]) for row in rows]
    figure = figure_of(figsize=(8, 0.6 + 0.34 * len(rows)))
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
    save(figure, out, overwrite=overwrite)


def plot_calibration(stats: dict[str, Any], out: Path, *, overwrite: bool = False) -> None:
    """Draw the calibration of `stats(..., against=...)`: above, what decoded labels promise against what the raw ones keep, a panel per
    temperature; below, which share of the labels promises more than that. It appears whole or not at all.

    Raises:
        UsageError: `stats` has no calibration.
        What `check_picture` does.
    """
    if not stats.get("calibration"):
        raise UsageError(f"{out}: there is no calibration to draw; give stats a dump (--against)")
    check_picture(out, overwrite=overwrite)
    found = list(stats["calibration"].values())
    figure = figure_of(figsize=(max(4, 3.4 * len(found)), 5))
    above, below = figure.subplots(2, len(found), squeeze=False, height_ratios=(3, 1))  # reliability, then how sure labels are
    for at, curve, spread in zip(found, above, below, strict=True):
        _reliability(curve, at)
        _confidences(spread, at)
        for axes in (curve, spread):
            axes.set_xlabel("decoded top-1 probability")
            axes.spines[["top", "right"]].set_visible(False)
    above[0].set_ylabel("raw probability of that class")
    below[0].set_ylabel("share of surer labels")
    figure.suptitle(f"{Path(stats['path']).name}: decoded against raw, {stats['records']:,} labels")
    save(figure, out, overwrite=overwrite)


def _reliability(axes: Any, at: dict[str, Any]) -> None:
    """A point for each bin; on the diagonal, decoded labels promise what the raw ones keep."""
    pairs = [(each["confidence"], each["raw"]) for each in at["bins"]]
    low, high = _limits([value for pair in pairs for value in pair])
    axes.plot([low, high], [low, high], color=COLOURS["container"], linewidth=1)
    axes.plot(*zip(*pairs, strict=True), "o-", color=COLOURS["codes"])
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    slope = "none" if at["slope"] is None else f"{at['slope']:.3f}"
    axes.set_title(f"T = {at['temperature']:g}: slope {slope}, ECE {100 * at['relative_ece']:.2g} % of the mean", fontsize="medium")


def _confidences(axes: Any, at: dict[str, Any]) -> None:
    """Which share of the labels is surer than that, from the bins, which have as many labels each."""
    labels = [each["labels"] for each in at["bins"]]
    surer = [1 - (sum(labels[:i]) + count / 2) / sum(labels) for i, count in enumerate(labels)]
    axes.plot([each["confidence"] for each in at["bins"]], surer, "o-", color=COLOURS["codes"])
    axes.set(xlim=_limits([each[name] for each in at["bins"] for name in ("confidence", "raw")]), ylim=(0, 1))
    axes.locator_params(axis="x", nbins=3)  # at high temperatures the numbers are long


def _limits(values: list[float]) -> tuple[float, float]:
    """Of an axis of probabilities: at T = 20 and 1,000 classes all of them lie about 0.0015."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1 * high
    return max(0.0, low - room), min(1.0, high + room)
