"""The one contract that all peers keep: fitted to seen labels at a rate, then labels -> codes -> labels, and the bits of the codes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from vqlabel.codecs import LabelSample
from vqlabel.metrics.distortion import as_logits
from vqlabel.report.baselines.entropy import Frequencies

FIT_LABELS, FIT_BYTES = 32_768, 128 << 20  # labels that a peer learns from, at most
PCA_WIDTH = 256  # principal components, at most
HALF_MOST = 65504.0  # the largest half


class Seen:
    """What peers learn from: some of the seen labels as centred logits, and their principal components."""

    def __init__(self, sample: LabelSample, temperature: Sequence[float], seed: int, most_bits: int = 0) -> None:
        """`most_bits`: the largest rate that will be asked for, where it is known: residual quantizers are trained for it once."""
        most = max(2, min(FIT_LABELS, FIT_BYTES // (4 * sample.classes)))
        some = torch.randperm(len(sample.seen), generator=torch.Generator().manual_seed(seed))[:most]
        self.logits = as_logits(sample.seen[some], sample.domain)  # [n, C]
        self.domain, self.dtype, self.classes = sample.domain, sample.dtype, sample.classes
        self.temperature, self.seed, self.most_bits = tuple(temperature), seed, most_bits
        self.longest: Any = None  # the residual quantizer with most slots so far

    @cached_property
    def pca(self) -> tuple[Tensor, Tensor]:
        """Mean [C] and orthonormal basis [d, C], the component of largest variance first; d <= PCA_WIDTH, C - 1 and n."""
        mean = stored(self.logits.mean(0))
        width = max(1, min(PCA_WIDTH, self.classes - 1, len(self.logits)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            basis = torch.svd_lowrank(self.logits - mean, q=min(width + 16, *self.logits.shape), niter=4)[2].T
        return mean, stored(basis[:width])

    def project(self, width: int) -> Tensor:
        """[n, width] of the labels themselves."""
        mean, basis = self.pca
        return (self.logits - mean) @ basis[:width].T

    @cached_property
    def ids(self) -> Frequencies:
        """How often each class is the largest, or the largest but few: what top-k's ids are coded with."""
        ids = self.logits.topk(min(8, self.classes), 1).indices
        return Frequencies(ids.reshape(-1, 1), (0, self.classes - 1))


class Peer(ABC):
    """Fitted: `encode` -> `bits`, `decode`.

    Attributes:
        setting: what was chosen to meet the bits, in words.
        fixed_bytes: all that a reader needs besides codes: tables, codebooks, projections.
    """

    title: ClassVar[str]
    at_rates: ClassVar[bool] = True  # False: one point, whatever the bits
    slow_bits: ClassVar[bool] = False  # True: `bits` compresses, so ask it about some labels only
    setting: str = ""
    fixed_bytes: int = 0

    @classmethod
    @abstractmethod
    def fit(cls, seen: Seen, bits: int) -> Self | None:
        """The best setting that takes about `bits` a label on the seen ones; None where not even the smallest fits."""

    @abstractmethod
    def encode(self, labels: Tensor) -> Any:
        """[n, C] labels in the dump's domain -> codes, of the peer's own kind."""

    @abstractmethod
    def bits(self, codes: Any) -> float:
        """Of all these labels together."""

    @abstractmethod
    def decode(self, codes: Any) -> Tensor:
        """-> [n, C] logits of any shift."""


def stored(values: Tensor) -> Tensor:
    """As fp16 holds them."""
    return values.clamp(-HALF_MOST, HALF_MOST).half().float()
