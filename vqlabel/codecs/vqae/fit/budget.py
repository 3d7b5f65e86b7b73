"""A budget in bytes -> the largest codec inside it."""

import math
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
from vqlabel.config import MAX_SLOTS, FitConfig
from vqlabel.container.overhead import FILE_BYTES
from vqlabel.errors import UsageError

MAX_RATES = 12  # variable rates to try, each half of the one before, if a budget leaves too little for the codec
CODE_SHARE = 0.5  # share of a budget for codes; the codec gets the rest
MIN_LATENT = 12  # latent width below which students lose more than additional codes gain (docs/how-it-works.md)
MIN_CODE_WIDTH = 4  # bits of a code of the smallest codebook to try
MAX_CODEBOOK_SHARE = 0.2  # bytes of codebooks over bytes of codes; above it, a wider latent lowers the loss more
MIN_WEIGHT_BITS, DEFAULT_WEIGHT_BITS, MAX_WEIGHT_BITS = 3, 4, 8  # of a stored number, under a budget


def within(config: FitConfig, stats: DatasetStats, prior: PriorConfig | None, budget: int) -> VqaeConfig:
    """The largest codec inside `budget` bytes: codes take about half of it, the latent and all that grows with it the
    rest.

    Raises:
        UsageError: the labels do not fit into the budget; or no slot is left and there is no prior.
    """
    bits = 8 * (budget - FILE_BYTES) / max(1, stats.labels)
    exact = exact_classes(config, stats, int(CODE_SHARE * bits))
    exact_bits = exact * exact_class_bits(stats)
    shapes = _shapes(config, stats, prior, max(0, bits - exact_bits), exact_bits)
    lift = has_lift(config, stats, exact, budget)
    search = _BudgetSearch(config, stats, budget, _min_latent(config, stats, prior, exact))
    for shape in shapes:
        if search.skips(shape):
            continue
        bare = VqaeConfig(
            classes=stats.classes, domain=stats.domain, slots=shape.slots, codebook_size=shape.k, latent=2, code_width=2,
            quantizer="residual", weight_bits=config.weight_bits or DEFAULT_WEIGHT_BITS, prior=prior, temperature=config.temperatures,
            head=exact, lift=lift, variable=config.variable_rate, rate=shape.rate,
        )  # fmt: skip
        if search.accepts(shape, bare):
            break
    if search.best is None:
        raise _too_small(_scaled(replace(bare, weight_bits=MIN_WEIGHT_BITS), 2, config), stats, budget)
    return search.best


def _too_small(smallest: VqaeConfig, stats: DatasetStats, budget: int) -> UsageError:
    least, dense = file_bytes(smallest, stats.labels), 2 * stats.labels * stats.classes
    share = f"--ratio {math.floor(dense / least)}"
    if least >= dense:
        share = f"more than the {dense} of fp16: store these as they are, --codec raw"
    return UsageError(
        f"{stats.labels} labels of {stats.classes} classes do not fit into {budget} bytes; the least is about {least} ({share})"
    )


