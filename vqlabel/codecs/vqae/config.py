"""Resolved configurations of a VQAE and of its prior."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from vqlabel.codecs.config import CodecConfig
from vqlabel.config import LEVEL_BITS, MAX_EXACT_CLASSES, MAX_SLOTS, MAX_VIEW, JsonConfig, check_labels, check_temperatures
from vqlabel.errors import require

QUANTIZERS = ("residual", "grouped")
CONTEXT_FIELDS = ("mix", "crop", "flip", "partner_crop", "partner_flip", "box")
VARIABLE_RATE_FIELDS = ("variable", "rate", "price")  # stored for a variable rate only


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig(JsonConfig):
    """Inputs and sizes of the prior, which predicts a label from a vector per image and fields of its context."""

    kind: ClassVar[str] = "prior"
    images: int
    image_width: int  # numbers per image
    hidden: int  # units of the hidden layer
    fields: tuple[str, ...]  # some of CONTEXT_FIELDS, in that order
    view: int  # pixels along a view, by which `box` is divided

    def _check(self) -> None:
        require(1 <= self.images <= 1 << 24, "images", self.images, "must be 1..16777216")
        for name, low, high in (("image_width", 1, 1024), ("hidden", 1, 8192), ("view", 1, MAX_VIEW)):
            require(low <= getattr(self, name) <= high, name, getattr(self, name), f"must be {low}..{high}")
        ordered = tuple(name for name in CONTEXT_FIELDS if name in self.fields)
        require(self.fields == ordered, "fields", list(self.fields), f"must be some of {', '.join(CONTEXT_FIELDS)}, in this order")


@dataclass(frozen=True, kw_only=True, slots=True)
class VqaeConfig(CodecConfig):
    """The learned codec, resolved; slots * log2 codebook_size bits per label (arXiv 2603.03808: d_h/d_c * log2 k).

    Field names are those of the stored JSON (docs/format.md, "codec.*").
    """

    kind: ClassVar[str] = "vqae"
    has_lower_rates: ClassVar[bool] = True
    classes: int  # C
    domain: str  # logits | probs | sigmoid
    slots: int  # m, codes per label, or the maximum at a variable rate; 0: the prior alone
    codebook_size: int  # k
    latent: int  # d_h: rank of the output map
    code_width: int  # d_c; residual slots span the latent: d_c = d_h
    quantizer: str  # residual | grouped
    weight_bits: int  # bits of a stored number
    prior: PriorConfig | None
    temperature: tuple[float, ...]
    head: int = 0  # M, exact classes per label
    lift: bool = False  # whether the decoder has a tail gain
    variable: bool = False  # whether the rate is variable: each label stores its code count
    rate: float = 0.0  # of a variable rate: average code bits per label, counts not included
    price: float = 0.0  # of a variable rate: rate-distortion multiplier lambda, `mixed_kl_divergence` per code bit

    def _check(self) -> None:
        check_labels(self.classes, self.domain)
        max_exact = min(MAX_EXACT_CLASSES, self.classes - 1)
        require(0 <= self.head <= max_exact, "head", self.head, f"must be 0..{max_exact}")
        limit = "must be 0 for sigmoid labels: exact classes are the largest classes of one distribution"
        require(self.domain != "sigmoid" or not self.head, "head", self.head, limit)
        require(self.quantizer in QUANTIZERS, "quantizer", self.quantizer, "must be residual or grouped")
        require(0 <= self.slots <= MAX_SLOTS, "slots", self.slots, "must be 0..1024")
        require(2 <= self.codebook_size <= 1 << 16, "codebook_size", self.codebook_size, "must be 2..65536")
        require(1 <= self.latent <= 4096, "latent", self.latent, "must be 1..4096")
        require(2 <= self.weight_bits <= 8, "weight_bits", self.weight_bits, "must be 2..8")
        if self.quantizer == "residual":
            limit = f"must equal latent ({self.latent}) for residual slots"
            require(self.code_width == self.latent, "code_width", self.code_width, limit)
        else:
            limit = f"must be latent / slots = {self.latent}/{self.slots} for grouped slots"
            require(self.code_width * self.slots == self.latent, "code_width", self.code_width, limit)
        check_temperatures(self.temperature)
        self._check_rate()

    def _check_rate(self) -> None:
        """Raises UsageError unless `variable`, `rate` and `price` agree with each other and with the slots."""
        if not self.variable:
            fixed = self.rate == 0 and self.price == 0
            require(fixed, "rate and price", (self.rate, self.price), "must be 0 at a fixed rate")
            return
        residual = self.quantizer == "residual" and self.slots > 0 and not self.head
        require(residual, "variable", True, "must be false without residual slots, and with exact classes")
        limit = self.slots * self.code_bits
        require(0 < self.rate <= limit, "rate", self.rate, f"must be above 0 and at most {limit}, the bits of all slots")
        require(0 <= self.price < math.inf, "price", self.price, "must be 0 or above")

    def to_dict(self) -> dict[str, Any]:
        """As JSON; a fixed rate omits VARIABLE_RATE_FIELDS, as files did before variable rates existed."""
        values = JsonConfig.to_dict(self)
        return values if self.variable else {name: value for name, value in values.items() if name not in VARIABLE_RATE_FIELDS}

    @property
    def code_bits(self) -> int:
        """Bits of one stored code: ceil(log2 k)."""
        return (self.codebook_size - 1).bit_length()

    @property
    def head_bits(self) -> list[int]:
        """Stored widths of the exact classes' ids, then of their levels."""
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
        """Stored width of a label's code count, 0..slots; 0 at a fixed rate."""
        return self.slots.bit_length() if self.variable else 0

    @property
    def label_bits(self) -> float:
        """Code bits per label, exact classes included; at a variable rate the average, counts included."""
        return self.rate + self.count_bits if self.variable else self.slots * self.code_bits + sum(self.head_bits)
