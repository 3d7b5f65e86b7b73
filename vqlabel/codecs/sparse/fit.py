"""A sample of labels with k known entries -> the field widths and neighbour lists of a sparse codec."""

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

DEFAULT_STEP = 0.5  # nats; KL over the known classes is at most 0.0104 nats, times T^2, at any temperature T
STEPS = tuple(2 ** (i / 2) for i in range(-8, 3))  # nats, 1/16 .. 2: steps to choose from for a rate in bits
CLIPPED_SHARE = 1e-3  # of labels whose gap may exceed its field; the gaps after it compensate
MAX_LABELS = 8192  # on which the step and the field widths are chosen


def fit(sample: LabelSample, config: FitConfig, hooks: FitHooks) -> SparseCodec:
    """Choose the number of classes, the step, the field widths and the neighbour lists.

    Without `config.bits`, all known classes and DEFAULT_STEP. With it, the finest step whose labels have at most that
    many bits on average; if even the coarsest step has more, as many classes as fit at the coarsest step.

    Raises:
        UsageError: the labels are dense, and neither slots nor bits are given; or the bits are too few for one class.
    """
    if sample.support is None and config.slots is None and config.bits is None:
        raise UsageError(
            "codec sparse is for labels with k known entries, and these labels are dense: give k with --slots, or --bits"
        )
    known = sample.classes if sample.support is None else sample.support.k
    max_k, rest = min(config.slots or known, known), "zero" if sample.support is None else sample.support.rest
    train, held_out = (depths_of(labels, max_k, sample.domain, rest)[0] for labels in (sample.train, sample.held_out))
    table = choose_neighbours(train, held_out, sample.classes, sample.total or len(train) + len(held_out))
    labels = sample.train[torch.linspace(0, len(train) - 1, min(len(train), MAX_LABELS)).long()]

    def sized(k: int, step: float) -> SparseConfig:
        depth = depths_of(labels, k, sample.domain, rest)[1]
        return _sized(sample.classes, sample.domain, rest, step, k, depth, table.shape[1])

    def fits(k: int, step: float) -> bool:
        codec = SparseCodec(sized(k, step), torch.from_numpy(table))
        return codec.stored_bits(codec.encode(labels)) <= (config.bits or 0) * len(labels)

    k, step = max_k, DEFAULT_STEP
    if config.bits is not None:
        k = bisect_left(range(1, max_k + 1), True, key=lambda k: not fits(k, STEPS[-1]))
        id_bits = max(1, (sample.classes - 1).bit_length())
        require(k, "bits", config.bits, f"must be about {id_bits} or more, the bits of one class id of {sample.classes} classes")
        step = next(step for step in STEPS if fits(k, step))
    return SparseCodec(sized(k, step), torch.from_numpy(table))


def _sized(classes: int, domain: str, rest: str, step: float, k: int, depth: NDArray[np.float64], neighbours: int) -> SparseConfig:
    """The configuration whose fields hold all but CLIPPED_SHARE of the gaps, and all gaps to the rest."""
    gaps = np.diff(np.rint(depth / step), axis=1)
    largest_gaps = np.quantile(gaps, 1 - CLIPPED_SHARE, axis=0, method="higher")
    widths = [max(1, min(MAX_GAP_BITS, int(gap).bit_length())) for gap in largest_gaps[: k - 1]]
    nonincreasing = np.maximum.accumulate(np.array(widths[::-1], np.int64))  # the layout orders fields from wide to narrow
    counts = np.bincount(nonincreasing, minlength=MAX_GAP_BITS + 1)[1:]
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
