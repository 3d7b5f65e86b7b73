"""The resolved sizes of a VQAE and of its prior."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from vqlabel.codecs.config import CodecConfig
from vqlabel.config import LEVEL_BITS, MAX_EXACT_CLASSES, MAX_SLOTS, MAX_VIEW, JsonConfig, check_labels, check_temperatures
from vqlabel.errors import require

QUANTIZERS = ("residual", "grouped")
CONTEXT_FIELDS = ("mix", "crop", "flip", "partner_crop", "partner_flip", "box")
VARIABLE = ("variable", "rate", "price")  # fields that a variable rate has, and a fixed one leaves out


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig(JsonConfig):
    """What a label is predicted from before a code is read: a vector per image, and these fields of the record's context."""

    kind: ClassVar[str] = "prior"
    images: int
    image_width: int  # numbers per image
    hidden: int  # units of the hidden layer
    fields: tuple[str, ...]  # of CONTEXT_FIELDS, in that order
    view: int  # pixels along a view, the unit of `box`

    def _check(self) -> None:
        require(1 <= self.images <= 1 << 24, "images", self.images, "must be 1..16777216")
        for name, low, high in (("image_width", 1, 1024), ("hidden", 1, 8192), ("view", 1, MAX_VIEW)):
            require(low <= getattr(self, name) <= high, name, getattr(self, name), f"must be {low}..{high}")
        known = tuple(name for name in CONTEXT_FIELDS if name in self.fields)
        require(self.fields == known, "fields", list(self.fields), f"must be some of {', '.join(CONTEXT_FIELDS)}, in this order")


@dataclass(frozen=True, kw_only=True, slots=True)
class VqaeConfig(CodecConfig):
    """The learned codec, resolved. Rate: slots * log2 codebook_size bits per label (arXiv 2603.03808: d_h/d_c * log2 k)."""

    kind: ClassVar[str] = "vqae"
    classes: int  # C
    domain: str  # logits | probs
    slots: int  # m; 0: the prior alone
    codebook_size: int  # k
    latent: int  # d_h: rank of the output map
    code_width: int  # d_c; residual slots span the latent: d_c = d_h
    quantizer: str  # residual | grouped
    weight_bits: int  # of a stored number
    prior: PriorConfig | None
    temperature: tuple[float, ...]
    head: int = 0  # classes kept exactly
    lift: bool = False  # whether directions of the latent have contrasts of their own
    variable: bool = False  # whether a label has a count, and as many of the slots as pay
    rate: float = 0.0  # of variable labels: code bits of the mean label, counts apart, that `price` was found for
    price: float = 0.0  # of variable labels: loss, as `mixed_kl_divergence` counts it, that a code bit must take away

    def _check(self) -> None:
        check_labels(self.classes, self.domain)
        require(
            0 <= self.head <= min(MAX_EXACT_CLASSES, self.classes - 1),
            "head",
            self.head,
            f"must be 0..{min(MAX_EXACT_CLASSES, self.classes - 1)}",
        )
        require(
            self.domain != "sigmoid" or not self.head,
            "head",
            self.head,
            "must be 0 for sigmoid labels: a head keeps the largest classes of one distribution",
        )
        require(self.quantizer in QUANTIZERS, "quantizer", self.quantizer, "must be residual or grouped")
        require(0 <= self.slots <= MAX_SLOTS, "slots", self.slots, "must be 0..1024")
        require(2 <= self.codebook_size <= 1 << 16, "codebook_size", self.codebook_size, "must be 2..65536")
        require(1 <= self.latent <= 4096, "latent", self.latent, "must be 1..4096")
        require(2 <= self.weight_bits <= 8, "weight_bits", self.weight_bits, "must be 2..8")
        if self.quantizer == "residual":
            require(
                self.code_width == self.latent,
                "code_width",
                self.code_width,
                f"must equal latent ({self.latent}) for residual slots",
            )
        else:
            want = f"must be latent / slots = {self.latent}/{self.slots} for grouped slots"
            require(self.code_width * self.slots == self.latent, "code_width", self.code_width, want)
        check_temperatures(self.temperature)
        if not self.variable:
            require(
                self.rate == 0 and self.price == 0, "rate and price", (self.rate, self.price), "must be 0 where slots are fixed"
            )
            return
        residual = self.quantizer == "residual" and self.slots > 0 and not self.head
        require(residual, "variable", True, "must be false: labels of several rates need residual slots, at least one, and no head")
        most = self.slots * self.code_bits
        require(0 < self.rate <= most, "rate", self.rate, f"must be above 0 and at most {most}, the bits of all slots")
        require(0 <= self.price < math.inf, "price", self.price, "must be 0 or above")

    def to_dict(self) -> dict[str, Any]:
        """Without what only variable labels have where they are not: such files are as they were before there were any."""
        values = JsonConfig.to_dict(self)
        return values if self.variable else {name: value for name, value in values.items() if name not in VARIABLE}

    @property
    def code_bits(self) -> int:
        """Bits of one stored code: ceil(log2 k)."""
        return (self.codebook_size - 1).bit_length()

    @property
    def head_bits(self) -> list[int]:
        """Stored widths of the head's ids, then of its levels."""
        return [(self.classes - 1).bit_length()] * self.head + [LEVEL_BITS] * self.head

    @property
    def widths(self) -> list[int]:
        return [self.count_bits] * self.variable + [self.code_bits] * self.slots + self.head_bits

    @property
    def indices(self) -> list[tuple[slice, int]]:
        return [(slice(self.variable, self.variable + self.slots), self.codebook_size), (self.class_ids, self.classes)]

    @property
    def class_ids(self) -> slice:
        return slice(self.slots, self.slots + self.head)

    @property
    def max_codes(self) -> int | None:
        return self.slots if self.variable else None

    @property
    def needs(self) -> tuple[str, ...]:
        if self.prior is None:
            return ()
        partner = ("partner",) if "mix" in self.prior.fields else ()
        return ("image", *partner, *self.prior.fields)

    @property
    def codebooks(self) -> tuple[int, int]:
        return self.slots, self.codebook_size

    @property
    def image_prior(self) -> PriorConfig | None:
        return self.prior

    @property
    def temperatures(self) -> tuple[float, ...]:
        return self.temperature

    @property
    def count_bits(self) -> int:
        """Stored width of a variable label's count, 0..slots."""
        return self.slots.bit_length() if self.variable else 0

    @property
    def label_bits(self) -> float:
        """Code bits per label, head and slots; of variable labels those of the mean label, and its count."""
        return self.rate + self.count_bits if self.variable else self.slots * self.code_bits + sum(self.head_bits)
