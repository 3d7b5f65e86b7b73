"""Configurations: frozen, validated once, stored verbatim in what they made, and read back from JSON unchanged."""

import dataclasses
import json
import math
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from vqlabel.errors import BadContainer, UsageError, require
from vqlabel.type_checks import check_field_types

DOMAINS = ("logits", "probs", "sigmoid")  # sigmoid: logits of classes that each have a probability of their own
QUANTIZERS = ("residual", "grouped")
CONTEXT_FIELDS = ("mix", "crop", "flip", "partner_crop", "partner_flip", "box")
USUAL_BITS = 128
SLOTS_MOST = 1024  # codes of a label
HEAD_MOST, LEVEL_BITS = 16, 5  # classes kept exactly; bits of the log-odds of each
VIEW_MOST = 1 << 16  # pixels
MAX_GAP_BITS, MAX_STEP = 12, 64.0  # of a sparse label: bits of the gap between two classes, nats of one step
MAX_NEIGHBOURS = 256  # classes in the list that each class has of those that come with it
CODEC_KINDS = ("vqae", "sparse", "topk", "raw")
VARIABLE = ("variable", "rate", "price")  # what a VqaeConfig says of labels with a number of slots of their own
MIX = (1.0, 4.0, 20.0)  # temperatures of a codec whose student is unknown: FKD and TinyViT sit at 1, LPQLD goes from 20 to 2


