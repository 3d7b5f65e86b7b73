"""`compare_methods(...)` -> a plot of distortion over bits, a curve per method, or of students' scores."""

from pathlib import Path
from typing import Any

from vqlabel.report.plots.figure import check_plot_file, hide_upper_right_frame, new_figure, save_figure

HELD_OUT, ALL_IN = "held out", "all-in"  # values of "part"
MIN_KL = 1e-3  # nats; lower values are drawn there, because a logarithmic axis has no 0
MIN_BITS = 1 / 8  # likewise
PANELS = {  # part -> title, label of the x axis
    HELD_OUT: ("held out; fixed parts are not counted", "bits per label, codes only"),
    ALL_IN: ("all-in; fixed parts are divided by this dump's labels", "bits per label, codes and fixed parts"),
}
COLORS = {  # of a method in every plot, whichever others are drawn
    "vqae": "#1f77b4",
    "vqae-no-prior": "#7fb8e6",
    "topk": "#d62728",
    "topk-coded": "#ff9896",
    "raw": "#555555",
    "int8": "#8c8c8c",
    "int4": "#bdbdbd",
    "pca-scalar": "#2ca02c",
    "pq": "#c5b0d5",
    "opq": "#9467bd",
    "rq": "#e377c2",
    "hard": "#bcbd22",
}
LEGEND_COLUMNS = 4  # below the panels, so that they have the whole width
STUDENT_SCORES = {"kl_teacher": "student's KL to the teacher, nats", "top1": "student's top-1, %"}


def plot_rate_distortion(comparison: dict[str, Any], out: Path, *, overwrite: bool = False) -> None:
    """Draw the result of `compare_methods`.

    Without students, held out to the left and all-in to the right: KL at those of T = 1, 4, 20 that the student has (at
    all three if none), and top-1 agreement. With students, their scores over the all-in bits; a dashed line is the
    score from raw labels.

    Raises:
        TargetExists, UsageError, MissingExtra: see `check_plot_file`.
    """
    check_plot_file(out, overwrite=overwrite)
    rows, parts = _rows_and_parts(comparison)
    figure = new_figure(figsize=(6 * len(parts) + 2 * (len(parts) == 1), 0.6 + 3.2 * len(rows)))
    grid = figure.subplots(len(rows), len(parts), sharex=True, sharey="row", squeeze=False)
    for column, part in enumerate(parts):
        title, label = PANELS[part]
        for row, quantity in enumerate(rows):
            _draw_panel(grid[row][column], comparison, part, quantity)
        grid[0][column].set_title(title, loc="left", fontsize="medium")
        bytes_above(grid[0][column])
        grid[-1][column].set_xlabel(label)
    for row, label in enumerate(rows.values()):
        grid[row][0].set_ylabel(label)
    temperatures = ", ".join(f"{t:g}" for t in comparison["temperature"])
    figure.suptitle(
        f"{Path(comparison['dump']).name}: {comparison['labels']:,} labels of {comparison['classes']:,} classes, fitted for "
        f"T = {temperatures}; held out: {comparison['split']}",
        x=0.01,
        ha="left",
        fontsize="medium",
    )
    figure.legend(*grid[0][-1].get_legend_handles_labels(), loc="outside lower center", frameon=False, ncols=LEGEND_COLUMNS)
    save_figure(figure, out, overwrite=overwrite)


def _rows_and_parts(comparison: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Rows of panels, quantity -> label of the y axis, and the columns."""
    if comparison["student"] is not None:
        return {name: label for name, label in STUDENT_SCORES.items() if name in comparison["student"]["raw"]}, [ALL_IN]
    temperatures = [t for t in (1, 4, 20) if t in comparison["temperature"]] or [1, 4, 20]
    kls = {f"kl_T{t}": f"T² · KL at T = {t}, nats" for t in temperatures}
    return {**kls, "top1_agreement": "top-1 agreement"}, [HELD_OUT, ALL_IN]


def _draw_panel(axes: Any, comparison: dict[str, Any], part: str, quantity: str) -> None:
    """A line per method; the teacher's bytes (all-in) as a vertical line, raw labels' score (students) dashed."""
    for method, title in comparison["methods"].items():
        points = [p for p in comparison["points"] if (p["method"], p["part"]) == (method, part)]
        if points:
            x, y = _bits(points, part), [_value(point, quantity) for point in points]
            marker, width = ("o", 2.2) if method.startswith("vqae") else (".", 1.1)
            axes.plot(x, y, marker=marker, linewidth=width, color=COLORS[method], label=title)
    if comparison["teacher"] is not None and part == ALL_IN:
        axes.axvline(comparison["teacher"]["all_in_bits"], color="black", linestyle=":", label="the teacher itself")
    if quantity in STUDENT_SCORES:
        axes.axhline(comparison["student"]["raw"][quantity], color="black", linestyle="--", label="raw labels")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    if quantity.startswith("kl_T"):
        logarithmic_kl(axes)
    axes.grid(alpha=0.25)
    hide_upper_right_frame(axes)


def logarithmic_kl(axes: Any) -> None:
    """A logarithmic y axis with ticks at 1, 2 and 5 of a decade; its lowest end, MIN_KL, stands for lower values."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if value > MIN_KL else f"≤ {MIN_KL:g}")


def bytes_above(axes: Any) -> None:
    """A second axis above with the bytes of the bits below."""
    above = axes.secondary_xaxis("top", functions=(lambda bits: bits / 8, lambda size: 8 * size))
    above.set_xscale("log", base=2)
    above.xaxis.set_major_formatter("{x:g}")
    above.tick_params(labelsize="small", colors="#666666")
    above.set_xlabel("bytes per label", fontsize="small", color="#666666")


def _bits(points: list[dict[str, Any]], part: str) -> list[float]:
    """Bits per label of every point."""
    return [max(p["code_bits" if part == HELD_OUT else "all_in_bits"], MIN_BITS) for p in points]


def _value(point: dict[str, Any], quantity: str) -> float:
    if quantity in STUDENT_SCORES:
        return float(point["student"][quantity])
    return float(point[quantity] if quantity == "top1_agreement" else max(point[quantity], MIN_KL))
