"""The results of the two demos -> text."""

from typing import Any

import typer

from vqlabel.cli.terminal import size, table


def show_demo(result: dict[str, Any]) -> None:
    """A table of sizes, bits per label and students, what it says, and where the picture is."""
    raw, total, top1 = result["raw_dump_bytes"], result["bytes"]["total"], result["top1"]
    typer.echo(
        f"{result['records']:,} labels of {result['classes']:,} classes; students are tested on typefaces outside the training data"
    )
    bits = {"raw": 8 * raw / max(1, result["records"]), "vql": result["bits_per_label"]["all_in"]}
    rows = [
        ("dump in SRe2L's layout", size(raw), f"{bits['raw']:,.0f}", f"{100 * top1['student_raw']:.1f} %"),
        (".vql, augmentation included", size(total), f"{bits['vql']:,.0f}", f"{100 * top1['student_vql']:.1f} %"),
    ]
    table(rows, ("labels", "size", "bits/label", "student's top-1"))
    typer.echo(
        f"\nThe .vql has 1/{raw / total:.0f} of the dump's size; its student reaches {100 * top1['student_vql']:.1f} %, that of the raw labels "
        f"{100 * top1['student_raw']:.1f} %, the teacher {100 * top1['teacher']:.1f} %."
    )
    judgement = result.get("baselines", {}).get("judgement")
    if judgement is not None:
        typer.echo(f"These labels are {judgement['sentence']}.")
    if "plot" in result:
        typer.echo(f"picture: {result['plot']}")
    typer.echo(f"{result['seconds']:.0f} s")


def show_text_demo(result: dict[str, Any]) -> None:
    """A table of the kinds of labels and their students, and a sentence that sums it up."""
    students = result["students"]
    rows = [
        (
            student["title"],
            f"{student['bits']:,.0f}",
            size(student["bytes"]),
            f"{student['ce']:.3f}",
            f"{student['kl']:.3f}",
            "-" if student["share"] is None else f"{100 * student['share']:.0f} %",
        )
        for student in students
    ]
    typer.echo(
        f"{result['labels']:,} labels of {result['vocabulary']:,} tokens; students judged on held-out documents, in nats per token"
    )
    table(rows, ("labels", "bits/token", "size", "cross entropy", "KL to teacher", "gain over hard"))
    typer.echo(f"\n{_text_summary(students)}\n{result['seconds']:.0f} s")


def _text_summary(students: list[dict[str, Any]]) -> str:
    """What the `.vql` of most bits keeps of the gain of dense labels, and what top-k labels keep."""
    packed, dense, top = (
        [student for student in students if student["kind"].startswith(kind)][-1] for kind in ("vql", "dense", "top")
    )
    if packed["share"] is None:
        return "In this run, dense labels taught no more than hard labels, so there is no gain to keep."
    return (
        f"In {packed['bits']:.0f} bits per token, decoder included, 1/{dense['bits'] / packed['bits']:.0f} of dense labels, the .vql keeps "
        f"{100 * packed['share']:.0f} % of what dense labels teach beyond hard labels; {top['kind']} labels take {top['bits']:.0f} bits and keep "
        f"{100 * top['share']:.0f} %."
    )
