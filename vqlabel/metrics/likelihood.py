"""A domain of labels -> its likelihood (softmax or sigmoids), and the loss, features and metrics that follow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vqlabel.metrics.distortion import (
    MIN_PROBABILITY,
    Distortion,
    hellinger_features,
    kl_divergence,
    mixed_cross_entropy,
    soft_target,
)
from vqlabel.metrics.sigmoid import (
    SigmoidDistortion,
    binary_cross_entropy,
    binary_features,
    binary_kl_divergence,
    binary_soft_target,
)


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """The functions of one likelihood, of [n, C] logits; documented in `distortion.py` and `binary.py`."""

    probabilities: Callable[[Tensor], Tensor]  # logits -> probabilities
    inverse: Callable[[Tensor], Tensor]  # probabilities -> logits
    divergence: Callable[[Tensor, Tensor, float], Tensor]  # teacher, decoded, temperature -> [n] nats
    soft_target: Callable[[Tensor, Sequence[float]], Tensor]  # teacher, temperatures -> [n, C]
    cross_entropy: Callable[[Tensor, Tensor, Sequence[float]], Tensor]  # student, soft target, temperatures -> [n]
    features: Callable[[Tensor, float], Tensor]  # logits, temperature -> [n, C]
    distortion: type[Distortion]
    figure: str  # name of `divergence` in `distortion.figures()`, without the temperature
    shift_invariant: bool  # whether adding a constant to all logits of a label changes no probability


CATEGORICAL = Likelihood(
    probabilities=lambda logits: logits.softmax(1), inverse=lambda p: p.clamp_min(MIN_PROBABILITY).log(), divergence=kl_divergence,
    soft_target=soft_target, cross_entropy=mixed_cross_entropy, features=hellinger_features, distortion=Distortion, figure="kl_T",
    shift_invariant=True,
)  # fmt: skip
BERNOULLI = Likelihood(
    probabilities=torch.sigmoid, inverse=lambda p: p.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY).logit(), divergence=binary_kl_divergence,
    soft_target=binary_soft_target, cross_entropy=binary_cross_entropy, features=binary_features, distortion=SigmoidDistortion,
    figure="binary_kl_T", shift_invariant=False,
)  # fmt: skip


def likelihood_of(domain: str) -> Likelihood:
    """The likelihood of labels of a domain: independent sigmoids for "sigmoid", a softmax for "logits" and "probs"."""
    return BERNOULLI if domain == "sigmoid" else CATEGORICAL
