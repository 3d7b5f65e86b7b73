"""Held-out loss of a decoder as it will be stored, and whether a prior lowers it enough."""

import torch
from torch import Tensor
from torch.func import functional_call

from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.codecs.vqae.exact_top import join_exact, split_exact
from vqlabel.codecs.vqae.fit.split import Split
from vqlabel.metrics.distortion import as_logits, temperature_weight
from vqlabel.metrics.likelihood import likelihood_of

MAX_LABELS = 4096  # held-out labels evaluated after every epoch
MIN_PRIOR_GAIN = 0.03  # share of the held-out loss without codes that a prior must remove to be stored


@torch.no_grad()
def evaluate(codec: VqaeCodec, split: Split, constant: Tensor | None = None) -> dict[str, float]:
    """Held-out loss (`mixed_kl_divergence`), and KL at each temperature, of the decoder as it will be stored.

    Args:
        constant: [1, C] logits to evaluate in place of decoded ones.
    """
    config = codec.config
    likelihood = likelihood_of(config.domain)
    distortion = likelihood.distortion(temperatures=config.temperature)
    weights = codec.rounded_decoder()
    for index in split.chunks(MAX_LABELS):
        prior_inputs = None if split.prior_inputs is None else split.prior_inputs.rows(index)
        codes = split.codes[max(split.codes)][index] if split.codes else split.no_codes(index)
        raw = as_logits(split.labels[index], config.domain)
        decoded = functional_call(codec.decoder, weights, (codes, prior_inputs)) if constant is None else constant.expand_as(raw)
        if config.head:
            decoded = join_exact(decoded, *split_exact(raw, config.head, config.temperature), config.temperature)
        distortion.add(raw, decoded)
    figures = {name: value for name, value in distortion.figures().items() if name.startswith(likelihood.figure)}
    return {"loss": sum(temperature_weight(t) * figures[f"{likelihood.figure}{t:g}"] for t in config.temperature), **figures}


def prior_is_useful(codec: VqaeCodec, train: Split, held_out: Split) -> bool:
    """Whether the prior's held-out loss is at least MIN_PRIOR_GAIN below that of the best constant logits."""
    constant = _best_constant(_mean_target(train), codec.config.domain, codec.config.temperature)
    return evaluate(codec, held_out)["loss"] < (1 - MIN_PRIOR_GAIN) * evaluate(codec, held_out, constant)["loss"]


def _best_constant(target: Tensor, domain: str, temperatures: tuple[float, ...]) -> Tensor:
    """[1, C] logits with the lowest loss if all labels get the same, from the labels' mean soft target [1, C].

    Several temperatures have no closed form; the loss is convex.
    """
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
