"""Random sampling: N draws from the teacher's distribution, stored as the drawn tokens and how often each was drawn."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vqlabel.errors import require
from vqlabel.report.text.peers.base import Codes, TeacherRows, TextPeer

ENTRY_BITS = 24  # of a drawn token: 17 bits of its id and 7 of its count, in 3 bytes
MAX_DRAWS = 127  # counts have 7 bits


@dataclass(frozen=True, kw_only=True)
class RandomSampling(TextPeer):
    """Random sampling KD (arXiv 2503.16870) with draws from the teacher's distribution itself: the decoded label is
    unbiased, and 0 for tokens that were not drawn.

    Codes: ids of the draws [n, N] int32, ascending in a row.

    Attributes:
        vocabulary: V; draws: N, 1..MAX_DRAWS.

    Raises:
        UsageError: N is out of range.
    """

    vocabulary: int
    draws: int

    def __post_init__(self) -> None:
        require(1 <= self.draws <= MAX_DRAWS, "draws", self.draws, f"must be 1..{MAX_DRAWS}")

    @property
    def title(self) -> str:
        return f"random sampling, {self.draws} draws"

    def encode(self, rows: TeacherRows, generator: torch.Generator) -> Codes:
        ids = torch.multinomial(rows.probs, self.draws, replacement=True, generator=generator)
        return (ids.int().sort(1).values,)

    def bits(self, codes: Codes) -> Tensor:
        """[n] ENTRY_BITS for each token that was drawn at least once."""
        return ENTRY_BITS * _first_of_runs(codes[0]).sum(1).double()

    def entropy_bits(self, codes: Codes, log_prior: Tensor) -> Tensor:
        """[n] bits of the multiset of draws: those of the draws in their order, less those of the order.

            sum over draws of -log2 prior(draw) - log2 (N! / product over tokens of count!)

        Args:
            log_prior: [n, V] log-probabilities that the reader has, in nats.
        """
        of_draws = -log_prior.gather(1, codes[0].long()).double().sum(1)
        of_order = math.lgamma(self.draws + 1) - _rank_in_run(codes[0]).double().log().sum(1)
        return (of_draws - of_order) / math.log(2)

    def decode(self, codes: Codes) -> Tensor:
        ids = codes[0].long()
        share = torch.full(ids.shape, 1 / self.draws, device=ids.device)
        return torch.zeros(len(ids), self.vocabulary, device=ids.device).scatter_add_(1, ids, share)


def _first_of_runs(ids: Tensor) -> Tensor:
    """[n, N] ascending ids -> [n, N] bool: whether an id differs from the one before it."""
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    return first


def _rank_in_run(ids: Tensor) -> Tensor:
    """[n, N] ascending ids -> [n, N] 1, 2, ... within equal ids; the product over a run is the factorial of its
    length.
    """
    position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    start = torch.where(_first_of_runs(ids), position, 0).cummax(1).values
    return position - start + 1
