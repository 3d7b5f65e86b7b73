"""Labels -> codes, by what the decoder makes of them: slot by slot, every code of a codebook tried against the label's own loss.

A code adds the same to every label's logits, so the exponentials that softmax needs factor, and the loss of all k codes of a slot for
all labels is two matrix products:

    lse(y + a_j) = log sum_c exp(y_c) exp(a_jc)

At high temperatures, where a code changes no probability by much, the loss is its second-order Taylor polynomial in the latent, with
one curvature for all labels: no slot needs exponentials of its own. At T = 16 and above it finds as good codes, alone or not; at T = 4
only beside a lower temperature, which is exact.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.distortion import temperature_weight

CLAMP = 60.0  # a code that moves a logit by more would overflow single precision's exponential: its loss is only estimated
FLAT, FLAT_BESIDE = 16.0, 4.0  # temperatures from here on take the polynomial: the lowest one of a loss, the others


class Encoder:
    """Coordinate descent on `mixed_cross_entropy`: the slots in turn, each the best given those before; then again, given all others.

    Args:
        books: [m, k, d] what each code adds to the latent.
        out: [d, C], bias: [C]: latent -> logits.
        temperatures: of the loss.
    """

    def __init__(self, books: Tensor, out: Tensor, bias: Tensor, temperatures: Sequence[float]) -> None:
        self.books, self.out = books, out
        self.near = [t for t in temperatures if t < (FLAT if t == min(temperatures) else FLAT_BESIDE)]
        self.far = [t for t in temperatures if t not in self.near]
        self.moves = [book @ out for book in books] if self.near else []  # m of [k, C]: what each code adds to the logits
        self.grown = {t: [(move / t).clamp(-CLAMP, CLAMP).exp_() for move in self.moves] for t in self.near}
        curvature = out.new_zeros(len(out), len(out))
        for t in self.far:
            usual = F.softmax(bias / t, 0)
            mean = out @ usual
            curvature += temperature_weight(t) * ((out * usual) @ out.T - torch.outer(mean, mean))
        self.turn = books @ curvature  # [m, k, d]: what each code adds to the slope
        self.bend = 0.5 * (self.turn * books).sum(2)  # [m, k]

    def __call__(self, logits: Tensor, pull: Tensor, sweeps: int) -> Tensor:
        """The codes of every slot, chosen once in turn and then `sweeps` times again.

        Args:
            logits: [n, C] what the decoder says without a code.
            pull: [n, C] from `teacher_pull`.

        Returns:
            [n, m] int64; a sweep makes no label's loss larger, as far as the exact temperatures go, unless a code moves a logit by more
            than CLAMP * T.
        """
        slope = self._slope(logits, pull)
        codes = torch.empty(len(logits), len(self.books), dtype=torch.long, device=logits.device)
        for sweep in range(sweeps + 1):
            for slot in range(len(self.books)):
                if sweep:
                    logits, slope = self._moved(logits, slope, slot, codes[:, slot], -1)
                codes[:, slot] = self._best_code(slot, logits, slope)
                logits, slope = self._moved(logits, slope, slot, codes[:, slot], 1)
        return codes

    def _best_code(self, slot: int, logits: Tensor, slope: Tensor) -> Tensor:
        """[n] the code with the least loss, given the logits and the slope without one of this slot."""
        loss = torch.addmm(self.bend[slot], slope, self.books[slot].T)
        for t, grown in self.grown.items():
            share = (logits - logits.amax(1, keepdim=True)).mul_(1 / t).exp_()
            loss.add_((share @ grown[slot].T).log_(), alpha=temperature_weight(t) * t * t)
        return loss.argmin(1)

    def _moved(self, logits: Tensor, slope: Tensor, slot: int, codes: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        """Logits and slope with (1) or without (-1) these codes; of the two only what some temperature asks for."""
        if self.near:
            logits = logits.add(self.moves[slot][codes], alpha=sign)
        if self.far:
            slope = slope.add(self.turn[slot][codes], alpha=sign)
        return logits, slope

    def _slope(self, logits: Tensor, pull: Tensor) -> Tensor:
        """[n, d] of the loss in the latent: of what the teacher pulls, and of the partition functions of the high temperatures."""
        total = -pull
        for t in self.far:
            total.add_(F.softmax(logits / t, 1), alpha=temperature_weight(t) * t)
        return total @ self.out.T
