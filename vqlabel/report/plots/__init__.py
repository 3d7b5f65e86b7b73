"""Results of `stats` and `compare` as plots. Needs matplotlib (extra `plot`)."""

from vqlabel.report.plots.account import draw_account, plot_account
from vqlabel.report.plots.calibration import draw_calibration, plot_calibration
from vqlabel.report.plots.figure import check_plot_file, inline_svg, new_figure
from vqlabel.report.plots.rate_distortion import plot_rate_distortion
from vqlabel.report.plots.text_comparison import plot_text_comparison

__all__ = [
    "check_plot_file",
    "draw_account",
    "draw_calibration",
    "inline_svg",
    "new_figure",
    "plot_account",
    "plot_calibration",
    "plot_rate_distortion",
    "plot_text_comparison",
]
