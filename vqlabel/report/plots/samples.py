"""Sample labels, teacher against decoded, and the use of the slots, as figures."""

from collections.abc import Iterable
from typing import Any

from vqlabel.report.plots.figure import hide_upper_right_frame, new_figure

TEACHER, DECODED = "#9aa0a6", "#2b6cb0"  # colors
COLUMNS = 3


def draw_samples(samples: list[dict[str, Any]]) -> Any:
    """A figure with a panel for each label: the teacher's largest classes, and what was decoded for them."""
    rows = -(-len(samples) // COLUMNS)
    figure = new_figure(figsize=(10, 0.5 + 2.5 * rows))
    panels = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True).ravel()
    draw_labels(panels, samples)
    for axes in panels[len(samples) :]:
        axes.set_visible(False)
    for axes in panels[::COLUMNS]:
        axes.set_ylabel("probability")
    figure.supxlabel("class, by the teacher's probability", fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", frameon=False, ncols=2)
    return figure


def draw_labels(panels: Iterable[Any], samples: list[dict[str, Any]]) -> None:
    """Draw each label into a panel of its own."""
    for axes, sample in zip(panels, samples, strict=False):
        places = range(len(sample["classes"]))
        axes.bar([x - 0.2 for x in places], sample["teacher"], 0.4, color=TEACHER, label="teacher")
        axes.bar([x + 0.2 for x in places], sample["decoded"], 0.4, color=DECODED, label="decoded")
        axes.set_xticks(list(places), [str(c) for c in sample["classes"]], rotation=45, fontsize="small")
        axes.set_title(sample["name"], loc="left", fontsize="medium")
        hide_upper_right_frame(axes)


def draw_slots(perplexity: list[float], codebook_size: int) -> Any:
    """A figure with a bar for each slot: how many codes it uses, as the perplexity of their frequencies."""
    figure = new_figure(figsize=(8, 2.6))
    axes = figure.add_subplot()
    axes.bar(range(1, len(perplexity) + 1), perplexity, color=DECODED)
    axes.axhline(codebook_size, color=TEACHER, linestyle="--", linewidth=1)
    axes.text(
        0.995,
        codebook_size,
        f"codebook of {codebook_size}",
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="bottom",
        color="#555555",
    )
    axes.set(xlabel="slot", ylabel="codes in use (perplexity)", ylim=(0, 1.18 * codebook_size))
    axes.xaxis.get_major_locator().set_params(integer=True)
    hide_upper_right_frame(axes)
    return figure


def draw_counts(counts: dict[str, list[int]]) -> Any:
    """A figure with a histogram of codes and exact ids per label: title -> labels that have 0, 1, 2 ... of them."""
    figure = new_figure(figsize=(8, 2.8))
    for axes, (title, labels) in zip(figure.subplots(1, len(counts), squeeze=False)[0], counts.items(), strict=True):
        axes.bar(range(len(labels)), [100 * n / max(1, sum(labels)) for n in labels], color=DECODED)
        axes.set(xlabel=f"{title} per label", ylabel="% of labels")
        axes.xaxis.get_major_locator().set_params(integer=True)
        hide_upper_right_frame(axes)
    return figure
