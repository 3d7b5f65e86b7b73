"""`compare` as a picture: distortion over bytes, a curve a method, held out beside all-in. Needs matplotlib (extra `plot`)."""

from pathlib import Path
from typing import Any

from vqlabel.report.plots import check_picture, figure_of, save

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


STUDENT = {"kl_teacher": "student's KL to the teacher, nats", "top1": "student's top-1, %"}


def plot_curve(found: dict[str, Any], out: Path, *, overwrite: bool = False) -> None:
    """Draw `compare(...)`: held out to the left, all-in to the right, bytes per label along x; KL at the student's temperatures of
    1, 4 and 20 (all three where it has none of them), and top-1 agreement. Where students were trained, what they got instead, over
    the bytes of all-in; a dashed line is what raw labels gave.

    Raises:
        What `check_picture` does; the picture appears whole or not at all.
    """
    check_picture(out, overwrite=overwrite)
    kls = [t for t in (1, 4, 20) if t in found["temperature"]] or [1, 4, 20]
    rows = {f"kl_T{t}": f"T² · KL at T = {t}, nats (foot: {KL_LEAST:g} or less)" for t in kls} | {
        "top1_agreement": "top-1 agreement"
    }
    parts = list(PANELS)
    if found["student"] is not None:
        rows, parts = {name: title for name, title in STUDENT.items() if name in found["student"]["raw"]}, parts[1:]
    figure = figure_of(figsize=(6 * len(parts) + 2 * (len(parts) == 1), 0.6 + 3.2 * len(rows)))
    grid = figure.subplots(len(rows), len(parts), sharex=True, sharey="row", squeeze=False)
    for column, part in enumerate(parts):
        title, label = PANELS[part]
        for row, name in enumerate(rows):
            _draw(grid[row][column], found, part, name)
        grid[0][column].set_title(title, loc="left", fontsize="medium")
        grid[-1][column].set_xlabel(label)
    for row, title in enumerate(rows.values()):
        grid[row][0].set_ylabel(title)
    figure.suptitle(
        f"{Path(found['dump']).name}: {found['labels']:,} labels of {found['classes']:,} classes, fitted for T = "
        f"{', '.join(f'{t:g}' for t in found['temperature'])}; held out: {found['held_out']}",
        x=0.01,
        ha="left",
        fontsize="medium",
    )
    figure.legend(*grid[0][-1].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    save(figure, out, overwrite=overwrite)


def _draw(axes: Any, found: dict[str, Any], part: str, name: str) -> None:
    """One panel: a line per method with a rate, a mark per method without, the teacher's bytes as a vertical line."""
    for number, (method, title) in enumerate(found["methods"].items()):
        points = [p for p in found["points"] if (p["method"], p["part"]) == (method, part)]
        if not points:
            continue
        x = [max(p["code_bits" if part == "held out" else "all_in_bits"] / 8, BYTES_LEAST) for p in points]
        y = [
            p["student"][name] if name in STUDENT else p[name] if name == "top1_agreement" else max(p[name], KL_LEAST)
            for p in points
        ]
        marker, wide = ("o", 2.2) if method.startswith("vqae") else (".", 1.1)
        axes.plot(x, y, marker=marker, linewidth=wide, color=HUES[number % len(HUES)], label=title)
    if found["teacher"] is not None and part == "all-in":
        axes.axvline(found["teacher"]["all_in_bits"] / 8, color="black", linestyle=":", label="the teacher itself")
    if name in STUDENT:
        axes.axhline(found["student"]["raw"][name], color="black", linestyle="--", label="raw labels")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    if name.startswith("kl_T"):
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
