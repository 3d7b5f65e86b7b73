"""The result of `run_demo` -> a picture: sizes, students, and a few labels, teacher against decoded."""

from pathlib import Path
from typing import Any

from vqlabel.report.plots.figure import check_plot_file, hide_upper_right_frame, new_figure, save_figure
from vqlabel.report.plots.samples import DECODED, TEACHER, draw_labels

STUDENTS = {"teacher": "teacher", "student_raw": "student,\nraw labels", "student_vql": "student,\n.vql"}


def draw_demo(result: dict[str, Any], out: Path) -> None:
    """Write the picture; an earlier one is replaced.

    Raises:
        UsageError, MissingExtra: see `check_plot_file`.
    """
    check_plot_file(out, overwrite=True)
    figure = new_figure(figsize=(10, 6.4))
    grid = figure.add_gridspec(2, 6)
    size, students = figure.add_subplot(grid[0, :3]), figure.add_subplot(grid[0, 3:])
    kilobytes = [result["raw_dump_bytes"] / 1000, result["bytes"]["total"] / 1000]
    bars = size.barh(["dump", ".vql"], kilobytes, color=[TEACHER, DECODED])
    size.bar_label(bars, [f"{value:,.0f} kB" for value in kilobytes], padding=4)
    size.invert_yaxis()
    size.margins(x=0.2)
    size.xaxis.set_major_formatter("{x:,.0f}")
    size.set_xlabel("kB")
    size.set_title(f"Size: 1/{kilobytes[0] / kilobytes[1]:.0f}, augmentation included", loc="left")
    bars = students.bar(
        list(STUDENTS.values()), [100 * result["top1"][name] for name in STUDENTS], color=["#dddddd", TEACHER, DECODED]
    )
    students.bar_label(bars, fmt="%.1f %%")
    students.margins(y=0.15)
    students.set_ylabel("%")
    students.set_title("Top-1 on new typefaces", loc="left")
    panels = [figure.add_subplot(grid[1, 2 * i : 2 * i + 2]) for i in range(len(result["samples"]))]
    draw_labels(panels, result["samples"])
    panels[0].set_ylabel("probability")
    panels[-1].legend(frameon=False)
    for axes in (size, students):
        hide_upper_right_frame(axes)
    bits = result["bits_per_label"]["labels"]
    figure.suptitle(
        f"vqlabel: {result['records']:,} soft labels of {result['classes']:,} classes in {bits:.0f} bits each", fontsize="large"
    )
    save_figure(figure, out, overwrite=True)
