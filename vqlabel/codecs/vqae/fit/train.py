"""Fit the VQAE in stages: train the prior; initialize codebooks by PCA and residual k-means of the prior's residual;
train decoder and prior by KL on fixed codes; choose the codes again by the decoder's own loss; train again.

Codes are fixed while the decoder trains: joint straight-through training from random weights ends with a larger error
than faiss' residual quantizer.
"""

import copy
import dataclasses
from typing import Any

import torch

from vqlabel.codecs.sample import FitHooks, LabelSample
from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.codecs.vqae.fit.dataset_stats import dataset_stats
from vqlabel.codecs.vqae.fit.debias import set_gain
from vqlabel.codecs.vqae.fit.evaluate import is_useful
from vqlabel.codecs.vqae.fit.initialize import initialize_codebooks, initialize_map
from vqlabel.codecs.vqae.fit.nested_rates import choose_codes, fit_nested_rates, training_rates
from vqlabel.codecs.vqae.fit.rate_control import MAX_FINAL_LABELS, set_rate_multiplier
from vqlabel.codecs.vqae.fit.resolve import resolve
from vqlabel.codecs.vqae.fit.split import Split, make_split
from vqlabel.codecs.vqae.fit.train_decoder import LAST_STAGE, train_decoder
from vqlabel.config import FitConfig
from vqlabel.errors import BadLabels, UsageError

MIN_PRIOR_GAIN = 0.03  # share of the held-out loss without codes that a prior must remove to be stored


class UselessPrior(UsageError):
    """A codec of 0 slots whose prior does not predict the labels well enough to be stored."""


def default_epochs(sample: LabelSample) -> int:
    """Passes over the training labels in each stage, if the user gives no number: 8 to 20, fewer for larger samples."""
    return max(8, min(20, 300_000 // max(1, len(sample.train))))


def fit(sample: LabelSample, config: FitConfig, hooks: FitHooks) -> VqaeCodec:
    """Fit a VQAE to `sample.train` and keep the weights with the lowest loss on `sample.held_out`.

    If a budget leaves room for a prior alone, and that prior does not predict the labels, the sizes are chosen again
    without a prior.

    Raises:
        UsageError: only some logits of a label are known; the sizes contradict each other or the budget.
        BadLabels: a label exceeds the range of fp16.
    """
    _check_labels(sample)
    codec, without_prior, resumed = _new_codec(sample, config), dataclasses.replace(config, prior=False), hooks.resumed
    budget_chose_prior_alone = not codec.config.slots and config.slots is None and config.bits is None
    if not (budget_chose_prior_alone and resumed is not None and not resumed["has prior"]):
        try:
            fit_vqae(codec, sample, config, hooks)
            return codec
        except UselessPrior:
            if not budget_chose_prior_alone:
                raise
            resumed = None
    codec = _new_codec(sample, without_prior)
    fit_vqae(codec, sample, without_prior, dataclasses.replace(hooks, resumed=resumed))
    return codec


def _check_labels(sample: LabelSample) -> None:
    if sample.support is not None and sample.domain == "logits":
        raise UsageError(
            f"{sample.support.k} logits of each label are known and the other classes have none, which vqae cannot learn; use codec sparse "
            "(the default for such labels) or topk"
        )
    largest = float(sample.train.abs().max())
    if largest > torch.finfo(torch.float16).max:
        raise BadLabels(
            f"a label holds {largest:.3g}; the decoder is stored in fp16, whose largest number is 65504: clamp the labels "
            "(-100 is low enough for a masked class)"
        )


def _new_codec(sample: LabelSample, config: FitConfig) -> VqaeCodec:
    with torch.random.fork_rng(devices=[]):  # layers draw their initial weights from the global generator
        torch.default_generator.manual_seed(config.seed)
        return VqaeCodec(resolve(config, dataset_stats(sample)))


def fit_vqae(codec: VqaeCodec, sample: LabelSample, config: FitConfig, hooks: FitHooks) -> None:
    """Fit `codec` in place; the same seed on the same machine gives the same bytes, interrupted and resumed or not."""
    device = torch.device(config.device)
    codec.to(device)
    splits = (make_split(codec, sample, "train", device), make_split(codec, sample, "held_out", device))
    state = hooks.resumed or {"stage": 0, "seed": config.seed, "training": None}
    if state["stage"] == 0 and state["training"] is None:
        initialize_map(codec, splits[0], torch.Generator().manual_seed(config.seed))
    else:
        _restore(codec, splits, state)
    epochs = default_epochs(sample) if config.epochs is None else config.epochs
    rates = training_rates(config, codec)
    while state["stage"] <= LAST_STAGE:
        _run_stage(codec, splits, epochs, state, config, hooks)
        if state["stage"] < LAST_STAGE and codec.config.slots:
            hooks.progress("choosing codes", 0, 1, {})
            choose_codes(codec, splits, rates, sample.total)
            hooks.progress("choosing codes", 1, 1, {})
        state = _state_after(codec, splits, state["stage"], config.seed)
        hooks.save(state)
    codec.round()
    if codec.config.variable:
        set_rate_multiplier(codec, splits, sample.total, MAX_FINAL_LABELS)
    prior_rate = [0] if codec.config.prior is not None and len(rates) > 1 else []
    set_gain(codec, splits, rates + prior_rate, config.gain)
    fit_nested_rates(codec, rates[1:], splits, epochs, config, state, hooks)
    codec.cpu()


def _run_stage(
    codec: VqaeCodec, splits: tuple[Split, Split], epochs: int, state: dict[str, Any], config: FitConfig, hooks: FitHooks
) -> None:
    """Stage 0: the prior, then the codebooks. Stages 1 .. LAST_STAGE: the decoder on the codes chosen last."""
    stage = state["stage"]
    if stage == 0:
        if codec.config.prior is not None:
            train_decoder(codec, splits, epochs, state, hooks)
            if config.prior is None and not is_useful(codec, splits, MIN_PRIOR_GAIN):
                _drop_prior(codec, splits)
        if codec.config.slots:
            hooks.progress("codebooks", 0, 1, {})
            initialize_codebooks(codec, splits[0], torch.Generator().manual_seed(config.seed + 1))
            hooks.progress("codebooks", 1, 1, {})
    elif codec.config.slots:
        train_decoder(codec, splits, epochs, state, hooks)


def _state_after(codec: VqaeCodec, splits: tuple[Split, Split], stage: int, seed: int) -> dict[str, Any]:
    """The state from which an interrupted fit resumes at the stage after `stage`."""
    return {
        "stage": stage + 1, "seed": seed, "training": None,
        "codec": copy.deepcopy(codec.state_dict()),  # before rounding, which must happen once
        "has prior": codec.config.prior is not None, "codes": [split.codes for split in splits],
    }  # fmt: skip


def _restore(codec: VqaeCodec, splits: tuple[Split, Split], state: dict[str, Any]) -> None:
    if codec.config.prior is not None and not state["has prior"]:
        _forget_prior(codec, splits)
    codec.load_state_dict(state["codec"])
    for split, codes in zip(splits, state["codes"], strict=True):
        split.codes = codes


def _drop_prior(codec: VqaeCodec, splits: tuple[Split, Split]) -> None:
    if not codec.config.slots:
        raise UselessPrior(
            "the rate leaves no codes (0 slots), and the prior predicts these labels no better than their mean; raise --bits"
        )
    _forget_prior(codec, splits)


def _forget_prior(codec: VqaeCodec, splits: tuple[Split, Split]) -> None:
    codec.forget_prior()
    for split in splits:
        split.prior_inputs = None
