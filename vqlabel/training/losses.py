"""Losses of a student on stored labels, temperature schedules of the teacher, and a search for the student's
temperature.

Plain functions of tensors on any device, for any training loop. Labels are those of `VqlDataset`, of any floating-point
dtype; losses are computed in float32, and no gradient flows into the labels.
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

HUNDREDTHS = tuple(i / 100 for i in range(1, 101))  # LPQLD's grid of student temperatures


def kl(
    student_logits: Tensor,
    labels: Tensor,
    temperature: float = 20.0,
    *,
    student_temperature: float | None = None,
    squared: bool = False,
    domain: str = "logits",
) -> Tensor:
    """KL(softmax(labels / T) || softmax(student_logits / T_s)) in nats, averaged over labels:
    nn.KLDivLoss("batchmean").

    SRe2L, CDA, LPLD and RDED train with T = 20, without the factor T^2 that makes the gradient's scale independent of
    T. On labels with only k known classes (from a `topk` or `sparse` codec, or `top_k`) this is LPQLD's MR-k loss.

    Args:
        student_logits: [n, C].
        labels: [n, C].
        temperature: T, above 0; must be 1 for probabilities.
        student_temperature: T_s, above 0; None: T.
        squared: whether to multiply by T^2.
        domain: domain of the labels, "logits" or "probs" (`VqlDataset.domain`).

    Raises:
        UsageError: shapes differ, a temperature is not above 0, or probabilities have a temperature other than 1.
    """
    _check_pair(student_logits, labels)
    target = targets(labels, temperature, domain)
    tau = temperature if student_temperature is None else student_temperature
    _check_temperature("student_temperature", tau)
    _check_type("squared", squared, bool)
    loss = F.kl_div(F.log_softmax(student_logits.float() / tau, 1), target, reduction="batchmean")
    return loss * temperature**2 if squared else loss


def targets(labels: Tensor, temperature: float = 20.0, domain: str = "logits") -> Tensor:
    """[n, C] labels -> [n, C] float32 distributions: softmax(labels / T), or probabilities normalised to sum to 1.

    Args:
        labels: [n, C].
        temperature: T, above 0; must be 1 for probabilities.
        domain: domain of the labels, "logits" or "probs".

    Raises:
        UsageError: see `kl`.
    """
    _check_rows(labels)
    check_labels(labels.shape[1], domain)
    _check_temperature("temperature", temperature)
    values = labels.detach().float()
    _check_distribution(domain)
    if domain == "logits":
        return F.softmax(values / temperature, 1)
    limit = "must be 1 for probs: probabilities rounded to 0 cannot be recovered at another temperature; set student_temperature instead"
    require(temperature == 1, "temperature", temperature, limit)
    return values / values.sum(1, keepdim=True)


def top_k(labels: Tensor, k: int, domain: str = "logits") -> Tensor:
    """Keep the k largest values of each label: LPQLD's MR-k for logits, FKD's labels for probabilities.

    The other classes have probability 0 at every temperature up to 500, so a softmax over all C classes equals one over
    the k. Kept probabilities are normalised to sum to 1.

    Args:
        labels: [n, C].
        k: number of classes to keep, 1..C.
        domain: domain of the labels, "logits" or "probs".

    Returns:
        [n, C] float32.

    Raises:
        UsageError: k is not in 1..C, the labels are not [n, C], or the domain is another one.
    """
    _check_rows(labels)
    check_labels(labels.shape[1], domain)
    _check_type("k", k, int)
    _check_distribution(domain)
    require(1 <= k <= labels.shape[1], "k", k, f"must be 1..{labels.shape[1]} (the number of classes)")
    values, classes = labels.float().topk(k, 1)
    if domain == "probs":
        values = values / values.sum(1, keepdim=True)
    rest = torch.full(labels.shape, NOWHERE if domain == "logits" else 0.0, dtype=torch.float32, device=labels.device)
    return rest.scatter(1, classes, values)


def bce(student_logits: Tensor, labels: Tensor, temperature: float = 1.0, *, squared: bool = False) -> Tensor:
    """Binary cross entropy between sigmoid(labels / T) and sigmoid(student_logits / T), averaged over all n * C:
    nn.BCEWithLogitsLoss.

    For labels of the domain "sigmoid", with an independent probability for each class. The loss is the binary KL plus
    the labels' entropy, which does not depend on the student.

    Args:
        student_logits: [n, C].
        labels: [n, C] logits.
        temperature: T of both, above 0.
        squared: whether to multiply by T^2, which makes the gradient's scale independent of T.

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
    """Squared error of logits, averaged over all n * C, plus `weight` * cross entropy with the true classes;
    G-VBSM: 0.1, EDC: 0.025.

    Unlike KL, it depends on the mean of a label over its classes. The `raw` codec stores that exactly, a vqae
    approximately (`stats --against` reports the error as `mse`), `topk` and `sparse` not at all, because most logits
    are unknown.

    Args:
        student_logits: [n, C].
        labels: [n, C] logits.
        target: [n] integer, the true classes.
        weight: weight of the cross entropy.
        domain: domain of the labels, "logits" or "sigmoid".

    Raises:
        UsageError: shapes differ, or the labels are probabilities.
    """
    _check_pair(student_logits, labels)
    check_labels(labels.shape[1], domain)
    if domain == "probs":
        raise UsageError("mse_gt compares logits, but these labels are probabilities; use kl at temperature 1")
    _check_type("target", target, Tensor)
    is_valid = target.shape == student_logits.shape[:1] and not target.is_floating_point()
    require(is_valid, "target", f"{target.dtype} {list(target.shape)}", f"must be {len(labels)} integers, the true classes")
    _check_type("weight", weight, float)
    student = student_logits.float()
    error = (
        (student - labels.detach().float()).square().mean()
    )  # not mse_loss: it saves its target, and inference tensors cannot be saved
    return error + weight * F.cross_entropy(student, target)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSchedule:
    """Stepwise decay of the teacher's temperature: T = max(end, start * gamma^floor(epoch / every)).

    The defaults are LPQLD's Dynamic Knowledge Reuse: 20, 14, 9.8 ... 2. With start = end the temperature is constant. A
    schedule is a function of the epoch and has no state to checkpoint.

    Attributes:
        start: temperature of the first epochs, at least `end`.
        end: lowest temperature, above 0.
        every: epochs between two steps.
        gamma: factor of one step, above 0, at most 1.

    Raises:
        UsageError: a field is outside its range.
    """

    start: float = 20.0
    end: float = 2.0
    every: int = 30
    gamma: float = 0.7

    def __post_init__(self) -> None:
        check_field_types(self)
        _check_temperature("end", self.end)
        require(self.end <= self.start < math.inf, "start", self.start, f"must be at least {self.end:g}, the end")
        require(self.every >= 1, "every", self.every, "must be at least 1 epoch")
        require(0 < self.gamma <= 1, "gamma", self.gamma, "must be above 0, at most 1")

    def temperature(self, epoch: int) -> float:
        """The teacher's temperature in this epoch. LPQLD counts epochs from 1, so its first step comes one epoch
        earlier than counting from 0.

        Raises:
            UsageError: `epoch` is negative.
        """
        _check_type("epoch", epoch, int)
        require(epoch >= 0, "epoch", epoch, "must be 0 or more")
        return max(self.end, self.start * self.gamma ** (epoch // self.every))


@dataclass(frozen=True, kw_only=True, slots=True)
class CosineSchedule:
    """Cosine schedule of the teacher's temperature: T = end + (start - end) (1 + cos(pi * epoch / epochs)) / 2.

    Attributes:
        start: temperature of epoch 0, above 0.
        end: temperature of the last epoch, above 0; may exceed `start`.
        epochs: length of the schedule.

    Raises:
        UsageError: a field is outside its range.
    """

    start: float = 20.0
    end: float = 2.0
    epochs: int = 300

    def __post_init__(self) -> None:
        check_field_types(self)
        _check_temperature("start", self.start)
        _check_temperature("end", self.end)
        require(self.epochs >= 1, "epochs", self.epochs, "must be 1 or more")

    def temperature(self, epoch: int) -> float:
        """The teacher's temperature in this epoch, 0..epochs: `start` at 0, `end` at `epochs`.

        Raises:
            UsageError: the schedule does not have this epoch.
        """
        _check_type("epoch", epoch, int)
        require(0 <= epoch <= self.epochs, "epoch", epoch, f"must be 0..{self.epochs}, the epochs of this schedule")
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * epoch / self.epochs)) / 2


