"""A fitted codec and its sample -> the report: distortion on labels seen and held out, code bits, notes."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vqlabel.bitstream.ragged import COUNT_ROWS
from vqlabel.codecs import LabelCodec, LabelSample
from vqlabel.codecs.vqae.fit.split import MAX_LEVEL_SPREAD, level_spread
from vqlabel.config import MIX
from vqlabel.labels import SparseLabels
from vqlabel.metrics.code_usage import CodeUsage
from vqlabel.metrics.distortion import as_logits
from vqlabel.metrics.likelihood import likelihood_of
from vqlabel.metrics.pairs import pairs
from vqlabel.metrics.references import TopKReference
from vqlabel.workflows.sample import HELD_OUT_LABELS

CHUNK = 2048  # labels encoded at a time


def describe_codec(codec: LabelCodec, sample: LabelSample, split: str, temperatures: tuple[float, ...]) -> dict[str, Any]:
    """The measured part of a fit's report; its keys are those that `fit` documents."""
    if sample.domain != "sigmoid":
        temperatures = tuple(sorted({*MIX, *temperatures}))

    def on_held_out(variant: LabelCodec) -> dict[str, float]:
        return measure(variant, sample, "held_out", temperatures)

    report: dict[str, Any] = {
        "code_bits": code_bits(codec, sample),
        "split": split,
        "train": {"labels": len(sample.train), **measure(codec, sample, "train", temperatures)},
        "held_out": {"labels": len(sample.held_out), **on_held_out(codec)},
    }
    if codec.config.exact_dtype is None and not _over_sets(codec, sample):
        report["mean_label"] = {"labels": len(sample.held_out), **measure_mean_label(sample, temperatures)}
    figures = codec.fit_figures(on_held_out)
    if "calibrated" in figures:
        report["bias_slope"] = bias_slope(codec, sample)
        figures["calibrated"] = {"labels": len(sample.held_out), **figures["calibrated"]}
    report |= figures
    if "mean_label" in report and sample.domain != "sigmoid":
        report["topk"] = measure_topk(codec, sample, report, temperatures)
    if codec.config.codebooks is not None and codec.config.codebooks[0]:
        report["perplexity"] = _perplexity(codec, sample, *codec.config.codebooks)
    if notes := [*sample.notes, *_level_notes(codec, sample), *_dropped_notes(codec, sample)]:
        report["notes"] = notes
    return report


def measure(codec: LabelCodec, sample: LabelSample, part: str, temperatures: tuple[float, ...] = MIX) -> dict[str, float]:
    """Distortion of encoded and decoded labels of the split `part`, "train" or "held_out", at these temperatures."""
    sets = _over_sets(codec, sample)
    figures = likelihood_of(sample.domain).distortion(temperatures=temperatures, domain=sample.domain, sets=sets)
    with torch.inference_mode():
        for labels, context in sample.steps(part, CHUNK):
            codes, sparse = codec.encode(labels, context), isinstance(labels, SparseLabels)
            decoded = codec.decode_sparse(codes, context) if sparse else codec.decode(codes, context)
            for raw, coded in pairs(labels, decoded, sample.domain, sets=sets):
                figures.add(raw, coded)
    return {name: round(value, 6) for name, value in figures.figures().items()}


@torch.inference_mode()
def measure_mean_label(sample: LabelSample, temperatures: tuple[float, ...] = MIX) -> dict[str, float]:
    """Held-out KL if one label stands for all.

    At each temperature it is the mean distribution of the training split, which minimises that split's KL.
    """
    likelihood = likelihood_of(sample.domain)
    totals = [torch.zeros(sample.classes, dtype=torch.float64) for _ in temperatures]
    for labels in _wide_steps(sample, "train"):
        logits = as_logits(labels, sample.domain)
        for total, t in zip(totals, temperatures, strict=True):
            total += likelihood.probabilities(logits / t).sum(0, dtype=torch.float64)
    means = [t * likelihood.inverse(total / len(sample.train)).float() for total, t in zip(totals, temperatures, strict=True)]
    sums = [0.0] * len(temperatures)
    for labels in _wide_steps(sample, "held_out"):
        logits = as_logits(labels, sample.domain)
        for i, (mean, t) in enumerate(zip(means, temperatures, strict=True)):
            sums[i] += float(likelihood.divergence(logits, mean.expand_as(logits), t).sum(dtype=torch.float64))
    count = max(1, len(sample.held_out))
    return {f"{likelihood.figure}{t:g}": round(kl_sum / count, 6) for t, kl_sum in zip(temperatures, sums, strict=True)}


