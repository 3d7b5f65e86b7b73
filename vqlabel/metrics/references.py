"""What else the bytes could hold: KL of one mean label for all, and of the largest classes in as many bits."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.metrics.distortion import as_logits, kl_divergence
from vqlabel.metrics.flat_tail import best_shift, flat_tail
from vqlabel.metrics.judgement import judge

VALUE_BITS = 16  # of the value of a stored class: fp16
MAX_FP16 = 65504.0  # the largest finite fp16 number
SHIFT_LABELS = 1024  # labels that the level of the tail is chosen on: fewer than `compare` has, and a third of its time
TINY = 1e-30  # smaller probabilities are raised to it before a logarithm


def topk_classes(bits: float, classes: int) -> tuple[int, int]:
    """How many classes of a label fit into `bits`, at least 1, and the bits that they take, ids included."""
    bits_per_class = VALUE_BITS + max(1, (classes - 1).bit_length())
    k = max(1, min(classes, int(bits / bits_per_class)))
    return k, k * bits_per_class


class TopKReference:
    """Running KL of labels of which only the k largest logits are stored, in fp16; all other classes share one logit.

    This is `topk` of `vqlabel compare`.

    Args:
        bits: per label, that the ids and values may take.
        temperatures: at which KL is measured.
        fitted_for: temperatures for which the level of the tail is best; None: those at which KL is measured.
        fitted_to: [n, C] labels in `domain` that the level of the tail is chosen on.
    """

    def __init__(
        self,
        bits: float,
        temperatures: Sequence[float],
        fitted_to: Tensor,
        domain: str,
        fitted_for: Sequence[float] | None = None,
    ) -> None:
        self.temperatures, self.domain, self.classes = tuple(temperatures), domain, fitted_to.shape[1]
        self.budget, (self.k, self.bits) = bits, topk_classes(bits, self.classes)
        logits = as_logits(fitted_to[:SHIFT_LABELS], domain)
        kept, ids = self._largest(logits)
        self.shift = best_shift(logits, ids, kept, fitted_for or self.temperatures)
        self._sums, self._labels = [0.0] * len(self.temperatures), 0

    def add(self, labels: Tensor) -> None:
        """Count [n, C] labels in the domain."""
        logits = as_logits(labels, self.domain)
        kept, ids = self._largest(logits)
        decoded = flat_tail(ids, kept, self.classes, self.shift)
        for i, t in enumerate(self.temperatures):
            self._sums[i] += float(kl_divergence(logits, decoded, t).sum(dtype=torch.float64))
        self._labels += len(labels)

    def figures(self) -> dict[str, Any]:
        """k, bits per label, budget, the bits that they may take, and kl_T<t> at each temperature, nats times T^2."""
        n = max(1, self._labels)
        kls = {f"kl_T{t:g}": round(total / n, 6) for t, total in zip(self.temperatures, self._sums, strict=True)}
        return {"k": self.k, "bits": self.bits, "budget": round(self.budget, 2), **kls}

    def _largest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        kept, ids = logits.topk(self.k, 1)
        return kept.clamp(-MAX_FP16, MAX_FP16).half().float(), ids


class MeanLabelReference:
    """Running KL of labels that are all replaced by their mean distribution, the one label that minimises it.

    It is the entropy of the mean less the mean entropy, so one pass over the labels is enough.
    """

    def __init__(self, temperatures: Sequence[float], domain: str) -> None:
        self.temperatures, self.domain, self._labels, self.classes = tuple(temperatures), domain, 0, 0
        self._means: list[Tensor] = []  # [C] float64, sums of distributions
        self._entropies = [0.0] * len(self.temperatures)

    def add(self, labels: Tensor) -> None:
        """Count [n, C] labels in the domain."""
        logits = as_logits(labels, self.domain)
        self.classes = logits.shape[1]
        if not self._means:
            self._means = [torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device) for _ in self.temperatures]
        for i, t in enumerate(self.temperatures):
            log_p = F.log_softmax(logits / t, 1)
            p = log_p.exp()
            self._means[i] += p.sum(0, dtype=torch.float64)
            self._entropies[i] -= float((p * log_p).sum(dtype=torch.float64))
        self._labels += len(labels)

    def figures(self) -> dict[str, float]:
        """kl_T<t> at each temperature, nats times T^2; empty before the first label."""
        kls = {}
        for t, total, entropy in zip(self.temperatures, self._means, self._entropies, strict=False):
            mean = total / self._labels
            kl = -float((mean * mean.clamp_min(TINY).log()).sum()) - entropy / self._labels
            kls[f"kl_T{t:g}"] = round(max(0.0, t * t * kl), 6)
        return kls


class TextReferences:
    """Running KL at T = 1 of the labels of documents: of one mean label, and of top-k with a uniform tail.

    The stored classes keep their probabilities, and all others share what is left: `topk` of `vqlabel compare`.

    Args:
        bits: per label, that the ids and values may take.

    Attributes:
        labels: number of labels so far.
    """

    def __init__(self, bits: float) -> None:
        self.budget, self.labels = bits, 0
        self._mean, self._sum, self._taken = MeanLabelReference((1.0,), "logits"), 0.0, (0, 0)

    @torch.no_grad()
    def add(self, logits: Tensor) -> None:
        """Count [n, V] float32 logits."""
        self._mean.add(logits)
        k, _ = self._taken = topk_classes(self.budget, logits.shape[1])
        p = logits.softmax(1)
        tail = p.scatter(1, p.topk(k, 1).indices, 0.0)
        mass, others = tail.sum(1), max(1, logits.shape[1] - k)
        kl = torch.special.xlogy(tail, tail).sum(1) - torch.special.xlogy(mass, mass / others)
        self._sum += float(kl.sum(dtype=torch.float64))
        self.labels += len(logits)

    def judged(self, kl: float) -> dict[str, Any]:
        """`labels`, `kl` of the labels that are judged, `mean_label`, `topk` and the `judgement` of `judge`."""
        k, bits = self._taken
        mean, own = self._mean.figures(), {"kl_T1": kl}
        topk = {"k": k, "bits": bits, "budget": round(self.budget, 2), "kl_T1": round(max(0.0, self._sum / max(1, self.labels)), 6)}
        verdict = judge(own, mean, topk, ("kl_T1",), exact_bits=VALUE_BITS * self._mean.classes)
        return {"labels": self.labels, "kl": own, "mean_label": mean, "topk": topk, "judgement": verdict}
