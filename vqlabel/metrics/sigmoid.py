"""Labels of the domain "sigmoid", one probability a class: the losses and metrics of n * C binary decisions.

Nothing of a label is redundant here: its mean over classes, which softmax ignores, decides how many classes it has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.metrics.distortion import MIN_POWER, Distortion, temperature_weight


def binary_kl_divergence(teacher: Tensor, decoded: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(sigmoid(teacher / T) || sigmoid(decoded / T)), summed over classes.

    Args:
        teacher, decoded: [n, C] logits.
        temperature: T, above 0.

    Returns:
        [n] nats.
    """
    x, y = teacher / temperature, decoded / temperature
    p = torch.sigmoid(x)
    yes, no = F.logsigmoid(x) - F.logsigmoid(y), F.logsigmoid(-x) - F.logsigmoid(-y)
    total: Tensor = torch.lerp(no, yes, p).sum(1)
    return temperature**2 * total


def binary_soft_target(teacher: Tensor, temperatures: Sequence[float]) -> Tensor:
    """[n, C] logits -> [n, C] soft target: the weighted sum of the teacher's probabilities at all temperatures."""
    total = torch.zeros_like(teacher)
    for t in temperatures:
        total.add_(torch.sigmoid(teacher / t), alpha=temperature_weight(t) * t)
    return total


def binary_cross_entropy(student: Tensor, target: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Sum of `binary_kl_divergence` over the temperatures, weighted by w_T, plus the teacher's entropies.

        sum_T w_T T^2 sum_c log(1 + exp(y_c / T)) - <y, target>,   w_T = temperature_weight(T)

    Args:
        student: [n, C] logits y.
        target: [n, C] from `binary_soft_target`, of any floating type.

    Returns:
        [n] nats; differentiable in `student`.
    """
    loss: Tensor = -torch.linalg.vecdot(student, target.float())
    for t in temperatures:
        loss = loss + temperature_weight(t) * t * t * F.softplus(student / t).sum(1)
    return loss


def binary_features(logits: Tensor, temperature: float) -> Tensor:
    """[n, C] logits -> [n, C] features whose squared distance is the weighted `binary_kl_divergence`, to second order.

    2 arcsin(sqrt p) turns the KL of a binary decision into half a squared distance, as the square root does for
    distributions.
    """
    root = torch.sigmoid(logits / temperature).sqrt_().asin_()
    return root.mul_(2 * math.sqrt(0.5 * temperature_weight(temperature)) * temperature)


@dataclass(kw_only=True)
class SigmoidDistortion(Distortion):
    """`Distortion` of labels of the domain "sigmoid".

    `binary_kl_T<t>` is summed over classes and averaged over labels, `binary_kl_per_class_T<t>` is averaged over both.
    With a class counted as positive if its probability is above 0.5: `half_agreement` is the share of all (label,
    class) pairs with the same sign, and `half_f1` the F1 score of the positive classes.
    """

    _agreed: float = 0.0
    _both_positive: float = 0.0
    _positive: float = 0.0  # of raw and decoded together
    _classes: int = 1

    def add(self, raw: Tensor, decoded: Tensor) -> None:
        x, y = raw.float(), decoded.float()
        self._add_kl([binary_kl_divergence(x, y, t) for t in self.temperatures])
        self._error += (x - y).square().double().sum().item()
        self._power += x.square().double().sum().item()
        raw_positive, decoded_positive = x > 0, y > 0
        self._agreed += (raw_positive == decoded_positive).double().mean(1).sum().item()
        self._both_positive += (raw_positive & decoded_positive).sum().item()
        self._positive += raw_positive.sum().item() + decoded_positive.sum().item()
        self.labels, self._classes = self.labels + len(x), x.shape[1]

    def figures(self) -> dict[str, float]:
        n = max(1, self.labels)
        divergences: dict[str, float] = {}
        for t, total in zip(self.temperatures, self._kl or [0.0] * len(self.temperatures), strict=True):
            divergences |= {f"binary_kl_T{t:g}": total / n, f"binary_kl_per_class_T{t:g}": total / n / self._classes}
        return {
            **divergences,
            "relative_mse": self._error / (self._power if self._power > MIN_POWER * n else n),
            "mse": self._error / n / self._classes,
            "half_agreement": self._agreed / n,
            "half_f1": 2 * self._both_positive / self._positive if self._positive else 1.0,
        }
