"""Labels -> codes, by what the decoder makes of them: slot by slot, every code of a codebook tried against the label's own loss.

A code adds the same to every label's logits, so the exponentials that softmax needs factor, and the loss of all k codes of a slot for
all labels is two matrix products:

    lse(y + a_j) = log sum_c exp(y_c) exp(a_jc)

At high temperatures, where a code changes no probability by much, the loss is its second-order Taylor polynomial in the latent, with
one curvature for all labels: no slot needs exponentials of its own. At T = 16 and above it finds as good codes, alone or not; at T = 4
only beside a lower temperature, which is exact. Codes that move logits by more than half a temperature are tried exactly at any.

A beam goes on with several beginnings of a label's codes instead of the best one, at as many times the cost: their losses compare,
because shares that add up to 1 make a slot's loss its change.

Choosing each slot in turn gives the loss of every prefix of the codes as well. Where a label may have as many as pay, `used` says how many
that is at a price per code, and `variable` chooses those.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.metrics.distortion import temperature_weight

CLAMP = 60.0  # a code that moves a logit by more would overflow single precision's exponential: its loss is only estimated
KEPT_UP = 40.0  # the same where one code may be taken away and another put in, with no exponential made anew
SMALLEST = 1e-30  # a probability below it may have lost its digits, and could never grow again
FLAT, FLAT_BESIDE = 16.0, 4.0  # temperatures from here on may take the polynomial: the lowest one of a loss, the others
BENT = 0.25  # variance of a code's logits over a temperature, the mean of a slot's codes, above which no polynomial holds
STEPS = 30  # of a bisection

Found = TypeVar("Found")


@dataclass
class Reached:
    """What the decoder says with the codes so far, changed in place."""

    share: dict[float, Tensor]  # by temperature, [n, C] probabilities, up to a factor a label
    slope: Tensor  # [n, d] of the loss in the latent
    logits: Tensor | None  # [n, C], where probabilities are made anew from them after every code
    target: Tensor | None = None  # [n, C] logits of the labels, where the loss needs them

    def first(self, count: int) -> Self:
        """Of the first `count` labels, on the same memory."""
        logits, target = (None if x is None else x[:count] for x in (self.logits, self.target))
        return type(self)({t: share[:count] for t, share in self.share.items()}, self.slope[:count], logits, target)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, any of them as often as it is named."""
        self.share = {t: share.index_select(0, rows) for t, share in self.share.items()}
        self.slope = self.slope.index_select(0, rows)
        self.logits, self.target = (None if x is None else x.index_select(0, rows) for x in (self.logits, self.target))

    def vanishes(self) -> bool:
        """Whether a probability has come too near to 0 to be kept up by products."""
        return any(share.numel() > 0 and float(share.amin()) < SMALLEST for share in self.share.values())


