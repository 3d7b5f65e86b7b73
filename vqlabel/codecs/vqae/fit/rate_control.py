"""The rate-distortion multiplier of a variable rate: the loss per code bit at which labels have the target bits."""

from dataclasses import replace

import torch

from vqlabel.codecs.vqae.fit.split import CHUNK, Split
from vqlabel.codecs.vqae.search import find_rate_multiplier
from vqlabel.codecs.vqae.single_rate import SingleRateVqae

MAX_TRAINING_LABELS = 8192  # labels of a split that the multiplier is measured on between trainings
MAX_FINAL_LABELS = 1 << 18  # the same after the last training, when it decides the size of a file
MAX_LOSSES = 1 << 24  # the same in losses of prefixes, labels * (slots + 1): 64 MiB
RATE_MARGIN = 0.99  # share of the target rate that is aimed at: other labels may need slightly more, and a budget is a limit


@torch.no_grad()
def set_rate_multiplier(codec: SingleRateVqae, splits: tuple[Split, Split], total: int, limit: int) -> None:
    """Set the configuration's `price` so that the dump's `total` labels have `config.rate` code bits on average.

    Measured on up to `limit` labels of each split, evenly spaced. Held-out labels need more codes than training labels
    for the same loss, so training labels are weighted by their own number, and held-out ones by the number of all other
    labels of the dump.
    """
    config = codec.config
    limit = min(limit, MAX_LOSSES // (config.slots + 1))
    train, held_out = (len(split.labels) for split in splits)
    shares = (train, max(held_out, total - train))
    losses, weights = [], []
    for split, share in zip(splits, shares, strict=True):
        stride = max(1, -(-len(split.labels) // limit))
        measured = torch.arange(0, len(split.labels), stride, device=split.labels.device)
        weight = share / sum(shares) / max(1, len(measured))
        weights.append(torch.full((len(measured),), weight, dtype=torch.float64, device=measured.device))
        for index in measured.split(CHUNK):
            inputs = None if split.prior_inputs is None else split.prior_inputs.rows(index)
            losses.append(codec.prefix_losses(split.labels[index], inputs))
    price = find_rate_multiplier(torch.cat(losses), RATE_MARGIN * config.rate / config.code_bits, torch.cat(weights))
    codec.config = replace(config, price=price / config.code_bits)