class _Json:
    """JSON in and out for the dataclasses below. `decode(encode(c)) == c` is a law that the tests hold."""

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        assert dataclasses.is_dataclass(self)
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Build from what `to_dict` gave.

        Raises:
            BadContainer: `values` has another set of fields, or a field of another type or out of its range.
        """
        hints = typing.get_type_hints(cls)
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        names = {f.name for f in fields}
        needed = {f.name for f in fields if f.default is dataclasses.MISSING}  # others came later than files that are about
        if not isinstance(values, dict) or not needed <= values.keys() <= names:
            raise BadContainer(
                f"{cls.__name__} has the fields {sorted(names)}; found {sorted(values) if isinstance(values, dict) else values!r}"
            )
        try:
            return cls(**{name: _inner(values[name], hints[name]) for name in values})
        except UsageError as error:
            raise BadContainer(f"stored {cls.__name__}: {error}") from None

    def __post_init__(self) -> None:
        check_field_types(self)
        self._check()

    def _check(self) -> None:
        """Raises UsageError where a field, of the right type, is out of its range or contradicts another."""


class _OfCodec(_Json):
    """What a reader of codes must know of a codec; see docs/format.md, "codec.*"."""

    classes: int

    @property
    def widths(self) -> list[int]:
        """Stored width of every field of a label: of variable labels the count comes first, and the codes are a stream of their own."""
        raise NotImplementedError

    @property
    def class_ids(self) -> slice:
        """Fields of a label that name classes, each of them once."""
        return slice(0)

    @property
    def indices(self) -> list[tuple[slice, int]]:
        """Fields of a label that index a table, and the size of it."""
        return [(self.class_ids, self.classes)]


def _inner(value: Any, hint: Any) -> Any:
    """A dictionary as the configuration that the annotation names, where it names one."""
    for kind in typing.get_args(hint):
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, _Json):
            return kind.from_dict(value)
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig(_Json):
    """What a user may say to `fit`. None: decided from `bits` and the dump, and shown in the resolved configuration."""

    codec: str | None = None  # of CODEC_KINDS; None: sparse where k numbers of a label are known, else vqae
    bits: int | None = None  # code bits per label; None: what a budget leaves for them, else USUAL_BITS
    bytes: int | None = None  # of the file without augmentation and order
    ratio: float | None = None  # the same as a share of fp16 labels: 2 * labels * C / bytes
    slots: int | None = None  # m, codes per label; with `variable` the most
    variable: bool = False  # every label has as many slots as pay; `bits` are those of the mean label, its count apart
    codebook_size: int | None = None  # k
    code_width: int | None = None  # d_c: given, the latent is cut into latent / code_width groups
    latent: int | None = None  # d_h: rank of the decoder's output map
    weight_bits: int | None = None  # of a stored number of codebooks, decoder and prior
    prior: bool | None = None  # condition on image, partner, lambda, crop ...; None: where the dump has them and they help
    image_width: int | None = None  # numbers that the prior keeps of an image
    hidden: int | None = None  # units of the prior's hidden layer
    temperature: tuple[float, ...] | None = None  # the student's; KL is trained at each. None: as the layout says, else MIX
    head: int | None = 0  # classes kept exactly, before the slots; None: as many as their bits pay for in KL
    contrast: float | None = None  # decoded labels' distance from their mean over calibrated ones'; None: unbiased
    epochs: int | None = None  # passes over the labels that fit sees, in each part of the fit
    seed: int = 0
    device: str = "cpu"

    def _check(self) -> None:
        require(self.codec is None or self.codec in CODEC_KINDS, "codec", self.codec, f"must be one of {', '.join(CODEC_KINDS)}")
        require(self.bits is None or 0 <= self.bits <= 1 << 20, "bits", self.bits, "must be 0..1048576 code bits per label")
        require(self.bytes is None or self.ratio is None, "bytes and ratio", (self.bytes, self.ratio), "are two budgets; give one")
        require(self.bytes is None or self.bytes > 0, "bytes", self.bytes, "must be above 0")
        require(self.ratio is None or 0 < self.ratio < math.inf, "ratio", self.ratio, "must be above 0")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            require(value is None or low <= value <= high, name, value, f"must be {low}..{high}")
        budget = self.bytes is not None or self.ratio is not None
        require(
            not budget or self.codec in (None, "vqae"), "codec", self.codec, "has no sizes that a budget could choose; vqae has"
        )
        require(
            not budget or self.code_width is None, "code_width", self.code_width, "cuts code bits that you name: give no budget"
        )
        alone = self.codec in (None, "vqae") and self.code_width is None
        require(self.slots != 0 or alone, "slots", 0, "must be 1..1024: only a vqae of residual slots can leave all to its prior")
        require(
            self.contrast is None or 0.1 <= self.contrast <= 10, "contrast", self.contrast, "must be 0.1..10 (1: calibrated labels)"
        )
        if self.variable:
            _check_variable(self)
        require(0 <= self.seed < 1 << 32, "seed", self.seed, "must be 0..4294967295")
        if self.temperature is not None:
            _check_temperatures(self.temperature)

    @property
    def wanted_bits(self) -> int:
        """Code bits per label where no budget is named."""
        return USUAL_BITS if self.bits is None else self.bits


def _check_variable(config: FitConfig) -> None:
    """Raises UsageError where a label cannot have a number of slots of its own."""
    only = "is for residual slots of a vqae, whose first codes are a label: leave out "
    require(config.codec in (None, "vqae"), "variable", True, f"{only}--codec {config.codec}, or --variable")
    require(config.code_width is None, "variable", True, f"{only}--code-width {config.code_width}, or --variable")
    require(config.head == 0, "variable", True, "must be left out beside --head: a label with a head has one rate")
    require(
        config.slots != 0 and config.bits != 0, "variable", True, "must be left out where there are 0 slots: a prior has one rate"
    )


_RANGES = (
    ("slots", 0, SLOTS_MOST), ("codebook_size", 2, 1 << 16), ("code_width", 1, 4096), ("latent", 1, 4096), ("weight_bits", 2, 8),
    ("image_width", 1, 1024), ("hidden", 1, 8192), ("epochs", 0, 10_000),
    ("head", 0, HEAD_MOST),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig(_Json):
    """What a label is predicted from before a code is read: a vector per image, and these fields of the record's context."""

    kind: ClassVar[str] = "prior"
    images: int
    image_width: int  # numbers per image
    hidden: int  # units of the hidden layer
    fields: tuple[str, ...]  # of CONTEXT_FIELDS, in that order
    view: int  # pixels along a view, the unit of `box`

    def _check(self) -> None:
        require(1 <= self.images <= 1 << 24, "images", self.images, "must be 1..16777216")
        for name, low, high in (("image_width", 1, 1024), ("hidden", 1, 8192), ("view", 1, VIEW_MOST)):
            require(low <= getattr(self, name) <= high, name, getattr(self, name), f"must be {low}..{high}")
        known = tuple(name for name in CONTEXT_FIELDS if name in self.fields)
        require(self.fields == known, "fields", list(self.fields), f"must be some of {', '.join(CONTEXT_FIELDS)}, in this order")


