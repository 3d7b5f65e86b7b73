"""How far decoded labels lie from their mean: so far that a student of them learns what a student of raw labels would.

A calibrated decoder says E[raw | code], the mean of all labels that share a code, and means lie closer together than what they are means of.
A student does not see the code but the view, and learns E[decoded | view]. That is E[raw | view], what raw labels teach, wherever
E[decoded | raw] = raw: where decoded labels are unbiased, not calibrated. No scaling gives that for every label; one factor on their distance
from the mean label gives it on average, as a slope of decoded on raw probabilities of 1. Directions that codes say little of, the tail's, are
lifted more than those that they say all of. It costs KL, and students gain more than any other use of bytes gives them:
docs/how-it-works.md. Where codes say so little that no factor up to MOST makes labels unbiased, that factor would take from them all that they are better
than one mean label for all (of slope s < 1 / 2, squared error is V (1 - 4 s + 4 s) at a factor of 2, and the mean label's is V): such labels stay
calibrated. Of several temperatures the one that asks for the least counts. The mix for a student nobody knows goes a sixteenth
of the way: KL at none of its temperatures rises by a hundredth.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.vqae.decoder import Decoder
from vqlabel.codecs.vqae.fit.split import Split
from vqlabel.codecs.vqae.single_rate import SingleRateVqae
from vqlabel.codecs.vqae.sizes import bits_of
from vqlabel.codecs.weights import rounded
from vqlabel.config import MIX
from vqlabel.metrics.distortion import as_logits
from vqlabel.metrics.likelihood import likelihood_of

LOOKED_AT, LOOKED_NUMBERS = 8192, 1 << 25  # labels, and their entries, at most; they give the factor to about a hundredth
MAX_HALF = torch.finfo(torch.float16).max
LEAST, MOST = 0.5, 2.0  # at MOST, labels that are still not unbiased are no nearer to the raw ones than one mean label for all
LIFT = 0.25  # power of 1 / slope that a direction is lifted by: all of it would be unbiased, and noise
MAX_LIFT = 2.0
OF_MIX = 0.0625  # power of the factor that is taken where the student is unknown
NOTHING = 1e-10  # variance of labels that are all alike, as sums round it
STEPS = 9  # of the bisection: to 0.003


@torch.no_grad()
def set_gain(codec: SingleRateVqae, part: Split, rates: Sequence[int], gain: float | None) -> None:
    """Set the decoder's `center`, `lift` and `gain` from labels of `part`, encoded as `pack` will; a gain that is given is kept.

    Found for `rates`, numbers of slots with the codec's own among them; between them it is interpolated. Where MOST does not make labels of
    a rate unbiased, they have a gain of 1; if those are of the codec's own rate, the codec is calibrated, and its `gain_limited` is True.
    """
    if gain == 1 or (gain is None and codec.config.head):  # as the decoder is made; a head is for who counts in KL
        return
    count = len(part.labels)
    some = min(count, LOOKED_AT, max(256, LOOKED_NUMBERS // codec.config.classes))
    at = torch.linspace(0, count - 1, some, device=part.labels.device).long()
    decoder, temperatures = codec.decoder, codec.config.temperature
    known = None if part.known is None else part.known.rows(at)
    raw = as_logits(part.labels[at], codec.config.domain)
    if gain is None and all(
        float(_around_mean(raw, t, codec.config.domain).square().sum(1).mean()) <= NOTHING for t in temperatures
    ):
        return
    found: list[float] = []
    for slots in (rates := sorted(rates, reverse=True)):
        z = decoder.latent(codec.choose(part.labels[at], known, slots), known)
        if not found:
            decoder.center.copy_(z.mean(0).clamp(-MAX_HALF, MAX_HALF).half())
            if decoder.lift is not None:
                decoder.lift.copy_(rounded(_lift(decoder, z, raw, temperatures), bits_of("lift", codec.config.weight_bits)))
        factor = _unbiased(decoder, z, raw, temperatures, codec.config.domain) if gain is None else gain
        if factor is None and not found:
            codec.calibrate()
            codec.gain_limited = True
            return
        found.append(1.0 if factor is None else factor)
    between = np.interp(range(len(decoder.contrast)), rates[::-1], found[::-1])
    decoder.contrast.copy_(torch.tensor(between).half())  # as it will be stored


def _lift(decoder: Decoder, z: Tensor, raw: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """[d_h, d_h], what is added to latents [n, d_h] about their mean: along every principal component of the raw logits [n, C], as the
    latent can express them, slope ** -LIFT - 1, the slope of decoded on raw.
    """
    weight = torch.stack([F.softmax(raw / t, 1).mean(0) for t in temperatures]).mean(0)
    out = decoder.out - (decoder.out @ weight)[:, None]
    metric = (out * weight) @ out.T  # of the latent: squared error of logits, weighed by how probable their classes are
    metric += 1e-4 * metric.diagonal().mean().clamp_min(1e-6) * torch.eye(len(out), device=out.device)
    target = torch.linalg.solve(metric, (((raw - decoder.bias) * weight) @ out.T).T).T
    target, said = target - target.mean(0), z - z.mean(0)
    root = torch.linalg.cholesky(metric)
    turn = root @ torch.linalg.eigh((target @ root).T @ (target @ root))[1]  # latent -> principal components
    target, said = target @ turn, said @ turn
    slope = (said * target).sum(0) / target.square().sum(0).clamp_min(1e-12)
    grown = slope.clamp(1e-3, 1).pow(-LIFT).clamp(max=MAX_LIFT)
    lift: Tensor = (turn * (grown - 1)) @ torch.linalg.inv(turn)
    return lift


def _unbiased(decoder: Decoder, z: Tensor, raw: Tensor, temperatures: tuple[float, ...], domain: str) -> float | None:
    """The factor on latents [n, d_h], about their center, that gives their labels a slope of 1 on the `raw` logits [n, C]; None: more than MOST."""
    wanted = [_around_mean(raw, t, domain) for t in temperatures]

    def reached(gain: float) -> bool:
        logits = decoder.with_gain(z, gain)
        return any(
            bool((want * _around_mean(logits, t, domain)).sum() >= want.square().sum())
            for t, want in zip(temperatures, wanted, strict=True)
        )

    low, high = LEAST if decoder.lift is not None else 1.0, MOST
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    if temperatures == MIX:
        return float(low**OF_MIX)
    return low if high < MOST else None


def _around_mean(logits: Tensor, temperature: float, domain: str) -> Tensor:
    """The probabilities of [n, C] logits, less their mean over labels."""
    share = likelihood_of(domain).probabilities(logits / temperature)
    return share - share.mean(0)
