"""Exact top classes, for the lowest KL: ids of a label's M largest classes and their log-odds against all others; slots
code the others.

They lower KL at T = 1 and keep the top-1 class; students gain more from the same bits in slots (docs/how-it-works.md).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vqlabel.config import LEVEL_BITS

STEP, MIN_LOG_ODDS = 0.5, -5.0  # nats; 32 levels cover -5 .. 10.5, and an error of half a step costs p (1 - p) / 96 nats
MASKED = -1e4  # logit of a masked class: its probability is 0 at every temperature up to 500
MARGIN = 0.05  # least difference of logits whose order matters: more than the rounding of fp16 up to 64


def split_exact(logits: Tensor, count: int, temperatures: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The exact classes of labels and their levels: log(p_c / (1 - P)) in steps of STEP from MIN_LOG_ODDS.

    p_c is the probability of class c at the lowest temperature, P that of all exact classes.

    Args:
        logits: [n, C].
        count: M, exact classes per label.

    Returns:
        ids [n, M], the largest class first, and levels [n, M], 0 .. 31; both int64.
    """
    scaled = logits / min(temperatures)
    top, ids = scaled.topk(count, 1)
    log_odds = top - mask(scaled, ids).logsumexp(1, keepdim=True)
    return ids, ((log_odds - MIN_LOG_ODDS) / STEP).round().clamp(0, (1 << LEVEL_BITS) - 1).long()


def mask(logits: Tensor, ids: Tensor) -> Tensor:
    """[n, C] logits with those of the classes `ids` [n, M] set to MASKED."""
    return logits.scatter(1, ids, MASKED)


def join_exact(logits: Tensor, ids: Tensor, levels: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Inverse of `split_exact`: [n, C] logits whose exact classes have their log-odds against all others of `logits`
    [n, C].

    The other classes are clamped below the lowest exact class.
    """
    temperature = min(temperatures)
    others = mask(logits, ids)
    order = torch.arange(ids.shape[1], device=ids.device)
    log_odds = (MIN_LOG_ODDS + STEP * levels) + (others / temperature).logsumexp(1, keepdim=True)
    exact = temperature * log_odds - MARGIN * order
    return torch.minimum(others, exact.amin(1, keepdim=True) - MARGIN).scatter(1, ids, exact)


def rest_mass(logits: Tensor, ids: Tensor, temperatures: Sequence[float]) -> Tensor:
    """[n] probability of the classes that are not in `ids`, at the lowest temperature."""
    return 1 - (logits / min(temperatures)).softmax(1).gather(1, ids).sum(1)
