"""Stored labels and a student's logits -> the loss it trains with; the epoch -> the teacher's temperature; held-out labels -> the student's.

For any training loop: plain functions of tensors on any device. Labels come as `VqlDataset` gives them, of any floating type; all is
computed in float32, and no gradient reaches the labels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.config import check_labels
from vqlabel.errors import UsageError, require
from vqlabel.labels.batch import NOWHERE
from vqlabel.type_checks import check_field_types, check_type

HUNDREDTHS = tuple(i / 100 for i in range(1, 101))  # where LPQLD looks for a student's temperature


def kl(
    student_logits: Tensor,
    labels: Tensor,
    temperature: float = 20.0,
    *,
    student_temperature: float | None = None,
    squared: bool = False,
    domain: str = "logits",
) -> Tensor:
    """KL(softmax(labels / T) || softmax(student_logits / T_s)) in nats, the mean over labels: nn.KLDivLoss("batchmean").

    SRe2L, CDA, LPLD and RDED train with it at T = 20, without the factor T^2 that would keep the gradient's scale at every T. Of labels
    that only k classes are known of (a `topk` codec, `top_k`) it is LPQLD's MR-k.

    Args:
        student_logits, labels: [n, C].
        temperature: T; of probabilities 1.
        student_temperature: T_s; None: T.
        squared: times T^2.
        domain: of the labels, "logits" or "probs" (`VqlDataset.domain`).

    Raises:
        UsageError: shapes differ, a temperature is not above 0, or probabilities are to have another than 1.
    """
    _check_pair(student_logits, labels)
    target = targets(labels, temperature, domain)
    at = temperature if student_temperature is None else student_temperature
    _check_temperature("student_temperature", at)
    _check_type("squared", squared, bool)
    loss = F.kl_div(F.log_softmax(student_logits.float() / at, 1), target, reduction="batchmean")
    return loss * temperature**2 if squared else loss


def targets(labels: Tensor, temperature: float = 20.0, domain: str = "logits") -> Tensor:
    """[n, C] labels -> [n, C] float32 distributions: softmax(labels / T), or probabilities made to add up to 1.

    Raises:
        UsageError: see `kl`.
    """
    _check_rows(labels)
    check_labels(labels.shape[1], domain)
    _check_temperature("temperature", temperature)
    x = labels.detach().float()
    _check_distribution(domain)
    if domain == "logits":
        return F.softmax(x / temperature, 1)
    limit = "must be 1 for probs: what a softmax rounded away, no temperature brings back; student_temperature is free"
    require(temperature == 1, "temperature", temperature, limit)
    return x / x.sum(1, keepdim=True)


def top_k(labels: Tensor, k: int, domain: str = "logits") -> Tensor:
    """[n, C] labels -> [n, C] float32 labels of which the k largest are known: LPQLD's MR-k, and FKD's of probabilities.

    The others have probability 0 at every temperature up to 500: a softmax over all C classes is one over the k.

    Raises:
        UsageError: k is not in 1..C, or labels are no rows.
    """
    _check_rows(labels)
    check_labels(labels.shape[1], domain)
    _check_type("k", k, int)
    _check_distribution(domain)
    require(1 <= k <= labels.shape[1], "k", k, f"must be 1..{labels.shape[1]} (the number of classes)")
    value, index = labels.float().topk(k, 1)
    if domain == "probs":
        value = value / value.sum(1, keepdim=True)
    rest = torch.full(labels.shape, NOWHERE if domain == "logits" else 0.0, dtype=torch.float32, device=labels.device)
    return rest.scatter(1, index, value)


def bce(student_logits: Tensor, labels: Tensor, temperature: float = 1.0, *, squared: bool = False) -> Tensor:
    """Binary cross entropy of sigmoid(student_logits / T) with sigmoid(labels / T), the mean over all n * C: nn.BCEWithLogitsLoss.

    For labels of the domain "sigmoid", whose classes each have a probability of their own. It is their binary KL plus the entropy of the
    labels, which no student changes.

    Args:
        student_logits, labels: [n, C] logits.
        temperature: T, of both.
        squared: times T^2, which keeps the gradient's scale at every T.

    Raises:
        UsageError: shapes differ, or the temperature is not above 0.
    """
    _check_pair(student_logits, labels)
    _check_temperature("temperature", temperature)
    _check_type("squared", squared, bool)
    target = torch.sigmoid(labels.detach().float() / temperature)
    loss = F.binary_cross_entropy_with_logits(student_logits.float() / temperature, target)
    return loss * temperature**2 if squared else loss


def mse_gt(student_logits: Tensor, labels: Tensor, target: Tensor, weight: float = 0.1, *, domain: str = "logits") -> Tensor:
    """Squared error of logits, the mean over all n * C, and `weight` * cross entropy with the true classes: G-VBSM (0.1), EDC (0.025).

    It sees what no softmax does, a label's mean over classes. Files of the `raw` codec keep that exactly, those of a vqae as far as
    their fit could (`stats --against` prints the error as `mse`), those of `topk` not at all: nothing is known of most logits.

    Args:
        student_logits, labels: [n, C].
        target: [n] int64, the true classes.

    Raises:
        UsageError: shapes differ, or the labels are probabilities.
    """
    _check_pair(student_logits, labels)
    check_labels(labels.shape[1], domain)
    if domain == "probs":
        raise UsageError("mse_gt compares logits, and these labels are probabilities; train with kl at temperature 1")
    _check_type("target", target, Tensor)
    good = target.shape == student_logits.shape[:1] and not target.is_floating_point()
    require(good, "target", f"{target.dtype} {list(target.shape)}", f"must be {len(labels)} whole numbers, the true classes")
    _check_type("weight", weight, float)
    student = student_logits.float()
    error = (student - labels.detach().float()).square().mean()  # not mse_loss: it keeps its target, which inference tensors refuse
    return error + weight * F.cross_entropy(student, target)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSchedule:
    """The teacher's temperature falls by a factor every few epochs: max(end, start * gamma^floor(epoch / every)).

    The defaults are LPQLD's (Dynamic Knowledge Reuse: the same labels say more as T falls): 20, 14, 9.8 ... 2. With start = end it never
    changes. A schedule is a function of the epoch; a checkpoint needs nothing of it.
    """

    start: float = 20.0
    end: float = 2.0
    every: int = 30  # epochs
    gamma: float = 0.7

    def __post_init__(self) -> None:
        check_field_types(self)
        _check_temperature("end", self.end)
        require(self.end <= self.start < math.inf, "start", self.start, f"must be {self.end:g}, the end, or above")
        require(self.every >= 1, "every", self.every, "must be 1 epoch or more")
        require(0 < self.gamma <= 1, "gamma", self.gamma, "must be above 0, at most 1")

    def temperature(self, epoch: int) -> float:
        """Of this epoch, 1..E: LPQLD counts from 1, so its first step comes an epoch early. A loop that counts from 0 may pass that."""
        _check_type("epoch", epoch, int)
        require(epoch >= 0, "epoch", epoch, "must be 0 or above")
        return max(self.end, self.start * self.gamma ** (epoch // self.every))


@dataclass(frozen=True, kw_only=True, slots=True)
class CosineSchedule:
    """The teacher's temperature goes from start to end along half a cosine: end + (start - end) (1 + cos(pi * epoch / epochs)) / 2."""

    start: float = 20.0
    end: float = 2.0  # may be above the start
    epochs: int = 300

    def __post_init__(self) -> None:
        check_field_types(self)
        _check_temperature("start", self.start)
        _check_temperature("end", self.end)
        require(self.epochs >= 1, "epochs", self.epochs, "must be 1 or more")

    def temperature(self, epoch: int) -> float:
        """Of this epoch, 1..epochs; the last one's is `end`. Of 0 it is `start`."""
        _check_type("epoch", epoch, int)
        require(0 <= epoch <= self.epochs, "epoch", epoch, f"must be 0..{self.epochs}, the epochs of this schedule")
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * epoch / self.epochs)) / 2


