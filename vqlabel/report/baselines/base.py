"""The contract of all baselines: fit at a rate, then labels -> codes -> labels, and the bits of the codes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from vqlabel.codecs import LabelSample
from vqlabel.metrics.distortion import as_logits
from vqlabel.report.baselines.entropy import Frequencies

MAX_FIT_LABELS, MAX_FIT_BYTES = 32_768, 128 << 20  # labels that a baseline is fitted to, and their float32 bytes
MAX_COMPONENTS = 256  # principal components
MAX_RANK = 8  # ranks whose class ids are counted: the 8 largest logits of a label
MAX_FP16 = 65504.0  # the largest finite fp16 number


class TrainingLabels:
    """What baselines are fitted to: a random part of the training labels as centred logits, and statistics that several
    of them share.

    Args:
        sample: its training split is used, at most MAX_FIT_LABELS labels or MAX_FIT_BYTES of it.
        temperature: of the student.
        seed: chooses the labels and starts the PCA.
        max_bits: the largest rate in bits per label that will be fitted, if known: residual quantizers are then trained
            once, for this rate, and truncated for lower ones.

    Attributes:
        logits: [n, C] float32, centred.
    """

    def __init__(self, sample: LabelSample, temperature: Sequence[float], seed: int, max_bits: int = 0) -> None:
        count = max(2, min(MAX_FIT_LABELS, MAX_FIT_BYTES // (4 * sample.classes)))
        rows = torch.randperm(len(sample.train), generator=torch.Generator().manual_seed(seed))[:count]
        self.logits = as_logits(sample.train[rows], sample.domain)
        self.domain, self.dtype, self.classes = sample.domain, sample.dtype, sample.classes
        self.temperature, self.seed, self.max_bits = tuple(temperature), seed, max_bits
        self.longest_quantizer: Any = None  # faiss' residual quantizer with the most slots that was trained so far

    @cached_property
    def pca(self) -> tuple[Tensor, Tensor]:
        """Mean [C] and orthonormal basis [d, C], by falling variance; d is at most MAX_COMPONENTS, C - 1 and n."""
        mean = round_to_fp16(self.logits.mean(0))
        width = max(1, min(MAX_COMPONENTS, self.classes - 1, len(self.logits)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            basis = torch.svd_lowrank(self.logits - mean, q=min(width + 16, *self.logits.shape), niter=4)[2].T
        return mean, round_to_fp16(basis[:width])

    def project(self, width: int) -> Tensor:
        """[n, width] principal components of the training labels."""
        mean, basis = self.pca
        return (self.logits - mean) @ basis[:width].T

    @cached_property
    def top_ids(self) -> Frequencies:
        """How often each class is among the MAX_RANK largest of a label: the model for the class ids of top-k."""
        ids = self.logits.topk(min(MAX_RANK, self.classes), 1).indices
        return Frequencies(ids.reshape(-1, 1), (0, self.classes - 1))


class Baseline(ABC):
    """A fitted method: `encode` labels, count the `bits` of their codes, `decode` them.

    Attributes:
        title: the method's name in tables and plots.
        has_rate: False: one setting, whatever the number of bits.
        compresses: True: `bits` runs a compressor, which is slow, so it is measured on part of the labels.
        setting: the parameters that `fit` chose to meet the rate, as text.
        fixed_bytes: all that a decoder needs besides codes: tables, codebooks, projections.
    """

    title: ClassVar[str]
    has_rate: ClassVar[bool] = True
    compresses: ClassVar[bool] = False
    setting: str = ""
    fixed_bytes: int = 0

    @classmethod  # noqa: B027 - most methods need no further package
    def check_installed(cls) -> None:
        """Raises MissingExtra if the method needs a package that is not installed."""

    @classmethod
    @abstractmethod
    def fit(cls, train: TrainingLabels, bits: int) -> Self | None:
        """The best setting that takes about `bits` per training label; None if the smallest setting takes more."""

    @abstractmethod
    def encode(self, labels: Tensor) -> Any:
        """[n, C] labels in the dump's domain -> codes, of a type of the method's own."""

    @abstractmethod
    def bits(self, codes: Any) -> float:
        """Bits of all these codes together."""

    @abstractmethod
    def decode(self, codes: Any) -> Tensor:
        """Codes -> [n, C] logits, up to a constant per label."""


def round_to_fp16(values: Tensor) -> Tensor:
    """float32 values, rounded to fp16 and clamped to its range."""
    return values.clamp(-MAX_FP16, MAX_FP16).half().float()
