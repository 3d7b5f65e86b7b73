"""Sigmoid labels -> codes: `CodeSearch` with the loss of C binary decisions.

Exponentials do not factor here. All codes of a slot are ranked by a quadratic in the logits, which is two matrix
products, and the best few are evaluated exactly. With y the logits so far and x those of the label, the quadratic has
the loss's gradient at y and its minimum at x:

    loss(y + a) - loss(y) = sum_c g_c a_c + h_c a_c^2 / 2
    g = sum_T w_T T (sigmoid(y / T) - sigmoid(x / T)),   h = g / (y - x)

The second derivative at y would overestimate codes that move logits far, because a saturated sigmoid has almost none.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.vqae.search import CodeSearch, Result, SearchState
from vqlabel.metrics.distortion import temperature_weight
from vqlabel.metrics.sigmoid import binary_soft_target

EXACT_CODES = 8  # codes of a slot whose loss is evaluated exactly
MIN_DISTANCE = 1e-2  # of logits y and x; below it the secant is lost to rounding, and the second derivative is used


class SigmoidCodeSearch(CodeSearch):
    """`CodeSearch` for `binary_cross_entropy`; its methods take the labels' logits [n, C] in place of soft targets.

    Args:
        books: [m, k, d] what each code adds to the latent.
        out: [d, C] map from latents to logits.
        temperatures: of the loss.
    """

    def __init__(self, books: Tensor, out: Tensor, temperatures: Sequence[float]) -> None:
        self.books, self.out, self.temperatures = books, out, tuple(temperatures)
        self.moves = [book @ out for book in books]  # m of [k, C]: what each code adds to the logits
        self.flat = []  # no temperature has one curvature for all labels

    def _run(self, choose: Callable[[SearchState], Result], logits: Tensor, target: Tensor) -> Result:
        slope = self._slope(logits, binary_soft_target(target, self.temperatures))
        return choose(SearchState({}, slope, logits.clone(), target))

    def _losses(self, slot: int, state: SearchState) -> Tensor:
        """[n, k] change of the loss by each code: exact for the best few, infinite for the others."""
        y, x, moves = state.logits, state.teacher, self.moves[slot]
        assert y is not None and x is not None
        estimate = self._quadratic_losses(y, x, moves)
        best = estimate.topk(min(EXACT_CODES, len(moves)), 1, largest=False).indices  # [n, EXACT_CODES]
        before = self._log_partition(y)
        losses = torch.full_like(estimate, torch.inf)
        linear = state.slope @ self.books[slot].T  # [n, k] minus the soft target's share
        for code in best.T:
            exact = self._log_partition(y + moves[code]) - before + linear.gather(1, code[:, None])[:, 0]
            losses.scatter_(1, code[:, None], exact[:, None])
        return losses

    def _quadratic_losses(self, y: Tensor, x: Tensor, moves: Tensor) -> Tensor:
        """[n, k] estimated change of the loss by `moves` [k, C], at logits y [n, C] and the labels' x [n, C]."""
        gradient, curvature = torch.zeros_like(y), torch.zeros_like(y)
        for t in self.temperatures:
            p, weight = torch.sigmoid(y / t), temperature_weight(t)
            gradient.add_(p - torch.sigmoid(x / t), alpha=weight * t)
            curvature.add_(p * (1 - p), alpha=weight)
        distance = y - x
        curvature = torch.where(distance.abs() > MIN_DISTANCE, gradient / distance, curvature)
        return torch.addmm(gradient @ moves.T, curvature, moves.square().T, alpha=0.5)

    def _log_partition(self, logits: Tensor) -> Tensor:
        """[n] the part of the loss that does not depend on the label."""
        total = logits.new_zeros(len(logits))
        for t in self.temperatures:
            total.add_(F.softplus(logits / t).sum(1), alpha=temperature_weight(t) * t * t)
        return total

    def _apply(self, slot: int, code: Tensor, state: SearchState, sign: int) -> None:
        assert state.logits is not None
        state.logits.add_(self.moves[slot].index_select(0, code), alpha=sign)
