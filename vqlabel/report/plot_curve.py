"""`compare` as a picture: distortion over bytes, a curve a method, held out beside all-in. Needs matplotlib (extra `plot`)."""

from pathlib import Path
from typing import Any

from vqlabel.report.plot import check_picture, figure_of, save

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


def plot_curve(found: dict[str, Any], out: Path, *, overwrite: bool = False) -> None:
    """Draw `compare(...)`: held out to the left, all-in to the right, bytes per label along x; KL at the student's temperatures of
    1, 4 and 20 (all three where it has none of them), and top-1 agreement.

    Raises:
        What `check_picture` does; the picture appears whole or not at all.
    """
    check_picture(out, overwrite=overwrite)
    kls = [t for t in (1, 4, 20) if t in found["temperature"]] or [1, 4, 20]
    rows = [*(f"kl_T{t}" for t in kls), "top1_agreement"]
    figure = figure_of(figsize=(12, 0.6 + 3.2 * len(rows)))
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
    save(figure, out, overwrite=overwrite)


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