@dataclass(frozen=True, kw_only=True, slots=True)
class VqaeConfig(_OfCodec):
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
            0 <= self.head <= min(HEAD_MOST, self.classes - 1), "head", self.head, f"must be 0..{min(HEAD_MOST, self.classes - 1)}"
        )
        require(
            self.domain != "sigmoid" or not self.head,
            "head",
            self.head,
            "must be 0 for sigmoid labels: a head keeps the largest classes of one distribution",
        )
        require(self.quantizer in QUANTIZERS, "quantizer", self.quantizer, "must be residual or grouped")
        require(0 <= self.slots <= SLOTS_MOST, "slots", self.slots, "must be 0..1024")
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
        _check_temperatures(self.temperature)
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
        values = _Json.to_dict(self)
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
    def count_bits(self) -> int:
        """Stored width of a variable label's count, 0..slots."""
        return self.slots.bit_length() if self.variable else 0

    @property
    def label_bits(self) -> float:
        """Code bits per label, head and slots; of variable labels those of the mean label, and its count."""
        return self.rate + self.count_bits if self.variable else self.slots * self.code_bits + sum(self.head_bits)


@dataclass(frozen=True, kw_only=True, slots=True)
class TopkConfig(_OfCodec):
    """LPQLD's MR-k: the k largest entries, fp16, with their class ids; a student re-normalises over them."""

    kind: ClassVar[str] = "topk"
    classes: int
    domain: str
    k: int

    def _check(self) -> None:
        _check_largest(self)

    @property
    def widths(self) -> list[int]:
        return [self.id_bits] * self.k + [16] * self.k

    @property
    def class_ids(self) -> slice:
        return slice(self.k)

    @property
    def id_bits(self) -> int:
        """Bits of one class id: ceil(log2 C)."""
        return max(1, (self.classes - 1).bit_length())


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConfig(_OfCodec):
    """Labels of which k numbers are known: class ids, and the steps of a logit between them."""

    kind: ClassVar[str] = "sparse"
    classes: int
    domain: str
    k: int
    rest: str  # what each other class has: "zero", or "uniform" (an equal share of what is left of 1)
    step: float  # nats of a logit
    gaps: tuple[int, ...]  # [MAX_GAP_BITS] how many of the k - 1 gaps have a field of 1, 2, ... bits; the widest fields come first
    rest_bits: int  # width of the gap from the last known class to the share of each other; 0: no such field
    neighbours: int = 0  # classes in the list that each class has of those that come with it

    def _check(self) -> None:
        _check_largest(self)
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


def _check_largest(config: TopkConfig | SparseConfig) -> None:
    """Raises UsageError unless the k largest classes of one distribution can be kept."""
    check_labels(config.classes, config.domain)
    want = f"is for vqae and raw: {config.kind} keeps the largest classes of one distribution"
    require(config.domain != "sigmoid", "domain", config.domain, want)
    require(1 <= config.k <= config.classes, "k", config.k, f"must be 1..{config.classes} (the number of classes)")


@dataclass(frozen=True, kw_only=True, slots=True)
class RawConfig(_OfCodec):
    """The labels themselves, bit for bit, in the dump's own type."""

    kind: ClassVar[str] = "raw"
    classes: int
    domain: str
    dtype: str  # F16 | BF16 | F32

    def _check(self) -> None:
        check_labels(self.classes, self.domain)
        require(self.dtype in ("F16", "BF16", "F32"), "dtype", self.dtype, "must be F16, BF16 or F32")

    @property
    def widths(self) -> list[int]:
        return [32 if self.dtype == "F32" else 16] * self.classes


CodecConfig = VqaeConfig | SparseConfig | TopkConfig | RawConfig
CONFIGS: dict[str, type[CodecConfig]] = {config.kind: config for config in (VqaeConfig, SparseConfig, TopkConfig, RawConfig)}


def codec_config(kind: object, values: object) -> CodecConfig:
    """The configuration that a file holds of a codec of this kind.

    Raises:
        BadContainer: an unknown kind, or `values` is no configuration of it.
    """
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise BadContainer(f"codec kind {kind!r} is unknown; this vqlabel has {', '.join(CONFIGS)}: upgrade it")
    return CONFIGS[kind].from_dict(values)


def check_labels(classes: int, domain: str) -> None:
    """Raises UsageError unless C is 2..2^20 and the domain is known."""
    require(2 <= classes <= 1 << 20, "classes", classes, "must be 2..1048576")
    require(domain in DOMAINS, "domain", domain, "must be logits, probs or sigmoid")


def _check_temperatures(values: tuple[float, ...]) -> None:
    good = 1 <= len(values) <= 16 and all(math.isfinite(t) and 0.01 <= t <= 1000 for t in values)
    require(good, "temperature", list(values), "must be 1 to 16 numbers in 0.01..1000")
