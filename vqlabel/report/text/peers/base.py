"""The contract of all peers: labels of language models -> codes -> probabilities, and the bits of each label."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.hidden_labels import HiddenLabels

Codes = tuple[Tensor, ...]  # what a peer stores of n labels: tensors [n, ...]


def id_bits(vocabulary: int) -> int:
    """Bits of a token id: ceil(log2 V)."""
    return max(1, (vocabulary - 1).bit_length())


@dataclass(frozen=True, kw_only=True, eq=False)
class TeacherRows:
    """The labels of a chunk, dense.

    Attributes:
        logits: [n, V] float32.
        hidden: [n, d] final hidden states; None: the dump has logits.
    """

    logits: Tensor
    hidden: Tensor | None = None

    @classmethod
    def of(cls, labels: HiddenLabels, rows: slice | Tensor = slice(None)) -> Self:
        """The labels at a slice or an index."""
        return cls(logits=labels.logits(rows), hidden=labels.hidden[rows])

    @cached_property
    def log_probs(self) -> Tensor:
        """[n, V] float32."""
        return F.log_softmax(self.logits, 1)

    @cached_property
    def probs(self) -> Tensor:
        """[n, V] float32."""
        return self.log_probs.exp()


class TextPeer(ABC):
    """Another way to store labels: `encode` them, count the `bits` of their codes, `decode` them."""

    @property
    @abstractmethod
    def title(self) -> str:
        """The peer's name in tables and plots."""

    @abstractmethod
    def encode(self, rows: TeacherRows, generator: torch.Generator) -> Codes:
        """What the peer stores, with values rounded to the types in which their bits are counted.

        Args:
            generator: of the draws, on the device of the rows; peers without draws leave it alone.
        """

    @abstractmethod
    def bits(self, codes: Codes) -> Tensor:
        """[n] float64 bits of each label, as the peer's own format stores it."""

    def entropy_bits(self, codes: Codes, log_prior: Tensor) -> Tensor | None:
        """[n] float64 bits of each label after an entropy coder whose reader knows a distribution of each label.

        Args:
            log_prior: [n, V] log-probabilities, in nats.

        Returns:
            None: the peer has no such coder.
        """
        return None

    @abstractmethod
    def decode(self, codes: Codes) -> Tensor:
        """[n, V] float32 probabilities that a student learns from; each row sums to 1."""


def same_bits(codes: Codes, bits: float) -> Tensor:
    """[n] of a peer whose labels all take `bits`."""
    return torch.full((len(codes[0]),), float(bits), dtype=torch.float64, device=codes[0].device)
