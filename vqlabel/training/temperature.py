"""Temperature schedules of the teacher, and a search for the student's temperature, for any training loop."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vqlabel.errors import require
from vqlabel.training.loss_checks import check_argument_type, check_pair, check_temperature
from vqlabel.training.losses import targets
from vqlabel.type_checks import check_field_types, check_type

HUNDREDTHS = tuple(i / 100 for i in range(1, 101))  # LPQLD's grid of student temperatures


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
        check_temperature("end", self.end)
        require(self.end <= self.start < math.inf, "start", self.start, f"must be at least {self.end:g}, the end")
        require(self.every >= 1, "every", self.every, "must be at least 1 epoch")
        require(0 < self.gamma <= 1, "gamma", self.gamma, "must be above 0, at most 1")

    def temperature(self, epoch: int) -> float:
        """The teacher's temperature in this epoch. LPQLD counts epochs from 1, so its first step comes one epoch
        earlier than counting from 0.

        Raises:
            UsageError: `epoch` is negative.
        """
        check_argument_type("epoch", epoch, int)
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
        check_temperature("start", self.start)
        check_temperature("end", self.end)
        require(self.epochs >= 1, "epochs", self.epochs, "must be 1 or more")

    def temperature(self, epoch: int) -> float:
        """The teacher's temperature in this epoch, 0..epochs: `start` at 0, `end` at `epochs`.

        Raises:
            UsageError: the schedule does not have this epoch.
        """
        check_argument_type("epoch", epoch, int)
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
        check_argument_type("start", start, float)
        for t in (start, *grid):
            check_temperature("the student's temperature", t)
        self.grid, self.tau = tuple(map(float, grid)), float(start)
        self._reset()

    def __repr__(self) -> str:
        return f"StudentTemperature(tau {self.tau:g}, {len(self.grid)} candidates from {min(self.grid):g} to {max(self.grid):g})"

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
        check_pair(student_logits, labels)
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
        check_argument_type("state", state, Mapping)
        is_complete = {"tau", "grid", "labels", "sums"} <= state.keys()
        require(is_complete, "state", sorted(map(str, state)), "must be a result of `state_dict`")
        self.tau, self.grid, self._labels = state["tau"], tuple(state["grid"]), state["labels"]
        self._sums = torch.tensor(state["sums"], dtype=torch.float64, device="cpu")
