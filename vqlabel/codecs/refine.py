"""Codes -> better codes: one slot at a time, every code of its codebook tried against the label's own loss.

A code adds the same to every label's logits, so the exponentials that softmax needs factor, and the loss of all k codes of a slot for
all labels is two matrix products:

    lse(y + a_j) = lse(y) + log sum_c softmax(y)_c exp(a_jc)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.distortion import temperature_weight

CLAMP = 60.0  # a code that moves a logit by more would overflow single precision's exponential: its loss is only estimated


def refine(
    codes: Tensor, logits: Tensor, pull: Tensor, moves: Sequence[Tensor], temperatures: Sequence[float], order: Sequence[int]
) -> Tensor:
    """The codes after coordinate descent on `mixed_cross_entropy`, slot by slot in this `order`.

    Args:
        codes: [n, m] int64.
        logits: [n, C] what these codes decode to.
        pull: [n, C] from `teacher_pull`.
        moves: m of [k, C], what each code of a slot adds to the logits.

    Returns:
        [n, m] int64; no label's loss is larger than before, unless a code moves a logit by more than CLAMP * T.
    """
    codes = codes.clone()
    for slot in order:
        rest = logits - moves[slot][codes[:, slot]]
        codes[:, slot] = best_code(rest, pull, moves[slot], temperatures)
        logits = rest.add_(moves[slot][codes[:, slot]])
    return codes


def best_code(logits: Tensor, pull: Tensor, move: Tensor, temperatures: Sequence[float]) -> Tensor:
    """[n] the code whose move [k, C], added to `logits` [n, C], has the least `mixed_cross_entropy`."""
    loss = -(pull @ move.T)
    for t in temperatures:
        grown = (move / t).clamp(-CLAMP, CLAMP).exp_()
        loss.add_(torch.log(F.softmax(logits / t, 1) @ grown.T), alpha=temperature_weight(t) * t * t)
    return loss.argmin(1)
