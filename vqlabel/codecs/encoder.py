"""Labels -> codes, by what the decoder makes of them: slot by slot, every code of a codebook tried against the label's own loss.

A code adds the same to every label's logits, so the exponentials that softmax needs factor, and the loss of all k codes of a slot for
all labels is two matrix products:

    lse(y + a_j) = log sum_c exp(y_c) exp(a_jc)

At high temperatures, where a code changes no probability by much, the loss is its second-order Taylor polynomial in the latent, with
one curvature for all labels: no slot needs exponentials of its own. At T = 16 and above it finds as good codes, alone or not; at T = 4
only beside a lower temperature, which is exact.

Choosing each slot in turn gives the loss of every prefix of the codes as well. Where a label may have as many as pay, `used` says how many
that is at a price per code, and `variable` chooses those.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.distortion import temperature_weight

CLAMP = 40.0  # of the exponent that a code adds, so that one taken away and another added stay inside single precision
FLAT, FLAT_BESIDE = 16.0, 4.0  # temperatures from here on take the polynomial: the lowest one of a loss, the others
STEPS = 30  # of a bisection


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
        self.grown: dict[float, list[Tensor]] = {}  # by temperature, m of [k, C]: what each code multiplies probabilities by
        for t in self.near:
            self.grown[t] = [(book @ (out / t)).clamp_(-CLAMP, CLAMP).exp_() for book in books]
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
            [n, m] int64; a sweep makes no label's loss larger, as far as the exact temperatures go, unless codes take a logit further
            than CLAMP * T.
        """
        share = {t: F.softmax(logits / t, 1) for t in self.near}  # of the codes so far, up to a factor a label
        slope = self._slope(logits, pull)
        codes = torch.empty(len(self.books), len(logits), dtype=torch.long, device=logits.device)
        for sweep in range(sweeps + 1):
            for slot, code in enumerate(codes):
                if sweep:
                    self._take_away(slot, code, share, slope)
                self._add_best(slot, code, share, slope)
        return codes.T.contiguous()

    def variable(self, logits: Tensor, pull: Tensor, sweeps: int, price: float) -> Tensor:
        """As many codes as pay at `price` each, the fewest where several cost the same; a sweep goes over those only.

        Returns:
            [n, 1 + m] int64: the count of a label, 0..m, then its codes, 0 beyond its count.
        """
        losses, codes = self._in_turn(logits, pull)
        count = used(losses, price)
        order = count.argsort(descending=True, stable=True)  # those that have a slot come first, and are a slice
        have = [int((count > slot).sum()) for slot in range(len(codes))]
        codes = codes[:, order]
        if sweeps:
            share = {t: F.softmax(logits / t, 1)[order] for t in self.near}
            slope = self._slope(logits, pull)[order]
            for slot, code in enumerate(codes):
                self._add(slot, code[: have[slot]], {t: s[: have[slot]] for t, s in share.items()}, slope[: have[slot]])
        for _ in range(sweeps):
            for slot, code in enumerate(codes):
                part = code[: have[slot]], {t: s[: have[slot]] for t, s in share.items()}, slope[: have[slot]]
                self._take_away(slot, *part)
                self._add_best(slot, *part)
        for slot, code in enumerate(codes):
            code[have[slot] :] = 0
        out = torch.empty(len(logits), 1 + len(codes), dtype=torch.long, device=logits.device)
        out[:, 0] = count
        out[order, 1:] = codes.T
        return out

    def prefix_losses(self, logits: Tensor, pull: Tensor) -> Tensor:
        """[n, m + 1] what the first j codes, each chosen once, add to a label's loss: 0 for none, then mostly less and less."""
        return self._in_turn(logits, pull)[0]

    def _in_turn(self, logits: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
        """`prefix_losses`, and the codes [m, n]: shares add up to 1 as long as no code is taken away, so a slot's least loss is its change."""
        share = {t: F.softmax(logits / t, 1) for t in self.near}
        slope = self._slope(logits, pull)
        codes = torch.empty(len(self.books), len(logits), dtype=torch.long, device=logits.device)
        losses = torch.zeros(len(logits), len(self.books) + 1, device=logits.device)
        for slot, code in enumerate(codes):
            loss = self._add_best(slot, code, share, slope)
            losses[:, slot + 1] = losses[:, slot] + loss.gather(1, code[:, None])[:, 0]
        return losses, codes

    def _add_best(self, slot: int, code: Tensor, share: dict[float, Tensor], slope: Tensor) -> Tensor:
        """Set `code` [n] to those with the least loss beside what `share` and `slope` hold, and put them in, in place.

        Returns:
            [n, k] by how much each code changes the loss, up to a constant a label: 0 where its shares add up to 1.
        """
        loss, sums = torch.addmm(self.bend[slot], slope, self.books[slot].T), {}
        for t, grown in self.grown.items():
            sums[t] = share[t] @ grown[slot].T  # [n, k]
            loss.add_(sums[t].log(), alpha=temperature_weight(t) * t * t)
        torch.argmin(loss, 1, out=code)
        for t, grown in self.grown.items():
            share[t].mul_(grown[slot].index_select(0, code)).div_(sums[t].gather(1, code[:, None]))
        if self.far:
            slope.add_(self.turn[slot].index_select(0, code))
        return loss

    def _add(self, slot: int, code: Tensor, share: dict[float, Tensor], slope: Tensor) -> None:
        """Put codes [n] in, in place."""
        for t, grown in self.grown.items():
            share[t].mul_(grown[slot].index_select(0, code))
            share[t].div_(share[t].sum(1, keepdim=True))
        if self.far:
            slope.add_(self.turn[slot].index_select(0, code))

    def _take_away(self, slot: int, code: Tensor, share: dict[float, Tensor], slope: Tensor) -> None:
        for t, grown in self.grown.items():
            share[t].div_(grown[slot].index_select(0, code))
        if self.far:
            slope.sub_(self.turn[slot].index_select(0, code))

    def _slope(self, logits: Tensor, pull: Tensor) -> Tensor:
        """[n, d] of the loss in the latent: of what the teacher pulls, and of the partition functions of the high temperatures."""
        total = -pull
        for t in self.far:
            total.add_(F.softmax(logits / t, 1), alpha=temperature_weight(t) * t)
        return total @ self.out.T


def used(losses: Tensor, price: float) -> Tensor:
    """[n, m + 1] losses of prefixes -> [n] int64, 0..m: how many codes have the least loss, with `price` to pay for each."""
    cost: Tensor = losses + price * torch.arange(losses.shape[1], device=losses.device)
    return cost.argmin(1)


def find_price(losses: Tensor, most: float, weight: Tensor | None = None) -> float:
    """The least price of a code, to a billionth of the dearest, at which labels have no more than `most` codes on average.

    Args:
        losses: [n, m + 1] of prefixes.
        weight: [n] of a label in the average, of sum 1; all alike by default.
    """
    if not len(losses):
        return 0.0

    def fits(price: float) -> bool:
        count = used(losses, price).double()
        return float(count.mean() if weight is None else count @ weight.double()) <= most

    low, high = 0.0, float((losses[:, :1] - losses).amax())  # no code takes away more than that
    if fits(low):
        return low
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
