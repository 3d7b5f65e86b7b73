"""The report of a fit -> the quality of its labels: held-out figures, KL of one mean label, and warnings."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vqlabel.codecs.registry import config_class
from vqlabel.metrics.judgement import judge

POOR_AGREEMENT = 0.5  # share of held-out labels; below it, fit_quality warns
POOR_KL = 1.0  # nats, times T^2; above it, fit_quality warns
POOR_MASS = 0.9  # share of the probability at T = 1 that the stored classes have; below it, fit_quality warns
# Names in the reports of codec files from before the splits were named train and held_out -> names of today.
EARLIER_NAMES = {"seen": "train", "held": "held_out", "held_out": "split", "contrast": "gain", "contrast_limited": "gain_limited"}
REMEDY = "; more --bits, a smaller --ratio or more passes (--epochs) keep more"


class _Figures(NamedTuple):
    """Names of figures in a report."""

    kl: str  # followed by the temperature
    agreement: str


DISTRIBUTIONS, SIGMOIDS = _Figures("kl_T", "top1_agreement"), _Figures("binary_kl_T", "half_f1")


def fit_quality(report: Mapping[str, Any], code_bits: float, codec_file: str | None = None) -> dict[str, Any]:
    """The quality of the labels that `pack` writes.

    Args:
        report: of `fit`, or from a codec file, which an older version or another program may have written.
        code_bits: per label, of the rate that was packed; a codec file may have higher rates.
        codec_file: the file that the report comes from; None: the codec was fitted to the packed dump.

    Returns:
        codec_file; split, what was held out; labels; temperature, those that the codec was fitted for, and
        temperature_auto, whether the user left them open;
        held_out, calibrated and mean_label, each with its KL at these temperatures, `held_out` with the agreement as
        well and, if only part of the classes of a label is stored, with mass_kept; topk, k, bits and KL of the largest
        classes in as many bytes; gain with bias_slope, gain_limited; judgement, see `metrics.judgement.judge`;
        warnings, one sentence each. For a raw codec `{"exact": True}`. Empty if the report has no figures for this
        rate.
    """
    if config_class(report.get("codec")).lossless:
        return {"exact": True}
    report = with_current_names(report)
    held_out, temperatures = _held_out(report, code_bits), _temperatures(report)
    config = report["config"] if isinstance(report.get("config"), dict) else {}
    sigmoid, has_temperature = config.get("domain") == "sigmoid", "temperature" in config
    figures = SIGMOIDS if sigmoid else DISTRIBUTIONS
    kls = tuple(f"{figures.kl}{t:g}" for t in temperatures)
    held_out_figures = _numbers(held_out, (*kls, figures.agreement))
    if not kls or len(held_out_figures) <= len(kls):
        return {}
    parts = {"held_out": held_out_figures | _numbers(held_out, ("mass_kept",))}
    for part in ("calibrated", "mean_label"):
        parts |= {part: numbers} if (numbers := _numbers(report.get(part), kls)) else {}
    by_rate = report["topk"] if isinstance(report.get("topk"), dict) else {}
    rate = report.get("code_bits") if held_out is report.get("held_out") else code_bits
    if (
        len(numbers := _numbers(by_rate.get(f"{rate:g}" if isinstance(rate, int | float) else ""), ("k", "bits", "budget", *kls)))
        > 3
    ):
        parts["topk"] = numbers
    gain = report["gain"] if type(report.get("gain")) in (int, float) else None
    if gain is None or held_out is not report.get("held_out"):  # calibrated labels are measured at the highest rate only
        parts.pop("calibrated", None)
    labels = report["held_out"].get("labels")
    verdict = judge(
        parts.get("calibrated", held_out_figures),
        parts.get("mean_label", {}),
        parts.get("topk"),
        kls,
        exact_bits=_exact_bits(config),
    )
    return {
        "codec_file": codec_file,
        "split": str(report.get("split")),
        "labels": labels if type(labels) is int else 0,
        "temperature": temperatures,
        "temperature_auto": has_temperature and report.get("temperature_auto") is True,
        **parts,
        **({} if gain is None else {"gain": gain, "bias_slope": _slopes(report.get("bias_slope"))}),
        **({"gain_limited": True} if report.get("gain_limited") else {}),
        **({} if verdict is None else {"judgement": verdict}),
        "warnings": _warnings(parts, figures, temperatures),
    }


def _slopes(slopes: Any) -> dict[str, float]:
    """Slope of decoded on raw probabilities by temperature, as "T1"; empty for older codec files."""
    return _numbers(slopes, tuple(slopes)) if isinstance(slopes, dict) else {}


def _exact_bits(config: Mapping[str, Any]) -> float | None:
    """Bits of a label in fp16; None if the number of classes is not recorded."""
    classes = config.get("classes")
    return 16.0 * classes if type(classes) is int else None


def with_current_names(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a codec file, with names of today where an earlier version wrote it."""
    if "held" not in report:
        return dict(report)
    return {EARLIER_NAMES.get(name, name): value for name, value in report.items()}


