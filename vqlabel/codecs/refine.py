"""Codes -> better codes: one slot at a time, every code of its codebook tried against the label's own loss.

A code adds the same to every label's logits, so the exponentials that softmax needs factor, and the loss of all k codes of a slot for
all labels is two matrix products:

    lse(y + a_j) = lse(y) + log sum_c softmax(y)_c exp(a_jc)

At high temperatures, where a code changes no probability by much, the loss is its second-order Taylor polynomial in the latent, with
one curvature for all labels: no slot needs a softmax of its own.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.distortion import temperature_weight

CLAMP = 60.0  # a code that moves a logit by more would overflow single precision's exponential: its loss is only estimated
FLAT = 16.0  # temperatures from here on take the polynomial


class Refiner:
    """Coordinate descent on `mixed_cross_entropy` over the codes of some slots.

    Args:
        books: [m, k, d] what each code adds to the latent.
        out: [d, C], bias: [C]: latent -> logits.
        temperatures: of the loss.
    """

    def __init__(self, books: Tensor, out: Tensor, bias: Tensor, temperatures: Sequence[float]) -> None:
        self.books, self.out = books, out
        self.near = [t for t in temperatures if t < FLAT]
        self.far = [t for t in temperatures if t >= FLAT]
        self.moves = list(books @ out)  # m of [k, C]
        self.grown = [[(move / t).clamp(-CLAMP, CLAMP).exp_() for t in self.near] for move in self.moves]
        curvature = out.new_zeros(len(out), len(out))
        for t in self.far:
            usual = F.softmax(bias / t, 0)
            mean = out @ usual
            curvature += temperature_weight(t) * ((out * usual) @ out.T - torch.outer(mean, mean))
        self.turn = books @ curvature  # [m, k, d]: what each code adds to the slope
        self.bend = 0.5 * (self.turn * books).sum(2)  # [m, k]

    def __call__(self, codes: Tensor, logits: Tensor, pull: Tensor, order: Sequence[int]) -> Tensor:
        """The codes after one step for every slot of `order`.

        Args:
            codes: [n, m] int64.
            logits: [n, C] what these codes decode to.
            pull: [n, C] from `teacher_pull`.

        Returns:
            [n, m] int64; no label's loss is larger than before as far as temperatures below FLAT go, unless a code moves a logit by
            more than CLAMP * T.
        """
        codes = codes.clone()
        slope = self._slope(logits, pull)
        for slot in order:
            slope = slope - self.turn[slot][codes[:, slot]] if self.far else slope
            rest = logits - self.moves[slot][codes[:, slot]] if self.near else logits
            codes[:, slot] = self.best_code(slot, rest, slope)
            logits = rest.add_(self.moves[slot][codes[:, slot]]) if self.near else logits
            slope = slope.add_(self.turn[slot][codes[:, slot]]) if self.far else slope
        return codes

    def best_code(self, slot: int, logits: Tensor, slope: Tensor) -> Tensor:
        """[n] the code of `slot` with the least loss, added to `logits` [n, C] whose `_slope` [n, d] is that without the slot's code."""
        loss = torch.addmm(self.bend[slot], slope, self.books[slot].T)
        for t, grown in zip(self.near, self.grown[slot], strict=True):
            loss.add_(torch.log(F.softmax(logits / t, 1) @ grown.T), alpha=temperature_weight(t) * t * t)
        return loss.argmin(1)

    def _slope(self, logits: Tensor, pull: Tensor) -> Tensor:
        """[n, d] of the loss in the latent: of what the teacher pulls, and of the partition functions of the high temperatures."""
        total = -pull
        for t in self.far:
            total.add_(F.softmax(logits / t, 1), alpha=temperature_weight(t) * t)
        return total @ self.out.T
