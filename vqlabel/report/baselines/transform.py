"""Principal components, rounded one by one: the classical transform code."""

import math
from typing import Self

import torch
from torch import Tensor

from vqlabel.metrics.distortion import as_logits
from vqlabel.report.baselines.base import Peer, Seen, stored
from vqlabel.report.baselines.entropy import Frequencies


class PcaScalar(Peer):
    """Principal components, all rounded with one step, each at its own entropy: the classical transform code.

    One step for all is what squared error asks for (reverse water-filling); components of less variance than the rounding's,
    step^2 / 12, are left out. A number is decoded as the mean of those that were rounded to it.
    """

    title = "PCA + scalar, entropy-coded"

    def __init__(self, seen: Seen, step: float) -> None:
        mean, basis = seen.pca
        z = seen.project(len(basis))
        kept = z.var(0, correction=0) > step**2 / 12
        kept[0] = True
        self.domain, self.step, self.mean, self.basis = seen.domain, step, mean, basis[kept]
        z = z[:, kept]
        symbols = (z / step).round().long()
        self.model = Frequencies(symbols)
        places = self.model.places(symbols).flatten()
        total = torch.zeros(len(self.model.count)).index_add_(0, places, (z - symbols * step).flatten())
        self.offset = stored(total / self.model.count.clamp_min(1))  # of the mean from the grid
        d, classes = self.basis.shape
        self.setting = f"{d} components, step {step:.3g}"
        self.fixed_bytes = 2 * classes * (d + 1) + self.model.bytes + 2 * len(self.offset) + 4

    @classmethod
    def fit(cls, seen: Seen, bits: int) -> Self:
        z = seen.project(len(seen.pca[1]))
        variance, largest = z.var(0, correction=0), max(z.abs().max().item(), 1e-6)

        def price(step: float) -> float:
            kept = variance > step**2 / 12
            kept[0] = True
            symbols = (z[:, kept] / step).round().long()
            return Frequencies(symbols).bits(symbols).double().sum().item() / len(symbols)

        low, high = math.log(largest / 2000), math.log(4 * largest)
        if price(math.exp(low)) <= bits:
            return cls(seen, math.exp(low))
        for _ in range(16):
            middle = (low + high) / 2
            low, high = (middle, high) if price(math.exp(middle)) > bits else (low, middle)
        return cls(seen, math.exp(high))

    def encode(self, labels: Tensor) -> Tensor:
        """[n, d] integers."""
        return ((as_logits(labels, self.domain) - self.mean) @ self.basis.T / self.step).round().long()

    def bits(self, codes: Tensor) -> float:
        return self.model.bits(codes).double().sum().item()

    def decode(self, codes: Tensor) -> Tensor:
        return (codes * self.step + self.offset[self.model.places(codes)]) @ self.basis + self.mean
