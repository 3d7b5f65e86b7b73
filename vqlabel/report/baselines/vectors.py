"""Principal components through faiss' vector quantizers (extra `baselines`)."""

import math
from abc import abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.errors import MissingExtra
from vqlabel.metrics.distortion import as_logits
from vqlabel.report.baselines.base import Peer, Seen, stored

FAISS_WIDTH = 128  # components, at most
POINTS = 39  # labels per code vector below which faiss warns


def import_faiss() -> Any:
    """Raises MissingExtra where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise MissingExtra("faiss", extra="baselines") from None
    return faiss


class Faiss(Peer):
    """Principal components, then one of faiss' quantizers at its defaults: slots of one byte, less where labels are few."""

    def __init__(self, seen: Seen, slots: int, width: int) -> None:
        mean, basis = seen.pca
        d = min(FAISS_WIDTH, len(basis))
        self.slots = slots = min(slots, d) if self.cuts else slots
        d = d // slots * slots if self.cuts else d
        self.domain, self.mean, self.basis, self.width = seen.domain, mean, basis[:d], width
        self.setting = f"{slots} slots of {width} bits, {d} components"
        self.fixed_bytes = 2 * seen.classes * (d + 1)
        self.train(import_faiss(), seen, seen.project(d).numpy())

    cuts: ClassVar[bool] = True  # whether each slot has components of its own
    quantizer: Any

    @classmethod
    def fit(cls, seen: Seen, bits: int) -> Self | None:
        width = max(1, min(8, bits, int(math.log2(len(seen.logits) / POINTS))))
        return cls(seen, bits // width, width) if bits >= width else None

    @abstractmethod
    def train(self, faiss: Any, seen: Seen, z: NDArray[np.float32]) -> None:
        """Make `quantizer` from components [n, d], its vectors as fp16 holds them, and count their bytes."""

    def round(self, faiss: Any, vector: Any) -> None:
        """Round a faiss vector of floats to fp16, in place, and count its bytes."""
        values = faiss.vector_to_array(vector)
        faiss.copy_array_to_vector(stored(torch.from_numpy(values)).numpy(), vector)
        self.fixed_bytes += 2 * len(values)

    def encode(self, labels: Tensor) -> NDArray[np.uint8]:
        """[n, bytes of a label's codes]."""
        z = (as_logits(labels, self.domain) - self.mean) @ self.basis.T
        return np.asarray(self.quantizer.compute_codes(z.contiguous().numpy()))

    def bits(self, codes: NDArray[np.uint8]) -> float:
        return float(len(codes) * self.slots * self.width)

    def decode(self, codes: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(self.quantizer.decode(codes)) @ self.basis + self.mean


class Pq(Faiss):
    """Product quantization (Jégou et al. 2011): every slot codes its own components."""

    title = "PCA + PQ (faiss)"

    def train(self, faiss: Any, seen: Seen, z: NDArray[np.float32]) -> None:
        self.quantizer = _product(faiss, z.shape[1], self.slots, self.width, seen.seed)
        self.quantizer.train(z)
        self.round(faiss, self.quantizer.centroids)


class Opq(Pq):
    """The same after a learned rotation (Ge et al. 2013)."""

    title = "PCA + OPQ (faiss)"

    def train(self, faiss: Any, seen: Seen, z: NDArray[np.float32]) -> None:
        d = z.shape[1]
        rotation = faiss.OPQMatrix(d, self.slots)
        rotation.pq = _product(faiss, d, self.slots, self.width, seen.seed)
        rotation.train(z)
        # Turned components are components of another basis, so the rotation costs nothing.
        self.basis = stored(torch.from_numpy(faiss.vector_to_array(rotation.A).reshape(d, d)) @ self.basis)
        super().train(faiss, seen, rotation.apply(z))


def _product(faiss: Any, d: int, slots: int, width: int, seed: int) -> Any:
    quantizer = faiss.ProductQuantizer(d, slots, width)
    quantizer.cp.seed, quantizer.cp.min_points_per_centroid = seed, 1
    return quantizer


class Rq(Faiss):
    """Residual quantization (Chen et al. 2010): every slot codes what the ones before left, by beam search."""

    title, cuts = "PCA + RQ (faiss)", False

    def train(self, faiss: Any, seen: Seen, z: NDArray[np.float32]) -> None:
        self.quantizer = _residual(faiss, z.shape[1], self.slots, self.width, seen.seed)
        if seen.longest is None or self.slots > seen.longest.M:
            slots = max(self.slots, seen.most_bits // self.width)
            seen.longest = _residual(faiss, z.shape[1], slots, self.width, seen.seed)
            seen.longest.train(z)
        self.quantizer.initialize_from(seen.longest)  # slots are trained one after the other: the first m are those of a fit of m
        self.round(faiss, self.quantizer.codebooks)


def _residual(faiss: Any, d: int, slots: int, width: int, seed: int) -> Any:
    quantizer = faiss.ResidualQuantizer(d, slots, width)
    quantizer.cp.seed, quantizer.cp.min_points_per_centroid = seed, 1
    return quantizer
