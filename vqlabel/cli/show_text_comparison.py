"""The result of `compare_text` -> tables."""

from typing import Any

import typer

from vqlabel.cli.terminal import size, table

AT = {"10000000": "1e7", "1000000000": "1e9"}  # keys of `all_in_at` -> words of a heading


def show_text_comparison(comparison: dict[str, Any]) -> None:
    """Tables of held-out figures and of bits all-in, by rising bits; then students and the teacher's size."""
    sampled = comparison["sampled"]
    typer.echo(
        f"{comparison['labels']:,} labels of {comparison['documents']:,} documents, {comparison['vocabulary']:,} tokens in the vocabulary"
    )
    _show_held_out(comparison, sampled["held_out"])
    _show_all_in(comparison)
    if comparison["student"] is not None:
        _show_students(comparison)
    if comparison["teacher"] is not None:
        teacher = comparison["teacher"]
        at = ", ".join(f"{bits:.3g} at {AT[count]}" for count, bits in teacher["all_in_at"].items())
        typer.echo(f"\nteacher: {size(teacher['bytes'])}, {teacher['all_in_bits']:.1f} bits per label of this dump, {at}")


def _show_held_out(comparison: dict[str, Any], labels: int) -> None:
    """Bits of the codes, and distortion."""
    typer.echo(f"\nheld out: {labels:,} labels of documents that the fit did not see; fixed parts are not counted")
    rows = [
        (
            *_name(comparison, p),
            f"{p['code_bits']:.1f}",
            "inf" if p["kl"] is None else f"{p['kl']:.4f}",
            f"{p['kl_stored']:.4f}",
            f"{100 * p['top1_agreement']:.1f}",
            f"{p['squared_error']:.5f}",
            f"{100 * p['ece']:.2f}",
        )
        for p in comparison["points"]
    ]
    table(rows, ("method", "setting", "code bits", "KL", "KL, stored tokens", "top-1 %", "squared error", "ECE %"))


def _show_all_in(comparison: dict[str, Any]) -> None:
    """Bits per label with fixed parts, with the head in the file and by reference, at several numbers of labels."""
    typer.echo("\nall-in bits per label: fixed parts are divided by the labels of this dump, 1e7 and 1e9 labels")
    rows = []
    for p in comparison["points"]:
        parts = [p, p["referenced"]]
        bits = [
            value
            for part in parts
            for value in ([None] * 3 if part is None else [part["all_in_bits"], *part["all_in_at"].values()])
        ]
        rows.append((*_name(comparison, p), size(p["fixed_bytes"]), *("-" if value is None else f"{value:.1f}" for value in bits)))
    headings = [f"{head}, {at}" for head in ("embedded", "referenced") for at in ("here", *AT.values())]
    table(rows, ("method", "setting", "fixed parts", *headings))


def _show_students(comparison: dict[str, Any]) -> None:
    """Scores of students trained on hard and dense labels and on each method's."""
    student = comparison["student"]
    typer.echo(
        f"\nstudents: {student['passes']} passes over {student['labels']:,} labels, seed {student['seed']}; judged on "
        f"{student['judged_labels']:,} labels of other documents. share: of the gain in KL from hard to dense labels"
    )
    ends = [(f"{name} labels", "", "", student[name], "") for name in ("hard", "dense")]
    rows = [
        (*_name(comparison, p), f"{p['code_bits']:.1f}", p["student"], _share(p["student"]["share"])) for p in comparison["points"]
    ]
    cells = [
        (method, setting, bits, f"{scores['kl']:.4f}", share, f"{scores['top1']:.1f}", f"{scores['ece']:.2f}")
        for method, setting, bits, scores, share in [*ends, *rows]
    ]
    table(cells, ("method", "setting", "code bits", "KL to the teacher", "share", "top-1 %", "ECE %"))


def _name(comparison: dict[str, Any], point: dict[str, Any]) -> tuple[str, str]:
    return comparison["methods"][point["method"]], point["setting"]


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
