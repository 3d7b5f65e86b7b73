"""Decoder weights <-> the small types that travel: int8 with one fp16 scale a row, or fp16."""

import torch
from torch import Tensor

SCALE = ".scale"
HALF_NORMAL = 2**-14  # below it halves are multiples of 2**-24; rounded up to one, a row would be another after its second trip


def shrink(name: str, weight: Tensor) -> dict[str, Tensor]:
    """A matrix [..., r, c] becomes int8 [..., r, c] and fp16 scales [..., r]; a vector becomes fp16.

    A row is rounded to scale * {-127 .. 127}, scale = largest magnitude / 127.

    Source: docs/format.md, "codec.*".
    """
    if weight.dim() < 2:
        return {name: weight.half().contiguous()}
    scale = weight.abs().amax(-1) / 127
    scale = torch.where(scale < HALF_NORMAL, (scale * 2**24).floor() / 2**24, scale).half()
    step = scale.float().clamp_min(1e-12)[..., None]
    return {name: (weight / step).round().clamp(-127, 127).to(torch.int8).contiguous(), name + SCALE: scale.contiguous()}


def expand(name: str, tensors: dict[str, Tensor]) -> Tensor:
    """Inverse of `shrink`: float32."""
    weight = tensors[name].float()
    return weight * tensors[name + SCALE].float()[..., None] if name + SCALE in tensors else weight


def round_trip(weight: Tensor) -> Tensor:
    """`weight` as it will be after storage."""
    return expand("w", shrink("w", weight)).to(weight.device)
