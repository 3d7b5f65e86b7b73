"""The result of compare for labels of images -> tables."""

from typing import Any

import typer

from vqlabel.cli.terminal import size, table


def show_compare(comparison: dict[str, Any]) -> None:
    """A table of held-out figures and a table of all-in figures, then students and the teacher's size."""
    temperatures = ", ".join(f"{t:g}" for t in comparison["temperature"])
    typer.echo(
        f"{comparison['labels']:,} labels of {comparison['classes']:,} classes of {comparison['domain']}; fitted for T = {temperatures}"
    )
    held_out, sampled = comparison["sampled"]["held_out"], sum(comparison["sampled"].values())
    _show_points(
        comparison,
        "held out",
        f"{comparison['split']}, {held_out:,} labels, not used by any fit; fixed parts are not counted",
        (),
    )
    _show_points(
        comparison, "all-in", f"fixed parts are divided by the number of labels in this dump; measured on {sampled:,} of them, training and held out",
        ("all_in_bits",),
    )  # fmt: skip
    if comparison["student"] is not None:
        _show_students(comparison)
    if comparison["teacher"] is not None:
        teacher = comparison["teacher"]
        typer.echo(f"\nteacher: {size(teacher['bytes'])}, {teacher['all_in_bits']:.1f} bits per label of this dump")


def _show_points(comparison: dict[str, Any], part: str, heading: str, more_bits: tuple[str, ...]) -> None:
    """The table of one part: bits and distortion of every method and setting."""
    figures = ("kl_T1", "kl_T4", "kl_T20", "relative_mse", "top1_agreement")
    rows = [
        (
            comparison["methods"][p["method"]],
            p["setting"],
            f"{p['code_bits']:.1f}",
            size(p["fixed_bytes"]),
            *(f"{p[name]:.1f}" for name in more_bits),
            *(f"{p[name]:.4f}" for name in figures),
        )
        for p in comparison["points"]
        if p["part"] == part
    ]
    typer.echo(f"\n{part}: {heading}")
    bits = ("all-in bits",) if more_bits else ()
    table(rows, ("method", "setting", "code bits", "fixed parts", *bits, *figures))


def _show_students(comparison: dict[str, Any]) -> None:
    """Scores of students trained on raw labels and on each method's labels, with all-in bits."""
    student = comparison["student"]
    typer.echo(
        f"\nstudents: {student['passes']} passes over {student['views']:,} views at T = {student['temperature']:g}, seed {student['seed']}; "
        f"tested on {student['new_images']:,} new images"
    )
    scores = [name for name in ("kl_teacher", "top1") if name in student["raw"]]
    rows = [("raw labels", "", f"{16 * comparison['classes']:.1f}", *(f"{student['raw'][name]:.4f}" for name in scores))]
    rows += [
        (
            comparison["methods"][p["method"]],
            p["setting"],
            f"{p['all_in_bits']:.1f}",
            *(f"{p['student'][name]:.4f}" for name in scores),
        )
        for p in comparison["points"]
        if "student" in p
    ]
    table(rows, ("method", "setting", "all-in bits", *scores))
