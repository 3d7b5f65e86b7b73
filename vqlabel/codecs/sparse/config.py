"""Labels of which k numbers are known: ids, and gaps in steps of a logit."""

from dataclasses import dataclass
from typing import ClassVar

from vqlabel.bitstream.codings import ANS, FIXED, ZSTD, Coding
from vqlabel.codecs.config import CodecConfig, check_top_classes
from vqlabel.errors import require

MAX_GAP_BITS, MAX_STEP = 12, 64.0  # bits of the gap between two classes; nats of one step
MAX_NEIGHBOURS = 256  # classes in the list that each class has of those that come with it


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConfig(CodecConfig):
    """Labels of which k numbers are known: class ids, and the steps of a logit between them."""

    kind: ClassVar[str] = "sparse"
    codings: ClassVar[tuple[Coding, ...]] = (FIXED, ZSTD, ANS)
    classes: int
    domain: str
    k: int
    rest: str  # what each other class has: "zero", or "uniform" (an equal share of what is left of 1)
    step: float  # nats of a logit
    gaps: tuple[int, ...]  # [MAX_GAP_BITS] how many of the k - 1 gaps have a field of 1, 2, ... bits; the widest fields come first
    rest_bits: int  # width of the gap from the last known class to the share of each other; 0: no such field
    neighbours: int = 0  # classes in the list that each class has of those that come with it

    def _check(self) -> None:
        check_top_classes(self)
        require(self.rest in ("zero", "uniform"), "rest", self.rest, "must be zero or uniform")
        require(self.rest == "zero" or self.domain == "probs", "rest", self.rest, "must be zero where labels are logits")
        require(0 < self.step <= MAX_STEP, "step", self.step, f"must be above 0 and at most {MAX_STEP} nats")
        counts = len(self.gaps) == MAX_GAP_BITS and min(self.gaps) >= 0 and sum(self.gaps) == self.k - 1
        require(counts, "gaps", list(self.gaps), f"must be {MAX_GAP_BITS} counts that add up to k - 1 = {self.k - 1}")
        most = min(MAX_NEIGHBOURS, self.classes - 1)
        require(0 <= self.neighbours <= most, "neighbours", self.neighbours, f"must be 0..{most}")
        others = self.rest == "uniform" and self.k < self.classes
        want = f"must be 1..{MAX_GAP_BITS}" if others else "must be 0: no other class has a share"
        require((1 if others else 0) <= self.rest_bits <= (MAX_GAP_BITS if others else 0), "rest_bits", self.rest_bits, want)

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
        return slice(1 if self.neighbours else 0, self.k)  # ranks, which are as distinct as the ids that they stand for

    @property
    def indices(self) -> list[tuple[slice, int]]:
        return [(slice(self.k), self.classes)]

    @property
    def gap_bits(self) -> list[int]:
        """Stored widths of the gaps, and of the gap to the rest where there is one."""
        widths = [bits for bits in range(MAX_GAP_BITS, 0, -1) for _ in range(self.gaps[bits - 1])]
        return widths + [self.rest_bits] * (self.rest_bits > 0)
