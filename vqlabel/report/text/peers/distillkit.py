"""DistillKit's labels: the k likeliest tokens, the first of them exact, the log-probabilities of the rest a curve over
their rank.

Restated from its documentation and source (github.com/arcee-ai/DistillKit, commit a61c2e7, March 2026), not its code.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vqlabel.errors import require
from vqlabel.report.text.peers.base import Codes, TeacherRows, TextPeer, id_bits, same_bits
from vqlabel.report.text.peers.tails import TAILS, UNIFORM, with_tail

EXACT_BITS, TERM_BITS = 16, 32  # bf16, float32
TOLERANCE = 1e-5  # singular values of the terms below it count as 0: an absolute limit, whatever the largest is
SETTINGS: dict[str, dict[str, Any]] = {  # of its README, where they are "recommended" and "budget pick"
    "budget": {"k": 50, "exact": 1, "terms": (0, 1, "sqrt")},
    "recommended": {"k": 128, "exact": 16, "terms": (0, 1, 2, 3, 4, "sqrt")},
}


@dataclass(frozen=True, kw_only=True)
class DistillKit(TextPeer):
    """Codes: ids [n, k] int32 by falling probability, exact log-probabilities [n, exact] bfloat16, coefficients
    [n, terms] float32.

    The coefficients are the least-squares fit to the log-probabilities of ranks exact .. k - 1, counted from 0.
    DistillKit fits in the type of its log-probabilities, float32 where they were captured by vLLM. The singular values
    of (0, 1, 2, 3, 4, "sqrt") then drown in rounding errors of the largest, about 4e8, and the fit misses by 2 nats;
    `precision=torch.float64`, the default here, is the best that its format can hold.

    Its files pad the ids of a label to whole bytes, which are not counted: at most 7 bits.

    Attributes:
        vocabulary: V; k: stored tokens, 2..V; exact: those with a value of their own, 0..k - 1.
        terms: of the curve: powers of the rank, and "sqrt".
        tail: one of TAILS; "zero" is what its examples set.
        precision: type of the fit, torch.float32 or torch.float64.
        name: of the setting, for the title.

    Raises:
        UsageError: an attribute is out of range.
    """

    vocabulary: int
    k: int
    exact: int
    terms: tuple[int | str, ...]
    tail: str = UNIFORM
    precision: torch.dtype = torch.float64
    name: str = ""

    def __post_init__(self) -> None:
        require(2 <= self.k <= self.vocabulary, "k", self.k, f"must be 2..{self.vocabulary}, the vocabulary")
        require(0 <= self.exact < self.k, "exact", self.exact, f"must be 0..{self.k - 1}")
        known = all(term == "sqrt" or (isinstance(term, int) and term >= 0) for term in self.terms)
        require(len(self.terms) > 0 and known, "terms", self.terms, 'must be powers, from 0 up, and "sqrt"')
        require(self.tail in TAILS, "tail", self.tail, f"must be one of {', '.join(TAILS)}")
        precisions = (torch.float32, torch.float64)
        require(self.precision in precisions, "precision", self.precision, "must be torch.float32 or torch.float64")

    @property
    def title(self) -> str:
        precision = "" if self.precision == torch.float64 else ", float32 fit"
        return f"DistillKit {self.name or f'k {self.k}, {self.exact} exact'}, {self.tail} tail{precision}"

    @cached_property
    def curve(self) -> Tensor:
        """[k - exact, terms] float64: each term at every rank."""
        rank = torch.arange(self.k - self.exact, dtype=torch.float64)
        return torch.stack([rank.sqrt() if term == "sqrt" else rank ** int(term) for term in self.terms], 1)

    @cached_property
    def solver(self) -> Tensor:
        """[terms, k - exact] pseudo-inverse of `curve`, in `precision`."""
        inverse: Tensor = torch.linalg.pinv(self.curve.to(self.precision), atol=TOLERANCE, rtol=0.0)
        return inverse

    def encode(self, rows: TeacherRows, generator: torch.Generator) -> Codes:
        values, ids = rows.log_probs.topk(self.k, 1)
        coefficients = values[:, self.exact :].to(self.precision) @ self.solver.T.to(values.device)
        return ids.int(), values[:, : self.exact].bfloat16(), coefficients.float()

    def bits(self, codes: Codes) -> Tensor:
        bits = self.k * id_bits(self.vocabulary) + EXACT_BITS * self.exact + TERM_BITS * len(self.terms)
        return same_bits(codes, bits)

    def decode(self, codes: Codes) -> Tensor:
        ids, exact, coefficients = codes
        values = torch.cat([exact.float(), coefficients @ self.curve.T.to(coefficients)], 1)
        return with_tail(ids, values, self.vocabulary, self.tail)
