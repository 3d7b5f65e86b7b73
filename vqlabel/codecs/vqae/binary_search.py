"""Labels whose classes have probabilities of their own -> codes: `Encoder`'s search, with the loss of two-way choices.

No exponential factors here. Every code of a slot is tried by a quadratic in the logits, which is two matrix products; the best few of
them exactly. Between what was reached, y, and the label, x, the quadratic has the gradient at y and its minimum at x:

    loss(y + a) - loss(y) = sum_c g_c a_c + h_c a_c^2 / 2,   g = sum_T w_T T (sigmoid(y / T) - sigmoid(x / T)),   h = g / (y - x)

At y the second derivative itself would promise too much to codes that move far: a sigmoid is flat where it is sure.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.vqae.search import Encoder, Found, Reached
from vqlabel.metrics.binary import binary_soft_target
from vqlabel.metrics.distortion import temperature_weight

TRIED = 8  # codes of a slot whose loss is taken exactly
NEAR = 1e-2  # distance of logits below which the secant is lost to rounding, and the derivative serves


class BinaryEncoder(Encoder):
    """`Encoder` on `binary_cross_entropy`. It is called with the labels' logits [n, C] in the place of their pull.

    Args:
        books: [m, k, d] what each code adds to the latent.
        out: [d, C] latent -> logits.
        temperatures: of the loss.
    """

    def __init__(self, books: Tensor, out: Tensor, temperatures: Sequence[float]) -> None:
        self.books, self.out, self.temperatures = books, out, tuple(temperatures)
        self.moves = [book @ out for book in books]  # m of [k, C]: what each code adds to the logits
        self.far = []  # no temperature has one curvature for all labels

    def _safely(self, choose: Callable[[Reached], Found], logits: Tensor, pull: Tensor) -> Found:
        slope = self._slope(logits, binary_soft_target(pull, self.temperatures))
        return choose(Reached({}, slope, logits.clone(), pull))

    def _losses(self, slot: int, reached: Reached) -> Tensor:
        """[n, k] by how much each code changes the loss: exact for the best few, infinite for others."""
        y, x, move = reached.logits, reached.target, self.moves[slot]
        assert y is not None and x is not None
        gradient, bend = torch.zeros_like(y), torch.zeros_like(y)
        for t in self.temperatures:
            p, weight = torch.sigmoid(y / t), temperature_weight(t)
            gradient.add_(p - torch.sigmoid(x / t), alpha=weight * t)
            bend.add_(p * (1 - p), alpha=weight)
        apart = y - x
        bend = torch.where(apart.abs() > NEAR, gradient / apart, bend)
        guess = torch.addmm(gradient @ move.T, bend, move.square().T, alpha=0.5)
        tried = guess.topk(min(TRIED, len(move)), 1, largest=False).indices  # [n, TRIED]
        before = self._partition(y)
        losses = torch.full_like(guess, torch.inf)
        linear = reached.slope @ self.books[slot].T  # [n, k] less what the teacher pulls
        for code in tried.T:
            exact = self._partition(y + move[code]) - before + linear.gather(1, code[:, None])[:, 0]
            losses.scatter_(1, code[:, None], exact[:, None])
        return losses

    def _partition(self, logits: Tensor) -> Tensor:
        """[n] the loss but for what the teacher pulls."""
        total = logits.new_zeros(len(logits))
        for t in self.temperatures:
            total.add_(F.softplus(logits / t).sum(1), alpha=temperature_weight(t) * t * t)
        return total

    def _move(self, slot: int, code: Tensor, reached: Reached, sign: int) -> None:
        assert reached.logits is not None
        reached.logits.add_(self.moves[slot].index_select(0, code), alpha=sign)
