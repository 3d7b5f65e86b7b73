"""The dictionary that --json prints -> the text output of each command."""

from typing import Any

import typer

from vqlabel.cli.terminal import line, size, table

MIN_SAVING = 0.01  # fraction of the code bits; a smaller saving by compression is not reported
MAX_BIAS = 0.1  # |slope - 1| of decoded on raw probabilities up to which labels are called unbiased
AUTO_TEMPERATURE = "fitted for T = 1 (--temperature auto), also for students at T = 20 and at falling temperatures: docs/results.md has their scores"


def show_pack(result: dict[str, Any]) -> None:
    """Numbers of labels, classes and epochs, size, rate, bits of augmentation and order, and the codec's distortion."""
    epochs, bits, stored = result["epochs"], result["code_bits"], result["stored_code_bits"]
    labels = f"{result['records']:,} labels of {result['classes']:,} classes, {epochs:,} epoch{'s' * (epochs != 1)}"
    compressed = f", compressed to {stored:.1f}" if stored < (1 - MIN_SAVING) * bits else ""
    typer.echo(f"{result['path']}: {labels}, in {size(result['bytes'])}, {bits} code bits each{compressed}")
    augmentation = result["augmentation_bits"]
    if augmentation:
        how = ", generated from the seed" if "if_kept" in augmentation else ""
        alternatives = {"if_kept": "without --augmentation seeded", "if_seeded": "with --augmentation seeded"}
        other = "".join(f"; about {augmentation[name]:.2f} {words}" for name, words in alternatives.items() if name in augmentation)
        typer.echo(f"augmentation and order: {augmentation['stored']:.2f} bits per label{how}{other}")
    _show_quality(result["fit"])


def show_relabelled(result: dict[str, Any]) -> None:
    """Numbers of labels and classes, and the distortion of the codec if one was used."""
    typer.echo(f"{result['path']}: {result['records']:,} labels of {result['classes']:,} classes")
    if "fit" in result:
        _show_quality(result["fit"])


def _show_quality(fit: dict[str, Any]) -> None:
    """Held-out distortion of the codec that a file was packed with: the result of `fit_quality`."""
    if fit.get("exact"):
        typer.echo("labels are stored losslessly")
        return
    if not fit:
        typer.echo("the codec file does not record the distortion at this rate; vqlabel stats --against DUMP measures it")
        return

    sigmoid = "half_f1" in fit["held_out"]
    figure = "binary_kl_T" if sigmoid else "kl_T"
    agreement = (
        f"F1 of classes above 0.5 {100 * fit['held_out']['half_f1']:.1f} %, binary KL summed over classes"
        if sigmoid
        else f"top-1 agreement {100 * fit['held_out']['top1_agreement']:.1f} %, KL"
    )

    def kls(part: str) -> str:
        return ", ".join(
            f"{fit[part][f'{figure}{t:g}']:.3f} at T = {t:g}" for t in fit["temperature"] if f"{figure}{t:g}" in fit[part]
        )

    origin = "held out" if fit["codec_file"] is None else f"{fit['codec_file']}, on the dump that it was fitted to: held out"
    if fit["temperature_auto"]:
        typer.echo(AUTO_TEMPERATURE)
    typer.echo(f"{origin} ({fit['split']}, {fit['labels']:,} labels): {agreement} {kls('held_out')}")
    if "mass_kept" in fit["held_out"]:
        typer.echo(
            f"KL is computed over the stored classes, which have {100 * fit['held_out']['mass_kept']:.1f} % of the probability at T = 1"
        )
    if "calibrated" in fit:
        typer.echo(
            f"labels are rescaled to be unbiased, by a gain of {fit['gain']:.2f}: better for students, higher KL; "
            f"KL with --gain 1: {kls('calibrated')}"
        )
    if "mean_label" in fit:
        typer.echo(f"for comparison, KL if every label is replaced by the mean label: {kls('mean_label')}")


