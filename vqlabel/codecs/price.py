"""What a code bit must take away of a label's loss, so that labels which have as many slots as pay have the wanted bits on average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from vqlabel.codecs.encoder import find_price
from vqlabel.codecs.part import CHUNK, Part

if TYPE_CHECKING:
    from vqlabel.codecs.vqae import VqaeCodec

PRICED, PRICED_LAST = 8192, 1 << 18  # labels that a price is found on, at most: while a codec is fitted, and at last
PRICED_NUMBERS = 1 << 25  # the same in losses of prefixes
JUST_UNDER = 0.995  # of the wanted rate: labels that were not looked at may need a little more, and a budget is not passed


@torch.no_grad()
def set_price(codec: VqaeCodec, parts: Sequence[Part], most: int) -> None:
    """Set the configuration's price by up to `most` labels of `parts`, evenly spread; the rate that it names is never passed by them."""
    config = codec.config
    most = min(most, PRICED_NUMBERS // (config.slots + 1))
    every = max(1, -(-sum(len(part.labels) for part in parts) // most))
    losses = []
    for part in parts:
        for at in torch.arange(0, len(part.labels), every, device=part.labels.device).split(CHUNK):
            losses.append(codec.prefix_losses(part.labels[at], None if part.known is None else part.known.rows(at)))
    price = find_price(torch.cat(losses), JUST_UNDER * config.rate / config.code_bits)
    codec.config = replace(config, price=price / config.code_bits)