class Encoder:
    """Beam, then coordinate descent on `mixed_cross_entropy`: the slots in turn, given those before; then again, given all others.

    Args:
        books: [m, k, d] what each code adds to the latent.
        out: [d, C], bias: [C]: latent -> logits.
        temperatures: of the loss.
    """

    def __init__(self, books: Tensor, out: Tensor, bias: Tensor, temperatures: Sequence[float]) -> None:
        self.books, self.out = books, out
        self.near, self.far = [], []
        self.turn = torch.zeros_like(books)  # [m, k, d]: what each code adds to the slope
        for t in temperatures:
            turn = books @ self._curvature(bias, t) if t >= (FLAT if t == min(temperatures) else FLAT_BESIDE) else None
            if turn is None or float((turn * books).sum(2).mean(1).amax()) > BENT * temperature_weight(t) * t * t:
                self.near.append(t)
            else:
                self.far.append(t)
                self.turn += turn
        self.bend = 0.5 * (self.turn * books).sum(2)  # [m, k]
        self.moves = [book @ out for book in books] if self.near else []  # m of [k, C]: what each code adds to the logits
        self.grown: dict[float, list[Tensor]] = {}  # by temperature, m of [k, C]: what each code multiplies probabilities by
        for t in self.near:
            self.grown[t] = [(move / t).clamp_(-CLAMP, CLAMP).exp_() for move in self.moves]
        self.kept_up = all(float(move.abs().amax()) <= KEPT_UP * t for t in self.near for move in self.moves)

    def _curvature(self, bias: Tensor, temperature: float) -> Tensor:
        """[d, d] of the loss in the latent, at the usual label."""
        usual = F.softmax(bias / temperature, 0)
        mean = self.out @ usual
        curvature: Tensor = temperature_weight(temperature) * ((self.out * usual) @ self.out.T - torch.outer(mean, mean))
        return curvature

    def __call__(self, logits: Tensor, pull: Tensor, sweeps: int, beam: int = 1) -> Tensor:
        """The codes of every slot, chosen once in turn and then `sweeps` times again.

        Args:
            logits: [n, C] what the decoder says without a code.
            pull: [n, C] from `soft_target`.
            beam: beginnings of a label's codes that every slot is tried after; time and memory grow with it.

        Returns:
            [n, m] int64; a sweep makes no label's loss larger, as far as the exact temperatures go, unless a code moves a logit by more
            than CLAMP * T.
        """

        def choose(reached: Reached) -> Tensor:
            codes = self._begin(reached, beam)
            for _ in range(sweeps):
                for slot, code in enumerate(codes):
                    self._move(slot, code, reached, -1)
                    self._add_best(slot, code, reached)
            return codes.T.contiguous()

        return self._safely(choose, logits, pull)

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

        def choose_again(reached: Reached) -> Tensor:
            chosen = codes.clone()
            for slot, code in enumerate(chosen):
                self._move(slot, code[: have[slot]], reached.first(have[slot]), 1)
            for _ in range(sweeps):
                for slot, code in enumerate(chosen):
                    part = reached.first(have[slot])
                    self._move(slot, code[: have[slot]], part, -1)
                    self._add_best(slot, code[: have[slot]], part)
            return chosen

        if sweeps:
            codes = self._safely(choose_again, logits[order], pull[order])
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

        def choose(reached: Reached) -> tuple[Tensor, Tensor]:
            codes = torch.empty(len(self.books), len(logits), dtype=torch.long, device=logits.device)
            losses = torch.zeros(len(logits), len(self.books) + 1, device=logits.device)
            for slot, code in enumerate(codes):
                loss = self._add_best(slot, code, reached)
                losses[:, slot + 1] = losses[:, slot] + loss.gather(1, code[:, None])[:, 0]
            return losses, codes

        return self._safely(choose, logits, pull)

    def _begin(self, reached: Reached, beam: int) -> Tensor:
        """[m, n] the codes of every slot in turn, of the `beam` best beginnings that each label has at any slot."""
        count, device = len(reached.slope), reached.slope.device
        if beam == 1:
            codes = torch.empty(len(self.books), count, dtype=torch.long, device=device)
            for slot, code in enumerate(codes):
                self._add_best(slot, code, reached)
            return codes
        first = torch.arange(count, device=device)[:, None]  # of a label's rows, in units of how many it has
        begun = torch.empty(count, 1, 0, dtype=torch.long, device=device)
        total = torch.zeros(count, 1, device=device)
        for slot, book in enumerate(self.books):
            kept, k = total.shape[1], len(book)
            losses = (self._losses(slot, reached) + total.view(-1, 1)).view(count, kept * k)
            total, at = losses.topk(min(beam, kept * k) if slot + 1 < len(self.books) else 1, largest=False)
            before, code = at // k, at % k
            reached.keep((first * kept + before).flatten())
            self._move(slot, code.flatten(), reached, 1)
            begun = torch.cat([begun.gather(1, before[:, :, None].expand(-1, -1, slot)), code[:, :, None]], 2)
        return begun[:, 0].T.contiguous()

    def _safely(self, choose: Callable[[Reached], Found], logits: Tensor, pull: Tensor) -> Found:
        """What `choose` finds with probabilities kept up by products, which take half the time of exponentials; where one of them vanished
        or a code grows more than a product can say, with those.
        """
        share = {t: F.softmax(logits / t, 1) for t in self.near}
        reached = Reached(share, self._slope(logits, pull), None)
        if self.kept_up and not reached.vanishes():
            found = choose(reached)
            if not reached.vanishes():
                return found
            share = {t: F.softmax(logits / t, 1) for t in self.near}
        return choose(Reached(share, self._slope(logits, pull), logits.clone() if self.near else None))

    def _add_best(self, slot: int, code: Tensor, reached: Reached) -> Tensor:
        """Set `code` [n] to those with the least loss beside what was reached, and put them in.

        Returns:
            [n, k] by how much each code changes the loss, up to a constant a label: 0 where its shares add up to 1.
        """
        loss = self._losses(slot, reached)
        _least(loss, code)
        self._move(slot, code, reached, 1)
        return loss

    def _losses(self, slot: int, reached: Reached) -> Tensor:
        """[n, k] by how much each code changes the loss, up to a constant a label."""
        loss = torch.addmm(self.bend[slot], reached.slope, self.books[slot].T)
        for t, grown in self.grown.items():
            loss.add_((reached.share[t] @ grown[slot].T).log_(), alpha=temperature_weight(t) * t * t)
        return loss

    def _move(self, slot: int, code: Tensor, reached: Reached, sign: int) -> None:
        """Put codes [n] in (1) or take them away (-1)."""
        if reached.logits is not None:
            reached.logits.add_(self.moves[slot].index_select(0, code), alpha=sign)
        for t, grown in self.grown.items():
            share = reached.share[t]
            if reached.logits is not None:
                share.copy_(F.softmax(reached.logits / t, 1))
            elif sign > 0:
                share.mul_(grown[slot].index_select(0, code))
                share.div_(share.sum(1, keepdim=True))
            else:
                share.div_(grown[slot].index_select(0, code))
        if self.far:
            reached.slope.add_(self.turn[slot].index_select(0, code), alpha=sign)

    def _slope(self, logits: Tensor, pull: Tensor) -> Tensor:
        """[n, d] of the loss in the latent: of what the teacher pulls, and of the partition functions of the high temperatures."""
        total = -pull
        for t in self.far:
            total.add_(F.softmax(logits / t, 1), alpha=temperature_weight(t) * t)
        return total @ self.out.T


def _least(loss: Tensor, code: Tensor) -> None:
    """Set `code` [n] to the first least of every row of `loss` [n, k]. On a CPU by NumPy, which takes a tenth of torch's time for it."""
    if loss.device.type == "cpu":
        code.copy_(torch.from_numpy(loss.detach().numpy().argmin(1)))
    else:
        torch.argmin(loss, 1, out=code)


def used(losses: Tensor, price: float) -> Tensor:
    """[n, m + 1] losses of prefixes -> [n] int64, 0..m: how many codes have the least loss, with `price` to pay for each."""
    cost: Tensor = losses + price * torch.arange(losses.shape[1], device=losses.device)
    return cost.argmin(1)


def find_rate_multiplier(losses: Tensor, most: float, weight: Tensor | None = None) -> float:
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
