"""A matplotlib figure -> an image file, which appears whole or not at all."""

import io
from pathlib import Path
from typing import Any

from vqlabel.errors import MissingExtra, UsageError
from vqlabel.storage.formats import IMAGE
from vqlabel.storage.targets import atomic_target, check_target

DPI = 120


def check_plot_file(out: Path, *, overwrite: bool) -> None:
    """Check that a plot can be written to `out`, before the figures for it are computed.

    Raises:
        MissingExtra: matplotlib is not installed.
        UsageError: the suffix is not that of an image format, or the folder does not exist.
        TargetExists: `out` exists and `overwrite` is false.
    """
    formats = new_figure().canvas.get_supported_filetypes()
    if out.suffix[1:].lower() not in formats:
        raise UsageError(
            f"{out}: not a name of an image file (formats: {', '.join(sorted(formats))}); end the name in .png, .svg or .pdf"
        )
    check_target(out, IMAGE, overwrite=overwrite)


def new_figure(**options: Any) -> Any:
    """A matplotlib figure that is not shown in a window.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", extra="plot") from None
    return Figure(layout="constrained", **options)


def save_figure(figure: Any, out: Path, *, overwrite: bool) -> None:
    """Write a figure in the format that the suffix names."""
    with atomic_target(out, IMAGE, overwrite=overwrite) as partial:
        figure.savefig(partial, format=out.suffix[1:].lower(), dpi=DPI)


def inline_svg(figure: Any, name: str) -> str:
    """A figure as an <svg> element; the same figure and name give the same text, and two names no id in common."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace('id="', f'id="{name}-').replace('"#', f'"#{name}-').replace("url(#", f"url(#{name}-")


def hide_upper_right_frame(axes: Any) -> None:
    """Draw only the left and the lower side of a plot's frame."""
    axes.spines[["top", "right"]].set_visible(False)
