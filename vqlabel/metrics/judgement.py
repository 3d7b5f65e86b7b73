"""KL of labels, of one mean label and of top-k in as many bytes -> whether the labels are good, in one sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

GOOD, MIXED, POOR = "good", "mixed", "poor"
MIN_KL = 1e-9  # nats; smaller ones are rounding errors
MORE = "more --bits, a smaller --ratio or more passes (--epochs) keep more"


def judge(
    kl: Mapping[str, float],
    mean_label: Mapping[str, float],
    topk: Mapping[str, Any] | None,
    names: Sequence[str],
    *,
    exact_bits: float | None = None,
) -> dict[str, Any] | None:
    """Judge labels by their KL at the temperatures that they are for; the worst of these counts.

    Labels are good if their KL is below that of one mean label and of top-k in as many bytes, mixed if it is below
    the first only, poor otherwise. No other threshold is used; how good they are is the ratio of the two.

    Args:
        kl: of the labels; of unbiased labels, that of the same codes with a gain of 1.
        mean_label, topk: as `references` measures them on the same labels; None: top-k does not apply.
        names: figures, such as "kl_T1".
        exact_bits: bits of an uncompressed label; top-k labels that take as many are not a baseline but the labels.

    Returns:
        verdict; over_mean_label and over_topk, by what the KL of each is larger, None where it is not known; sentence.
        None if the figures are missing.
    """
    names = [name for name in names if name in kl and name in mean_label]
    if not names:
        return None
    over_mean, at_mean = _least(kl, mean_label, names)
    over_topk, at_topk = (None, "") if topk is None else _least(kl, topk, [name for name in names if name in topk])
    mean = f"{_share(over_mean)} that of one mean label"
    top = "" if topk is None or over_topk is None else f"{_share(over_topk)} that of {topk_words(topk)}"
    if over_mean <= 1:
        verdict, sentence = POOR, f"poor: KL{_at(at_mean)} is {mean}; {MORE}"
    elif topk is not None and exact_bits is not None and topk["bits"] >= exact_bits:
        verdict = MIXED
        sentence = f"mixed: KL{_at(at_mean)} is {mean}, but as many bytes hold the labels exactly (--codec raw), until there are more labels"
    elif over_topk is not None and over_topk <= 1:
        verdict = MIXED
        sentence = f"mixed: KL{_at(at_topk)} is {top}, until there are more labels; KL is {mean}"
    else:
        verdict, sentence = GOOD, f"good: KL{_at(at_topk or at_mean)} is {mean}" + (f", and {top}" if top else "")
    return {"verdict": verdict, "over_mean_label": round(over_mean, 4), "over_topk": over_topk, "sentence": sentence}


def _least(kl: Mapping[str, float], baseline: Mapping[str, Any], names: Sequence[str]) -> tuple[float, str]:
    """By what the KL of a baseline is larger, and the figure at which that is least."""
    factors = {name: float(baseline[name]) / max(kl[name], MIN_KL) for name in names}
    worst = min(factors, key=lambda name: factors[name])
    return round(factors[worst], 4), worst


def _share(factor: float) -> str:
    """The KL of labels relative to a baseline's, in words."""
    if factor <= 1:
        return f"{1 / max(factor, MIN_KL):,.3g} times"
    return f"1/{factor:,.0f} of" if factor >= 10 else f"1/{factor:.2g} of"


def topk_words(topk: Mapping[str, Any]) -> str:
    """The baseline of top-k labels; one class may take more bytes than the labels have."""
    return f"top-{topk['k']:g} in {'as many' if topk['bits'] <= topk.get('budget', topk['bits']) else 'more'} bytes"


def _at(name: str) -> str:
    """The temperature of a figure, in words."""
    return f" at T = {name.rpartition('_T')[2]}"
