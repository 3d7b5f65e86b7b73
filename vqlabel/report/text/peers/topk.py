"""The k likeliest tokens of a label with their log-probabilities in fp16."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vqlabel.errors import require
from vqlabel.report.text.peers.base import Codes, TeacherRows, TextPeer, id_bits, same_bits
from vqlabel.report.text.peers.tails import TAILS, UNIFORM, with_tail

VALUE_BITS = 16  # fp16


@dataclass(frozen=True, kw_only=True)
class TopK(TextPeer):
    """Codes: ids [n, k] int32 by falling probability, log-probabilities [n, k] float16.

    Attributes:
        vocabulary: V; k: 1..V.
        tail: one of TAILS, see `with_tail`.

    Raises:
        UsageError: k or tail is out of range.
    """

    vocabulary: int
    k: int
    tail: str = UNIFORM

    def __post_init__(self) -> None:
        require(1 <= self.k <= self.vocabulary, "k", self.k, f"must be 1..{self.vocabulary}, the vocabulary")
        require(self.tail in TAILS, "tail", self.tail, f"must be one of {', '.join(TAILS)}")

    @property
    def title(self) -> str:
        return f"top-{self.k} fp16, {self.tail} tail"

    def encode(self, rows: TeacherRows, generator: torch.Generator) -> Codes:
        values, ids = rows.log_probs.topk(self.k, 1)
        return ids.int(), values.half()

    def bits(self, codes: Codes) -> Tensor:
        return same_bits(codes, self.k * (id_bits(self.vocabulary) + VALUE_BITS))

    def decode(self, codes: Codes) -> Tensor:
        ids, values = codes
        return with_tail(ids, values.float(), self.vocabulary, self.tail)
