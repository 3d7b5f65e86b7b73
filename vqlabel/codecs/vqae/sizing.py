"""What a user named, and what the dump is -> every number of the codec. A budget in bytes -> the largest codec inside it.

The rules below are plain guesses at what suits most dumps; `vqlabel tune` tries what is around them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from vqlabel.codecs.vqae.prior import WIDTHS
from vqlabel.codecs.weights import stored_bytes
from vqlabel.config import LEVEL_BITS, MIX, SLOTS_MOST, FitConfig, PriorConfig, VqaeConfig
from vqlabel.container import overhead
from vqlabel.errors import UsageError, require

LATENT_MOST, IMAGE_MOST, HIDDEN_MOST = 256, 64, 256  # sizes of a codec whose bytes nobody limits
NETWORK = ("prior.mixed", "prior.inside", "prior.outside")  # small, and all labels pass through it: worth 2 bits more a number
HEADER, CHUNK_LABELS, CHUNK_ROW = overhead.FILE_BYTES, overhead.CHUNK_ROWS, overhead.CHUNK_TABLE_ROW
CHUNK_CODES, PADDING = overhead.NARROW_CHUNK_ROWS, overhead.STREAM_PADDING  # of variable labels, and of labels without a code
ZSTD_MORE, MORE_HEADER = overhead.ZSTD_CHUNK_EXCESS, overhead.HEADER_GROWTH
LIFT_SHARE = 0.05  # of a budget, at most, that the header may grow by for a lift
NOTHING_LEFT = "0 slots leave nothing but a prior, and these records allow none; give --bits, or image indices"
RATES_TRIED = 12  # each half the one before, where a budget leaves too little for the codec
CODE_SHARE = 0.5  # of a budget: what codes take, the rest is codec
LATENT_LEAST = 12  # directions in which labels differ: students of fewer lose more than codes bring (docs/how-it-works.md)
SMALL_WIDTH = 4  # bits of a code of the smallest codebook that is tried within a budget
CODE_LABELS = 6  # labels that a code is seen in, at least: k-means makes no use of fewer
BOOKS_SHARE = 0.2  # bytes of codebooks in those of codes, at most, within a budget: a larger latent is worth more
LATENT_LABELS = 24  # for each number of a latent whose bytes nobody limits
LEAST_BITS, USUAL_BITS, MOST_BITS = 3, 4, 8  # of a stored number, under a budget
# --head auto: code bits, in what a class takes, from which on one and two pay; temperatures where.
HEAD_PAYS, HEAD_BELOW = (2, 8), 4.0
FREE_BITS = 6  # of a stored number where nobody named a budget: the least that costs no distortion


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What sizes depend on."""

    labels: int  # in the whole dump
    seen: int  # that the fit sees
    classes: int
    domain: str
    images: int  # 0: the records do not say
    fields: tuple[str, ...]  # of the context
    view: int  # pixels along a view


def bits_of(name: str, weight_bits: int) -> int:
    """Stored width of a number of the decoder weight `name`."""
    return min(8, weight_bits + 2) if name.removeprefix("decoder.").startswith(NETWORK) else weight_bits


def codec_bytes(config: VqaeConfig) -> int:
    """Bytes of the decoder's tensors in a `.vql`."""
    d, w = config.latent, config.weight_bits
    shapes: dict[str, tuple[int, ...]] = {
        "out": (d, config.classes),
        "bias": (config.classes,),
        "center": (d,),
        "contrast": (config.slots + 1,),
    }
    if config.lift:
        shapes["lift"] = (d, d)
    if config.slots:
        shapes["codebook"] = (config.slots, config.codebook_size, config.code_width)
    if config.prior is not None:
        e, h = config.prior.image_width, config.prior.hidden
        inputs = e * (3 if "mix" in config.prior.fields else 1) + sum(WIDTHS[name] for name in config.prior.fields)
        shapes |= {"prior.images": (config.prior.images, e), "prior.mixed": (d, e), "prior.inside": (h, inputs)}
        shapes |= {"prior.inside.bias": (h,), "prior.outside": (d, h), "prior.outside.bias": (d,)}
    return sum(stored_bytes(shape, bits_of(name, w)) for name, shape in shapes.items())


