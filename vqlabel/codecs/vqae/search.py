"""Labels -> codes by search: slot by slot, the loss of the decoded label is computed for every code of the codebook.

A code adds the same vector to every label's logits, so the exponentials of softmax factor, and the loss of all k codes
of a slot for all labels is two matrix products:

    lse(y + a_j) = log sum_c exp(y_c) exp(a_jc)

At high temperatures a code changes no probability by much, and the loss is replaced by its second-order Taylor
polynomial in the latent, with one curvature for all labels and no exponentials. This loses no quality if T >= 16, or if
T >= 4 and the loss also has a lower temperature, which is then evaluated exactly. Codes that move logits by more than
half a temperature are evaluated exactly at any temperature.

A beam keeps several hypotheses (codes of the first slots) of a label in place of the best one, at proportional cost.
Their losses are comparable because probabilities are normalised after every slot.

Choosing the slots in turn also gives the loss of every prefix of the codes. At a variable rate, `best_counts` selects
the prefix with the lowest rate-distortion cost, and `variable` returns the counts and codes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.metrics.distortion import temperature_weight

CLAMP = 60.0  # nats; a code that moves a logit by more overflows float32's exponential, and its loss is only estimated
MAX_PRODUCT_MOVE = 40.0  # nats; the same where one code is removed and another added by products alone
MIN_PROBABILITY = 1e-30  # below it a probability may have lost its digits, and products could not restore it
MIN_FLAT, MIN_FLAT_BESIDE = (
    16.0,
    4.0,
)  # the polynomial is used from the first temperature on if it is the lowest of the loss, else from the second on
MAX_VARIANCE = 0.25  # of a code's logits over a temperature, the mean of a slot's codes; above it the polynomial is inaccurate
BISECTION_STEPS = 30  # to 1e-9 of the initial interval

Result = TypeVar("Result")


@dataclass
class SearchState:
    """What the loss needs of the labels with the codes chosen so far; changed in place."""

    probs: dict[float, Tensor]  # temperature -> [n, C] probabilities, up to a factor per label
    slope: Tensor  # [n, d] gradient in the latent: of the soft target, and of high temperatures' log-partition functions
    logits: Tensor | None  # [n, C], if probabilities are recomputed from them after every code
    teacher: Tensor | None = None  # [n, C] logits of the labels, if the loss needs them

    def first(self, count: int) -> Self:
        """The state of the first `count` labels, on the same memory."""
        logits, teacher = (None if x is None else x[:count] for x in (self.logits, self.teacher))
        return type(self)({t: probs[:count] for t, probs in self.probs.items()}, self.slope[:count], logits, teacher)

    def keep(self, rows: Tensor) -> None:
        """Replace the rows by `rows`, in which a row may be repeated."""
        self.probs = {t: probs.index_select(0, rows) for t, probs in self.probs.items()}
        self.slope = self.slope.index_select(0, rows)
        self.logits, self.teacher = (None if x is None else x.index_select(0, rows) for x in (self.logits, self.teacher))

    def underflows(self) -> bool:
        """Whether a probability is too close to 0 for further products."""
        return any(probs.numel() > 0 and float(probs.amin()) < MIN_PROBABILITY for probs in self.probs.values())


class CodeSearch:
    """Beam search, then coordinate descent, on `mixed_cross_entropy`: slots in turn given those before, then again
    given all others.

    Args:
        books: [m, k, d] what each code adds to the latent.
        out: [d, C] map from latents to logits; bias: [C].
        temperatures: of the loss.
    """

    def __init__(self, books: Tensor, out: Tensor, bias: Tensor, temperatures: Sequence[float]) -> None:
        self.books, self.out = books, out
        self.exact, self.flat = [], []  # temperatures whose loss is exact, and those of the polynomial
        self.slope_changes = torch.zeros_like(books)  # [m, k, d] what each code adds to the slope
        for t in temperatures:
            change = books @ self._curvature(bias, t) if t >= (MIN_FLAT if t == min(temperatures) else MIN_FLAT_BESIDE) else None
            if change is None or float((change * books).sum(2).mean(1).amax()) > MAX_VARIANCE * temperature_weight(t) * t * t:
                self.exact.append(t)
            else:
                self.flat.append(t)
                self.slope_changes += change
        self.quadratic = 0.5 * (self.slope_changes * books).sum(2)  # [m, k] second-order term of each code's loss
        self.moves = [book @ out for book in books] if self.exact else []  # m of [k, C]: what each code adds to the logits
        self.factors: dict[float, list[Tensor]] = {}  # temperature -> m of [k, C]: factor of each code on the probabilities
        for t in self.exact:
            self.factors[t] = [(move / t).clamp_(-CLAMP, CLAMP).exp_() for move in self.moves]
        self.products_suffice = all(float(move.abs().amax()) <= MAX_PRODUCT_MOVE * t for t in self.exact for move in self.moves)

    def _curvature(self, bias: Tensor, temperature: float) -> Tensor:
        """[d, d] second derivative of the loss in the latent, at the label that the bias decodes to."""
        probs = F.softmax(bias / temperature, 0)
        mean = self.out @ probs
        curvature: Tensor = temperature_weight(temperature) * ((self.out * probs) @ self.out.T - torch.outer(mean, mean))
        return curvature

    def __call__(self, logits: Tensor, target: Tensor, sweeps: int, beam_width: int = 1) -> Tensor:
        """The codes of every slot, chosen in turn and then `sweeps` times again.

        Args:
            logits: [n, C] decoded without codes.
            target: [n, C] from `soft_target`.
            beam_width: hypotheses per label; time and memory grow with it.

        Returns:
            [n, m] int64; a sweep increases no label's loss at the exact temperatures, unless a code moves a logit by
            more than CLAMP * T.
        """

        def choose(state: SearchState) -> Tensor:
            codes = self._beam_search(state, beam_width)
            for _ in range(sweeps):
                for slot, code in enumerate(codes):
                    self._apply(slot, code, state, -1)
                    self._add_best(slot, code, state)
            return codes.T.contiguous()

        return self._run(choose, logits, target)

    def variable(self, logits: Tensor, target: Tensor, sweeps: int, price: float) -> Tensor:
        """The prefix of codes with the lowest loss plus `price` per code, the shortest of equals; sweeps keep its
        length.

        Returns:
            [n, 1 + m] int64: the count of a label, 0..m, then its codes, 0 beyond its count.
        """
        losses, codes = self._choose_in_turn(logits, target)
        count = best_counts(losses, price)
        order = count.argsort(descending=True, stable=True)  # labels that have a slot are then the first rows
        labels_with = [int((count > slot).sum()) for slot in range(len(codes))]
        codes = codes[:, order]

        def choose_again(state: SearchState) -> Tensor:
            chosen = codes.clone()
            for slot, code in enumerate(chosen):
                self._apply(slot, code[: labels_with[slot]], state.first(labels_with[slot]), 1)
            for _ in range(sweeps):
                for slot, code in enumerate(chosen):
                    rows = state.first(labels_with[slot])
                    self._apply(slot, code[: labels_with[slot]], rows, -1)
                    self._add_best(slot, code[: labels_with[slot]], rows)
            return chosen

        if sweeps:
            codes = self._run(choose_again, logits[order], target[order])
        for slot, code in enumerate(codes):
            code[labels_with[slot] :] = 0
        out = torch.empty(len(logits), 1 + len(codes), dtype=torch.long, device=logits.device)
        out[:, 0] = count
        out[order, 1:] = codes.T
        return out

    def prefix_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """[n, m + 1] what the first j codes, each chosen once, add to a label's loss; 0 for none, and mostly decreasing
        in j.
        """
        return self._choose_in_turn(logits, target)[0]

    def prefixes(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """`prefix_losses`, and the codes themselves, [n, m] int64."""
        losses, codes = self._choose_in_turn(logits, target)
        return losses, codes.T.contiguous()

    def _choose_in_turn(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """`prefix_losses`, and the codes [m, n]; a slot's least loss is its change, because probabilities stay
        normalised.
        """

        def choose(state: SearchState) -> tuple[Tensor, Tensor]:
            codes = torch.empty(len(self.books), len(logits), dtype=torch.long, device=logits.device)
            losses = torch.zeros(len(logits), len(self.books) + 1, device=logits.device)
            for slot, code in enumerate(codes):
                loss = self._add_best(slot, code, state)
                losses[:, slot + 1] = losses[:, slot] + loss.gather(1, code[:, None])[:, 0]
            return losses, codes

        return self._run(choose, logits, target)

    def _beam_search(self, state: SearchState, beam_width: int) -> Tensor:
        """[m, n] codes of the best hypothesis, with `beam_width` hypotheses per label kept after every slot."""
        count, device = len(state.slope), state.slope.device
        if beam_width == 1:
            codes = torch.empty(len(self.books), count, dtype=torch.long, device=device)
            for slot, code in enumerate(codes):
                self._add_best(slot, code, state)
            return codes
        label = torch.arange(count, device=device)[:, None]
        hypotheses = torch.empty(count, 1, 0, dtype=torch.long, device=device)
        total = torch.zeros(count, 1, device=device)
        for slot, book in enumerate(self.books):
            width, k = total.shape[1], len(book)
            losses = (self._losses(slot, state) + total.view(-1, 1)).view(count, width * k)
            total, best = losses.topk(min(beam_width, width * k) if slot + 1 < len(self.books) else 1, largest=False)
            parent, code = best // k, best % k
            state.keep((label * width + parent).flatten())
            self._apply(slot, code.flatten(), state, 1)
            hypotheses = torch.cat([hypotheses.gather(1, parent[:, :, None].expand(-1, -1, slot)), code[:, :, None]], 2)
        return hypotheses[:, 0].T.contiguous()

    def _run(self, choose: Callable[[SearchState], Result], logits: Tensor, target: Tensor) -> Result:
        """Run `choose` with probabilities updated by products, in half the time of exponentials; if one of them
        underflows or a code moves logits too far for products, run it with probabilities recomputed from logits.
        """
        probs = {t: F.softmax(logits / t, 1) for t in self.exact}
        state = SearchState(probs, self._slope(logits, target), None)
        if self.products_suffice and not state.underflows():
            result = choose(state)
            if not state.underflows():
                return result
            probs = {t: F.softmax(logits / t, 1) for t in self.exact}
        return choose(SearchState(probs, self._slope(logits, target), logits.clone() if self.exact else None))

    def _add_best(self, slot: int, code: Tensor, state: SearchState) -> Tensor:
        """Set `code` [n] to the codes with the least loss, and add them.

        Returns:
            [n, k] change of the loss by each code, up to a constant per label: 0 where its probabilities sum to 1.
        """
        loss = self._losses(slot, state)
        _argmin_into(loss, code)
        self._apply(slot, code, state, 1)
        return loss

    def _losses(self, slot: int, state: SearchState) -> Tensor:
        """[n, k] change of the loss by each code, up to a constant per label."""
        loss = torch.addmm(self.quadratic[slot], state.slope, self.books[slot].T)
        for t, factors in self.factors.items():
            loss.add_((state.probs[t] @ factors[slot].T).log_(), alpha=temperature_weight(t) * t * t)
        return loss

    def _apply(self, slot: int, code: Tensor, state: SearchState, sign: int) -> None:
        """Add codes [n] (sign 1) or remove them (-1)."""
        if state.logits is not None:
            state.logits.add_(self.moves[slot].index_select(0, code), alpha=sign)
        for t, factors in self.factors.items():
            probs = state.probs[t]
            if state.logits is not None:
                probs.copy_(F.softmax(state.logits / t, 1))
            elif sign > 0:
                probs.mul_(factors[slot].index_select(0, code))
                probs.div_(probs.sum(1, keepdim=True))
            else:
                probs.div_(factors[slot].index_select(0, code))
        if self.flat:
            state.slope.add_(self.slope_changes[slot].index_select(0, code), alpha=sign)

    def _slope(self, logits: Tensor, target: Tensor) -> Tensor:
        """[n, d] gradient in the latent of minus the soft target, plus the log-partition functions of the polynomial's
        temperatures.
        """
        total = -target
        for t in self.flat:
            total.add_(F.softmax(logits / t, 1), alpha=temperature_weight(t) * t)
        return total @ self.out.T


def _argmin_into(loss: Tensor, code: Tensor) -> None:
    """Set `code` [n] to the first minimum of every row of `loss` [n, k]; on a CPU by NumPy, which takes a tenth of
    torch's time.
    """
    if loss.device.type == "cpu":
        code.copy_(torch.from_numpy(loss.detach().numpy().argmin(1)))
    else:
        torch.argmin(loss, 1, out=code)


def best_counts(losses: Tensor, price: float) -> Tensor:
    """[n, m + 1] losses of prefixes -> [n] int64, 0..m: number of codes with the least loss plus `price` per code."""
    cost: Tensor = losses + price * torch.arange(losses.shape[1], device=losses.device)
    return cost.argmin(1)


def find_rate_multiplier(losses: Tensor, max_codes: float, weight: Tensor | None = None) -> float:
    """The least price per code at which labels have at most `max_codes` codes on average, to 1e-9 of the largest
    possible price.

    Args:
        losses: [n, m + 1] of prefixes.
        weight: [n] weight of each label in the average, with sum 1; equal by default.
    """
    if not len(losses):
        return 0.0

    def fits(price: float) -> bool:
        count = best_counts(losses, price).double()
        return float(count.mean() if weight is None else count @ weight.double()) <= max_codes

    low, high = 0.0, float((losses[:, :1] - losses).amax())  # no code lowers a loss by more
    if fits(low):
        return low
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
