"""Labels of teachers that give every class a probability of its own, by a sigmoid: the losses and figures of n * C two-way choices.

All of a label counts here, its mean over classes too: what softmax ignores decides how many classes a label has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.metrics.distortion import FLAT, Distortion, temperature_weight


def binary_kl_divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(sigmoid(teacher / T) || sigmoid(student / T)) in nats, summed over classes: [n, C] logits -> [n]."""
    x, y = teacher / temperature, student / temperature
    p = torch.sigmoid(x)
    yes, no = F.logsigmoid(x) - F.logsigmoid(y), F.logsigmoid(-x) - F.logsigmoid(-y)
    total: Tensor = torch.lerp(no, yes, p).sum(1)
    return temperature**2 * total


def binary_soft_target(teacher: Tensor, temperatures: Sequence[float]) -> Tensor:
    """[n, C] logits -> [n, C]: all that `binary_cross_entropy` needs of a teacher, a weighted sum of its probabilities."""
    total = torch.zeros_like(teacher)
    for t in temperatures:
        total.add_(torch.sigmoid(teacher / t), alpha=temperature_weight(t) * t)
    return total


def binary_cross_entropy(student: Tensor, pull: Tensor, temperatures: Sequence[float]) -> Tensor:
    """[n] weighted sum of `binary_kl_divergence` over the temperatures, as `mixed_kl_divergence` weighs them, plus the teacher's entropies; differentiable.

        sum_T w_T T^2 sum_c log(1 + exp(y_c / T)) - <y, pull>

    Args:
        student: [n, C] logits y.
        pull: [n, C] from `binary_soft_target`.
    """
    loss: Tensor = -torch.linalg.vecdot(student, pull.float())
    for t in temperatures:
        loss = loss + temperature_weight(t) * t * t * F.softplus(student / t).sum(1)
    return loss


def binary_features(logits: Tensor, temperature: float) -> Tensor:
    """[n, C] logits -> [n, C] features whose squared distance is the weighted `binary_kl_divergence` of this one temperature, to second order.

    2 arcsin(sqrt p) turns KL of two-way choices into half a squared distance, as the square root does for distributions.
    """
    root = torch.sigmoid(logits / temperature).sqrt_().asin_()
    return root.mul_(2 * math.sqrt(0.5 * temperature_weight(temperature)) * temperature)


@dataclass(kw_only=True)
class BinaryDistortion(Distortion):
    """`Distortion` of labels whose classes have probabilities of their own.

    `binary_kl_T<t>` is the sum over classes, the mean over labels; `binary_kl_per_class_T<t>` the mean over both. Of classes above a
    probability of 0.5: `half_agreement`, the share of all (label, class) on the same side of it, and `half_f1`, twice those above it on
    both sides by all that are above it on either.
    """

    _same: float = 0.0
    _both: float = 0.0
    _above: float = 0.0
    _classes: int = 1

    def add(self, raw: Tensor, decoded: Tensor) -> None:
        x, y = raw.float(), decoded.float()
        sums = [binary_kl_divergence(x, y, t).double().sum().item() for t in self.temperatures]
        self._kl = [a + b for a, b in zip(self._kl or [0.0] * len(sums), sums, strict=True)]
        self._error += (x - y).square().double().sum().item()
        self._power += x.square().double().sum().item()
        above_raw, above_decoded = x > 0, y > 0
        self._same += (above_raw == above_decoded).double().mean(1).sum().item()
        self._both += (above_raw & above_decoded).sum().item()
        self._above += above_raw.sum().item() + above_decoded.sum().item()
        self.labels, self._classes = self.labels + len(x), x.shape[1]

    def figures(self) -> dict[str, float]:
        n = max(1, self.labels)
        found: dict[str, float] = {}
        for t, total in zip(self.temperatures, self._kl or [0.0] * len(self.temperatures), strict=True):
            found |= {f"binary_kl_T{t:g}": total / n, f"binary_kl_per_class_T{t:g}": total / n / self._classes}
        return {
            **found,
            "relative_mse": self._error / (self._power if self._power > FLAT * n else n),
            "mse": self._error / n / self._classes,
            "half_agreement": self._same / n,
            "half_f1": 2 * self._both / self._above if self._above else 1.0,
        }
