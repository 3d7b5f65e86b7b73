"""The k largest logits of a label and one logit, at the best level, for all other classes: decoded top-k labels."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.metrics.distortion import temperature_weight

SHIFT_LABELS = 8192  # labels that the shift of the tail is chosen on
MAX_SHIFT = 200.0  # nats; the search covers -MAX_SHIFT..MAX_SHIFT
HALVINGS = 40  # of that interval: to below 1e-9 nats, finer than fp16


def flat_tail(ids: Tensor, kept: Tensor, classes: int, shift: float) -> Tensor:
    """[n, k] ids and centred logits -> [n, C] logits, in which all other classes share one logit: their mean plus
    `shift`.

    Their mean costs no bits, because the C centred logits of a label sum to 0.
    """
    level = _mean_of_rest(kept, classes) + shift
    return level.expand(-1, classes).clone().scatter_(1, ids, kept)


def _mean_of_rest(kept: Tensor, classes: int) -> Tensor:
    return -kept.sum(1, keepdim=True) / max(1, classes - kept.shape[1])


def best_shift(logits: Tensor, ids: Tensor, kept: Tensor, temperature: Sequence[float]) -> float:
    """The `shift` of `flat_tail` with the least KL to `logits` at the student's temperatures: one fp16 number for all
    labels.

    At shift 0 a flat tail has too little probability, because exp is convex. KL is convex in the shift, and its
    derivative is sum_T w_T T (mass of the decoded tail - mass of the tail); bisection finds its zero.
    """
    classes = logits.shape[1]
    rest = classes - kept.shape[1]
    if rest < 1:
        return 0.0
    level, masses = _mean_of_rest(kept, classes), []
    for t in temperature:
        p = F.softmax(logits / t, 1)
        masses.append((1 - p.gather(1, ids).sum(1)).clamp_min(0).mean().item())

    def slope(shift: float) -> float:
        total = 0.0
        for t, mass in zip(temperature, masses, strict=True):
            tail = (level[:, 0] + shift) / t + math.log(rest)
            share = torch.sigmoid(tail - torch.logsumexp(kept / t, 1)).mean().item()
            total += temperature_weight(t) * t * (share - mass)
        return total

    low, high = -MAX_SHIFT, MAX_SHIFT
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(np.float16((low + high) / 2))
