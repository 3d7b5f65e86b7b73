"""Configuration of the codec of labels with k known entries."""

from dataclasses import dataclass
from typing import ClassVar

from vqlabel.bitstream.codings import ANS, FIXED, ZSTD, Coding
from vqlabel.codecs.config import CodecConfig, check_top_classes
from vqlabel.errors import require

MAX_GAP_BITS = 12  # bits of the gap between two successive classes
MAX_STEP = 64.0  # nats
MAX_NEIGHBOURS = 256  # length of a class's neighbour list


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConfig(CodecConfig):
    """Class ids of the k known entries, and the gaps between their logits in steps."""

    kind: ClassVar[str] = "sparse"
    codings: ClassVar[tuple[Coding, ...]] = (FIXED, ZSTD, ANS)
    fit_options: ClassVar[tuple[str, ...]] = ("slots", "bits")
    classes: int
    domain: str
    k: int
    rest: str  # probability of each other class: "zero", or "uniform" (an equal share of the remaining mass)
    step: float  # nats of a logit per step
    gaps: tuple[int, ...]  # [MAX_GAP_BITS] number of the k - 1 gaps with a field of 1, 2, ... bits; the widest fields come first
    rest_bits: int  # width of the gap from the last known class to each other class; 0: no such field
    neighbours: int = 0  # R, length of a class's neighbour list; 0: ids are stored as they are

    def _check(self) -> None:
        check_top_classes(self)
        require(self.rest in ("zero", "uniform"), "rest", self.rest, "must be zero or uniform")
        require(self.rest == "zero" or self.domain == "probs", "rest", self.rest, "must be zero where labels are logits")
        require(0 < self.step <= MAX_STEP, "step", self.step, f"must be above 0 and at most {MAX_STEP} nats")
        valid_gaps = len(self.gaps) == MAX_GAP_BITS and min(self.gaps) >= 0 and sum(self.gaps) == self.k - 1
        require(valid_gaps, "gaps", list(self.gaps), f"must be {MAX_GAP_BITS} counts that add up to k - 1 = {self.k - 1}")
        limit = min(MAX_NEIGHBOURS, self.classes - 1)
        require(0 <= self.neighbours <= limit, "neighbours", self.neighbours, f"must be 0..{limit}")
        has_rest = self.rest == "uniform" and self.k < self.classes
        if has_rest:
            require(1 <= self.rest_bits <= MAX_GAP_BITS, "rest_bits", self.rest_bits, f"must be 1..{MAX_GAP_BITS}")
        else:
            require(self.rest_bits == 0, "rest_bits", self.rest_bits, "must be 0: the other classes have no probability")

    @property
    def kept_classes(self) -> int:
        return self.k

    @property
    def holds_sets(self) -> bool:
        return self.rest == "zero" and self.k < self.classes

    @property
    def id_bits(self) -> int:
        """Bits of one class id: ceil(log2 C)."""
        return max(1, (self.classes - 1).bit_length())

    @property
    def widths(self) -> list[int]:
        return [self.id_bits] * self.k + self.gap_bits

    @property
    def class_ids(self) -> slice:
        return slice(1 if self.neighbours else 0, self.k)  # with neighbours, the other ids are stored as distinct ranks

    @property
    def indices(self) -> list[tuple[slice, int]]:
        return [(slice(self.k), self.classes)]

    @property
    def gap_bits(self) -> list[int]:
        """Stored widths of the gaps, and of the gap to the other classes if it is stored."""
        widths = [bits for bits in range(MAX_GAP_BITS, 0, -1) for _ in range(self.gaps[bits - 1])]
        return widths + [self.rest_bits] * (self.rest_bits > 0)
