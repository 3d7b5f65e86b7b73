"""A budget in bytes -> the largest codec inside it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from vqlabel.codecs.vqae.config import PriorConfig, VqaeConfig
from vqlabel.codecs.vqae.fit.dataset_stats import DatasetStats
from vqlabel.codecs.vqae.fit.rules import (
    MAX_LATENT,
    NOTHING_LEFT,
    codebook_size,
    exact_class_bits,
    exact_classes,
    has_lift,
    named_rate,
    spread_slots,
    widest_code,
)
from vqlabel.codecs.vqae.sizes import bits_of, file_bytes
from vqlabel.codecs.weights import stored_bytes
from vqlabel.config import MAX_SLOTS, MIX, FitConfig
from vqlabel.container.overhead import FILE_BYTES
from vqlabel.errors import UsageError

RATES_TRIED = 12  # each half the one before, where a budget leaves too little for the codec
CODE_SHARE = 0.5  # of a budget: what codes take, the rest is codec
MIN_LATENT = 12  # directions in which labels differ: students of fewer lose more than codes bring (docs/how-it-works.md)
SMALL_WIDTH = 4  # bits of a code of the smallest codebook that is tried within a budget
BOOKS_SHARE = 0.2  # bytes of codebooks in those of codes, at most, within a budget: a larger latent is worth more
MIN_WEIGHT_BITS, DEFAULT_BITS, MAX_WEIGHT_BITS = 3, 4, 8  # of a stored number, under a budget


def within(config: FitConfig, stats: DatasetStats, prior: PriorConfig | None, budget: int) -> VqaeConfig:
    """The largest codec inside `budget` bytes: codes take about half of it, the latent and all that grows with it the rest.

    A shape is passed over where a smaller codebook serves better: where its codebooks take too much of what a larger latent could have
    (with fewer slots even more so), or where not even one slot of it leaves enough directions.
    """
    each = 8 * (budget - FILE_BYTES) / max(1, stats.labels)
    head = exact_classes(config, stats, int(CODE_SHARE * each))
    head_bits = head * exact_class_bits(stats)
    each = max(0, each - head_bits)
    enough = _enough(config, stats, prior, head)
    flat: VqaeConfig | None = None  # inside the budget, in fewer directions than that
    widest = config.latent or min(MAX_LATENT, stats.classes - 1)
    too_large, flat_at_one = 0, False
    for shape in _shapes(config, stats, prior, each, head_bits):
        if shape.k == too_large or (flat_at_one and shape.smaller):
            continue
        bare = VqaeConfig(
            classes=stats.classes, domain=stats.domain, slots=shape.slots, codebook_size=shape.k, latent=2, code_width=2,
            quantizer="residual", weight_bits=config.weight_bits or DEFAULT_BITS, prior=prior, temperature=config.temperature or MIX,
            head=head, lift=has_lift(config, stats, head, budget), variable=config.variable_rate, rate=shape.rate,
        )  # fmt: skip
        best = _widest(bare, stats, budget, config, enough)
        if best is None:
            continue
        if shape.smaller and best.latent < widest and _codebooks_share(best, stats.labels) > BOOKS_SHARE:
            too_large = shape.k
            continue
        if best.latent >= enough:
            return best
        flat_at_one = flat_at_one or shape.slots == 1
        if flat is None or best.latent > flat.latent:
            flat = best
    if flat is not None:
        return flat
    least = file_bytes(_scaled(replace(bare, weight_bits=MIN_WEIGHT_BITS), 2, config), stats.labels)
    dense = 2 * stats.labels * stats.classes
    share = (
        f"1/{dense / least:.0f} of fp16"
        if least < dense
        else f"more than the {dense} of fp16: store these as they are, --codec raw"
    )
    raise UsageError(
        f"{stats.labels} labels of {stats.classes} classes do not fit into {budget} bytes; the least is about {least} ({share})"
    )


def _enough(config: FitConfig, stats: DatasetStats, prior: PriorConfig | None, head: int) -> int:
    """Directions that are worth more than codes. Not to those who count in KL, by a head or by variable slots, and not without a prior,
    where codes are all that a label has.
    """
    if config.latent or prior is None or config.variable_rate or head:
        return 0
    return min(MIN_LATENT, stats.classes // 2)


def _widest(bare: VqaeConfig, stats: DatasetStats, budget: int, config: FitConfig, enough: int) -> VqaeConfig | None:
    """`largest`, of the fewest bits a number with which the latent is not as large as it may be, but for one that has `enough`."""
    best = None
    for bits in [bare.weight_bits] if config.weight_bits else range(DEFAULT_BITS, MAX_WEIGHT_BITS + 1):
        finer = largest(replace(bare, weight_bits=bits), stats, budget, config)
        if finer is None or (best is not None and finer.latent < enough):
            break
        best = finer
        if best.latent < min(MAX_LATENT, stats.classes - 1):
            break
    return best


class _Shape(NamedTuple):
    """How a label is coded."""

    slots: int
    k: int
    rate: float = 0.0  # of variable labels: code bits on average
    smaller: bool = False  # whether smaller codebooks are tried as well


def _shapes(config: FitConfig, stats: DatasetStats, prior: PriorConfig | None, each: float, head_bits: int) -> Iterator[_Shape]:
    """What is tried in turn: slots and bits that the user named; else a share of the `each` bits that a budget has for a label, in codes of
    every width, and all that is less, for budgets that this leaves too little of: down to one slot of a small codebook, and none.

    Raises:
        UsageError: no slot is left, and there is no prior.
    """
    open_ended = config.bits is None and config.slots is None and not config.variable_rate
    least = 1 if prior is None else 0
    widths = _code_widths(config, stats, head_bits)
    if open_ended and not least and not round(CODE_SHARE * each / widths[0]):
        widths = widths[:1]  # a budget for no code
    for width in widths:
        k = config.codebook_size or 1 << width
        if config.variable_rate:
            found = _variable_shapes(config, each, k)
        elif config.slots is not None:
            found = [_Shape(config.slots, k)]
        elif config.bits is not None:
            found = [_Shape(max(0, config.bits - head_bits) // width, k)]
        else:
            found = [_Shape(slots, k) for slots in range(max(least, min(MAX_SLOTS, round(CODE_SHARE * each / width))), 0, -1)]
        if any(not shape.slots for shape in found) and prior is None:
            raise UsageError(NOTHING_LEFT)
        yield from (shape._replace(smaller=width > widths[-1]) for shape in found)
    if open_ended and not least:
        yield _Shape(0, 1 << widths[0])


def _code_widths(config: FitConfig, stats: DatasetStats, head_bits: int) -> list[int]:
    """Bits of a code, the most first, that a budget may choose from: those that spend the bits that the user named; one where slots are."""
    if config.codebook_size is not None:
        return [(config.codebook_size - 1).bit_length()]
    named = max(1, config.bits - head_bits) if config.bits is not None and not config.variable_rate else None
    most = widest_code(stats, named or 8)
    widths = list(range(most, min(most, SMALL_WIDTH) - 1, -1))
    if config.slots is not None:
        return widths[:1]
    if named is not None:
        whole = [width for width in widths if named % width == 0]
        return whole or [(codebook_size(config, stats, named) - 1).bit_length()]
    if config.bits is not None:  # so many, on average, that the most slots there are can hold them
        widths = [width for width in widths if config.bits <= MAX_SLOTS * width] or widths[:1]
    return widths


def _variable_shapes(config: FitConfig, each: float, k: int) -> list[_Shape]:
    """Of labels with as many slots as pay: the most slots, and code bits on average, to which a count comes."""
    width = (k - 1).bit_length()
    if config.bits is not None or config.slots is not None:
        rate, slots = named_rate(config, width, config.bits)
        return [_Shape(slots, k, rate)]
    rate = CODE_SHARE * each - spread_slots(CODE_SHARE * each / width).bit_length()
    rates = [min(float(MAX_SLOTS * width), rate / 2**halved) for halved in range(RATES_TRIED)]
    return [_Shape(spread_slots(rate / width), k, round(rate, 2)) for rate in [*(rate for rate in rates if rate > 1), 1.0]]


def _codebooks_share(config: VqaeConfig, labels: int) -> float:
    """Bytes of the codebooks in those of all codes."""
    codes = labels * (config.rate or config.slots * config.code_bits) / 8
    shape = (config.slots, config.codebook_size, config.code_width)
    return stored_bytes(shape, bits_of("codebook", config.weight_bits)) / codes if config.slots else 0.0


def largest(shape: VqaeConfig, stats: DatasetStats, budget: int, config: FitConfig) -> VqaeConfig | None:
    """`shape` scaled up until the next latent would not fit; what is left goes to the prior's hidden layer. None: nothing fits."""
    low, high = 1, min(2 * MAX_LATENT, max(2, stats.classes - 1))
    if config.latent is not None:
        low = high = config.latent
    while low < high:
        middle = -(-(low + high) // 2)
        if file_bytes(_scaled(shape, middle, config), stats.labels) <= budget:
            low = middle
        else:
            high = middle - 1
    found = _scaled(shape, low, config)
    if low < 2 or file_bytes(found, stats.labels) > budget:
        return None
    if found.prior is None or config.hidden is not None:
        return found
    wider = range(found.prior.hidden + 1, 4 * found.prior.hidden + 1)
    for hidden in wider:
        next_one = replace(found, prior=replace(found.prior, hidden=hidden))
        if file_bytes(next_one, stats.labels) > budget:
            break
        found = next_one
    return found


def _scaled(shape: VqaeConfig, latent: int, config: FitConfig) -> VqaeConfig:
    """`shape` with this latent, three quarters as many numbers per image, half as many hidden units.

    Students gain more from numbers per image than from hidden units, at the same bytes and KL (docs/how-it-works.md).
    """
    prior = shape.prior and replace(
        shape.prior, image_width=config.image_width or max(1, 3 * latent // 4), hidden=config.hidden or max(8, latent // 2)
    )
    return replace(shape, latent=latent, code_width=latent, prior=prior)
