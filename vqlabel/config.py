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
DEFAULT_BITS = 128
MAX_SLOTS = 1024  # codes of a label
MAX_EXACT_CLASSES, LEVEL_BITS = 16, 5  # classes kept exactly; bits of the log-odds of each
MAX_VIEW = 1 << 16  # pixels
MIX = (1.0, 4.0, 20.0)  # temperatures of a codec whose student is unknown: FKD and TinyViT sit at 1, LPQLD goes from 20 to 2


class JsonConfig:
    """Base of the frozen dataclasses that are stored as JSON: from_dict(to_dict(config)) == config."""

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


def _inner(value: Any, hint: Any) -> Any:
    """A dictionary as the configuration that the annotation names, where it names one."""
    for kind in typing.get_args(hint):
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, JsonConfig):
            return kind.from_dict(value)
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig(JsonConfig):
    """What a user may say to `fit`. None: decided from `bits` and the dump, and shown in the resolved configuration."""

    codec: str | None = None  # a kind of `codecs.registry`; None: sparse where k numbers of a label are known, else vqae
    bits: int | None = None  # code bits per label; None: what a budget leaves for them, else DEFAULT_BITS
    bytes: int | None = None  # of the file without augmentation and order
    ratio: float | None = None  # the same as a share of fp16 labels: 2 * labels * C / bytes
    slots: int | None = None  # m, codes per label; with `variable_rate` the largest number
    variable_rate: bool = False  # every label has as many slots as pay; `bits` are those of the mean label, its count apart
    codebook_size: int | None = None  # k
    code_width: int | None = None  # d_c: given, the latent is cut into latent / code_width groups
    latent: int | None = None  # d_h: rank of the decoder's output map
    weight_bits: int | None = None  # of a stored number of codebooks, decoder and prior
    prior: bool | None = None  # condition on image, partner, lambda, crop ...; None: where the dump has them and they help
    image_width: int | None = None  # numbers that the prior keeps of an image
    hidden: int | None = None  # units of the prior's hidden layer
    temperature: tuple[float, ...] | None = None  # the student's; KL is trained at each. None: as the layout says, else MIX
    exact_classes: int | None = 0  # classes kept exactly, before the slots; None: as many as their bits pay for in KL
    gain: float | None = None  # decoded labels' distance from their mean over calibrated ones'; None: unbiased
    epochs: int | None = None  # passes over the labels that fit sees, in each part of the fit
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
        require(
            not budget or self.codec in (None, "vqae"), "codec", self.codec, "has no sizes that a budget could choose; vqae has"
        )
        require(
            not budget or self.code_width is None, "code_width", self.code_width, "cuts code bits that you name: give no budget"
        )
        alone = self.codec in (None, "vqae") and self.code_width is None
        require(self.slots != 0 or alone, "slots", 0, "must be 1..1024: only a vqae of residual slots can leave all to its prior")
        require(self.gain is None or 0.1 <= self.gain <= 10, "gain", self.gain, "must be 0.1..10 (1: calibrated labels)")
        if self.variable_rate:
            _check_variable(self)
        require(0 <= self.seed < 1 << 32, "seed", self.seed, "must be 0..4294967295")
        if self.temperature is not None:
            check_temperatures(self.temperature)

    @property
    def target_bits(self) -> int:
        """Code bits per label where no budget is named."""
        return DEFAULT_BITS if self.bits is None else self.bits


def _check_variable(config: FitConfig) -> None:
    """Raises UsageError where a label cannot have a number of slots of its own."""
    only = "is for residual slots of a vqae, whose first codes are a label: leave out "
    require(config.codec in (None, "vqae"), "variable_rate", True, f"{only}--codec {config.codec}, or --variable-rate")
    require(config.code_width is None, "variable_rate", True, f"{only}--code-width {config.code_width}, or --variable-rate")
    require(
        config.exact_classes == 0,
        "variable_rate",
        True,
        "must be left out beside --exact-classes: a label with a head has one rate",
    )
    require(
        config.slots != 0 and config.bits != 0,
        "variable_rate",
        True,
        "must be left out where there are 0 slots: a prior has one rate",
    )


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
    good = 1 <= len(values) <= 16 and all(math.isfinite(t) and 0.01 <= t <= 1000 for t in values)
    require(good, "temperature", list(values), "must be 1 to 16 numbers in 0.01..1000")
