"""Head first: the ids of a label's M largest classes, and their log-odds against all others, so that slots code only the others.

For who asks for KL at T = 1 or for the very top-1 class; students gain more from the same bits in slots (docs/how-it-works.md).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vqlabel.config import LEVEL_BITS

STEP, LOWEST = 0.5, -5.0  # log-odds from -5 to 10.5; half a step costs p (1 - p) / 96 nats
HIDDEN = -1e4  # logit of a class that is looked away from: its probability is 0 at every temperature up to 500
APART = 0.05  # between logits whose order counts: more than fp16 rounds away up to 64


def split(logits: Tensor, head: int, temperatures: Sequence[float]) -> tuple[Tensor, Tensor]:
    """[n, C] logits -> ids [n, head] of the largest, descending, and their levels [n, head]; both int64.

    A level is log(p_c / (1 - P)) in steps, p at the lowest temperature, P the probability of all the head.
    """
    scaled = logits / min(temperatures)
    value, ids = scaled.topk(head, 1)
    odds = value - hide(scaled, ids).logsumexp(1, keepdim=True)
    return ids, ((odds - LOWEST) / STEP).round().clamp(0, (1 << LEVEL_BITS) - 1).long()


def hide(logits: Tensor, ids: Tensor) -> Tensor:
    """[n, C] without the classes `ids` [n, M]."""
    return logits.scatter(1, ids, HIDDEN)


def join(logits: Tensor, ids: Tensor, levels: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Inverse of `split`: the head's classes at their log-odds against what `logits` [n, C] say of all others.

    No other class ends above the head's last one: the file knows that much.
    """
    temperature = min(temperatures)
    rest = hide(logits, ids)
    order = torch.arange(ids.shape[1], device=ids.device)
    at = temperature * ((LOWEST + STEP * levels) + (rest / temperature).logsumexp(1, keepdim=True)) - APART * order
    return torch.minimum(rest, at.amin(1, keepdim=True) - APART).scatter(1, ids, at)


def rest_mass(logits: Tensor, ids: Tensor, temperatures: Sequence[float]) -> Tensor:
    """[n] probability of the classes outside the head, at the lowest temperature."""
    return 1 - (logits / min(temperatures)).softmax(1).gather(1, ids).sum(1)