def show_fit(report: dict[str, Any]) -> None:
    """The resolved configuration, and distortion on held-out and on training labels."""
    config = {name: value for name, value in report["config"].items() if name not in ("classes", "domain")}
    typer.echo(
        f"{report['codec']}, {report['code_bits']} code bits per label, {report['config']['classes']} classes of {report['config']['domain']}"
    )
    typer.echo("  " + "  ".join(f"{name} {value}" for name, value in config.items()))
    if "temperature" in config and report.get("temperature_auto"):
        typer.echo(AUTO_TEMPERATURE)
    names = [name for name in report["held_out"] if name != "labels"]
    parts = {"held_out": f"held out: {report['split']}", "train": "training labels", "calibrated": "held out, with --gain 1"}
    rows = [
        (title, str(report[part]["labels"]), *(f"{report[part][n]:.4f}" for n in names))
        for part, title in parts.items()
        if part in report
    ]
    labels = str(report["held_out"]["labels"])
    for bits, distortion in report.get("rates", {}).items():
        rows.append((f"held out, packed with --bits {bits}", labels, *(f"{distortion[n]:.4f}" for n in names)))
    table(rows, ("distortion (KL in nats, times T^2)", "labels", *names))
    if "gain" in report:
        typer.echo(_gain(report))
    if report.get("gain_limited"):
        typer.echo(
            "labels are calibrated, not unbiased: unbiased ones would need a gain of more than 2, or be no better than one label for all"
        )
    if "perplexity" in report:
        typer.echo(
            f"perplexity per slot: {' '.join(f'{p:.0f}' for p in report['perplexity'])} of {report['config']['codebook_size']}"
        )


def _gain(report: dict[str, Any]) -> str:
    """The gain of decoded labels about their mean, and the remaining bias on held-out labels."""
    bias_slope = report.get("bias_slope", {})  # absent from older codec files
    slopes = ", ".join(f"{slope:.2f} at T = {name[1:]}" for name, slope in bias_slope.items()) or "not measured"
    smallest_bias = min((abs(slope - 1) for slope in bias_slope.values()), default=1)
    if report["fit"].get("gain") is not None:
        why = "set by --gain"
    elif smallest_bias <= MAX_BIAS:
        why = "labels are rescaled to be unbiased: better for students, higher KL (--gain 1 gives the lowest KL)"
    else:
        why = "labels are less biased than calibrated ones, but not unbiased at every temperature"
    return f"gain {report['gain']:.3f}: {why}; slope of decoded on raw probabilities, held out: {slopes}"


def show_trial(trial: Any) -> None:
    """One line on stderr for a configuration that `tune` tried."""
    c = trial.resolved
    prior = "no prior" if c.prior is None else f"prior of width {c.prior.image_width} per image, {c.prior.hidden} hidden units"
    slots = f"up to {c.slots} slots, {c.rate:g} bits on average," if c.variable else f"{c.slots} slots"
    kls = "  ".join(f"{name} {value:.3f}" for name, value in trial.kl.items())
    student = "".join(f"  student's {name} {value:.4g}" for name, value in trial.student.items())
    line(
        f"{size(trial.bytes)}: {slots} of {c.codebook_size}, latent {c.latent}, {c.weight_bits} bits per weight, {prior}: {kls}{student}"
        f"  ({trial.seconds:.0f} s)"
    )


def share_of_budget(report: dict[str, Any]) -> str:
    """Part of a sentence; empty if the goal of the search was a KL."""
    return "" if report["budget"] is None else f"{100 * report['bytes'] / report['budget']:.1f} % of the budget, "


def show_tuned(report: dict[str, Any]) -> None:
    """The result of a search, and its size relative to the budget."""
    show_fit(report)
    typer.echo(
        f"{size(report['bytes'])} for this dump, {share_of_budget(report)}1/{report['ratio']:g} of fp16; "
        f"{len(report['trials'])} trials, {report['seconds']:.0f} s"
    )