def _min_latent(config: FitConfig, stats: DatasetStats, prior: PriorConfig | None, exact: int) -> int:
    """Minimum latent width to reach before spending bytes on codes.

    Zero when the user minimises KL (exact classes or a variable rate) or when there is no prior, because codes are then
    the only per-label information.
    """
    if config.latent or prior is None or config.variable_rate or exact:
        return 0
    return min(MIN_LATENT, stats.classes // 2)


class _Shape(NamedTuple):
    """Slots and codebook size to try."""

    slots: int
    k: int
    rate: float = 0.0  # average code bits per label; 0: every label has all slots
    has_smaller: bool = False  # whether shapes with smaller codebooks follow


class _BudgetSearch:
    """Tries shapes in turn, and keeps the first with the minimum latent, else the one with the widest latent.

    Shapes of a codebook size are skipped once that size is known to be too large: its codebooks take more than
    MAX_CODEBOOK_SHARE of the bytes of the codes while a wider latent is possible, or even with one slot the latent is
    below the minimum. Both apply only while smaller codebooks remain to be tried.
    """

    def __init__(self, config: FitConfig, stats: DatasetStats, budget: int, min_latent: int) -> None:
        self.config, self.stats, self.budget, self.min_latent = config, stats, budget, min_latent
        self.best: VqaeConfig | None = None
        self._widest = config.latent or min(MAX_LATENT, stats.classes - 1)
        self._rejected_k = 0  # codebook size whose codebooks take too many bytes
        self._narrow_at_one_slot = False

    def skips(self, shape: _Shape) -> bool:
        return shape.k == self._rejected_k or (self._narrow_at_one_slot and shape.has_smaller)

    def accepts(self, shape: _Shape, bare: VqaeConfig) -> bool:
        """Whether `bare`, scaled to the budget, has the minimum latent; otherwise it may still become `best`."""
        scaled = _with_weight_bits(bare, self.stats, self.budget, self.config, self.min_latent)
        if scaled is None:
            return False
        if shape.has_smaller and scaled.latent < self._widest and _codebook_share(scaled, self.stats.labels) > MAX_CODEBOOK_SHARE:
            self._rejected_k = shape.k
            return False
        if scaled.latent >= self.min_latent:
            self.best = scaled
            return True
        self._narrow_at_one_slot = self._narrow_at_one_slot or shape.slots == 1
        if self.best is None or scaled.latent > self.best.latent:
            self.best = scaled
        return False


def _with_weight_bits(bare: VqaeConfig, stats: DatasetStats, budget: int, config: FitConfig, min_latent: int) -> VqaeConfig | None:
    """`largest` with the fewest bits per weight, or with more if the latent stays at its maximum or at least
    `min_latent`.
    """
    best = None
    for bits in [bare.weight_bits] if config.weight_bits else range(DEFAULT_WEIGHT_BITS, MAX_WEIGHT_BITS + 1):
        finer = largest(replace(bare, weight_bits=bits), stats, budget, config)
        if finer is None or (best is not None and finer.latent < min_latent):
            break
        best = finer
        if best.latent < min(MAX_LATENT, stats.classes - 1):
            break
    return best


def _shapes(config: FitConfig, stats: DatasetStats, prior: PriorConfig | None, bits: float, exact_bits: int) -> Iterator[_Shape]:
    """Shapes to try in turn, from large to small.

    Slots or bits that the user named are kept. Otherwise, for every code width, slots decrease from CODE_SHARE of the
    budget's `bits` per label to one, and with a prior to none.

    Raises:
        UsageError: no slot is left, and there is no prior.
    """
    open_ended = config.bits is None and config.slots is None and not config.variable_rate
    min_slots = 1 if prior is None else 0
    widths = _code_widths(config, stats, exact_bits)
    if open_ended and not min_slots and not round(CODE_SHARE * bits / widths[0]):
        widths = widths[:1]  # the budget leaves no code
    for width in widths:
        k = config.codebook_size or 1 << width
        if config.variable_rate:
            shapes = _variable_shapes(config, bits, k)
        elif config.slots is not None:
            shapes = [_Shape(config.slots, k)]
        elif config.bits is not None:
            shapes = [_Shape(max(0, config.bits - exact_bits) // width, k)]
        else:
            max_slots = max(min_slots, min(MAX_SLOTS, round(CODE_SHARE * bits / width)))
            shapes = [_Shape(slots, k) for slots in range(max_slots, 0, -1)]
        if any(not shape.slots for shape in shapes) and prior is None:
            raise UsageError(NOTHING_LEFT)
        yield from (shape._replace(has_smaller=width > widths[-1]) for shape in shapes)
    if open_ended and not min_slots:
        yield _Shape(0, 1 << widths[0])


def _code_widths(config: FitConfig, stats: DatasetStats, exact_bits: int) -> list[int]:
    """Bits of a code to try, in decreasing order: those that use all bits that the user named; only one if the user
    named slots.
    """
    if config.codebook_size is not None:
        return [(config.codebook_size - 1).bit_length()]
    named = max(1, config.bits - exact_bits) if config.bits is not None and not config.variable_rate else None
    widest = widest_code(stats, named or 8)
    widths = list(range(widest, min(widest, MIN_CODE_WIDTH) - 1, -1))
    if config.slots is not None:
        return widths[:1]
    if named is not None:
        divisors = [width for width in widths if named % width == 0]
        return divisors or [(codebook_size(config, stats, named) - 1).bit_length()]
    if config.bits is not None:  # an average that MAX_SLOTS codes can reach
        widths = [width for width in widths if config.bits <= MAX_SLOTS * width] or widths[:1]
    return widths


def _variable_shapes(config: FitConfig, bits: float, k: int) -> list[_Shape]:
    """Shapes of a variable rate: average code bits per label and maximum slots; the code count of a label takes bits as
    well.
    """
    width = (k - 1).bit_length()
    if config.bits is not None or config.slots is not None:
        rate, slots = named_rate(config, width, config.bits)
        return [_Shape(slots, k, rate)]
    rate = CODE_SHARE * bits - spread_slots(CODE_SHARE * bits / width).bit_length()
    rates = [min(float(MAX_SLOTS * width), rate / 2**halvings) for halvings in range(MAX_RATES)]
    return [_Shape(spread_slots(rate / width), k, round(rate, 2)) for rate in [*(rate for rate in rates if rate > 1), 1.0]]


def _codebook_share(config: VqaeConfig, labels: int) -> float:
    """Bytes of the codebooks over bytes of all codes."""
    codes = labels * (config.rate or config.slots * config.code_bits) / 8
    shape = (config.slots, config.codebook_size, config.code_width)
    return stored_bytes(shape, bits_of("codebook", config.weight_bits)) / codes if config.slots else 0.0


def largest(shape: VqaeConfig, stats: DatasetStats, budget: int, config: FitConfig) -> VqaeConfig | None:
    """`shape` with the widest latent that fits; bytes left over go to the prior's hidden layer. None: nothing fits."""
    low, high = 1, min(2 * MAX_LATENT, max(2, stats.classes - 1))
    if config.latent is not None:
        low = high = config.latent
    while low < high:
        middle = -(-(low + high) // 2)
        if file_bytes(_scaled(shape, middle, config), stats.labels) <= budget:
            low = middle
        else:
            high = middle - 1
    scaled = _scaled(shape, low, config)
    if low < 2 or file_bytes(scaled, stats.labels) > budget:
        return None
    if scaled.prior is None or config.hidden is not None:
        return scaled
    for hidden in range(scaled.prior.hidden + 1, 4 * scaled.prior.hidden + 1):
        wider = replace(scaled, prior=replace(scaled.prior, hidden=hidden))
        if file_bytes(wider, stats.labels) > budget:
            break
        scaled = wider
    return scaled


def _scaled(shape: VqaeConfig, latent: int, config: FitConfig) -> VqaeConfig:
    """`shape` with this latent, three quarters as many numbers per image, and half as many hidden units.

    Students gain more from numbers per image than from hidden units, at the same bytes and KL (docs/how-it-works.md).
    """
    prior = shape.prior and replace(
        shape.prior, image_width=config.image_width or max(1, 3 * latent // 4), hidden=config.hidden or max(8, latent // 2)
    )
    return replace(shape, latent=latent, code_width=latent, prior=prior)
