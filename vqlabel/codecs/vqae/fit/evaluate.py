"""Held-out loss of decoded labels, and whether it is lower than that of one label for all."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from vqlabel.codecs.vqae.exact_top import join_exact, split_exact
from vqlabel.codecs.vqae.fit.split import Split
from vqlabel.codecs.vqae.prior import PriorInputs
from vqlabel.codecs.vqae.single_rate import SingleRateVqae
from vqlabel.metrics.distortion import as_logits, temperature_weight
from vqlabel.metrics.likelihood import likelihood_of

MAX_LABELS = 4096  # held-out labels evaluated after every epoch

Decode = Callable[[tuple[Tensor, PriorInputs | None]], Tensor]  # codes [n, j], prior inputs -> logits [n, C]


@torch.no_grad()
def evaluate(codec: SingleRateVqae, split: Split, decode: Decode | None = None) -> dict[str, float]:
    """Held-out loss (`mixed_kl_divergence`), and KL at each temperature.

    Args:
        decode: gives the logits; None: the decoder as it will be stored.
    """
    config = codec.config
    likelihood = likelihood_of(config.domain)
    distortion = likelihood.distortion(temperatures=config.temperature)
    if decode is None:
        decode = partial(functional_call, codec.decoder, codec.rounded_decoder())
    for index in split.chunks(MAX_LABELS):
        prior_inputs = None if split.prior_inputs is None else split.prior_inputs.rows(index)
        codes = split.codes[max(split.codes)][index] if split.codes else split.no_codes(index)
        raw = as_logits(split.labels[index], config.domain)
        decoded = decode((codes, prior_inputs))
        if config.head:
            decoded = join_exact(decoded, *split_exact(raw, config.head, config.temperature), config.temperature)
        distortion.add(raw, decoded)
    figures = {name: value for name, value in distortion.figures().items() if name.startswith(likelihood.figure)}
    return {"loss": sum(temperature_weight(t) * figures[f"{likelihood.figure}{t:g}"] for t in config.temperature), **figures}


def is_useful(codec: SingleRateVqae, splits: tuple[Split, Split], margin: float, decode: Decode | None = None) -> bool:
    """Whether the held-out loss of `evaluate` is lower than that of one label for all, by `margin` of the latter.

    That label is the best one for the training labels.
    """
    train, held_out = splits
    constant = _best_constant(_mean_target(train), codec.config.domain, codec.config.temperature)
    loss_of_constant = evaluate(codec, held_out, lambda inputs: constant.expand(len(inputs[0]), -1))["loss"]
    return evaluate(codec, held_out, decode)["loss"] < (1 - margin) * loss_of_constant


def _best_constant(target: Tensor, domain: str, temperatures: tuple[float, ...]) -> Tensor:
    """[1, C] logits with the lowest loss if all labels get the same, from the labels' mean soft target [1, C].

    It is the mean distribution at a single temperature. Several have no closed form; the loss is convex.
    """
    if len(temperatures) == 1:
        (t,) = temperatures
        return t * likelihood_of(domain).inverse(target / (temperature_weight(t) * t))
    logits = torch.zeros_like(target, requires_grad=True)
    solver = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = likelihood_of(domain).cross_entropy(logits, target, temperatures).sum()
        value.backward()
        return value

    solver.step(loss)
    return logits.detach()


def _mean_target(split: Split) -> Tensor:
    """[1, C] mean soft target, in which the loss is linear."""
    total = sum(split.target(index).sum(0, keepdim=True) for index in split.chunks())
    assert isinstance(total, Tensor)
    return total / len(split.labels)
