"""Principal components, each quantized and entropy-coded on its own: the classical transform code."""

import math
from typing import Self

import torch
from torch import Tensor

from vqlabel.metrics.distortion import as_logits
from vqlabel.report.baselines.base import Baseline, TrainingLabels, round_to_fp16
from vqlabel.report.baselines.entropy import Frequencies

HALVINGS = 16  # of the interval of log(step): finds the step to within 0.02 %
FINEST, COARSEST = 2000, 4  # the interval: largest component / FINEST .. largest component * COARSEST
MIN_LARGEST = 1e-6  # lower limit of the largest component, for labels that are all equal


class PcaScalar(Baseline):
    """Principal components, all quantized with one step, each coded at its own entropy.

    One step for all components minimises the squared error (reverse water-filling); components of less variance than
    the quantization error, step^2 / 12, are dropped. A level is decoded as the mean of the training numbers that were
    rounded to it.
    """

    title = "PCA + scalar, entropy-coded"

    def __init__(self, train: TrainingLabels, step: float) -> None:
        mean, basis = train.pca
        z = train.project(len(basis))
        kept = _components_above(z.var(0, correction=0), step)
        self.domain, self.step, self.mean, self.basis = train.domain, step, mean, basis[kept]
        z = z[:, kept]
        levels = (z / step).round().long()
        self.model = Frequencies(levels)
        index = self.model.table_index(levels).flatten()
        total = torch.zeros(len(self.model.count)).index_add_(0, index, (z - levels * step).flatten())
        self.offset = round_to_fp16(total / self.model.count.clamp_min(1))  # of the decoded number from levels * step
        d, classes = self.basis.shape
        self.setting = f"{d} components, step {step:.3g}"
        self.fixed_bytes = 2 * classes * (d + 1) + self.model.bytes + 2 * len(self.offset) + 4

    @classmethod
    def fit(cls, train: TrainingLabels, bits: int) -> Self:
        z = train.project(len(train.pca[1]))
        variance, largest = z.var(0, correction=0), max(z.abs().max().item(), MIN_LARGEST)

        def bits_per_label(step: float) -> float:
            levels = (z[:, _components_above(variance, step)] / step).round().long()
            return Frequencies(levels).bits(levels).double().sum().item() / len(levels)

        low, high = math.log(largest / FINEST), math.log(COARSEST * largest)
        if bits_per_label(math.exp(low)) <= bits:
            return cls(train, math.exp(low))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if bits_per_label(math.exp(middle)) > bits else (low, middle)
        return cls(train, math.exp(high))

    def encode(self, labels: Tensor) -> Tensor:
        """[n, d] levels."""
        return ((as_logits(labels, self.domain) - self.mean) @ self.basis.T / self.step).round().long()

    def bits(self, codes: Tensor) -> float:
        return self.model.bits(codes).double().sum().item()

    def decode(self, codes: Tensor) -> Tensor:
        return (codes * self.step + self.offset[self.model.table_index(codes)]) @ self.basis + self.mean


def _components_above(variance: Tensor, step: float) -> Tensor:
    """[d] which components have more variance than quantization with `step` adds; the first one always."""
    kept = variance > step**2 / 12
    kept[0] = True
    return kept
