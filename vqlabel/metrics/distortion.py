"""Losses and distortion of labels with one distribution each: KL, squared error of centred logits, top-1 agreement."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.labels.batch import ABSENT, NOWHERE

MIN_POWER = 1e-6  # squared norm of centred logits, averaged over labels; below it they are rounding errors of uniform labels
MIN_PROBABILITY = 1e-8  # smaller probabilities are raised to it before a logarithm; the smallest positive fp16 number is 6e-8


def present(labels: Tensor, domain: str) -> Tensor:
    """[n, C] labels -> [n, C] bool: the classes that a label contains.

    A class is present if its logit is less than ABSENT below the largest one, or its probability is above 0.
    """
    return labels > labels.amax(1, keepdim=True) - ABSENT if domain == "logits" else labels > 0


def as_logits(labels: Tensor, domain: str) -> Tensor:
    """[n, C] labels of any domain and floating type -> [n, C] float32 logits; centred except for "sigmoid"."""
    x = labels.float()
    if domain == "sigmoid":
        return x
    if domain == "probs":
        x = x.clamp_min(MIN_PROBABILITY).log()
    return x - x.mean(1, keepdim=True)


def logit_means(labels: Tensor, domain: str) -> Tensor:
    """[n, C] labels -> [n] mean over classes that `as_logits` subtracts; 0 for other domains than "logits".

    Squared error of labels depends on it, softmax does not.
    """
    return labels.float().mean(1) if domain == "logits" else torch.zeros(len(labels), device=labels.device)


def kl_divergence(teacher: Tensor, decoded: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(decoded / T)); arguments as in torch.distributions.kl_divergence(p, q).

    T^2 keeps the scale of the gradient the same at every T (Hinton et al., arXiv 1503.02531). The training loss of a
    student, in the order of torch.nn.functional.kl_div(input, target), is `vqlabel.training.kl`.

    Args:
        teacher, decoded: [n, C] logits.
        temperature: T, above 0.

    Returns:
        [n] nats, of the type of the logits.
    """
    p, q = F.log_softmax(teacher / temperature, 1), F.log_softmax(decoded / temperature, 1)
    return temperature**2 * (p.exp() * (p - q)).sum(1)


