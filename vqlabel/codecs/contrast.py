"""How far decoded labels lie from their mean: as far as the raw labels do.

A calibrated decoder says E[raw | code], the mean of all labels that share a code, and means lie closer together than what they are means of.
A student does not see the code but the view, which determines the raw label: to it the smaller differences are a bias, and it learns them
smaller still. So a decoder's last word is to move its labels away from their mean, by the one factor that gives their probabilities
the variance of the raw ones. It costs some KL, and students gain more than any other use of bytes gives them: docs/how-it-works.md. Of
several temperatures the one that asks for the least counts, and a quarter of the way is gone: as far as KL at none of them rises by a
hundredth or two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.distortion import as_logits
from vqlabel.codecs.part import Part

if TYPE_CHECKING:
    from vqlabel.codecs.vqae import Decoder, VqaeCodec

LOOKED_AT = 4096  # labels; they give the factor to about a hundredth
HALF_MOST = torch.finfo(torch.float16).max
MOST = 1.5  # codes that say less of a label than this restores are not made better by shouting
OF_SEVERAL = 0.25  # power of the factor that is taken where there are several temperatures
STEPS = 12  # of the bisection: to 1e-4


@torch.no_grad()
def set_contrast(codec: VqaeCodec, part: Part, contrast: float | None) -> None:
    """Set the decoder's `center` and `contrast` from labels of `part`, encoded as `pack` will; a contrast that is given is kept."""
    if contrast == 1:  # as the decoder is made
        return
    count = len(part.labels)
    at = torch.linspace(0, count - 1, min(count, LOOKED_AT), device=part.labels.device).long()
    decoder, temperatures = codec.decoder, codec.config.temperature
    known = None if part.known is None else part.known.rows(at)
    raw = as_logits(part.labels[at], codec.config.domain)
    z = decoder.latent(codec.choose(part.labels[at], known), known)
    decoder.center.copy_(z.mean(0).clamp(-HALF_MOST, HALF_MOST).half())
    found = _matching(decoder, z, raw, temperatures) if contrast is None else contrast
    decoder.contrast.fill_(float(torch.tensor(found).half()))  # as it will be stored


def _matching(decoder: Decoder, z: Tensor, raw: Tensor, temperatures: tuple[float, ...]) -> float:
    """The factor on latents [n, d_h], about their center, that spreads their labels as the `raw` logits [n, C] are."""
    wanted = [_spread(raw, t) for t in temperatures]

    def reached(contrast: float) -> bool:
        logits = torch.addmm(decoder.bias, torch.lerp(decoder.center, z, contrast), decoder.out)
        found = [_spread(logits, t) for t in temperatures]
        return any(have >= want for have, want in zip(found, wanted, strict=True))

    low, high = 1.0, MOST
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return low if len(temperatures) == 1 else low**OF_SEVERAL


def _spread(logits: Tensor, temperature: float) -> float:
    """Standard deviation of the probabilities of [n, C] logits around their mean over labels."""
    return max(float(F.softmax(logits / temperature, 1).var(0, correction=0).sum().sqrt()), 1e-12)