@torch.inference_mode()
def measure_topk(
    codec: LabelCodec, sample: LabelSample, report: Mapping[str, Any], temperatures: tuple[float, ...]
) -> dict[str, Any]:
    """Held-out KL of top-k labels in as many bytes, for each rate of a codec.

    Args:
        report: has code_bits and, of lower rates, rates.

    Returns:
        Code bits of a rate, as in `rates` -> figures of `TopKReference`, whose bits include the fixed parts, divided by
        the labels of the dump.
    """
    fitted_to = next(_wide_steps(sample, "train"))
    labels = sample.total or len(sample.train) + len(sample.held_out)
    references = {}
    for bits in (report["code_bits"], *map(int, report.get("rates", {}))):
        variant = codec if bits == report["code_bits"] else codec.at_rate(bits=bits)
        fixed = 8 * sum(tensor.nbytes for tensor in variant.decoder_tensors().values()) / labels
        references[f"{bits:g}"] = TopKReference(
            bits + fixed, temperatures, fitted_to, sample.domain, fitted_for=codec.config.temperatures
        )
    for raw in _wide_steps(sample, "held_out"):
        for reference in references.values():
            reference.add(raw)
    return {bits: reference.figures() for bits, reference in references.items()}


def _wide_steps(sample: LabelSample, split: str) -> Iterator[Tensor]:
    """Labels of a split as dense tensors [n, C]: CHUNK at a time, or a few if they are sparse."""
    for labels, _ in sample.steps(split, CHUNK):
        for raw, _ in pairs(labels, labels, sample.domain, sets=False):
            yield raw


@torch.inference_mode()
def bias_slope(codec: LabelCodec, sample: LabelSample) -> dict[str, float]:
    """Held-out slope of the regression of decoded on raw probabilities, at each of the codec's temperatures.

    It is 1 if labels are unbiased.
    """
    slopes, probabilities = {}, likelihood_of(sample.domain).probabilities
    for t in codec.config.temperatures:
        sums, count = torch.zeros(2, dtype=torch.float64), len(sample.held_out)
        means = torch.zeros(2, sample.classes, dtype=torch.float64)
        for labels, context in sample.steps("held_out", CHUNK):
            decoded = codec.decode(codec.encode(labels, context), context)
            raw, coded = (probabilities(as_logits(x, sample.domain) / t).double() for x in (labels, decoded))
            sums += torch.stack([(raw * coded).sum(), raw.square().sum()])
            means += torch.stack([raw.sum(0), coded.sum(0)]) / count
        product, power = sums - count * torch.stack([means[0] @ means[1], means[0] @ means[0]])
        slopes[f"T{t:g}"] = round(float(product / power.clamp_min(1e-30)), 4)
    return slopes


def code_bits(codec: LabelCodec, sample: LabelSample, parts: Sequence[str] = ("train", "held_out")) -> float:
    """Code bits per label; at a variable rate or with entropy coding the mean over these splits, with code counts."""
    if codec.config.max_codes is None and not any(coding.entropy_coder for coding in codec.config.codings):
        return sum(codec.code_bits)
    effort_before, bits, count = codec.effort, 0.0, 0
    codec.set_effort("fast")  # the number of codes of a label does not depend on the effort
    try:
        with torch.inference_mode():
            for part in parts:
                for labels, context in sample.steps(part, COUNT_ROWS):
                    bits, count = bits + codec.stored_bits(codec.encode(labels, context)), count + len(labels)
    finally:
        codec.set_effort(effort_before)
    return round(bits / max(1, count), 4)


def _perplexity(codec: LabelCodec, sample: LabelSample, slots: int, codebook_size: int) -> list[float]:
    usage = CodeUsage(slots, codebook_size)
    ragged = codec.config.max_codes is not None
    with torch.inference_mode():
        for labels, context in itertools.islice(sample.steps("train", CHUNK), HELD_OUT_LABELS // CHUNK):
            codes = codec.encode(labels, context).numpy()
            usage.add(codes[:, int(ragged) :][:, :slots], codes[:, 0] if ragged else None)
    return [round(float(perplexity), 1) for perplexity in usage.perplexity()]


def _over_sets(codec: LabelCodec, sample: LabelSample) -> bool:
    """Whether labels are sets of k classes, so that distortion is computed over the stored classes only."""
    return codec.config.holds_sets or (sample.support is not None and sample.support.rest == "zero")


def _level_notes(codec: LabelCodec, sample: LabelSample) -> list[str]:
    """A note if labels lose a varying mean over classes, which matters to students that use no softmax."""
    if codec.config.keeps_level or codec.config.kept_classes is not None or sample.domain != "logits":
        return []
    level, spread = level_spread(sample.train, sample.domain)
    if level < MAX_LEVEL_SPREAD * spread:
        return []
    sentence = (
        f"the mean of a label over its classes varies (std {level:.2g}; std of a class about it {spread:.2g}) and is not stored: softmax does "
        "not depend on it; for students with sigmoids or squared error use --domain sigmoid, or --codec raw"
    )
    return [sentence]


def _dropped_notes(codec: LabelCodec, sample: LabelSample) -> list[str]:
    """A note if a codec stores fewer classes of a label than the dump."""
    kept = codec.config.kept_classes
    if sample.support is None or kept is None or kept >= sample.support.k:
        return []
    mass = measure(codec, sample, "held_out", ()).get("mass_kept")
    share = "" if mass is None else f", which have {100 * mass:.1f} % of the probability at T = 1"
    return [
        f"{kept} of the {sample.support.k} known classes of a label are stored{share}; more --bits, or a smaller --ratio, keep all"
    ]
