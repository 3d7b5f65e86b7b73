"""What a code bit must take away of a label's loss, so that labels which have as many slots as pay have the wanted bits on average."""

from dataclasses import replace

import torch

from vqlabel.codecs.vqae.fit.split import CHUNK, Split
from vqlabel.codecs.vqae.search import find_rate_multiplier
from vqlabel.codecs.vqae.single_rate import SingleRateVqae

PRICED, PRICED_LAST = 8192, 1 << 18  # labels of a part that a price is found on, at most: while a codec is fitted, and at last
PRICED_NUMBERS = 1 << 24  # the same in losses of prefixes
JUST_UNDER = 0.99  # of the wanted rate: labels that were not looked at may need a little more, and a budget is not passed


@torch.no_grad()
def set_rate_multiplier(codec: SingleRateVqae, parts: tuple[Split, Split], total: int, most: int) -> None:
    """Set the configuration's price by up to `most` labels of each part, evenly spread, so that a file keeps to the configuration's rate.

    A codec knows seen labels better than others, which need more codes for the same loss. So each part stands for what of the dump's
    `total` labels is like it: the seen ones for themselves, those held out for all the rest.
    """
    config = codec.config
    most = min(most, PRICED_NUMBERS // (config.slots + 1))
    seen, held = (len(part.labels) for part in parts)
    stands = (seen, max(held, total - seen))
    losses, weights = [], []
    for part, many in zip(parts, stands, strict=True):
        every = max(1, -(-len(part.labels) // most))
        looked = torch.arange(0, len(part.labels), every, device=part.labels.device)
        weights.append(
            torch.full((len(looked),), many / sum(stands) / max(1, len(looked)), dtype=torch.float64, device=looked.device)
        )
        for at in looked.split(CHUNK):
            losses.append(codec.prefix_losses(part.labels[at], None if part.known is None else part.known.rows(at)))
    price = find_rate_multiplier(torch.cat(losses), JUST_UNDER * config.rate / config.code_bits, torch.cat(weights))
    codec.config = replace(config, price=price / config.code_bits)
