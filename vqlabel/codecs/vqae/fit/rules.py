"""What the user named, and what the dump is -> the numbers that the user left open, where code bits are given.

The rules are plain guesses at what suits most dumps; `vqlabel tune` tries what is around them.
"""

import math

from vqlabel.codecs.vqae.config import PriorConfig, VqaeConfig
from vqlabel.codecs.vqae.fit.dataset_stats import DatasetStats
from vqlabel.config import LEVEL_BITS, MAX_SLOTS, MIX, FitConfig
from vqlabel.container.overhead import HEADER_GROWTH
from vqlabel.errors import UsageError, require

MAX_LATENT, MAX_IMAGE_WIDTH, MAX_HIDDEN = 256, 64, 256  # sizes of a codec whose bytes nobody limits
LIFT_SHARE = 0.05  # of a budget, at most, that the header may grow by for a lift
NOTHING_LEFT = "0 slots leave nothing but a prior, and these records allow none; give --bits, or image indices"
CODE_LABELS = 6  # labels that a code is seen in, at least: k-means makes no use of fewer
LATENT_LABELS = 24  # for each number of a latent whose bytes nobody limits
FREE_BITS = 6  # of a stored number where nobody named a budget: the least that costs no distortion
# --exact-classes auto: code bits, in what a class takes, from which on one and two pay; temperatures where.
HEAD_PAYS, HEAD_BELOW = (2, 8), 4.0


def spread_slots(average: float) -> int:
    """The most slots that a label may have, so that labels which have as many as pay have `average` of them."""
    return min(MAX_SLOTS, max(math.ceil(2 * average), math.ceil(average) + 2))


def prior_for(config: FitConfig, stats: DatasetStats) -> PriorConfig | None:
    """None where the records do not say which image they belong to, or hardly any image comes twice."""
    if not stats.images or (config.prior is None and stats.seen < 2 * stats.images):
        return None
    return PriorConfig(
        images=stats.images, image_width=config.image_width or MAX_IMAGE_WIDTH, hidden=config.hidden or MAX_HIDDEN,
        fields=stats.fields, view=stats.view,
    )  # fmt: skip


def exact_class_bits(stats: DatasetStats) -> int:
    """Of a class of the head: its id and its level."""
    return (stats.classes - 1).bit_length() + LEVEL_BITS


def exact_classes(config: FitConfig, stats: DatasetStats, bits: int) -> int:
    """Classes kept exactly; where that is left open, as many as `bits` code bits per label pay for in KL at a low temperature."""
    if config.exact_classes is not None or stats.domain == "sigmoid":
        return config.exact_classes or 0
    low = min(config.temperature or MIX) < HEAD_BELOW
    return min(stats.classes - 1, sum(bits >= times * exact_class_bits(stats) for times in HEAD_PAYS)) if low else 0


def has_lift(config: FitConfig, stats: DatasetStats, head: int, budget: int | None = None) -> bool:
    """Labels for students of known temperatures are unbiased as far as that goes (`gain.py`), unless it takes too much of a budget."""
    if budget is not None and LIFT_SHARE * budget < HEADER_GROWTH:
        return False
    if stats.domain == "sigmoid":
        return False
    return config.gain is None and not head and config.temperature is not None and config.temperature != MIX


def widest_code(stats: DatasetStats, bits: int) -> int:
    """Bits of a code: 8, less where a code would be seen in hardly any label."""
    return max(1, min(8, bits, int(math.log2(max(1, stats.seen / CODE_LABELS)))))


def codebook_size(config: FitConfig, stats: DatasetStats, bits: int) -> int:
    """The largest; of those within 2 bits of that, the one that spends the most of `bits`."""
    if config.codebook_size:
        return config.codebook_size
    most = widest_code(stats, bits)
    return 1 << max(range(max(1, most - 2), most + 1), key=lambda width: (bits // width * width, width))


def at_code_bits(config: FitConfig, stats: DatasetStats, prior: PriorConfig | None) -> VqaeConfig:
    """Code bits are given; the latent is what the labels can teach."""
    bits = config.target_bits
    head = exact_classes(config, stats, bits)
    bits -= head * exact_class_bits(stats)
    if bits < 0:
        raise UsageError(
            f"--exact-classes {head} takes {head * exact_class_bits(stats)} bits, {exact_class_bits(stats)} a class; --bits is {config.target_bits}"
        )
    k = codebook_size(config, stats, bits)
    width = (k - 1).bit_length()
    latent = config.latent or max(2, min(MAX_LATENT, max(16, stats.seen // LATENT_LABELS), stats.classes - 1))
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
        quantizer=quantizer, weight_bits=config.weight_bits or FREE_BITS, prior=prior, temperature=config.temperature or MIX,
        head=head, lift=has_lift(config, stats, head), variable=config.variable_rate, rate=rate,
    )  # fmt: skip


def named_rate(config: FitConfig, width: int, bits: int | None) -> tuple[float, int]:
    """Bits on average and the most slots, of which the user named one or both."""
    if config.slots is None:
        assert bits is not None
        return float(bits), spread_slots(bits / width)
    most = config.slots * width
    if config.bits is None:
        return most / 2, config.slots
    require(
        config.bits <= most,
        "bits",
        config.bits,
        f"must be at most {most}, those of --slots {config.slots}: labels have them on average",
    )
    return float(config.bits), config.slots
