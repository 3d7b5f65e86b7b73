"""Every loss and metric once: KL at a temperature, squared error of centred logits, top-1 agreement."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.labels.source import ABSENT, NOWHERE

FLAT = 1e-6  # squared norm of a label's centred logits, the mean over labels, below which they are rounding
SMALLEST = 1e-8  # a probability below it counts as this: fp16 cannot hold less than 6e-8


def present(labels: Tensor, domain: str) -> Tensor:
    """[n, C] the classes that a label holds: those with a logit less than ABSENT below its largest, or with a probability above 0."""
    return labels > labels.amax(1, keepdim=True) - ABSENT if domain == "logits" else labels > 0


def as_logits(labels: Tensor, domain: str) -> Tensor:
    """[n, C] labels of any domain -> float32 logits, whose mean over classes is 0 where softmax ignores a shift."""
    x = labels.float()
    if domain == "sigmoid":
        return x
    if domain == "probs":
        x = x.clamp_min(SMALLEST).log()
    return x - x.mean(1, keepdim=True)


def levels(labels: Tensor, domain: str) -> Tensor:
    """[n] mean over classes that `as_logits` takes away: what squared error sees and softmax does not; 0 for other domains."""
    return labels.float().mean(1) if domain == "logits" else torch.zeros(len(labels), device=labels.device)


def kl_divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)) in nats, one value a label.

    T^2 keeps the gradient's scale the same at every T (Hinton et al., arXiv 1503.02531).

    Args:
        teacher, student: [n, C] logits.

    Returns:
        [n] float32.
    """
    p, q = F.log_softmax(teacher / temperature, 1), F.log_softmax(student / temperature, 1)
    return temperature**2 * (p.exp() * (p - q)).sum(1)


def mixed_kl_divergence(teacher: Tensor, student: Tensor, temperatures: Sequence[float]) -> Tensor:
    """[n] weighted sum of `kl_divergence` over the student's temperatures: what the codec is fitted to.

    The weight T^1.2 keeps the high temperatures, whose KL falls more slowly with the rate, from being given away for the low ones;
    at high T, KL is squared error of centred logits over 2 C, so this is the squared-error term as well.
    """
    total = torch.zeros(len(teacher), device=teacher.device)
    for t in temperatures:
        total = total + temperature_weight(t) * kl_divergence(teacher, student, t)
    return total


def temperature_weight(temperature: float) -> float:
    """See `mixed_kl_divergence`."""
    return float(temperature**1.2)


def hellinger_features(logits: Tensor, temperature: float) -> Tensor:
    """[n, C] logits -> [n, C] features whose squared distance is the `mixed_kl_divergence` of this one temperature, to second order.

    2 * |sqrt p - sqrt q|^2 = KL(p || q) + O(|p - q|^3): the square root of a distribution turns KL into a plain distance, so that PCA
    and k-means, which know only plain distances, work on what a student will feel.
    """
    root = ((logits - logits.amax(1, keepdim=True)) * (0.5 / temperature)).exp_()
    scale = math.sqrt(2 * temperature_weight(temperature)) * temperature
    return root.mul_(scale / root.norm(dim=1, keepdim=True))


def soft_target(teacher: Tensor, temperatures: Sequence[float]) -> Tensor:
    """[n, C] logits -> [n, C]: all that `mixed_cross_entropy` needs of a teacher, a weighted sum of its distributions."""
    total = torch.zeros_like(teacher)
    for t in temperatures:
        total.add_(F.softmax(teacher / t, 1), alpha=temperature_weight(t) * t)
    return total


def mixed_cross_entropy(student: Tensor, pull: Tensor, temperatures: Sequence[float]) -> Tensor:
    """[n] `mixed_kl_divergence` plus the teacher's entropies, which no student can change; differentiable in `student`.

        sum_T w_T T^2 lse(y / T) - <y, pull>,   gradient sum_T w_T T softmax(y / T) - pull

    Args:
        student: [n, C] logits y.
        pull: [n, C] from `soft_target`, of any floating type.
    """
    loss: Tensor = _MixedCrossEntropy.apply(student, pull, tuple(temperatures))  # type: ignore[no-untyped-call]
    return loss


