"""How far decoded labels lie from their mean: so far that a student of them learns what a student of raw labels would.

A calibrated decoder says E[raw | code], the mean of all labels that share a code, and means lie closer together than what they are means of.
A student does not see the code but the view, and learns E[decoded | view]. That is E[raw | view], what raw labels teach, wherever
E[decoded | raw] = raw: where decoded labels are unbiased, not calibrated. No scaling gives that for every label; one factor on their distance
from the mean label gives it on average, as a slope of decoded on raw probabilities of 1. It costs KL, and students gain more than any other
use of bytes gives them: docs/how-it-works.md. Of several temperatures the one that asks for the least counts, and a quarter of the way is
gone: as far as KL at none of them rises by a hundredth or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.distortion import as_logits
from vqlabel.codecs.part import Part

if TYPE_CHECKING:
    from vqlabel.codecs.vqae import Decoder, VqaeCodec

LOOKED_AT = 4096  # labels; they give the factor to about a hundredth
HALF_MOST = torch.finfo(torch.float16).max
MOST = 2.0  # codes that say less of a label than this restores are not made better by shouting
OF_SEVERAL = 0.25  # power of the factor that is taken where there are several temperatures
NOTHING = 1e-10  # variance of labels that are all alike, as sums round it
STEPS = 8  # of the bisection: to 0.004


@torch.no_grad()
def set_contrast(codec: VqaeCodec, part: Part, rates: Sequence[int], contrast: float | None) -> None:
    """Set the decoder's `center` and `contrast` from labels of `part`, encoded as `pack` will; a contrast that is given is kept.

    Found for `rates`, numbers of slots with the codec's own among them; between them it is interpolated.
    """
    if contrast == 1 or (contrast is None and codec.config.head):  # as the decoder is made; a head is for who counts in KL
        return
    count = len(part.labels)
    at = torch.linspace(0, count - 1, min(count, LOOKED_AT), device=part.labels.device).long()
    decoder, temperatures = codec.decoder, codec.config.temperature
    known = None if part.known is None else part.known.rows(at)
    raw = as_logits(part.labels[at], codec.config.domain)
    found: list[float] = []
    for slots in (rates := sorted(rates, reverse=True)):
        z = decoder.latent(codec.choose(part.labels[at], known, slots), known)
        if not found:
            decoder.center.copy_(z.mean(0).clamp(-HALF_MOST, HALF_MOST).half())
        found.append(_unbiased(decoder, z, raw, temperatures) if contrast is None else contrast)
    between = np.interp(range(len(decoder.contrast)), rates[::-1], found[::-1])
    decoder.contrast.copy_(torch.tensor(between).half())  # as it will be stored


def _unbiased(decoder: Decoder, z: Tensor, raw: Tensor, temperatures: tuple[float, ...]) -> float:
    """The factor on latents [n, d_h], about their center, that gives their labels a slope of 1 on the `raw` logits [n, C]."""
    wanted = [_around_mean(raw, t) for t in temperatures]

    def reached(contrast: float) -> bool:
        logits = torch.addmm(decoder.bias, torch.lerp(decoder.center, z, contrast), decoder.out)
        missing = [(want * (want - _around_mean(logits, t))).sum() / len(z) for t, want in zip(temperatures, wanted, strict=True)]
        return bool(min(missing) <= NOTHING)

    low, high = 1.0, MOST
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return low if len(temperatures) == 1 else low**OF_SEVERAL


def _around_mean(logits: Tensor, temperature: float) -> Tensor:
    """The probabilities of [n, C] logits, less their mean over labels."""
    share = F.softmax(logits / temperature, 1)
    return share - share.mean(0)