def mixed_kl_divergence(teacher: Tensor, decoded: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Weighted sum of `kl_divergence` over the students' temperatures: the loss that a codec is fitted to.

    KL at a high temperature falls more slowly with the rate; the weight T^1.2 keeps it from being traded for KL at a
    low one. At high T, KL is the squared error of centred logits over 2 C, so this sum covers squared error as well.

    Args:
        teacher, decoded: [n, C] logits.

    Returns:
        [n] weighted nats.
    """
    total = torch.zeros(len(teacher), device=teacher.device)
    for t in temperatures:
        total = total + temperature_weight(t) * kl_divergence(teacher, decoded, t)
    return total


def temperature_weight(temperature: float) -> float:
    """w_T = T^1.2, the weight of a temperature in `mixed_kl_divergence`."""
    return float(temperature**1.2)


def hellinger_features(logits: Tensor, temperature: float) -> Tensor:
    """[n, C] logits -> [n, C] features whose squared distance is the weighted `kl_divergence`, to second order.

    2 * |sqrt p - sqrt q|^2 = KL(p || q) + O(|p - q|^3): the square root of a distribution turns KL into Euclidean
    distance, so PCA and k-means, which minimise Euclidean distance, minimise KL.
    """
    root = ((logits - logits.amax(1, keepdim=True)) * (0.5 / temperature)).exp_()
    scale = math.sqrt(2 * temperature_weight(temperature)) * temperature
    return root.mul_(scale / root.norm(dim=1, keepdim=True))


def soft_target(teacher: Tensor, temperatures: Sequence[float]) -> Tensor:
    """[n, C] logits -> [n, C] soft target: the weighted sum of the teacher's distributions at all temperatures."""
    total = torch.zeros_like(teacher)
    for t in temperatures:
        total.add_(F.softmax(teacher / t, 1), alpha=temperature_weight(t) * t)
    return total


def mixed_cross_entropy(student: Tensor, target: Tensor, temperatures: Sequence[float]) -> Tensor:
    """`mixed_kl_divergence` plus the teacher's entropies, which do not depend on the student.

        sum_T w_T T^2 lse(y / T) - <y, target>,   gradient sum_T w_T T softmax(y / T) - target

    Args:
        student: [n, C] logits y.
        target: [n, C] from `soft_target`, of any floating type.

    Returns:
        [n] weighted nats; differentiable in `student`.
    """
    loss: Tensor = _MixedCrossEntropy.apply(student, target, tuple(temperatures))  # type: ignore[no-untyped-call]
    return loss


class _MixedCrossEntropy(torch.autograd.Function):
    """Computes the gradient in the forward pass, which has its exponentials already."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, target: Tensor, temperatures: tuple[float, ...]) -> Tensor:
        target = target.float()
        loss: Tensor = -torch.linalg.vecdot(student, target)
        gradient = -target
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
    """Running distortion between raw labels and their decoded form; `figures` may be called at any time.

    Args:
        temperatures: at which KL is measured.
        domain: of the labels, "logits" or "probs" (`SigmoidDistortion`: "sigmoid").
        sets: whether labels contain only some of the classes: a class with a logit of NOWHERE or a probability of 0 is
            absent. Then all figures are over the classes that raw and decoded label share, renormalised.

    Attributes:
        labels: number of labels so far.
    """

    temperatures: tuple[float, ...] = (1.0, 4.0, 20.0)
    domain: str = "logits"
    sets: bool = False
    labels: int = 0
    _kl: list[float] = field(default_factory=list)
    _error: float = 0.0  # squared error of centred logits
    _power: float = 0.0  # squared norm of the raw centred logits
    _raw_error: float = 0.0  # squared error of the labels as stored, the mean over classes
    _top1: int = 0
    _kept: float = 0.0  # probability mass of the shared classes

    def add(self, raw: Tensor, decoded: Tensor) -> None:
        """Count [n, C] labels and their decoded form, both in `domain`, of any floating type."""
        if self.sets:
            return self._add_sets(raw.float(), decoded.float())
        x, y = as_logits(raw, self.domain), as_logits(decoded, self.domain)
        self._add_kl([kl_divergence(x, y, t) for t in self.temperatures])
        self._error += (x - y).square().double().sum().item()
        self._power += x.square().double().sum().item()
        self._raw_error += (raw.float() - decoded.float()).square().mean(1).double().sum().item()
        self._top1 += int((x.argmax(1) == y.argmax(1)).sum())
        self.labels += len(x)

    def _add_kl(self, divergences: list[Tensor]) -> None:
        """[n] nats at each temperature."""
        sums = [divergence.double().sum().item() for divergence in divergences]
        self._kl = [before + new for before, new in zip(self._kl or [0.0] * len(sums), sums, strict=True)]

    def _add_sets(self, raw: Tensor, decoded: Tensor) -> None:
        in_raw, in_decoded = present(raw, self.domain), present(decoded, self.domain)
        shared = in_raw & in_decoded
        count = shared.sum(1, keepdim=True).clamp_min(1)
        if self.domain == "probs":
            raw, decoded = raw.clamp_min(MIN_PROBABILITY), decoded.clamp_min(MIN_PROBABILITY)
        x, y = (labels if self.domain == "logits" else labels.log() for labels in (raw, decoded))
        x_top, y_top = (z.masked_fill(~inside, -torch.inf).argmax(1) for z, inside in ((x, in_raw), (y, in_decoded)))
        self._top1 += int((x_top == y_top).sum())
        self._kept += (x.masked_fill(~in_raw, -torch.inf).softmax(1) * shared).double().sum().item()
        x, y = ((z - (z * shared).sum(1, keepdim=True) / count).masked_fill(~shared, NOWHERE) for z in (x, y))
        self._add_kl([kl_divergence(x, y, t) for t in self.temperatures])
        self._error += ((x - y).square() * shared).double().sum().item()
        self._power += (x.square() * shared).double().sum().item()
        self._raw_error += (((raw - decoded).square() * shared).sum(1) / count[:, 0]).double().sum().item()
        self.labels += len(x)

    def figures(self) -> dict[str, float]:
        """Means over the labels so far.

        Returns:
            kl_T<t>: T^2 * KL in nats, at each temperature, after the first label.
            relative_mse: squared error of centred logits over their squared norm; if all raw labels are uniform, the
                squared error a label.
            mse: squared error of the labels as stored, the mean over classes too: the loss of G-VBSM's and EDC's
                students.
            top1_agreement: share of labels whose largest class is the same.
            mass_kept: with `sets`, the share of the raw label's probability, at T = 1, in the shared classes.
        """
        n = max(1, self.labels)
        divergences = {f"kl_T{t:g}": total / n for t, total in zip(self.temperatures, self._kl, strict=True)} if self._kl else {}
        relative = self._error / (self._power if self._power > MIN_POWER * n else n)
        kept = {"mass_kept": self._kept / n} if self.sets else {}
        return {
            **divergences,
            "relative_mse": relative,
            "mse": self._raw_error / n,
            "top1_agreement": self._top1 / n,
            **kept,
        }
