"""`stats(..., against=dump)` -> reliability diagrams of decoded labels against raw ones, one per temperature."""

from pathlib import Path
from typing import Any

from vqlabel.errors import UsageError
from vqlabel.report.plots.figure import check_plot_file, hide_upper_right_frame, new_figure, save_figure

CURVE, DIAGONAL = "#2b6cb0", "#9aa0a6"  # colors
SMALL = 0.05  # probabilities that are all below it are drawn times C: 1 is then the probability of a uniform label


def plot_calibration(stats: dict[str, Any], out: Path, *, overwrite: bool = False) -> None:
    """Draw calibration, see `draw_calibration`.

    Raises:
        UsageError: `stats` has no calibration.
        TargetExists, UsageError, MissingExtra: see `check_plot_file`.
    """
    if not stats.get("calibration"):
        raise UsageError(f"{out}: stats has no calibration to draw; name a dump (--against)")
    check_plot_file(out, overwrite=overwrite)
    save_figure(draw_calibration(stats), out, overwrite=overwrite)


def draw_calibration(stats: dict[str, Any]) -> Any:
    """A figure with a column per temperature.

    Above, the raw probability of the decoded label's largest class over its decoded probability, by bins of equally
    many labels. Below, the share of labels whose decoded top-1 probability is higher. Where all probabilities are
    small, as at T = 20, both axes are scaled by C, the number of classes.
    """
    calibrations = list(stats["calibration"].values())
    classes = stats["classes"] if "classes" in stats else stats["vocabulary"]
    figure = new_figure(figsize=(max(4.4, 3.6 * len(calibrations)), 5.6))
    above, below = figure.subplots(2, len(calibrations), squeeze=False, height_ratios=(5, 2), sharex="col")
    for calibration, reliability, confidence in zip(calibrations, above, below, strict=True):
        values = [b[name] for b in calibration["bins"] for name in ("confidence", "raw")]
        scale = classes if max(values) < SMALL else 1
        _draw_reliability(reliability, calibration, scale)
        _draw_confidence(confidence, calibration, scale)
        times_classes = "" if scale == 1 else " × C"
        confidence.set_xlabel(f"decoded top-1 probability{times_classes}")
        reliability.set_ylabel(f"raw probability of that class{times_classes}")
        for axes in (reliability, confidence):
            hide_upper_right_frame(axes)
            axes.grid(alpha=0.25)
    below[0].set_ylabel("share of\nlabels above")
    figure.align_ylabels()
    labels = stats["compared"]["labels"] if "compared" in stats else stats["records"]
    title = f"{Path(stats['path']).name}: {labels:,} labels in bins of equally many, C = {classes:,}"
    figure.suptitle(title, fontsize="medium")
    return figure


def _draw_reliability(axes: Any, calibration: dict[str, Any], scale: float) -> None:
    """A point for each bin; labels without calibration error lie on the diagonal."""
    pairs = [(scale * b["confidence"], scale * b["raw"]) for b in calibration["bins"]]
    low, high = _limits([value for pair in pairs for value in pair], scale)
    axes.plot([low, high], [low, high], color=DIAGONAL, linewidth=1, label="calibrated")
    axes.plot(*zip(*pairs, strict=True), "o-", color=CURVE, markersize=5)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.locator_params(nbins=6)
    slope = "none" if calibration["slope"] is None else f"{calibration['slope']:.3f}"
    error = f"{100 * calibration['relative_ece']:.2g} % of the mean"
    axes.set_title(f"T = {calibration['temperature']:g}: slope {slope},\nECE {error}", fontsize="medium")


def _draw_confidence(axes: Any, calibration: dict[str, Any], scale: float) -> None:
    """The share of labels with a higher decoded top-1 probability, from the number of labels in the bins."""
    labels = [b["labels"] for b in calibration["bins"]]
    above = [1 - (sum(labels[:i]) + count / 2) / sum(labels) for i, count in enumerate(labels)]
    axes.plot([scale * b["confidence"] for b in calibration["bins"]], above, "o-", color=CURVE, markersize=4)
    axes.set(ylim=(0, 1), yticks=(0, 0.5, 1))


def _limits(values: list[float], scale: float) -> tuple[float, float]:
    """Of an axis, a little wider than `values`: at T = 20 and 1,000 classes all probabilities are near 0.0015."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1 * high
    return max(0.0, low - margin), min(scale, high + margin)