class StudentTemperature:
    """The student's temperature tau, found anew every epoch: the one whose KL is the least on held-out labels.

    At an epoch's end `update` with each of a few batches that the student never trains on (in eval mode), then `step`; `tau` is the
    student_temperature of the next epoch.

    This is LPQLD's Calibrated Student-Teacher Alignment: tau is the temperature itself, no share of the teacher's. But there it is chosen
    on the mini-batch trained on last; here all labels held out count alike. What is kept is one sum a temperature of the grid.

    Args:
        start: tau before the first `step`.
        grid: the temperatures to choose from. A tau that stays at an end of it asks for a wider one, such as
            torch.logspace(-2, 1, 301).tolist().
    """

    def __init__(self, start: float = 1.0, grid: Sequence[float] = HUNDREDTHS) -> None:
        check_type("grid", grid, Sequence[float])
        require(len(grid) > 0, "grid", list(grid), "must have a temperature to choose")
        _check_type("start", start, float)
        for t in (start, *grid):
            _check_temperature("a student's temperature", t)
        self.grid, self.tau = tuple(map(float, grid)), float(start)
        self._forget()

    def _forget(self) -> None:
        self._labels, self._sums = 0, torch.zeros(len(self.grid), dtype=torch.float64, device="cpu")

    @torch.no_grad()
    def update(self, student_logits: Tensor, labels: Tensor, temperature: float = 20.0, *, domain: str = "logits") -> None:
        """Count in held-out labels [n, C] and what the student makes of their views; `temperature` and `domain` as for `kl`."""
        _check_pair(student_logits, labels)
        z = student_logits.float()
        pull = (targets(labels, temperature, domain) * z).sum(1)
        # [grid, n]: KL less the entropy of the target, which no tau changes
        apart = torch.stack([torch.logsumexp(z / t, 1) - pull / t for t in self.grid])
        self._sums += apart.cpu().double().sum(1)
        self._labels += len(labels)

    def step(self) -> float:
        """Choose `tau` by the labels counted in since the last step, forget them, and return it.

        Raises:
            UsageError: there were none, or the student gave NaN or Inf for one; `tau` stays, and those labels are forgotten too.
        """
        require(self._labels > 0, "held-out labels since the last step", self._labels, "must be 1 or more: update with some first")
        sums, worst = self._sums, float(self._sums.max())
        self._forget()
        require(math.isfinite(worst), "KL on held-out labels", worst, "must be finite: the student's logits are not")
        self.tau = self.grid[int(sums.argmin())]
        return self.tau

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: plain numbers."""
        return {"tau": self.tau, "grid": list(self.grid), "labels": self._labels, "sums": self._sums.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called, on its grid."""
        _check_type("state", state, Mapping)
        require(
            {"tau", "grid", "labels", "sums"} <= state.keys(), "state", sorted(map(str, state)), "must be what `state_dict` gave"
        )
        self.tau, self.grid, self._labels = state["tau"], tuple(state["grid"]), state["labels"]
        self._sums = torch.tensor(state["sums"], dtype=torch.float64, device="cpu")


def _check_pair(student_logits: Tensor, labels: Tensor) -> None:
    """A loss broadcasts in silence."""
    _check_type("student_logits", student_logits, Tensor)
    _check_type("labels", labels, Tensor)
    if labels.dim() != 2 or student_logits.shape != labels.shape:
        raise UsageError(
            f"student_logits are {list(student_logits.shape)}, labels {list(labels.shape)}; both must be [n, C], a row a label"
        )


def _check_rows(labels: Tensor) -> None:
    _check_type("labels", labels, Tensor)
    require(labels.dim() == 2, "shape of labels", list(labels.shape), "must be [n, C], a row a label")


def _check_distribution(domain: str) -> None:
    limit = "must be logits or probs, one distribution a label; the loss of sigmoid labels is losses.bce"
    require(domain != "sigmoid", "domain", domain, limit)


def _check_temperature(name: str, value: float) -> None:
    _check_type(name, value, float)
    require(0 < value < math.inf, name, value, "must be above 0")


def _check_type(name: str, value: Any, kind: Any) -> None:
    """`check_type`, but nothing that torch.compile would have to trace where the type is the plain one."""
    if type(value) is not kind:
        check_type(name, value, kind)
