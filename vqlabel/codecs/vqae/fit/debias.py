"""Rescale decoded labels about their mean so that they are unbiased:
regressing decoded on raw probabilities has slope 1.

A calibrated decoder gives E[raw | code], the mean of all labels with that code, and such means lie closer together than
the labels. A student sees the view, not the code, and learns E[decoded | view]. That equals E[raw | view], what raw
labels teach, if E[decoded | raw] = raw: if decoded labels are unbiased rather than calibrated. No scaling achieves this
for every label. One factor on the distance from the mean label, the gain, achieves it on average. Directions of which
codes hold little get an additional gain, the tail gain. Debiasing raises KL, and improves students more than any other
use of the same bytes (docs/how-it-works.md).

If no gain up to MAX_GAIN (2) makes labels unbiased, they stay calibrated. Let V be the variance of raw labels and s the
slope of decoded on raw. Calibrated labels have the variance s V, so at a gain g the squared error is
V (1 - 2 g s + g^2 s). At the limit g = 2 that is V: no better than giving every label the mean. Labels also stay
calibrated if unbiased held-out labels have no less KL than one label for all.

Of several temperatures, the one with the smallest gain counts.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.vqae.decoder import Decoder
from vqlabel.codecs.vqae.fit.evaluate import is_useful
from vqlabel.codecs.vqae.fit.split import Split
from vqlabel.codecs.vqae.single_rate import SingleRateVqae
from vqlabel.codecs.vqae.sizes import bits_of
from vqlabel.codecs.weights import rounded
from vqlabel.metrics.distortion import as_logits
from vqlabel.metrics.likelihood import likelihood_of

MAX_LABELS, MAX_NUMBERS = (
    8192,
    1 << 25,
)  # labels, and labels * classes, that the gain is measured on; its error is about a hundredth
MAX_FP16 = torch.finfo(torch.float16).max
MIN_GAIN = 0.5  # with a tail gain; 1 without
MAX_GAIN = 2.0  # limit of the gain: beyond a factor of 2 it amplifies quantization noise more than signal
TAIL_POWER = 0.25  # tail gain is slope ** -TAIL_POWER; with a power of 1, it would be unbiased and amplify noise
MAX_TAIL_GAIN = 2.0
MIN_VARIANCE = 1e-10  # of probabilities; below it, labels differ by rounding only
BISECTION_STEPS = 9  # to a gain within 0.003


@torch.no_grad()
def set_gain(codec: SingleRateVqae, splits: tuple[Split, Split], rates: Sequence[int], gain: float | None) -> None:
    """Measure and set the decoder's mean latent, tail gain and gains, with codes chosen as `pack` chooses them.

    Labels with exact classes stay calibrated unless a gain is given, because their users want the lowest KL. If no gain
    up to MAX_GAIN makes the labels of a rate unbiased, their gain is 1. If that rate is the codec's own, or its
    unbiased held-out labels are no better than one label for all, all gains are 1 and `codec.gain_limited` is set.

    Args:
        splits: training labels, on which the gain is measured, and held-out labels, both with codes.
        rates: numbers of slots to measure at, the codec's own included; gains of rates between them are interpolated.
        gain: used at all rates in place of a measured one.
    """
    if gain == 1 or (gain is None and codec.config.head):
        return
    split = splits[0]
    index = _measured_labels(codec, split)
    decoder, temperatures, domain = codec.decoder, codec.config.temperature, codec.config.domain
    prior_inputs = None if split.prior_inputs is None else split.prior_inputs.rows(index)
    raw = as_logits(split.labels[index], domain)
    if gain is None and all(
        float(_centred_probabilities(raw, t, domain).square().sum(1).mean()) <= MIN_VARIANCE for t in temperatures
    ):
        return
    gains: list[float] = []
    for slots in (rates := sorted(rates, reverse=True)):
        z = decoder.latent(codec.choose(split.labels[index], prior_inputs, slots), prior_inputs)
        if not gains:
            decoder.center.copy_(z.mean(0).clamp(-MAX_FP16, MAX_FP16).half())
            if decoder.lift is not None:
                decoder.lift.copy_(rounded(_tail_gain(decoder, z, raw, temperatures), bits_of("lift", codec.config.weight_bits)))
        unbiased = _unbiased_gain(decoder, z, raw, temperatures, domain) if gain is None else gain
        if unbiased is None and not gains:
            _limit_gain(codec)
            return
        gains.append(1.0 if unbiased is None else unbiased)
    between = np.interp(range(len(decoder.contrast)), rates[::-1], gains[::-1])
    decoder.contrast.copy_(torch.tensor(between).half())  # as stored
    if gain is None and not is_useful(codec, splits, 0.0, lambda inputs: decoder.debiased(*inputs)):
        _limit_gain(codec)


def _limit_gain(codec: SingleRateVqae) -> None:
    codec.calibrate()
    codec.gain_limited = True


def _measured_labels(codec: SingleRateVqae, split: Split) -> Tensor:
    """Indices of the labels that the gain is measured on, evenly spaced: at least 256, at most MAX_LABELS."""
    count = min(len(split.labels), MAX_LABELS, max(256, MAX_NUMBERS // codec.config.classes))
    return torch.linspace(0, len(split.labels) - 1, count, device=split.labels.device).long()


def _tail_gain(decoder: Decoder, z: Tensor, raw: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """[d_h, d_h] matrix whose product with latents about their mean is added to them.

    Along every principal component of the raw logits, as far as the latent can express them, latents are scaled by
    slope ** -TAIL_POWER, at most by MAX_TAIL_GAIN; the slope is that of decoded on raw latents.

    Args:
        z: [n, d_h] decoded latents.
        raw: [n, C] logits of the same labels.
    """
    weight = torch.stack([F.softmax(raw / t, 1).mean(0) for t in temperatures]).mean(0)
    out = decoder.out - (decoder.out @ weight)[:, None]
    metric = (out * weight) @ out.T  # of the latent: squared error of logits, weighted by the mean probability of each class
    metric += 1e-4 * metric.diagonal().mean().clamp_min(1e-6) * torch.eye(len(out), device=out.device)
    target = torch.linalg.solve(metric, (((raw - decoder.bias) * weight) @ out.T).T).T
    target, decoded = target - target.mean(0), z - z.mean(0)
    root = torch.linalg.cholesky(metric)
    rotation = root @ torch.linalg.eigh((target @ root).T @ (target @ root))[1]  # latent -> principal components
    target, decoded = target @ rotation, decoded @ rotation
    slope = (decoded * target).sum(0) / target.square().sum(0).clamp_min(1e-12)
    factor = slope.clamp(1e-3, 1).pow(-TAIL_POWER).clamp(max=MAX_TAIL_GAIN)
    added: Tensor = (rotation * (factor - 1)) @ torch.linalg.inv(rotation)
    return added


def _unbiased_gain(decoder: Decoder, z: Tensor, raw: Tensor, temperatures: tuple[float, ...], domain: str) -> float | None:
    """The gain at which probabilities decoded from latents `z` [n, d_h] have slope 1 on those of `raw` [n, C]; None:
    above MAX_GAIN.
    """
    targets = [_centred_probabilities(raw, t, domain) for t in temperatures]

    def reaches_slope_1(gain: float) -> bool:
        logits = decoder.with_gain(z, gain)
        return any(
            bool((target * _centred_probabilities(logits, t, domain)).sum() >= target.square().sum())
            for t, target in zip(temperatures, targets, strict=True)
        )

    low, high = MIN_GAIN if decoder.lift is not None else 1.0, MAX_GAIN
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches_slope_1(middle) else (middle, high)
    return low if high < MAX_GAIN else None


def _centred_probabilities(logits: Tensor, temperature: float, domain: str) -> Tensor:
    """[n, C] probabilities of logits at a temperature, minus their mean over labels."""
    probabilities = likelihood_of(domain).probabilities(logits / temperature)
    return probabilities - probabilities.mean(0)
