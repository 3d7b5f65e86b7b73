"""The sizes that the user left open, when code bits (not bytes) are given.

The rules are estimates that suit most dumps; `vqlabel tune` searches around them.
"""

import math

from vqlabel.codecs.vqae.config import PriorConfig, VqaeConfig
from vqlabel.codecs.vqae.fit.dataset_stats import DatasetStats
from vqlabel.config import LEVEL_BITS, MAX_SLOTS, FitConfig
from vqlabel.container.overhead import HEADER_GROWTH
from vqlabel.errors import UsageError, require

MAX_LATENT, MAX_IMAGE_WIDTH, MAX_HIDDEN = 256, 64, 256  # numbers per latent and per image, hidden units, without a budget
MAX_LIFT_SHARE = 0.05  # share of a budget that the header may grow by to store the tail gain
NOTHING_LEFT = (
    "the rate leaves no codes (0 slots), and labels cannot be predicted without codes because the dump does not record its images, or "
    "--no-prior is given; raise --bits or --slots, or pass --images"
)
MIN_CODE_LABELS = 6  # training labels per code: with fewer, k-means does not use the larger codebook
LATENT_LABELS = 24  # training labels per number of a latent, without a budget
FREE_BITS = 6  # bits of a stored number without a budget: the fewest that add no measurable distortion
# --exact-classes auto: code bits per label, in multiples of one exact class's bits, above which one and two
# classes lower KL,
EXACT_CLASS_MULTIPLES = (2, 8)
MAX_EXACT_TEMPERATURE = 4.0  # if the lowest temperature is below this


def spread_slots(average: float) -> int:
    """Maximum slots at a variable rate with `average` codes per label: twice as many, and at least 2 more."""
    return min(MAX_SLOTS, max(math.ceil(2 * average), math.ceil(average) + 2))


def prior_for(config: FitConfig, stats: DatasetStats) -> PriorConfig | None:
    """None if the records have no image indices, or by default if images have fewer than 2 training labels each."""
    if not stats.images or (config.prior is None and stats.train_labels < 2 * stats.images):
        return None
    return PriorConfig(
        images=stats.images, image_width=config.image_width or MAX_IMAGE_WIDTH, hidden=config.hidden or MAX_HIDDEN,
        fields=stats.fields, view=stats.view,
    )  # fmt: skip


def exact_class_bits(stats: DatasetStats) -> int:
    """Bits of one exact class: its id and its level."""
    return (stats.classes - 1).bit_length() + LEVEL_BITS


def exact_classes(config: FitConfig, stats: DatasetStats, bits: int) -> int:
    """Exact classes per label; if the user left it open, as many as lower KL at `bits` code bits per label and a low
    temperature.
    """
    if config.exact_classes is not None or stats.domain == "sigmoid":
        return config.exact_classes or 0
    if min(config.temperatures) >= MAX_EXACT_TEMPERATURE:
        return 0
    return min(stats.classes - 1, sum(bits >= multiple * exact_class_bits(stats) for multiple in EXACT_CLASS_MULTIPLES))


def has_lift(config: FitConfig, stats: DatasetStats, exact: int, budget: int | None = None) -> bool:
    """Whether labels get a tail gain (`debias.py`): only if they are debiased and its header bytes fit the budget."""
    if budget is not None and MAX_LIFT_SHARE * budget < HEADER_GROWTH:
        return False
    if stats.domain == "sigmoid":
        return False
    return config.gain is None and not exact


def widest_code(stats: DatasetStats, bits: int) -> int:
    """Bits of a code: at most 8 and `bits`, and few enough for MIN_CODE_LABELS training labels per code."""
    return max(1, min(8, bits, int(math.log2(max(1, stats.train_labels / MIN_CODE_LABELS)))))


def codebook_size(config: FitConfig, stats: DatasetStats, bits: int) -> int:
    """Of the widest code and those up to 2 bits narrower, the one whose slots use the most of `bits`."""
    if config.codebook_size:
        return config.codebook_size
    widest = widest_code(stats, bits)
    return 1 << max(range(max(1, widest - 2), widest + 1), key=lambda width: (bits // width * width, width))


def at_code_bits(config: FitConfig, stats: DatasetStats, prior: PriorConfig | None) -> VqaeConfig:
    """The configuration with the given code bits, and a latent as wide as the number of training labels supports."""
    bits = config.target_bits
    exact = exact_classes(config, stats, bits)
    exact_bits = exact * exact_class_bits(stats)
    if bits < exact_bits:
        raise UsageError(
            f"--exact-classes {exact} takes {exact_bits} bits, {exact_class_bits(stats)} a class; --bits is {config.target_bits}"
        )
    bits -= exact_bits
    k = codebook_size(config, stats, bits)
    width = (k - 1).bit_length()
    latent = config.latent or max(2, min(MAX_LATENT, max(16, stats.train_labels // LATENT_LABELS), stats.classes - 1))
    rate = 0.0
    if config.variable_rate:
        rate, slots = named_rate(config, width, bits)
    else:
        slots = config.slots if config.slots is not None else bits // width
    if not slots and prior is None:
        raise UsageError(NOTHING_LEFT)
    code_width, quantizer = latent, "residual"
    if config.code_width is not None:
        slots = config.slots or max(1, (config.latent or bits // width * config.code_width) // config.code_width)
        latent, code_width, quantizer = config.latent or slots * config.code_width, config.code_width, "grouped"
    return VqaeConfig(
        classes=stats.classes, domain=stats.domain, slots=slots, codebook_size=k, latent=latent, code_width=code_width,
        quantizer=quantizer, weight_bits=config.weight_bits or FREE_BITS, prior=prior, temperature=config.temperatures,
        head=exact, lift=has_lift(config, stats, exact), variable=config.variable_rate, rate=rate,
    )  # fmt: skip


def named_rate(config: FitConfig, width: int, bits: int | None) -> tuple[float, int]:
    """Average code bits per label and maximum slots of a variable rate, of which the user named one or both.

    Args:
        width: bits of a code.
        bits: code bits per label, if the user named no slots.
    """
    if config.slots is None:
        assert bits is not None
        return float(bits), spread_slots(bits / width)
    limit = config.slots * width
    if config.bits is None:
        return limit / 2, config.slots
    require(
        config.bits <= limit,
        "bits",
        config.bits,
        f"must be at most {limit}, the bits of --slots {config.slots}: --bits is the average per label",
    )
    return float(config.bits), config.slots
