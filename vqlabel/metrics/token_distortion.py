"""Distortion of decoded next-token distributions: KL, squared error, total variation, top-1 agreement, calibration."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vqlabel.labels.sparse import SparseLabels
from vqlabel.metrics.calibration import ConfidenceBins
from vqlabel.metrics.pairs import on_stored_classes

TINY = torch.finfo(torch.float32).tiny  # smaller probabilities are raised to it before a logarithm, so that 0 * log 0 is 0
MIN_OUTSIDE = 1e-12  # teacher's probability of tokens that decoded labels exclude; at more than this, KL is infinite


@dataclass(kw_only=True)
class TokenDistortion:
    """Running distortion between a teacher's distributions and their decoded form; `figures` may be called at any time.

    A label that gives some tokens the probability 0, such as top-k without a tail, has an infinite KL. The literature
    reports the KL over the stored tokens instead, with the teacher's probabilities renormalised; that is `kl_stored`.

    Attributes:
        labels: number of labels so far.
    """

    labels: int = 0
    _kl: float = 0.0
    _kl_stored: float = 0.0
    _outside: float = 0.0  # probability of tokens that decoded labels exclude
    _squared: float = 0.0
    _absolute: float = 0.0
    _top1: int = 0
    _confidence: ConfidenceBins = field(default_factory=ConfidenceBins)

    @torch.no_grad()
    def add(self, teacher: Tensor, decoded: Tensor) -> None:
        """Count [n, V] probabilities of the teacher and their decoded form."""
        log_ratio = teacher.clamp_min(TINY).log_().sub_(decoded.clamp_min(TINY).log_())
        outside = _probability_outside(teacher, decoded, log_ratio)
        kl = torch.linalg.vecdot(teacher, log_ratio).double()
        stored = 1 - outside
        self._kl += torch.where(outside > MIN_OUTSIDE, torch.inf, kl).sum().item()
        self._kl_stored += (kl / stored - stored.log()).sum().item()
        self._outside += outside.sum().item()
        error = log_ratio.copy_(teacher).sub_(decoded)
        self._squared += torch.linalg.vecdot(error, error).double().sum().item()
        self._absolute += error.abs_().sum(1).double().sum().item()
        confidence, top = decoded.max(1)
        self._top1 += int((teacher.argmax(1) == top).sum())
        self._confidence.add(confidence, teacher.gather(1, top[:, None])[:, 0])
        self.labels += len(teacher)

    def figures(self) -> dict[str, float | None]:
        """Means over the labels so far.

        Returns:
            kl: KL(teacher || decoded) in nats; None: infinite, a label excludes tokens that the teacher allows.
            kl_stored: the same over the tokens that the decoded label does not exclude, teacher renormalised; equal to
                `kl` if none is excluded.
            mass_stored: the teacher's probability of these tokens.
            squared_error: sum over tokens of the squared difference of probabilities.
            total_variation: half the sum over tokens of the absolute difference.
            top1_agreement: share of labels whose likeliest token is the same; of tied tokens, one counts.
            ece: expected calibration error: the mean over labels of |decoded - teacher's| probability of the likeliest
                decoded token, taken bin by bin (`ConfidenceBins`).
        """
        n = max(1, self.labels)
        return {
            "kl": None if self._kl == torch.inf else self._kl / n,
            "kl_stored": self._kl_stored / n,
            "mass_stored": 1 - self._outside / n,
            "squared_error": self._squared / n,
            "total_variation": self._absolute / 2 / n,
            "top1_agreement": self._top1 / n,
            "ece": self._confidence.error() / n,
        }


def _probability_outside(teacher: Tensor, decoded: Tensor, log_ratio: Tensor) -> Tensor:
    """[n] float64 probability that the teacher gives to tokens of decoded probability 0; their log-ratios become 0."""
    if decoded.amin() > 0:
        return torch.zeros(len(teacher), dtype=torch.float64, device=teacher.device)
    excluded = decoded == 0
    log_ratio.masked_fill_(excluded, 0)
    outside: Tensor = torch.linalg.vecdot(teacher, excluded.to(teacher.dtype)).double()
    return outside


@torch.no_grad()
def sparse_kl(labels: SparseLabels, decoded: SparseLabels) -> Tensor:
    """[n] float64 KL(labels || decoded) in nats, over all V tokens, from the stored ones alone.

    Args:
        labels: probabilities, as tensors; where they sum to less than 1, they are renormalised.
        decoded: probabilities. Tokens of probability 0 are left out, and `labels` renormalised over the others.
    """
    p, q = (values.double() for values in on_stored_classes(labels, decoded))  # a token of both also adds a column of the rest
    p_rest, q_rest = labels.rest.double(), decoded.rest.double()
    p, p_rest = (torch.where(other > 0, own.clamp_min(0), 0) for own, other in ((p, q), (p_rest, q_rest)))
    others = labels.classes - p.shape[1]
    total = p.sum(1, keepdim=True) + others * p_rest
    terms = torch.special.xlogy(p / total, p / total / q.clamp_min(TINY)).sum(1)
    rest = torch.special.xlogy(p_rest / total, p_rest / total / q_rest.clamp_min(TINY))[:, 0]
    kl: Tensor = terms + others * rest
    return kl