def show_stats(stats: dict[str, Any]) -> None:
    """Bytes of every part, bits per label, compression ratio, break-even with the teacher, and distortion."""
    labels = max(1, stats["records"])
    rows = [(row["part"], row["group"], f"{row['bytes']:,}", f"{8 * row['bytes'] / labels:.3f}") for row in stats["rows"]]
    total = stats["bytes"]["total"]
    table([*rows, ("total", "", f"{total:,}", f"{8 * total / labels:.3f}")], ("part", "group", "bytes", "bits/label"))
    typer.echo(
        f"\n{stats['records']:,} labels of {stats['classes']:,} classes; codec {stats['codec']}, {stats['code_bits']} code bits per label"
    )
    _show_bits_per_label(stats)
    if "pruned" in stats:
        pruned = stats["pruned"]
        typer.echo(
            f"the file has {100 * pruned['kept']:g} % of the dump's labels: {pruned['bits_per_label_before']['all_in']:.2f} bits all-in "
            "per label before pruning"
        )
    if stats["perplexity"]:
        typer.echo(f"perplexity per slot: {' '.join(f'{p:.0f}' for p in stats['perplexity'])} of {stats['codebook_size']}")
    if "teacher" in stats:
        teacher = stats["teacher"]
        verb = "are" if teacher["smaller"] == "labels" else "is"
        typer.echo(
            f"the {teacher['smaller']} {verb} smaller here; with more than {teacher['break_even_labels']:,} labels the teacher "
            f"({size(teacher['teacher_bytes'])}) is smaller"
        )
    show_distortion(stats)


def _show_bits_per_label(stats: dict[str, Any]) -> None:
    """Bits per label of this file, and extrapolated to 300 views per image."""
    at_300_views = stats["bits_per_label_at_300_views"] or {}
    titles = {"codes": "codes only", "labels": "labels: all except augmentation and order", "all_in": "all-in: the whole file"}
    rows = []
    for name, bits in stats["bits_per_label"].items():
        later = f"{at_300_views[name]:.2f}" if name in at_300_views else "-"
        ratio = f"1/{stats['ratio_to_fp16'][name]:.1f}" if name in stats["ratio_to_fp16"] else "-"
        rows.append((titles[name], f"{bits:.2f}", later, ratio))
    table(rows, ("bits per label", "this file", "at 300 views/image", "of fp16"))


def show_distortion(stats: dict[str, Any]) -> None:
    """Distortion and calibration against a dump, if they were measured."""
    if "distortion" in stats:
        typer.echo("distortion against the dump: " + _figures(stats["distortion"]))
    if stats.get("distortion", {}).get("mass_kept") is not None:
        typer.echo(
            "distortion is computed over the stored classes, renormalised; mass_kept is their share of the raw label's probability"
        )
    if "distortion_f32" in stats:
        typer.echo(f"  before labels are rounded to {stats['dtype']}: " + _figures(stats["distortion_f32"]))
    for name, calibration in stats.get("calibration", {}).items():
        slope = "none" if calibration["slope"] is None else f"{calibration['slope']:.4f}"
        error = f"{calibration['ece']:.4g} ({100 * calibration['relative_ece']:.2g} % of the mean probability)"
        entropy = f"{calibration['entropy']['raw']:.4f} raw, {calibration['entropy']['decoded']:.4f} decoded"
        typer.echo(f"calibration at {name}: slope {slope}  ECE {error}  entropy in nats {entropy}")


def _figures(values: dict[str, float | None]) -> str:
    """Names and values in one line; "-" for a value outside float32."""
    return "  ".join(f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in values.items())


def show_demo(result: dict[str, Any]) -> None:
    """Sizes, bits per label, and the accuracy of teacher and students."""
    show_stats(result)
    raw, total = result["raw_dump_bytes"], result["bytes"]["total"]
    typer.echo(f"\ndump: {size(raw)}; .vql file, with augmentation and order: {size(total)}, 1/{raw / total:.0f} of the dump")
    rows = [(name.replace("_", " "), f"{100 * share:.1f} %") for name, share in result["top1"].items()]
    table(rows, ("top-1 on typefaces outside the training data", ""))
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
