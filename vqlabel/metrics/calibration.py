"""Do decoded labels promise what the raw ones keep? Slope, reliability by confidence, entropy; one pass, memory that does not grow."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.metrics.distortion import as_logits

BINS = 10  # of the decoded top-1 confidence, each of as many labels as another
OCTAVES, STEPS = 21, 512  # what the confidences are first counted in: 2^-21 (a label of 2^20 classes) to 1, in steps of 0.14 %
LARGEST = 1e38  # of a centred logit: float32 holds the difference of two
FLAT = 1e-12  # a variance of C * q below it is what single precision makes of labels that are all uniform


@dataclass
class _Sums:
    """At one temperature, in float64: q decoded, p raw, both distributions over C classes."""

    power: float = 0.0  # (q - 1/C)^2 over all (label, class) pairs
    product: float = 0.0  # (q - 1/C) (p - 1/C)
    entropy: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))  # raw, decoded
    counts: NDArray[np.float64] = field(
        default_factory=lambda: np.zeros((3, OCTAVES * STEPS))
    )  # labels, confidence, raw; by confidence

    def bins(self) -> list[NDArray[np.float64]]:
        """[3] labels, confidence and raw, summed, of at most BINS parts with as many labels each as the counts allow, the least sure first."""
        labels = self.counts[0]
        part = ((labels.cumsum() - labels / 2) * BINS / max(1.0, labels.sum())).astype(np.int64)
        return [self.counts[:, chosen].sum(1) for at in range(BINS) if labels[chosen := part == at].any()]


@dataclass(kw_only=True)
class Calibration:
    """Running calibration of decoded labels against raw ones; `figures` at any time.

    A student's cross entropy is linear in its target, so labels that share a code may be replaced by their mean at the student's
    temperature, E[p | code], and its expected gradient stays. Such labels have slope 1 and no calibration error, whatever their KL; a
    slope below 1 says that decoded labels are surer than the raw ones they stand for.

    Slope and intercept are those of the least-squares line raw = slope * decoded + intercept. Both sides have the mean 1/C exactly, so
    the sums are centred without a pass before. The error is that of Guo et al. (arXiv 1706.04599), with the raw probability in the
    place of right or wrong.
    """

    temperatures: tuple[float, ...] = (1.0,)
    domain: str = "logits"
    labels: int = 0
    classes: int = 0  # of the labels so far
    _sums: list[_Sums] = field(default_factory=list)

    @torch.no_grad()
    def add(self, raw: Tensor, decoded: Tensor) -> None:
        """Count in [n, C] labels and their decoded form, both in `domain`; without those that differ by more than float32 holds."""
        x, y = as_logits(raw, self.domain), as_logits(decoded, self.domain)
        held = ((x.abs() < LARGEST) & (y.abs() < LARGEST)).all(1)
        x, y = x[held], y[held]
        self._sums = self._sums or [_Sums() for _ in self.temperatures]
        self.labels, self.classes = self.labels + len(x), x.shape[1]
        for t, sums in zip(self.temperatures, self._sums, strict=True):
            _count(sums, F.log_softmax(x / t, 1), F.log_softmax(y / t, 1))

    def figures(self) -> dict[str, Any]:
        """By temperature, as "T<t>": what a JSON object takes.

        Returns:
            temperature; slope (None where all decoded labels are uniform: no line fits best) and intercept; ece, the mean over labels
            of |confidence - raw|, taken bin by bin, and relative_ece, its share of the mean confidence, which says the same at every temperature
            and number of classes; entropy, raw and decoded, nats, the mean over labels; bins, the least sure first and of about as many
            labels each: their labels, and over these the mean confidence (the decoded top-1 probability) and the mean raw probability of
            that same class.
        """
        return {f"T{t:g}": self._at(t, sums) for t, sums in zip(self.temperatures, self._sums, strict=True)} if self._sums else {}

    def _at(self, temperature: float, sums: _Sums) -> dict[str, Any]:
        n = max(1, self.labels)
        flat = sums.power * self.classes <= FLAT * n
        slope = None if flat else sums.product / sums.power
        bins = sums.bins()
        error = sum(abs(confidence - raw) for _, confidence, raw in bins)
        return {
            "temperature": temperature,
            "slope": slope,
            "intercept": None if slope is None else (1 - slope) / self.classes,  # the line goes through (1/C, 1/C)
            "ece": float(error) / n,
            "relative_ece": float(error / max(1e-30, sums.counts[1].sum())),
            "entropy": {"raw": float(sums.entropy[0]) / n, "decoded": float(sums.entropy[1]) / n},
            "bins": [
                {"labels": int(labels), "confidence": float(confidence / labels), "raw": float(raw / labels)}
                for labels, confidence, raw in bins
            ],
        }


def _count(sums: _Sums, log_p: Tensor, log_q: Tensor) -> None:
    """Add [n, C] log probabilities, raw and decoded."""
    p, q = log_p.exp(), log_q.exp()
    sums.entropy -= [(p * log_p).sum(dtype=torch.float64).item(), (q * log_q).sum(dtype=torch.float64).item()]
    confidence, top = q.max(1)
    pair = torch.stack([confidence, p.gather(1, top[:, None])[:, 0]]).double().cpu().numpy()  # [2, n]
    most = OCTAVES * STEPS
    at = ((np.log2(pair[0].clip(2.0**-OCTAVES)) + OCTAVES) * STEPS).astype(np.int64).clip(0, most - 1)  # 1 belongs to the last
    sums.counts += [np.bincount(at, weights, most) for weights in (None, *pair)]
    p, q = p.sub_(1 / p.shape[1]), q.sub_(1 / q.shape[1])
    sums.power += q.square().sum(dtype=torch.float64).item()
    sums.product += p.mul_(q).sum(dtype=torch.float64).item()
