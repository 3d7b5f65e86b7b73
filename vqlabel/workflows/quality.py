"""The report of a fit -> what its labels are worth: held-out KL and agreement beside those of one mean label, and warnings where they are poor."""

from collections.abc import Mapping
from typing import Any

POOR_AGREEMENT, POOR_KL, POOR_MASS = 0.5, 1.0, 0.9  # share of labels; nats, times T^2; share of the probability at T = 1


def fit_quality(report: Mapping[str, Any], code_bits: float, codec_file: str | None = None) -> dict[str, Any]:
    """What `pack` shows of the codec that it used.

    Args:
        report: of `fit`, or as a codec file has it, which may be of an older version or of another program.
        code_bits: per label, that were packed; a codec file may have more.
        codec_file: where the report comes from; None: from a fit to the very dump that was packed.

    Returns:
        codec_file, held_out, labels and temperature, those of the students that the codec was fitted for; held, calibrated and mean_label,
        each with its KL at these temperatures, `held` with the agreement as well, and, where only some classes of a label are stored, mass_kept; contrast, contrast_limited; warnings, one sentence each.
        Of a raw codec `{"exact": True}`. Without a figure for this rate an empty dictionary.
    """
    if report.get("codec") == "raw":
        return {"exact": True}
    held, temperatures = _held(report, code_bits), _temperatures(report)
    sigmoid = isinstance(report.get("config"), dict) and report["config"].get("domain") == "sigmoid"
    figure, agreement = ("binary_kl_T", "half_f1") if sigmoid else ("kl_T", "top1_agreement")
    names = [f"{figure}{t:g}" for t in temperatures]
    figures = _numbers(held, (*names, agreement))
    if not names or len(figures) <= len(names):
        return {}
    parts = {"held": figures | _numbers(held, ("mass_kept",))}
    for part in ("calibrated", "mean_label"):
        parts |= {part: found} if (found := _numbers(report.get(part), tuple(names))) else {}
    if held is not report.get("held"):  # a lower rate of the codec, whose calibrated labels nobody measured
        parts.pop("calibrated", None)
    return {
        "codec_file": codec_file,
        "held_out": str(report.get("held_out")),
        "labels": report["held"].get("labels"),
        "temperature": temperatures,
        **parts,
        **{name: report[name] for name in ("contrast", "contrast_limited") if name in report},
        "warnings": _warnings(parts, figure, agreement, temperatures),
    }


def _held(report: Mapping[str, Any], code_bits: float) -> Any:
    """Figures of the rate that was packed."""
    if not isinstance(report.get("held"), dict):
        return None
    rates = report.get("rates")
    bits = f"{code_bits:g}"
    if isinstance(rates, dict) and bits in rates:
        return rates[bits]
    config = report.get("config")
    one_rate = report.get("codec") != "vqae" or (isinstance(config, dict) and config.get("variable") is True)
    return report["held"] if one_rate or report.get("code_bits") == code_bits else None


def _temperatures(report: Mapping[str, Any]) -> list[float]:
    for part in ("config", "fit"):
        config = report.get(part)
        found = config.get("temperature") if isinstance(config, dict) else None
        if isinstance(found, list | tuple) and all(isinstance(t, int | float) for t in found):
            return list(found)
    return []


def _numbers(found: Any, names: tuple[str, ...]) -> dict[str, float]:
    return {name: found[name] for name in names if isinstance(found.get(name), int | float)} if isinstance(found, dict) else {}


def _warnings(parts: Mapping[str, Mapping[str, float]], figure: str, agreement: str, temperatures: list[float]) -> list[str]:
    """Of what the codes keep: unbiased labels are further from the raw ones on purpose, the calibrated ones are as near as the codes allow."""
    found, more = [], "; more --bits, a smaller --ratio or more passes (--epochs) keep more"
    agreed = parts["held"][agreement]
    if agreed < POOR_AGREEMENT:
        what = (
            "classes above 0.5 agree with the teacher's only to"
            if agreement == "half_f1"
            else "the largest class is the teacher's in only"
        )
        of = " (F1)" if agreement == "half_f1" else " of the held-out labels"
        found.append(f"{what} {100 * agreed:.1f} %{of}{more}")
    if parts["held"].get("mass_kept", 1) < POOR_MASS:
        found.append(
            f"the classes that are stored have only {100 * parts['held']['mass_kept']:.1f} % of a label's probability at T = 1, and the KL is over "
            "these classes alone; more --slots or --bits keep more, and so does --codec vqae where labels have a number for every class"
        )
    kept, mean = parts.get("calibrated", parts["held"]), parts.get("mean_label", {})
    for t in temperatures:
        name = f"{figure}{t:g}"
        if name in mean and kept[name] >= mean[name]:
            found.append(
                f"held-out KL at T = {t:g} is {kept[name]:.3f}, one mean label for all has {mean[name]:.3f}: these codes tell labels apart "
                f"no better than that{more}"
            )
        elif figure == "kl_T" and kept[name] > POOR_KL:
            found.append(
                f"held-out KL at T = {t:g} is {kept[name]:.3f} nats (times T^2), above {POOR_KL:g}: much of the labels is lost{more}"
            )
    return found
