"""The results of fit, tune, pack and relabel -> text: the held-out figures first, beside those of baselines."""

from typing import Any

import typer

from vqlabel.cli.terminal import line, size, table
from vqlabel.metrics.judgement import topk_words

MIN_SAVING = 0.01  # fraction of the code bits; a smaller saving by compression is not reported
MAX_BIAS = 0.1  # |slope - 1| of decoded on raw probabilities up to which labels are called unbiased
AUTO_TEMPERATURE = "fitted for T = 1 (--temperature auto), also for students at T = 20 and at falling temperatures: docs/results.md has their scores"


def show_pack(result: dict[str, Any]) -> None:
    """Numbers of labels, classes and epochs, size, rate, bits of augmentation and order, and the codec's distortion."""
    epochs, bits, stored = result["epochs"], result["code_bits"], result["stored_code_bits"]
    labels = f"{result['records']:,} labels of {result['classes']:,} classes, {epochs:,} epoch{'s' * (epochs != 1)}"
    compressed = f", compressed to {stored:.1f}" if stored < (1 - MIN_SAVING) * bits else ""
    typer.echo(f"{result['path']}: {labels}, in {size(result['bytes'])}, {bits} code bits each{compressed}")
    _show_quality(result["fit"])
    augmentation = result["augmentation_bits"]
    if augmentation:
        how = ", generated from the seed" if "if_kept" in augmentation else ""
        alternatives = {"if_kept": "without --augmentation seeded", "if_seeded": "with --augmentation seeded"}
        other = "".join(f"; about {augmentation[name]:.2f} {words}" for name, words in alternatives.items() if name in augmentation)
        typer.echo(f"augmentation and order: {augmentation['stored']:.2f} bits per label{how}{other}")


def show_relabelled(result: dict[str, Any]) -> None:
    """Numbers of labels and classes, and the distortion of the codec if one was used."""
    stored = f", in {size(result['bytes'])}" if "bytes" in result else ""
    typer.echo(f"{result['path']}: {result['records']:,} labels of {result['classes']:,} classes{stored}")
    if "fit" in result:
        _show_quality(result["fit"])


def _show_quality(fit: dict[str, Any]) -> None:
    """Held-out distortion of a codec, beside that of baselines: the result of `fit_quality`."""
    if fit.get("exact"):
        typer.echo("labels are stored losslessly")
        return
    if not fit:
        typer.echo("the codec file does not record the distortion at this rate; vqlabel stats --against DUMP measures it")
        return
    origin = "held out" if fit["codec_file"] is None else f"{fit['codec_file']}, on the dump that it was fitted to: held out"
    typer.echo(f"{origin} ({fit['split']}, {fit['labels']:,} labels)")
    _show_baselines(fit)
    if "judgement" in fit:
        typer.echo(judged(fit["judgement"], has_gain="calibrated" in fit))
    if "mass_kept" in fit["held_out"]:
        share = f"{100 * fit['held_out']['mass_kept']:.1f} % of the probability at T = 1"
        typer.echo(f"KL is computed over the stored classes, which have {share}")
    if "gain" in fit:
        typer.echo(_gain(fit["gain"], fit["bias_slope"], chosen=fit.get("gain_chosen", False)))
    if fit["temperature_auto"]:
        typer.echo(AUTO_TEMPERATURE)


def judged(judgement: dict[str, Any], *, has_gain: bool) -> str:
    """The judgement as a line; labels with a gain are judged by the KL of the same codes without it."""
    return f"{'by the KL with --gain 1, ' if has_gain else ''}these labels are {judgement['sentence']}"


def _show_baselines(fit: dict[str, Any]) -> None:
    """A row for these labels, and one for each baseline."""
    sigmoid = "half_f1" in fit["held_out"]
    figure, agreement = ("binary_kl_T", "half_f1") if sigmoid else ("kl_T", "top1_agreement")
    names = [f"{figure}{t:g}" for t in fit["temperature"] if f"{figure}{t:g}" in fit["held_out"]]
    topk = fit.get("topk", {})
    gain = f", gain {fit['gain']:.2f}" if "gain" in fit else ""
    parts = {
        "held_out": (f"these labels{gain}", topk.get("budget")),
        "calibrated": ("the same codes, --gain 1", None),
        "mean_label": ("one mean label for all", 0.0),
        "topk": (topk_words(topk) if topk else "", topk.get("bits")),
    }
    rows = [
        (
            title,
            "" if bits is None else f"{bits:.1f}",
            *(f"{fit[part][name]:.4f}" if name in fit[part] else "" for name in names),
            f"{100 * fit[part][agreement]:.1f}" if agreement in fit[part] else "",
        )
        for part, (title, bits) in parts.items()
        if part in fit
    ]
    kls = [f"{'binary ' * sigmoid}KL at T = {name.rpartition('_T')[2]}" for name in names]
    table(rows, ("", "bits/label", *kls, "F1 %" if sigmoid else "top-1 %"))


def _gain(gain: float, bias_slope: dict[str, float], *, chosen: bool) -> str:
    """The gain of decoded labels about their mean, the remaining bias on held-out labels, and what a student feels."""
    slopes = ", ".join(f"{slope:.2f} at T = {name[1:]}" for name, slope in bias_slope.items()) or "not measured"
    smallest_bias = min((abs(slope - 1) for slope in bias_slope.values()), default=1)
    if chosen:
        why = "set by --gain"
    elif smallest_bias <= MAX_BIAS:
        why = "labels are rescaled to be unbiased: better for students, higher KL (--gain 1 gives the lowest KL)"
    else:
        why = "labels are less biased than calibrated ones, but not unbiased at every temperature"
    return f"gain {gain:.3f}: {why}; students feel the bias, not the KL: slope of decoded on raw probabilities (1: unbiased), held out: {slopes}"


def show_fit(report: dict[str, Any]) -> None:
    """Held-out distortion beside that of the baselines, then the resolved configuration, and all figures."""
    from vqlabel.workflows.quality import fit_quality

    quality = fit_quality(report, report["code_bits"])
    if quality:
        _show_quality({**quality, "gain_chosen": report["fit"].get("gain") is not None})
    if report.get("gain_limited"):
        typer.echo(
            "labels are calibrated, not unbiased: unbiased ones would need a gain of more than 2, or be no better than one label for all"
        )
    config = {name: value for name, value in report["config"].items() if name not in ("classes", "domain")}
    typer.echo(
        f"\n{report['codec']}, {report['code_bits']} code bits per label, {report['config']['classes']} classes of {report['config']['domain']}"
    )
    typer.echo("  " + "  ".join(f"{name} {value}" for name, value in config.items()))
    _show_all_figures(report)
    if "perplexity" in report:
        typer.echo(
            f"perplexity per slot: {' '.join(f'{p:.0f}' for p in report['perplexity'])} of {report['config']['codebook_size']}"
        )


def _show_all_figures(report: dict[str, Any]) -> None:
    """Every figure of distortion, on held-out and on training labels and at lower rates."""
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