def file_bytes(config: VqaeConfig, labels: int) -> int:
    """Bytes of a `.vql` of this codec and so many labels, without augmentation and order."""
    codes, chunks = math.ceil(labels * config.label_bits / 8), -(-labels // CHUNK_LABELS)
    if not config.label_bits:
        chunks = -(-labels // CHUNK_CODES)
        codes = PADDING * chunks  # zeros, compressed
    elif config.variable:
        codes, chunks = (
            codes + PADDING + ZSTD_MORE * chunks,
            chunks + math.ceil(labels * config.rate / config.code_bits / CHUNK_CODES),
        )
    header = HEADER + MORE_HEADER * (config.prior is not None and (config.lift or config.variable))
    return codes + codec_bytes(config) + header + CHUNK_ROW * chunks


def spread_slots(average: float) -> int:
    """The most slots that a label may have, so that labels which have as many as pay have `average` of them."""
    return min(SLOTS_MOST, max(math.ceil(2 * average), math.ceil(average) + 2))


def resolve(config: FitConfig, facts: Facts) -> VqaeConfig:
    """Every number that the user left open.

    Raises:
        UsageError: a prior was asked for that these records allow not, sizes contradict each other, or a budget is too small.
    """
    prior = None if config.prior is False or config.code_width is not None else _prior(config, facts)
    if config.prior and prior is None:
        raise UsageError("prior: these records do not say which image they belong to (or code_width is given); fit without it")
    budget = budget_of(config, facts.labels, facts.classes)
    return _plain(config, facts, prior) if budget is None else _within(config, facts, prior, budget)


def budget_of(config: FitConfig, labels: int, classes: int) -> int | None:
    """Bytes that a file may have without augmentation and order; None: nobody named a budget."""
    if config.ratio is not None:
        return int(2 * labels * classes / config.ratio)
    return config.bytes


def code_bits_within(budget: int, labels: int) -> int:
    """Code bits per label of the largest file within `budget` bytes whose labels all have as many, and whose codec has no tensors."""
    return (8 * (budget - HEADER - CHUNK_ROW * -(-labels // CHUNK_LABELS))) // max(1, labels)


def _prior(config: FitConfig, facts: Facts) -> PriorConfig | None:
    """None where the records do not say which image they belong to, or hardly any image comes twice."""
    if not facts.images or (config.prior is None and facts.seen < 2 * facts.images):
        return None
    return PriorConfig(
        images=facts.images, image_width=config.image_width or IMAGE_MOST, hidden=config.hidden or HIDDEN_MOST,
        fields=facts.fields, view=facts.view,
    )  # fmt: skip


def _class_bits(facts: Facts) -> int:
    """Of a class of the head: its id and its level."""
    return (facts.classes - 1).bit_length() + LEVEL_BITS


def _head(config: FitConfig, facts: Facts, bits: int) -> int:
    """Classes kept exactly; where that is left open, as many as `bits` code bits per label pay for in KL at a low temperature."""
    if config.head is not None or facts.domain == "sigmoid":
        return config.head or 0
    low = min(config.temperature or MIX) < HEAD_BELOW
    return min(facts.classes - 1, sum(bits >= times * _class_bits(facts) for times in HEAD_PAYS)) if low else 0


def _lifts(config: FitConfig, facts: Facts, head: int, budget: int | None = None) -> bool:
    """Labels for students of known temperatures are unbiased as far as that goes (`contrast.py`), unless it takes too much of a budget."""
    if budget is not None and LIFT_SHARE * budget < MORE_HEADER:
        return False
    if facts.domain == "sigmoid":
        return False
    return config.contrast is None and not head and config.temperature is not None and config.temperature != MIX


def _widest_code(facts: Facts, bits: int) -> int:
    """Bits of a code: 8, less where a code would be seen in hardly any label."""
    return max(1, min(8, bits, int(math.log2(max(1, facts.seen / CODE_LABELS)))))


def _codebook_size(config: FitConfig, facts: Facts, bits: int) -> int:
    """The largest; of those within 2 bits of that, the one that spends the most of `bits`."""
    if config.codebook_size:
        return config.codebook_size
    most = _widest_code(facts, bits)
    return 1 << max(range(max(1, most - 2), most + 1), key=lambda width: (bits // width * width, width))


def _plain(config: FitConfig, facts: Facts, prior: PriorConfig | None) -> VqaeConfig:
    """Code bits are given; the latent is what the labels can teach."""
    bits = config.wanted_bits
    head = _head(config, facts, bits)
    bits -= head * _class_bits(facts)
    if bits < 0:
        raise UsageError(
            f"--head {head} takes {head * _class_bits(facts)} bits, {_class_bits(facts)} a class; --bits is {config.wanted_bits}"
        )
    k = _codebook_size(config, facts, bits)
    width = (k - 1).bit_length()
    latent = config.latent or max(2, min(LATENT_MOST, max(16, facts.seen // LATENT_LABELS), facts.classes - 1))
    rate = 0.0
    if config.variable:
        rate, slots = _named_rate(config, width, bits)
    else:
        slots = config.slots if config.slots is not None else bits // width
    if not slots and prior is None:
        raise UsageError(NOTHING_LEFT)
    code_width, quantizer = latent, "residual"
    if config.code_width is not None:
        slots = config.slots or max(1, (config.latent or bits // width * config.code_width) // config.code_width)
        latent, code_width, quantizer = config.latent or slots * config.code_width, config.code_width, "grouped"
    return VqaeConfig(
        classes=facts.classes, domain=facts.domain, slots=slots, codebook_size=k, latent=latent, code_width=code_width,
        quantizer=quantizer, weight_bits=config.weight_bits or FREE_BITS, prior=prior, temperature=config.temperature or MIX,
        head=head, lift=_lifts(config, facts, head), variable=config.variable, rate=rate,
    )  # fmt: skip


def _within(config: FitConfig, facts: Facts, prior: PriorConfig | None, budget: int) -> VqaeConfig:
    """The largest codec inside `budget` bytes: codes take about half of it, the latent and all that grows with it the rest.

    A shape is passed over where a smaller codebook serves better: where its codebooks take too much of what a larger latent could have
    (with fewer slots even more so), or where not even one slot of it leaves enough directions.
    """
    each = 8 * (budget - HEADER) / max(1, facts.labels)
    head = _head(config, facts, int(CODE_SHARE * each))
    head_bits = head * _class_bits(facts)
    each = max(0, each - head_bits)
    enough = _enough(config, facts, prior, head)
    flat: VqaeConfig | None = None  # inside the budget, in fewer directions than that
    widest = config.latent or min(LATENT_MOST, facts.classes - 1)
    too_large, flat_at_one = 0, False
    for shape in _shapes(config, facts, prior, each, head_bits):
        if shape.k == too_large or (flat_at_one and shape.smaller):
            continue
        bare = VqaeConfig(
            classes=facts.classes, domain=facts.domain, slots=shape.slots, codebook_size=shape.k, latent=2, code_width=2,
            quantizer="residual", weight_bits=config.weight_bits or USUAL_BITS, prior=prior, temperature=config.temperature or MIX,
            head=head, lift=_lifts(config, facts, head, budget), variable=config.variable, rate=shape.rate,
        )  # fmt: skip
        best = _widest(bare, facts, budget, config, enough)
        if best is None:
            continue
        if shape.smaller and best.latent < widest and _codebooks_share(best, facts.labels) > BOOKS_SHARE:
            too_large = shape.k
            continue
        if best.latent >= enough:
            return best
        flat_at_one = flat_at_one or shape.slots == 1
        if flat is None or best.latent > flat.latent:
            flat = best
    if flat is not None:
        return flat
    least = file_bytes(_scaled(replace(bare, weight_bits=LEAST_BITS), 2, config), facts.labels)
    dense = 2 * facts.labels * facts.classes
    share = (
        f"1/{dense / least:.0f} of fp16"
        if least < dense
        else f"more than the {dense} of fp16: store these as they are, --codec raw"
    )
    raise UsageError(
        f"{facts.labels} labels of {facts.classes} classes do not fit into {budget} bytes; the least is about {least} ({share})"
    )


def _enough(config: FitConfig, facts: Facts, prior: PriorConfig | None, head: int) -> int:
    """Directions that are worth more than codes. Not to those who count in KL, by a head or by variable slots, and not without a prior,
    where codes are all that a label has.
    """
    if config.latent or prior is None or config.variable or head:
        return 0
    return min(LATENT_LEAST, facts.classes // 2)


def _widest(bare: VqaeConfig, facts: Facts, budget: int, config: FitConfig, enough: int) -> VqaeConfig | None:
    """`largest`, of the fewest bits a number with which the latent is not as large as it may be, but for one that has `enough`."""
    best = None
    for bits in [bare.weight_bits] if config.weight_bits else range(USUAL_BITS, MOST_BITS + 1):
        finer = largest(replace(bare, weight_bits=bits), facts, budget, config)
        if finer is None or (best is not None and finer.latent < enough):
            break
        best = finer
        if best.latent < min(LATENT_MOST, facts.classes - 1):
            break
    return best


class _Shape(NamedTuple):
    """How a label is coded."""

    slots: int
    k: int
    rate: float = 0.0  # of variable labels: code bits on average
    smaller: bool = False  # whether smaller codebooks are tried as well


def _shapes(config: FitConfig, facts: Facts, prior: PriorConfig | None, each: float, head_bits: int) -> Iterator[_Shape]:
    """What is tried in turn: slots and bits that the user named; else a share of the `each` bits that a budget has for a label, in codes of
    every width, and all that is less, for budgets that this leaves too little of: down to one slot of a small codebook, and none.

    Raises:
        UsageError: no slot is left, and there is no prior.
    """
    open_ended = config.bits is None and config.slots is None and not config.variable
    least = 1 if prior is None else 0
    widths = _code_widths(config, facts, head_bits)
    if open_ended and not least and not round(CODE_SHARE * each / widths[0]):
        widths = widths[:1]  # a budget for no code
    for width in widths:
        k = config.codebook_size or 1 << width
        if config.variable:
            found = _rates(config, each, k)
        elif config.slots is not None:
            found = [_Shape(config.slots, k)]
        elif config.bits is not None:
            found = [_Shape(max(0, config.bits - head_bits) // width, k)]
        else:
            found = [_Shape(slots, k) for slots in range(max(least, min(SLOTS_MOST, round(CODE_SHARE * each / width))), 0, -1)]
        if any(not shape.slots for shape in found) and prior is None:
            raise UsageError(NOTHING_LEFT)
        yield from (shape._replace(smaller=width > widths[-1]) for shape in found)
    if open_ended and not least:
        yield _Shape(0, 1 << widths[0])


def _code_widths(config: FitConfig, facts: Facts, head_bits: int) -> list[int]:
    """Bits of a code, the most first, that a budget may choose from: those that spend the bits that the user named; one where slots are."""
    if config.codebook_size is not None:
        return [(config.codebook_size - 1).bit_length()]
    named = max(1, config.bits - head_bits) if config.bits is not None and not config.variable else None
    most = _widest_code(facts, named or 8)
    widths = list(range(most, min(most, SMALL_WIDTH) - 1, -1))
    if config.slots is not None:
        return widths[:1]
    if named is not None:
        whole = [width for width in widths if named % width == 0]
        return whole or [(_codebook_size(config, facts, named) - 1).bit_length()]
    if config.bits is not None:  # so many, on average, that the most slots there are can hold them
        widths = [width for width in widths if config.bits <= SLOTS_MOST * width] or widths[:1]
    return widths


def _rates(config: FitConfig, each: float, k: int) -> list[_Shape]:
    """Of labels with as many slots as pay: the most slots, and code bits on average, to which a count comes."""
    width = (k - 1).bit_length()
    if config.bits is not None or config.slots is not None:
        rate, slots = _named_rate(config, width, config.bits)
        return [_Shape(slots, k, rate)]
    rate = CODE_SHARE * each - spread_slots(CODE_SHARE * each / width).bit_length()
    rates = [min(float(SLOTS_MOST * width), rate / 2**halved) for halved in range(RATES_TRIED)]
    return [_Shape(spread_slots(rate / width), k, round(rate, 2)) for rate in [*(rate for rate in rates if rate > 1), 1.0]]


def _codebooks_share(config: VqaeConfig, labels: int) -> float:
    """Bytes of the codebooks in those of all codes."""
    codes = labels * (config.rate or config.slots * config.code_bits) / 8
    shape = (config.slots, config.codebook_size, config.code_width)
    return stored_bytes(shape, bits_of("codebook", config.weight_bits)) / codes if config.slots else 0.0


def _named_rate(config: FitConfig, width: int, bits: int | None) -> tuple[float, int]:
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


def largest(shape: VqaeConfig, facts: Facts, budget: int, config: FitConfig) -> VqaeConfig | None:
    """`shape` scaled up until the next latent would not fit; what is left goes to the prior's hidden layer. None: nothing fits."""
    low, high = 1, min(2 * LATENT_MOST, max(2, facts.classes - 1))
    if config.latent is not None:
        low = high = config.latent
    while low < high:
        middle = -(-(low + high) // 2)
        if file_bytes(_scaled(shape, middle, config), facts.labels) <= budget:
            low = middle
        else:
            high = middle - 1
    found = _scaled(shape, low, config)
    if low < 2 or file_bytes(found, facts.labels) > budget:
        return None
    if found.prior is None or config.hidden is not None:
        return found
    wider = range(found.prior.hidden + 1, 4 * found.prior.hidden + 1)
    for hidden in wider:
        next_one = replace(found, prior=replace(found.prior, hidden=hidden))
        if file_bytes(next_one, facts.labels) > budget:
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