class _MixedCrossEntropy(torch.autograd.Function):
    """The gradient is made in the forward pass, from exponentials that it has already."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, pull: Tensor, temperatures: tuple[float, ...]) -> Tensor:
        pull = pull.float()
        loss: Tensor = -torch.linalg.vecdot(student, pull)
        gradient = -pull
        for t in temperatures:
            scaled = student / t
            total = torch.logsumexp(scaled, 1)
            loss = loss + temperature_weight(t) * t * t * total
            gradient.add_(scaled.sub_(total[:, None]).exp_(), alpha=temperature_weight(t) * t)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *outside: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outside[0][:, None], None, None


@dataclass(kw_only=True)
class Distortion:
    """Running distortion between labels and their decoded form; `figures` at any time.

    Both sides are compared as centred logits, in `mse` as they are. T^2 * KL in nats at each temperature, the mean over labels.

    Args:
        sets: whether a label holds some of the classes and no number for the others, on either side: a class with a logit of NOWHERE, or
            a probability of 0, is not there. Then all figures are over the classes that both sides hold, re-normalised, and `mass_kept` is
            the share of the raw label, at T = 1, that these have.
    """

    temperatures: tuple[float, ...] = (1.0, 4.0, 20.0)
    domain: str = "logits"
    sets: bool = False
    labels: int = 0
    _kl: list[float] = field(default_factory=list)
    _error: float = 0.0
    _power: float = 0.0
    _raw_error: float = 0.0
    _top1: int = 0
    _kept: float = 0.0

    def add(self, raw: Tensor, decoded: Tensor) -> None:
        """Count in [n, C] labels and their decoded form, both in `domain`."""
        if self.sets:
            return self._add_sets(raw.float(), decoded.float())
        x, y = as_logits(raw, self.domain), as_logits(decoded, self.domain)
        sums = [kl_divergence(x, y, t).double().sum().item() for t in self.temperatures]
        self._kl = [a + b for a, b in zip(self._kl or [0.0] * len(sums), sums, strict=True)]
        self._error += (x - y).square().double().sum().item()
        self._power += x.square().double().sum().item()
        self._raw_error += (raw.float() - decoded.float()).square().mean(1).double().sum().item()
        self._top1 += int((x.argmax(1) == y.argmax(1)).sum())
        self.labels += len(x)

    def _add_sets(self, raw: Tensor, decoded: Tensor) -> None:
        has_raw, has_decoded = present(raw, self.domain), present(decoded, self.domain)
        both = has_raw & has_decoded
        count = both.sum(1, keepdim=True).clamp_min(1)
        if self.domain == "probs":
            raw, decoded = raw.clamp_min(SMALLEST), decoded.clamp_min(SMALLEST)
        x, y = (labels if self.domain == "logits" else labels.log() for labels in (raw, decoded))
        self._top1 += int(
            (x.masked_fill(~has_raw, -torch.inf).argmax(1) == y.masked_fill(~has_decoded, -torch.inf).argmax(1)).sum()
        )
        self._kept += (x.masked_fill(~has_raw, -torch.inf).softmax(1) * both).double().sum().item()
        x, y = ((z - (z * both).sum(1, keepdim=True) / count).masked_fill(~both, NOWHERE) for z in (x, y))
        sums = [kl_divergence(x, y, t).double().sum().item() for t in self.temperatures]
        self._kl = [a + b for a, b in zip(self._kl or [0.0] * len(sums), sums, strict=True)]
        self._error += ((x - y).square() * both).double().sum().item()
        self._power += (x.square() * both).double().sum().item()
        self._raw_error += (((raw - decoded).square() * both).sum(1) / count[:, 0]).double().sum().item()
        self.labels += len(x)

    def figures(self) -> dict[str, float]:
        """Means over the labels so far: `kl_T<t>` (T^2 * KL, nats), `relative_mse` (of centred logits; where these are all 0, the squared error
        itself, a label), `mse` (of labels as they are,
        over all classes: what G-VBSM's and EDC's students feel), `top1_agreement`.
        """
        n = max(1, self.labels)
        at_t = {f"kl_T{t:g}": total / n for t, total in zip(self.temperatures, self._kl, strict=True)} if self._kl else {}
        relative = self._error / (self._power if self._power > FLAT * n else n)
        kept = {"mass_kept": self._kept / n} if self.sets else {}
        return {**at_t, "relative_mse": relative, "mse": self._raw_error / n, "top1_agreement": self._top1 / n, **kept}
