"""Configurations: frozen, validated once, stored verbatim in the files they produce, read back from JSON unchanged."""

import dataclasses
import json
import math
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from vqlabel.errors import BadContainer, UsageError, require
from vqlabel.type_checks import check_field_types

DOMAINS = ("logits", "probs", "sigmoid")  # sigmoid: logits of independent classes, such as multi-label
DEFAULT_BITS = 128  # code bits per label
DEFAULT_TEXT_BITS = 32.0  # code bits per label of a document
MAX_SLOTS = 1024  # codes per label
MAX_EXACT_CLASSES = 16  # classes per label that are kept exactly
LEVEL_BITS = 5  # width of the quantized log-odds of each exact class
MAX_VIEW = 1 << 16  # pixels along a side of a view
DEFAULT_TEMPERATURE = (1.0,)  # to fit for, whatever the student's: docs/results.md, "Which temperature to fit for"
MIX = (1.0, 4.0, 20.0)  # at which reports give KL: FKD and TinyViT train students at 1, LPQLD from 20 down to 2, SRe2L at 20


class JsonConfig:
    """Base of the frozen dataclasses that are stored as JSON; from_dict(config.to_dict()) == config."""

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        assert dataclasses.is_dataclass(self)
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Inverse of `to_dict`. Fields with a default may be absent, since they are newer than some files.

        Raises:
            BadContainer: a field is missing, unknown, of another type or out of its range.
        """
        hints = typing.get_type_hints(cls)
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        names = {f.name for f in fields}
        required = {f.name for f in fields if f.default is dataclasses.MISSING}
        if not isinstance(values, dict) or not required <= values.keys() <= names:
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
        """Raises UsageError if a field is out of its range or contradicts another; types are correct here."""


def _inner(value: Any, hint: Any) -> Any:
    """A dictionary -> the nested configuration, if the annotation `hint` has one; other values unchanged."""
    for kind in typing.get_args(hint):
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, JsonConfig):
            return kind.from_dict(value)
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig(JsonConfig):
    """Options of `fit`. None: resolved from `bits` and the dump; the report of a fit records the resolved values."""

    codec: str | None = None  # a kind of `codecs.registry`; None: sparse if the dump stores k numbers per label, else vqae
    bits: int | None = None  # code bits per label; None: DEFAULT_BITS, or what a budget leaves for codes
    bytes: int | None = None  # budget: bytes of the file; augmentation and image order are not counted
    ratio: float | None = None  # budget: compression ratio against fp16 labels, 2 * labels * C / bytes
    slots: int | None = None  # m, codes per label; with `variable_rate` the maximum
    variable_rate: bool = False  # each label has its own number of codes; `bits` is the mean per label, without its code count
    codebook_size: int | None = None  # k; one code takes log2 k bits
    code_width: int | None = None  # d_c; if given, the latent is split into latent / code_width groups
    latent: int | None = None  # d_h: rank of the decoder's output map
    weight_bits: int | None = None  # per stored number of codebooks, decoder and prior
    prior: bool | None = None  # condition on image, partner, lambda, crop ...; None: if the dump has them and they lower the KL
    image_width: int | None = None  # numbers per image that the prior stores
    hidden: int | None = None  # units of the prior's hidden layer
    temperature: tuple[float, ...] | None = None  # KL is minimised at each; None: DEFAULT_TEMPERATURE
    exact_classes: int | None = 0  # largest classes per label that are kept exactly; None: as many as lower the KL for their bits
    gain: float | None = None  # distance of decoded labels from their mean, relative to calibrated labels; None: unbiased labels
    epochs: int | None = None  # passes over the sampled labels in each stage of the fit
    seed: int = 0
    device: str = "cpu"

    def _check(self) -> None:
        require(self.bits is None or 0 <= self.bits <= 1 << 20, "bits", self.bits, "must be 0..1048576 code bits per label")
        require(self.bytes is None or self.ratio is None, "bytes and ratio", (self.bytes, self.ratio), "are two budgets; give one")
        require(self.bytes is None or self.bytes > 0, "bytes", self.bytes, "must be above 0")
        require(self.ratio is None or 0 < self.ratio < math.inf, "ratio", self.ratio, "must be above 0")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            require(value is None or low <= value <= high, name, value, f"must be {low}..{high}")
        budget = self.bytes is not None or self.ratio is not None
        vqae = self.codec in (None, "vqae")
        require(
            not budget or vqae,
            "codec",
            self.codec,
            "must be vqae, or left out, beside --ratio or --bytes; for topk and sparse pass --slots or --bits, raw has a fixed size",
        )
        require(not budget or self.code_width is None, "code_width", self.code_width, "must be given with bits, not with a budget")
        residual = vqae and self.code_width is None
        require(
            self.slots != 0 or residual, "slots", 0, "must be 1..1024: only a vqae with residual slots can have 0 slots and a prior"
        )
        require(self.gain is None or 0.1 <= self.gain <= 10, "gain", self.gain, "must be 0.1..10 (1: calibrated labels)")
        if self.variable_rate:
            _check_variable_rate(self)
        require(0 <= self.seed < 1 << 32, "seed", self.seed, "must be 0..4294967295")
        if self.temperature is not None:
            check_temperatures(self.temperature)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """`temperature`, or the default."""
        return DEFAULT_TEMPERATURE if self.temperature is None else self.temperature

    @property
    def target_bits(self) -> int:
        """Code bits per label, if there is no budget."""
        return DEFAULT_BITS if self.bits is None else self.bits


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFitConfig(JsonConfig):
    """Options of a fit to the labels of documents. None: chosen by the fit, whose report records the value."""

    bits: float | None = None  # code bits per label on average: codes, exact ids and their counts; None: 32, or by a budget
    bytes: int | None = None  # budget: bytes of the file
    ratio: float | None = None  # budget: compression ratio against fp16 logits, 2 * labels * V / bytes
    slots: int = 8  # m, the maximum number of codes per label
    codebook_size: int = 256  # k; one code takes log2 k bits
    ids: int = 8  # M, the maximum number of exact ids per label
    latent: int | None = None  # d_h: directions of the hidden states that labels keep
    weight_bits: int = 8  # per stored number of codebooks, output map and prior
    prior: bool = True  # whether labels are predicted from the tokens of their document
    width: int = 192  # features of a token in the prior
    layers: int = 2  # of the prior
    window: int = 64  # tokens on each side that a layer of the prior attends to
    future: bool = True  # whether the prior sees the next token and later ones
    embed_head: bool = True  # whether the file has the output map; otherwise it names the head, which its readers need
    labels: int = 250_000  # labels, of documents from the whole dump, that the fit learns from
    epochs: int | None = None  # passes over these labels in the first stage of the fit; None: as many as give 250,000 labels
    seed: int = 0
    device: str = "cpu"  # of the teacher, the fit and encoding

    def _check(self) -> None:
        require(self.bits is None or 0 <= self.bits <= 4096, "bits", self.bits, "must be 0..4096 code bits per label")
        targets = [name for name in ("bits", "bytes", "ratio") if getattr(self, name) is not None]
        require(len(targets) < 2, " and ".join(targets), [getattr(self, name) for name in targets], "are several rates; give one")
        require(self.bytes is None or self.bytes > 0, "bytes", self.bytes, "must be above 0")
        require(self.ratio is None or 0 < self.ratio < math.inf, "ratio", self.ratio, "must be above 0")
        require(self.labels >= 1, "labels", self.labels, "must be 1 or more")
        require(self.epochs is None or 1 <= self.epochs <= 10_000, "epochs", self.epochs, "must be 1..10000")
        require(0 <= self.seed < 1 << 32, "seed", self.seed, "must be 0..4294967295")
        require(self.width % 8 == 0, "width", self.width, "must be a multiple of 8")


def _check_variable_rate(config: FitConfig) -> None:
    """Raises UsageError unless truncated codes are labels, which needs residual slots of a vqae."""

    def allow(ok: bool, limit: str) -> None:
        require(ok, "variable_rate", True, limit)

    only = "needs a vqae with residual slots: leave out "
    allow(config.codec in (None, "vqae"), f"{only}--codec {config.codec}, or --variable-rate")
    allow(config.code_width is None, f"{only}--code-width {config.code_width}, or --variable-rate")
    allow(config.exact_classes == 0, "must be left out with --exact-classes: labels with exact classes have a fixed rate")
    allow(config.slots != 0 and config.bits != 0, "must be left out with 0 slots: there are no codes to truncate")


_RANGES = (
    ("slots", 0, MAX_SLOTS), ("codebook_size", 2, 1 << 16), ("code_width", 1, 4096), ("latent", 1, 4096), ("weight_bits", 2, 8),
    ("image_width", 1, 1024), ("hidden", 1, 8192), ("epochs", 0, 10_000),
    ("exact_classes", 0, MAX_EXACT_CLASSES),
)  # fmt: skip


def check_labels(classes: int, domain: str) -> None:
    """Raises UsageError unless C is 2..2^20 and the domain is known."""
    require(2 <= classes <= 1 << 20, "classes", classes, "must be 2..1048576")
    require(domain in DOMAINS, "domain", domain, "must be logits, probs or sigmoid")


def check_temperatures(values: tuple[float, ...]) -> None:
    """Raises UsageError unless these are 1 to 16 numbers in 0.01..1000."""
    is_valid = 1 <= len(values) <= 16 and all(math.isfinite(t) and 0.01 <= t <= 1000 for t in values)
    require(is_valid, "temperature", list(values), "must be 1 to 16 numbers in 0.01..1000")