class StudentTemperature:
    """A grid search, repeated every epoch, for the student's temperature tau with the lowest KL on held-out labels.

    At the end of an epoch, call `update` with a few batches that the student does not train on (in eval mode), then
    `step`. Use `tau` as the `student_temperature` of the next epoch.

    This is LPQLD's Calibrated Student-Teacher Alignment; tau is an absolute temperature, not a fraction of the
    teacher's. LPQLD chooses it on the last training mini-batch; here all held-out labels have equal weight. The state
    is one sum per temperature of the grid.

    Args:
        start: tau before the first `step`.
        grid: candidate temperatures. If tau stays at an end of the grid, use a wider one, such as
            torch.logspace(-2, 1, 301).tolist().

    Attributes:
        tau: the current temperature.
        grid: the candidates, as a tuple.

    Raises:
        UsageError: the grid is empty, or a temperature is not above 0.
    """

    def __init__(self, start: float = 1.0, grid: Sequence[float] = HUNDREDTHS) -> None:
        check_type("grid", grid, Sequence[float])
        require(len(grid) > 0, "grid", list(grid), "must have at least one temperature")
        _check_type("start", start, float)
        for t in (start, *grid):
            _check_temperature("the student's temperature", t)
        self.grid, self.tau = tuple(map(float, grid)), float(start)
        self._reset()

    def _reset(self) -> None:
        self._labels, self._sums = 0, torch.zeros(len(self.grid), dtype=torch.float64, device="cpu")

    @torch.no_grad()
    def update(self, student_logits: Tensor, labels: Tensor, temperature: float = 20.0, *, domain: str = "logits") -> None:
        """Add held-out labels to the search.

        Args:
            student_logits: [n, C], the student's outputs for the views of the labels.
            labels: [n, C].
            temperature: the teacher's T, see `kl`.
            domain: domain of the labels, see `kl`.

        Raises:
            UsageError: see `kl`.
        """
        _check_pair(student_logits, labels)
        z = student_logits.float()
        mean_logit = (targets(labels, temperature, domain) * z).sum(1)  # expectation under the target
        # [grid, n]: the cross entropy, which is KL plus the target's entropy; that does not depend on tau
        cross_entropy = torch.stack([torch.logsumexp(z / t, 1) - mean_logit / t for t in self.grid])
        self._sums += cross_entropy.cpu().double().sum(1)
        self._labels += len(labels)

    def step(self) -> float:
        """Choose `tau` on the labels added since the last step, clear them, and return it.

        Raises:
            UsageError: no label was added, or a student's logit is NaN or Inf; `tau` is unchanged, and the labels are
                cleared too.
        """
        limit = "must be 1 or more: call update first"
        require(self._labels > 0, "number of held-out labels since the last step", self._labels, limit)
        sums, largest = self._sums, float(self._sums.max())
        self._reset()
        require(math.isfinite(largest), "KL on held-out labels", largest, "must be finite: the student's logits are not")
        self.tau = self.grid[int(sums.argmin())]
        return self.tau

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, as plain numbers."""
        return {"tau": self.tau, "grid": list(self.grid), "labels": self._labels, "sums": self._sums.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state, with its grid.

        Args:
            state: result of `state_dict`.

        Raises:
            UsageError: a key is missing.
        """
        _check_type("state", state, Mapping)
        is_complete = {"tau", "grid", "labels", "sums"} <= state.keys()
        require(is_complete, "state", sorted(map(str, state)), "must be a result of `state_dict`")
        self.tau, self.grid, self._labels = state["tau"], tuple(state["grid"]), state["labels"]
        self._sums = torch.tensor(state["sums"], dtype=torch.float64, device="cpu")


def _check_pair(student_logits: Tensor, labels: Tensor) -> None:
    """Refuse shapes that a loss would broadcast without an error."""
    _check_type("student_logits", student_logits, Tensor)
    _check_type("labels", labels, Tensor)
    if labels.dim() != 2 or student_logits.shape != labels.shape:
        shapes = f"student_logits have shape {list(student_logits.shape)}, labels {list(labels.shape)}"
        raise UsageError(f"{shapes}; both must be [n, C], one row per label")


def _check_rows(labels: Tensor) -> None:
    _check_type("labels", labels, Tensor)
    require(labels.dim() == 2, "shape of labels", list(labels.shape), "must be [n, C], one row per label")


def _check_distribution(domain: str) -> None:
    limit = "must be logits or probs, one distribution per label; use bce for sigmoid labels"
    require(domain != "sigmoid", "domain", domain, limit)


def _check_temperature(name: str, value: float) -> None:
    _check_type(name, value, float)
    require(0 < value < math.inf, name, value, "must be above 0")


def _check_type(name: str, value: Any, kind: Any) -> None:
    """`check_type`, skipped for the exact type so that torch.compile need not trace it."""
    if type(value) is not kind:
        check_type(name, value, kind)
