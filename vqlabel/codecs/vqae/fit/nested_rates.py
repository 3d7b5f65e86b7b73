"""A trained codec -> codecs of fewer slots, each with its own decoder and the image vectors of the first."""

import copy
import dataclasses
from typing import Any

import torch

from vqlabel.codecs.sample import FitHooks
from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.codecs.vqae.fit.debias import set_gain
from vqlabel.codecs.vqae.fit.rate_control import MAX_TRAINING_LABELS, set_rate_multiplier
from vqlabel.codecs.vqae.fit.rules import FREE_BITS
from vqlabel.codecs.vqae.fit.split import Split
from vqlabel.codecs.vqae.fit.train_decoder import LAST_STAGE, train_decoder
from vqlabel.config import FitConfig

NESTED_EPOCHS = 0.5  # share of a stage's epochs for each nested rate, whose decoder starts from a trained one


def training_rates(config: FitConfig, codec: VqaeCodec) -> list[int]:
    """Numbers of slots to train for: the codec's own, and every halving unless a budget or variable rate is given."""
    rates, one_rate = [codec.config.slots], config.bytes is not None or config.ratio is not None or config.variable_rate
    while rates[-1] > 1 and not one_rate and codec.config.quantizer == "residual":
        rates.append(rates[-1] // 2)
    return rates


@torch.no_grad()
def choose_codes(codec: VqaeCodec, splits: tuple[Split, Split], rates: list[int], total: int = 0) -> None:
    """Choose codes with the quantized decoder if weights have fewer than FREE_BITS bits,
    else with the full-precision one.
    """
    trained = copy.deepcopy(codec.decoder.state_dict())
    if codec.config.weight_bits < FREE_BITS:
        codec.round()
    if codec.config.variable:
        set_rate_multiplier(codec, splits, total, MAX_TRAINING_LABELS)
    for split in splits:
        split.codes = {slots: codec.choose(split.labels, split.prior_inputs, slots) for slots in rates}
    codec.decoder.load_state_dict(trained)


def fit_nested_rates(
    codec: VqaeCodec,
    rates: list[int],
    splits: tuple[Split, Split],
    epochs: int,
    config: FitConfig,
    state: dict[str, Any],
    hooks: FitHooks,
) -> None:
    """Fill `codec.nested` for `rates`, in decreasing order, each starting from the rate above it."""
    above = codec
    for slots in rates:
        above = codec.nested[slots] = _fit_nested(above, slots, splits, epochs, config, state, hooks)


def _fit_nested(
    above: VqaeCodec,
    slots: int,
    splits: tuple[Split, Split],
    epochs: int,
    config: FitConfig,
    state: dict[str, Any],
    hooks: FitHooks,
) -> VqaeCodec:
    """The codec of the first `slots` slots of `above`, with its own output map, codebooks and prior network; image
    vectors are shared.

    One output map for all rates would raise the KL of the lowest by a tenth; separate maps add no byte to a `.vql`,
    which stores one rate.
    """
    fitted, codec = state.setdefault("nested", {}), above.truncate(slots).to(splits[0].labels.device)
    if slots in fitted:
        if "decoder.lift" not in fitted[slots]:
            codec.calibrate()
        codec.load_state_dict(fitted[slots])
        return codec.cpu().eval()
    codec.shares_images = True
    if codec.decoder.prior is not None:
        codec.decoder.prior.images.requires_grad_(False)
    train, held_out = (dataclasses.replace(split, codes={}) for split in splits)
    choose_codes(codec, (train, held_out), [slots])
    unsaved = FitHooks(progress=hooks.progress)  # a rate takes seconds: an interrupted one starts again
    start = {"stage": LAST_STAGE + slots, "seed": config.seed, "training": None}
    train_decoder(codec, (train, held_out), max(1, round(NESTED_EPOCHS * epochs)), start, unsaved, f"{sum(codec.code_bits)} bits")
    codec.round()
    set_gain(codec, (train, held_out), [slots], config.gain)
    fitted[slots] = codec.state_dict()
    hooks.save(state)
    codec.requires_grad_(True)
    return codec.cpu().eval()
