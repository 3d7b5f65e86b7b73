"""A domain -> what a student's probabilities are, and the loss, features and figures that follow: softmax over classes, or a sigmoid each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vqlabel.metrics.binary import BinaryDistortion, binary_cross_entropy, binary_features, binary_kl_divergence, binary_soft_target
from vqlabel.metrics.distortion import SMALLEST, Distortion, hellinger_features, kl_divergence, mixed_cross_entropy, soft_target


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Functions of [n, C] logits: see those that are named below."""

    probabilities: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]  # probabilities -> logits
    divergence: Callable[[Tensor, Tensor, float], Tensor]
    pull: Callable[[Tensor, Sequence[float]], Tensor]
    cross_entropy: Callable[[Tensor, Tensor, Sequence[float]], Tensor]
    features: Callable[[Tensor, float], Tensor]
    distortion: type[Distortion]
    figure: str  # name of `divergence` among the figures, before the temperature
    levelled: bool  # whether a label's mean over classes changes no probability


CATEGORICAL = Likelihood(
    probabilities=lambda logits: logits.softmax(1), inverse=lambda p: p.clamp_min(SMALLEST).log(), divergence=kl_divergence, pull=soft_target,
    cross_entropy=mixed_cross_entropy, features=hellinger_features, distortion=Distortion, figure="kl_T", levelled=True,
)  # fmt: skip
BERNOULLI = Likelihood(
    probabilities=torch.sigmoid, inverse=lambda p: p.clamp(SMALLEST, 1 - SMALLEST).logit(), divergence=binary_kl_divergence, pull=binary_soft_target,
    cross_entropy=binary_cross_entropy, features=binary_features, distortion=BinaryDistortion, figure="binary_kl_T", levelled=False,
)  # fmt: skip


def likelihood_of(domain: str) -> Likelihood:
    """Of labels of this domain."""
    return BERNOULLI if domain == "sigmoid" else CATEGORICAL
