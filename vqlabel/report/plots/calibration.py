"""`stats(..., against=dump)` -> reliability diagrams of decoded labels against raw ones, one per temperature."""

from pathlib import Path
from typing import Any

from vqlabel.errors import UsageError
from vqlabel.report.plots.figure import check_plot_file, hide_upper_right_frame, new_figure, save_figure

CURVE, DIAGONAL = "#2b6cb0", "#9aa0a6"  # colors


def plot_calibration(stats: dict[str, Any], out: Path, *, overwrite: bool = False) -> None:
    """Draw calibration, a column per temperature.

    Above, the raw probability of the decoded label's largest class over its decoded probability, by bin. Below, the
    share of labels whose decoded top-1 probability is higher.

    Raises:
        UsageError: `stats` has no calibration.
        TargetExists, UsageError, MissingExtra: see `check_plot_file`.
    """
    if not stats.get("calibration"):
        raise UsageError(f"{out}: stats has no calibration to draw; name a dump (--against)")
    check_plot_file(out, overwrite=overwrite)
    calibrations = list(stats["calibration"].values())
    figure = new_figure(figsize=(max(4, 3.4 * len(calibrations)), 5))
    above, below = figure.subplots(2, len(calibrations), squeeze=False, height_ratios=(3, 1))
    for calibration, reliability, confidence in zip(calibrations, above, below, strict=True):
        _draw_reliability(reliability, calibration)
        _draw_confidence(confidence, calibration)
        for axes in (reliability, confidence):
            axes.set_xlabel("decoded top-1 probability")
            hide_upper_right_frame(axes)
    above[0].set_ylabel("raw probability of that class")
    below[0].set_ylabel("share of labels above")
    labels = stats["compared"]["labels"] if "compared" in stats else stats["records"]
    figure.suptitle(f"{Path(stats['path']).name}: decoded against raw, {labels:,} labels")
    save_figure(figure, out, overwrite=overwrite)


def _draw_reliability(axes: Any, calibration: dict[str, Any]) -> None:
    """A point for each bin; labels without calibration error lie on the diagonal."""
    pairs = [(b["confidence"], b["raw"]) for b in calibration["bins"]]
    low, high = _limits([value for pair in pairs for value in pair])
    axes.plot([low, high], [low, high], color=DIAGONAL, linewidth=1)
    axes.plot(*zip(*pairs, strict=True), "o-", color=CURVE)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    slope = "none" if calibration["slope"] is None else f"{calibration['slope']:.3f}"
    error = f"{100 * calibration['relative_ece']:.2g} % of the mean"
    axes.set_title(f"T = {calibration['temperature']:g}: slope {slope}, ECE {error}", fontsize="medium")


def _draw_confidence(axes: Any, calibration: dict[str, Any]) -> None:
    """The share of labels with a higher decoded top-1 probability, from the number of labels in the bins."""
    labels = [b["labels"] for b in calibration["bins"]]
    above = [1 - (sum(labels[:i]) + count / 2) / sum(labels) for i, count in enumerate(labels)]
    axes.plot([b["confidence"] for b in calibration["bins"]], above, "o-", color=CURVE)
    axes.set(xlim=_limits([b[name] for b in calibration["bins"] for name in ("confidence", "raw")]), ylim=(0, 1))
    axes.locator_params(axis="x", nbins=3)  # tick labels are long at high temperatures


def _limits(values: list[float]) -> tuple[float, float]:
    """Of an axis, a little wider than `values`: at T = 20 and 1,000 classes all probabilities are near 0.0015."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1 * high
    return max(0.0, low - margin), min(1.0, high + margin)
