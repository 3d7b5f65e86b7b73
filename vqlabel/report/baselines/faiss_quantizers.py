"""Principal components, coded by faiss' vector quantizers (extra `baselines`)."""

import math
from abc import abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.errors import MissingExtra
from vqlabel.metrics.distortion import as_logits
from vqlabel.report.baselines.base import Baseline, TrainingLabels, round_to_fp16

MAX_COMPONENTS = 128  # that are quantized
MIN_POINTS = 39  # training labels per code vector, below which faiss warns


def import_faiss() -> Any:
    """The module faiss.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingExtra("faiss", extra="baselines") from None
    return faiss


class FaissBaseline(Baseline):
    """Principal components, then a quantizer of faiss with its defaults; slots of 8 bits, fewer for few labels."""

    splits_components: ClassVar[bool] = True  # each slot codes its own components
    quantizer: Any

    def __init__(self, train: TrainingLabels, slots: int, width: int) -> None:
        mean, basis = train.pca
        d = min(MAX_COMPONENTS, len(basis))
        self.slots = slots = min(slots, d) if self.splits_components else slots
        d = d // slots * slots if self.splits_components else d
        self.domain, self.mean, self.basis, self.width = train.domain, mean, basis[:d], width
        self.setting = f"{slots} slots of {width} bits, {d} components"
        self.fixed_bytes = 2 * train.classes * (d + 1)
        self.train_quantizer(import_faiss(), train, train.project(d).numpy())

    @classmethod
    def check_installed(cls) -> None:
        import_faiss()

    @classmethod
    def fit(cls, train: TrainingLabels, bits: int) -> Self | None:
        width = max(1, min(8, bits, int(math.log2(len(train.logits) / MIN_POINTS))))
        return cls(train, bits // width, width) if bits >= width else None

    @abstractmethod
    def train_quantizer(self, faiss: Any, train: TrainingLabels, z: NDArray[np.float32]) -> None:
        """Train `quantizer` on components [n, d], round its vectors to fp16 and add their bytes to `fixed_bytes`."""

    def round_vectors(self, faiss: Any, vector: Any) -> None:
        """Round a faiss vector of floats to fp16 in place, and add its bytes to `fixed_bytes`."""
        values = faiss.vector_to_array(vector)
        faiss.copy_array_to_vector(round_to_fp16(torch.from_numpy(values)).numpy(), vector)
        self.fixed_bytes += 2 * len(values)

    def encode(self, labels: Tensor) -> NDArray[np.uint8]:
        """[n, bytes of the codes of one label]."""
        z = (as_logits(labels, self.domain) - self.mean) @ self.basis.T
        return np.asarray(self.quantizer.compute_codes(z.contiguous().numpy()))

    def bits(self, codes: NDArray[np.uint8]) -> float:
        return float(len(codes) * self.slots * self.width)

    def decode(self, codes: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(self.quantizer.decode(codes)) @ self.basis + self.mean


class Pq(FaissBaseline):
    """Product quantization (Jégou et al. 2011): every slot codes its own components."""

    title = "PCA + PQ (faiss)"

    def train_quantizer(self, faiss: Any, train: TrainingLabels, z: NDArray[np.float32]) -> None:
        self.quantizer = _product_quantizer(faiss, z.shape[1], self.slots, self.width, train.seed)
        self.quantizer.train(z)
        self.round_vectors(faiss, self.quantizer.centroids)


class Opq(Pq):
    """Product quantization after a learned rotation (Ge et al. 2013)."""

    title = "PCA + OPQ (faiss)"

    def train_quantizer(self, faiss: Any, train: TrainingLabels, z: NDArray[np.float32]) -> None:
        d = z.shape[1]
        rotation = faiss.OPQMatrix(d, self.slots)
        rotation.pq = _product_quantizer(faiss, d, self.slots, self.width, train.seed)
        rotation.train(z)
        # The rotation is multiplied into the basis, so it takes no bytes of its own.
        self.basis = round_to_fp16(torch.from_numpy(faiss.vector_to_array(rotation.A).reshape(d, d)) @ self.basis)
        super().train_quantizer(faiss, train, rotation.apply(z))


def _product_quantizer(faiss: Any, d: int, slots: int, width: int, seed: int) -> Any:
    quantizer = faiss.ProductQuantizer(d, slots, width)
    quantizer.cp.seed, quantizer.cp.min_points_per_centroid = seed, 1
    return quantizer


class Rq(FaissBaseline):
    """Residual quantization (Chen et al. 2010): each slot codes the residual of the slots before it, by beam search."""

    title, splits_components = "PCA + RQ (faiss)", False

    def train_quantizer(self, faiss: Any, train: TrainingLabels, z: NDArray[np.float32]) -> None:
        self.quantizer = _residual_quantizer(faiss, z.shape[1], self.slots, self.width, train.seed)
        if train.longest_quantizer is None or self.slots > train.longest_quantizer.M:
            slots = max(self.slots, train.max_bits // self.width)
            train.longest_quantizer = _residual_quantizer(faiss, z.shape[1], slots, self.width, train.seed)
            train.longest_quantizer.train(z)
        # Slots are trained one after the other, so the first m slots are those of a quantizer of m slots.
        self.quantizer.initialize_from(train.longest_quantizer)
        self.round_vectors(faiss, self.quantizer.codebooks)


def _residual_quantizer(faiss: Any, d: int, slots: int, width: int, seed: int) -> Any:
    quantizer = faiss.ResidualQuantizer(d, slots, width)
    quantizer.cp.seed, quantizer.cp.min_points_per_centroid = seed, 1
    return quantizer