def _held_out(report: Mapping[str, Any], code_bits: float) -> Any:
    """Held-out figures of the rate that was packed; None if there are none."""
    if not isinstance(report.get("held_out"), dict):
        return None
    rates = report.get("rates")
    bits = f"{code_bits:g}"
    if isinstance(rates, dict) and bits in rates:
        return rates[bits]
    config = report.get("config")
    one_rate = not config_class(report.get("codec")).has_lower_rates or (
        isinstance(config, dict) and config.get("variable") is True
    )
    return report["held_out"] if one_rate or report.get("code_bits") == code_bits else None


def _temperatures(report: Mapping[str, Any]) -> list[float]:
    for part in ("config", "fit"):
        config = report.get(part)
        temperature = config.get("temperature") if isinstance(config, dict) else None
        if isinstance(temperature, list | tuple) and all(isinstance(t, int | float) for t in temperature):
            return list(temperature)
    return []


def _numbers(figures: Any, names: tuple[str, ...]) -> dict[str, float]:
    """Those of the named figures that are numbers."""
    if not isinstance(figures, dict):
        return {}
    return {name: figures[name] for name in names if isinstance(figures.get(name), int | float)}


def _warnings(parts: Mapping[str, Mapping[str, float]], figures: _Figures, temperatures: list[float]) -> list[str]:
    """KL is judged on calibrated labels where there are any: unbiased labels have a higher KL by design."""
    held_out, mean = parts["held_out"], parts.get("mean_label", {})
    judged = parts.get("calibrated", held_out)
    kls = {t: (judged[f"{figures.kl}{t:g}"], mean.get(f"{figures.kl}{t:g}")) for t in temperatures}
    sentences = [
        _warn_of_agreement(held_out[figures.agreement], figures),
        _warn_of_mass(held_out.get("mass_kept", 1)),
        *(_warn_of_kl(t, kl, kl_of_mean, limited=figures is DISTRIBUTIONS) for t, (kl, kl_of_mean) in kls.items()),
    ]
    return [sentence for sentence in sentences if sentence is not None]


def _warn_of_agreement(agreement: float, figures: _Figures) -> str | None:
    if agreement >= POOR_AGREEMENT:
        return None
    if figures is SIGMOIDS:
        return f"the classes above 0.5 agree with the teacher's in only {100 * agreement:.1f} % (F1){REMEDY}"
    return f"the largest class is the teacher's in only {100 * agreement:.1f} % of the held-out labels{REMEDY}"


def _warn_of_mass(mass: float) -> str | None:
    if mass >= POOR_MASS:
        return None
    return (
        f"the stored classes have only {100 * mass:.1f} % of a label's probability at T = 1, and the KL is over these classes alone; "
        "more --slots or --bits keep more, and so does --codec vqae if the labels have a number for every class"
    )


def _warn_of_kl(temperature: float, kl: float, kl_of_mean: float | None, *, limited: bool) -> str | None:
    """`limited`: KL above POOR_KL is poor; binary KL, a sum over classes, has no such limit."""
    if kl_of_mean is not None and kl >= kl_of_mean:
        return (
            f"held-out KL at T = {temperature:g} is {kl:.3f}, that of one mean label for all is {kl_of_mean:.3f}: these codes distinguish "
            f"labels no better than that{REMEDY}"
        )
    if limited and kl > POOR_KL:
        return f"held-out KL at T = {temperature:g} is {kl:.3f} nats (times T^2), above {POOR_KL:g}: much of the labels is lost{REMEDY}"
    return None
