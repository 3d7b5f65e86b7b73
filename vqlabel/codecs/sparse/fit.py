"""A sample of labels of which k numbers are known -> the sizes and the neighbour lists of a sparse codec."""

from bisect import bisect_left

import numpy as np
import torch
from numpy.typing import NDArray

from vqlabel.codecs.sample import FitHooks, LabelSample
from vqlabel.codecs.sparse.codec import SparseCodec, depths_of
from vqlabel.codecs.sparse.config import MAX_GAP_BITS, SparseConfig
from vqlabel.codecs.sparse.neighbours import choose_neighbours
from vqlabel.config import FitConfig
from vqlabel.errors import UsageError, require

DEFAULT_STEP = 0.5  # nats: KL over the known classes is at most 0.0104, times T^2, whatever the temperature
STEPS = tuple(2 ** (i / 2) for i in range(-8, 3))  # nats, 1/16 .. 2: what a rate in bits chooses from
CLIPPED = 1e-3  # share of the labels whose gap may exceed its field, which the gaps after it make up for
SAMPLED = 8192  # labels that the step, and the widths of fields, are chosen by


def fit(sample: LabelSample, config: FitConfig, hooks: FitHooks) -> SparseCodec:
    """Choose the step, by `config.bits` the finest whose labels take no more, of fewer classes where none does, else DEFAULT_STEP and
    all known classes; how wide the gaps' fields are; and the lists of neighbours.

    Raises:
        UsageError: the labels have all classes, and nothing names how many to keep; or the bits are too few for one class.
    """
    if sample.support is None and config.slots is None and config.bits is None:
        raise UsageError(
            "codec sparse is for labels of which k numbers are known, and these have all: name k with --slots, or --bits"
        )
    known = sample.classes if sample.support is None else sample.support.k
    most, rest = min(config.slots or known, known), "zero" if sample.support is None else sample.support.rest
    seen, held = (depths_of(part, most, sample.domain, rest)[0] for part in (sample.seen, sample.held))
    table = choose_neighbours(seen, held, sample.classes, sample.total or len(seen) + len(held))
    some = sample.seen[torch.linspace(0, len(seen) - 1, min(len(seen), SAMPLED)).long()]

    def shape(k: int, step: float) -> SparseConfig:
        depth = depths_of(some, k, sample.domain, rest)[1]
        return _sized(sample.classes, sample.domain, rest, step, k, depth, table.shape[1])

    def fits(k: int, step: float) -> bool:
        codec = SparseCodec(shape(k, step), torch.from_numpy(table))
        return codec.stored_bits(codec.encode(some)) <= (config.bits or 0) * len(some)

    k, step = most, DEFAULT_STEP
    if config.bits is not None:
        k = bisect_left(range(1, most + 1), True, key=lambda k: not fits(k, STEPS[-1]))
        least = max(1, (sample.classes - 1).bit_length())
        require(k, "bits", config.bits, f"must be about {least} or more: a label has one class of {sample.classes} at least")
        step = next(step for step in STEPS if fits(k, step))
    return SparseCodec(shape(k, step), torch.from_numpy(table))


def _sized(classes: int, domain: str, rest: str, step: float, k: int, depth: NDArray[np.float64], neighbours: int) -> SparseConfig:
    """The configuration whose fields hold nearly all gaps of labels with these depths, and all gaps to the rest."""
    gaps = np.diff(np.rint(depth / step), axis=1)
    largest_gaps = np.quantile(gaps, 1 - CLIPPED, axis=0, method="higher")
    widths = [max(1, min(MAX_GAP_BITS, int(top).bit_length())) for top in largest_gaps[: k - 1]]
    falling = np.maximum.accumulate(np.array(widths[::-1], np.int64))  # a field is no narrower than those behind it
    counts = np.bincount(falling, minlength=MAX_GAP_BITS + 1)[1:]
    rest_bits = max(1, min(MAX_GAP_BITS, int(gaps[:, -1].max()).bit_length())) if depth.shape[1] > k else 0
    return SparseConfig(
        classes=classes,
        domain=domain,
        k=k,
        rest=rest,
        step=step,
        gaps=tuple(counts.tolist()),
        rest_bits=rest_bits,
        neighbours=neighbours,
    )
