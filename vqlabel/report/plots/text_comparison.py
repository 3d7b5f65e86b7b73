"""`compare_text(...)` -> a plot of KL over bits, or of students' scores, a curve per method."""

from pathlib import Path
from typing import Any

from vqlabel.report.plots.figure import check_plot_file, hide_upper_right_frame, new_figure, save_figure
from vqlabel.report.plots.rate_distortion import LEGEND_COLUMNS, MIN_KL, bytes_above, logarithmic_kl
from vqlabel.report.text.methods import METHODS

COLORS = ("#1f77b4", "#7fb8e6", "#d62728", "#ff9896", "#555555", "#8c8c8c", "#bdbdbd", "#2ca02c", "#c5b0d5")  # of METHODS
MIN_BITS = 1 / 8  # lower rates are drawn there, because a logarithmic axis has no 0
CODES, ALL_IN = "code_bits", "all_in_bits"
PANELS = {
    CODES: ("codes alone; fixed parts are not counted", "bits per label, codes alone"),
    ALL_IN: ("all-in; fixed parts are divided by this dump's labels", "bits per label, codes and fixed parts"),
}


def plot_text_comparison(comparison: dict[str, Any], out: Path, *, overwrite: bool = False) -> None:
    """Draw the result of `compare_text`.

    Without students, held-out KL over code bits to the left and over all-in bits to the right; labels that exclude
    tokens have an infinite KL and are left out. With students, their KL to the teacher; dashed lines are the scores
    from dense and hard labels. A method has one colour in every plot.

    Raises:
        TargetExists, UsageError, MissingExtra: see `check_plot_file`.
    """
    check_plot_file(out, overwrite=overwrite)
    figure = new_figure(figsize=(13, 5))
    for axes, (bits, (title, label)) in zip(figure.subplots(1, 2, sharey=True), PANELS.items(), strict=True):
        _draw(axes, comparison, bits)
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_xlabel(label)
        bytes_above(axes)
    students = comparison["student"] is not None
    figure.axes[0].set_ylabel(f"{'student' if students else 'label'}'s KL to the teacher, nats")
    figure.suptitle(
        f"{Path(comparison['dump']).name}: {comparison['labels']:,} labels of {comparison['vocabulary']:,} tokens; measured on "
        f"{comparison['sampled']['held_out']:,} held out",
        x=0.01,
        ha="left",
        fontsize="medium",
    )
    figure.legend(*figure.axes[1].get_legend_handles_labels(), loc="outside lower center", frameon=False, ncols=LEGEND_COLUMNS)
    save_figure(figure, out, overwrite=overwrite)


def _draw(axes: Any, comparison: dict[str, Any], bits: str) -> None:
    """A line per method; the teacher's size as a vertical line."""
    for number, name in enumerate(METHODS):
        own = [p for p in comparison["points"] if p["method"] == name and _kl(p) is not None]
        points = sorted(own, key=lambda point: float(point[bits]))
        if points:
            x = [max(point[bits], MIN_BITS) for point in points]
            marker, width = ("o", 2.2) if name == "token_vqae" else (".", 1.1)
            y = [max(float(_kl(point)), MIN_KL) for point in points]
            axes.plot(x, y, marker=marker, linewidth=width, color=COLORS[number], label=METHODS[name])
    if comparison["teacher"] is not None and bits == ALL_IN:
        axes.axvline(comparison["teacher"]["all_in_bits"], color="black", linestyle=":", label="the teacher itself")
    for name, grey in (("hard", "#999999"), ("dense", "black")):
        if comparison["student"] is not None:
            axes.axhline(comparison["student"][name]["kl"], color=grey, linestyle="--", label=f"{name} labels")
    axes.set_xscale("log", base=2)
    logarithmic_kl(axes)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25)
    hide_upper_right_frame(axes)


def _kl(point: dict[str, Any]) -> Any:
    """Of the point's student, or of its labels; None: infinite."""
    return point["student"]["kl"] if "student" in point else point["kl"]
