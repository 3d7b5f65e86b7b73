"""Hidden states -> the directions that labels keep: principal components in the mean Fisher metric of the head."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vqlabel.codecs.hidden_labels import HiddenLabels
from vqlabel.metrics.factored import chunk_rows

MAX_LOSS = 0.01  # nats of KL that the directions left out may cost, on average over labels
RIDGE = 1e-4  # of the metric, relative to its mean eigenvalue
LOSS_LABELS = 1024  # on which the loss is measured
STEPS = 16  # numbers of directions that are tried, evenly spaced up to d


@dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """latent = (hidden - center) @ analysis, hidden = latent @ synthesis + center; the first directions matter most."""

    center: Tensor  # [d]
    analysis: Tensor  # [d, d]
    synthesis: Tensor  # [d, d]

    def first(self, count: int) -> "Directions":
        """The first directions only."""
        return Directions(center=self.center, analysis=self.analysis[:, :count], synthesis=self.synthesis[:count])

    def to(self, device: torch.device) -> "Directions":
        """On a device."""
        return Directions(center=self.center.to(device), analysis=self.analysis.to(device), synthesis=self.synthesis.to(device))


def metric_root(metric: Tensor) -> Tensor:
    """[d, d] lower triangular L, with L @ L.T the metric plus RIDGE."""
    size = len(metric)
    root: Tensor = torch.linalg.cholesky(metric + RIDGE * metric.trace() / size * torch.eye(size, device=metric.device))
    return root


@torch.no_grad()
def principal_directions(hidden: Tensor, metric: Tensor) -> Directions:
    """All directions of hidden states [n, d], by their share of the squared error in the metric [d, d]."""
    root, center = metric_root(metric), hidden.float().mean(0)
    axes = torch.linalg.eigh(torch.cov(((hidden.float() - center) @ root).T))[1].flip(1)
    return Directions(center=center, analysis=root @ axes, synthesis=axes.T @ torch.linalg.inv(root))


@torch.no_grad()
def sufficient(labels: HiddenLabels, directions: Directions) -> int:
    """The least tried number of directions that lose at most MAX_LOSS."""
    some = labels[:: max(1, len(labels) // LOSS_LABELS)]
    full, width = some.hidden.float(), some.hidden.shape[1]
    for step in range(1, STEPS):
        count = max(1, width * step // STEPS)
        kept = directions.first(count)
        reduced = HiddenLabels(hidden=(full - kept.center) @ kept.analysis @ kept.synthesis + kept.center, head=labels.head)
        if _divergence(some, reduced) <= MAX_LOSS:
            return count
    return width


def _divergence(labels: HiddenLabels, other: HiddenLabels) -> float:
    """Mean KL between two sets of labels of one head."""
    total = 0.0
    for start in range(0, len(labels), size := chunk_rows(labels.head.vocabulary)):
        rows = slice(start, start + size)
        p, log_q = labels.probs(rows), torch.log_softmax(other.logits(rows), 1)
        total += float((torch.special.xlogy(p, p) - p * log_q).sum())
    return total / max(1, len(labels))
