"""Calibration of decoded labels against raw ones: slope, reliability by confidence, entropy. Constant memory."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.metrics.distortion import as_logits

BINS = 10  # bins of the decoded top-1 confidence, with equal numbers of labels
OCTAVES, STEPS = 21, 512  # of the histogram from which the bins are made: confidences 2^-21 (2^20 classes) to 1, in steps of 0.14 %
MAX_LOGIT = 1e38  # of a centred logit: float32 can represent the difference of two such numbers
MIN_VARIANCE = 1e-12  # of C * q; below it, all labels are uniform up to the rounding of float32


@dataclass
class ConfidenceBins:
    """Labels by the decoded probability of their top-1 class, the confidence, beside its raw probability.

    Attributes:
        counts: [3, steps of confidence] number of labels, sum of confidence, sum of raw probability.
    """

    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, OCTAVES * STEPS)))

    def add(self, confidence: Tensor, raw: Tensor) -> None:
        """Count [n] confidences, and the raw probabilities of the same classes."""
        pair = torch.stack([confidence, raw]).double().cpu().numpy()  # [2, n]
        size = OCTAVES * STEPS
        octave = np.log2(pair[0].clip(2.0**-OCTAVES)) + OCTAVES
        step = (octave * STEPS).astype(np.int64).clip(0, size - 1)  # a confidence of 1 belongs to the last step
        self.counts += [np.bincount(step, weights, size) for weights in (None, *pair)]

    def error(self) -> float:
        """Sum over labels of |confidence - raw|, taken bin by bin; over the number of labels, the expected calibration
        error.
        """
        return float(sum(abs(confidence - raw) for _, confidence, raw in self.bins()))

    def bins(self) -> list[NDArray[np.float64]]:
        """For each bin, in order of confidence: [3] sums of labels, confidence and raw probability. At most BINS, with
        about equal numbers of labels.
        """
        labels = self.counts[0]
        bin_of = ((labels.cumsum() - labels / 2) * BINS / max(1.0, labels.sum())).astype(np.int64)
        return [self.counts[:, chosen].sum(1) for number in range(BINS) if labels[chosen := bin_of == number].any()]


@dataclass
class _Sums:
    """Sums at one temperature, in float64; q decoded, p raw, both distributions over C classes."""

    power: float = 0.0  # (q - 1/C)^2 over all (label, class) pairs
    product: float = 0.0  # (q - 1/C) (p - 1/C)
    entropy: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))  # raw, decoded
    confidence: ConfidenceBins = field(default_factory=ConfidenceBins)


@dataclass(kw_only=True)
class Calibration:
    """Running calibration of decoded labels against raw ones; `figures` may be called at any time.

    A student's cross entropy is linear in its target. So labels that share a code may be replaced by their mean at the
    student's temperature, E[p | code], without changing its expected gradient. Such labels have slope 1 and no
    calibration error, whatever their KL. A slope below 1 means that decoded labels are more confident than the raw
    ones.

    Slope and intercept are those of the least-squares line raw = slope * decoded + intercept. Both sides have the mean
    1/C exactly, so the sums are centred without an extra pass. The error is the expected calibration error of Guo et
    al. (arXiv 1706.04599), with the raw probability of the predicted class in the place of 0 or 1.

    Args:
        temperatures: at which labels are compared.
        domain: of the labels, "logits" or "probs".

    Attributes:
        labels: number of labels so far.
        classes: C, of the labels so far.
    """

    temperatures: tuple[float, ...] = (1.0,)
    domain: str = "logits"
    labels: int = 0
    classes: int = 0
    _sums: list[_Sums] = field(default_factory=list)

    @torch.no_grad()
    def add(self, raw: Tensor, decoded: Tensor, classes: int | None = None) -> None:
        """Count [n, C] labels and their decoded form, both in `domain`; not those with a centred logit >= MAX_LOGIT.

        Args:
            classes: C, if the labels [n, k] have only some of the classes and all others have probability 0.
        """
        x, y = as_logits(raw, self.domain), as_logits(decoded, self.domain)
        finite = ((x.abs() < MAX_LOGIT) & (y.abs() < MAX_LOGIT)).all(1)
        x, y = x[finite], y[finite]
        self._sums = self._sums or [_Sums() for _ in self.temperatures]
        self.labels, self.classes = self.labels + len(x), classes or x.shape[1]
        for t, sums in zip(self.temperatures, self._sums, strict=True):
            _count(sums, F.log_softmax(x / t, 1), F.log_softmax(y / t, 1), self.classes)

    def figures(self) -> dict[str, Any]:
        """Calibration at each temperature, by the key "T<t>", as JSON-compatible values.

        Returns:
            temperature: T.
            slope, intercept: of the least-squares line; None if all decoded labels are uniform, because then the line
                is not unique.
            ece: the mean over labels of |confidence - raw|, taken bin by bin.
            relative_ece: ece over the mean confidence, which is comparable between temperatures and numbers of classes.
            entropy: raw and decoded, nats, the mean over labels.
            bins: in order of confidence, with about equal numbers of labels; for each: labels, and the means over them
                of confidence (the decoded top-1 probability) and raw (the raw probability of the same class).
        """
        return (
            {f"T{t:g}": self._at_temperature(t, sums) for t, sums in zip(self.temperatures, self._sums, strict=True)}
            if self._sums
            else {}
        )

    def _at_temperature(self, temperature: float, sums: _Sums) -> dict[str, Any]:
        n = max(1, self.labels)
        uniform = sums.power * self.classes <= MIN_VARIANCE * n
        slope = None if uniform else sums.product / sums.power
        error = sums.confidence.error()
        return {
            "temperature": temperature,
            "slope": slope,
            "intercept": None if slope is None else (1 - slope) / self.classes,  # the line goes through (1/C, 1/C)
            "ece": error / n,
            "relative_ece": float(error / max(1e-30, sums.confidence.counts[1].sum())),
            "entropy": {"raw": float(sums.entropy[0]) / n, "decoded": float(sums.entropy[1]) / n},
            "bins": [
                {"labels": int(labels), "confidence": float(confidence / labels), "raw": float(raw / labels)}
                for labels, confidence, raw in sums.confidence.bins()
            ],
        }


def _count(sums: _Sums, log_p: Tensor, log_q: Tensor, classes: int) -> None:
    """Add [n, C] log probabilities, raw p and decoded q; or [n, k], if the other classes have probability 0."""
    p, q = log_p.exp(), log_q.exp()
    sums.entropy -= [(p * log_p).sum(dtype=torch.float64).item(), (q * log_q).sum(dtype=torch.float64).item()]
    confidence, top = q.max(1)
    sums.confidence.add(confidence, p.gather(1, top[:, None])[:, 0])
    absent = len(p) * (classes - p.shape[1]) / classes**2  # sum of (0 - 1/C)^2
    p, q = p.sub_(1 / classes), q.sub_(1 / classes)
    sums.power += q.square().sum(dtype=torch.float64).item() + absent
    sums.product += p.mul_(q).sum(dtype=torch.float64).item() + absent
