"""The largest logits of a label, and one logit for all the others; at worst its class alone."""

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.metrics.distortion import as_logits, temperature_weight
from vqlabel.report.baselines.base import Peer, Seen, stored
from vqlabel.report.baselines.entropy import Frequencies, bits_of_sets

QUICK_LABELS = 8192  # of those seen: what the tail's level is chosen on
ROUNDING = 0.25  # nats; step of top-k's coded values: rounding costs step^2 / 24 = 0.003 nats at T = 1, and less above


def flat_tail(ids: Tensor, kept: Tensor, classes: int, shift: float) -> Tensor:
    """[n, k] ids and centred logits -> [n, C]: the other classes share one logit, their mean plus `shift`.

    Their mean costs nothing: all C centred logits add up to 0.
    """
    level = _level(kept, classes) + shift
    return level.expand(-1, classes).clone().scatter_(1, ids, kept)


def _level(kept: Tensor, classes: int) -> Tensor:
    return -kept.sum(1, keepdim=True) / max(1, classes - kept.shape[1])


def best_shift(logits: Tensor, ids: Tensor, kept: Tensor, temperature: Sequence[float]) -> float:
    """The `shift` of `flat_tail` with the least KL to `logits` at the student's temperatures, one for all labels, as fp16 holds it.

    Without it a flat tail at the mean of its logits weighs too little, exp being convex. KL is convex in the shift, with the
    derivative sum_T w_T T (tail's decoded mass - tail's mass), whose zero is looked for by halving.
    """
    classes = logits.shape[1]
    rest = classes - kept.shape[1]
    if rest < 1:
        return 0.0
    level, masses = _level(kept, classes), []
    for t in temperature:
        p = F.softmax(logits / t, 1)
        masses.append((1 - p.gather(1, ids).sum(1)).clamp_min(0).mean().item())

    def slope(shift: float) -> float:
        total = 0.0
        for t, mass in zip(temperature, masses, strict=True):
            tail = (level[:, 0] + shift) / t + math.log(rest)
            share = torch.sigmoid(tail - torch.logsumexp(kept / t, 1)).mean().item()
            total += temperature_weight(t) * t * (share - mass)
        return total

    low, high = -200.0, 200.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(np.float16((low + high) / 2))


class TopK(Peer):
    """LPQLD's MR-k: the k largest logits in fp16 and their class ids at ceil(log2 C) bits.

    LPQLD's student re-normalises over the k, so its KL to the teacher is infinite; here the tail is flat at the best level.
    """

    title = "top-k (MR-k, flat tail)"

    def __init__(self, seen: Seen, k: int, each: int) -> None:
        self.domain, self.classes, self.k, self.each = seen.domain, seen.classes, k, each
        quick = seen.logits[:QUICK_LABELS]
        kept, ids = quick.topk(k, 1)
        self.shift = best_shift(quick, ids, stored(kept), seen.temperature)
        self.setting, self.fixed_bytes = f"k {k}", 2

    @classmethod
    def fit(cls, seen: Seen, bits: int) -> Self | None:
        each = 16 + max(1, (seen.classes - 1).bit_length())
        return cls(seen, min(bits // each, seen.classes), each) if bits >= each else None

    def encode(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [n, k], logits [n, k]."""
        kept, ids = as_logits(labels, self.domain).topk(self.k, 1)
        return ids, stored(kept)

    def bits(self, codes: tuple[Tensor, Tensor]) -> float:
        return float(self.each * codes[0].numel())

    def decode(self, codes: tuple[Tensor, Tensor]) -> Tensor:
        return flat_tail(*codes, self.classes, self.shift)


class TopKCoded(Peer):
    """The same with what an entropy coder takes: ids by how often each class is kept, logits as gaps between rounded neighbours.

    Ids come largest first; one that is taken cannot come again (`bits_of_sets`). Each rank has its own frequencies of gaps.
    """

    title = "top-k, entropy-coded"

    def __init__(self, seen: Seen, k: int, gaps: Tensor) -> None:
        self.domain, self.classes, self.k, self.ids = seen.domain, seen.classes, k, seen.ids
        self.gaps = Frequencies(gaps[:, :k])
        quick = seen.logits[:QUICK_LABELS]
        kept, ids = quick.topk(k, 1)
        self.shift = best_shift(quick, ids, _rounded(kept) * ROUNDING, seen.temperature)
        self.setting, self.fixed_bytes = f"k {k}", 2 + self.ids.bytes + self.gaps.bytes

    @classmethod
    def fit(cls, seen: Seen, bits: int) -> Self | None:
        most = min(seen.classes, bits)
        kept, ids = seen.logits.topk(most, 1)
        gaps = _gaps(_rounded(kept))
        price = bits_of_sets(ids, seen.ids).mean(0) + Frequencies(gaps).bits(gaps).mean(0)
        k = int((price.cumsum(0) <= bits).sum())
        return cls(seen, k, gaps) if k else None

    def encode(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [n, k], rounded logits [n, k] in units of ROUNDING."""
        kept, ids = as_logits(labels, self.domain).topk(self.k, 1)
        return ids, _rounded(kept)

    def bits(self, codes: tuple[Tensor, Tensor]) -> float:
        ids, kept = codes
        return (bits_of_sets(ids, self.ids).double().sum() + self.gaps.bits(_gaps(kept)).double().sum()).item()

    def decode(self, codes: tuple[Tensor, Tensor]) -> Tensor:
        return flat_tail(codes[0], codes[1] * ROUNDING, self.classes, self.shift)


def _rounded(kept: Tensor) -> Tensor:
    return (kept / ROUNDING).round().long()


def _gaps(kept: Tensor) -> Tensor:
    """[n, k] rounded logits, falling -> the first, then by how much each is less than the one before."""
    return torch.cat([kept[:, :1], -kept.diff(dim=1)], 1)


class Hard(Peer):
    """The class of the largest logit, at its entropy. Decoded as one logit above all others, by the same step for all labels.

    A one-hot label's KL is infinite; the step (label smoothing) is the one with the least KL on the seen labels.
    """

    title = "hard label"
    at_rates = False

    def __init__(self, seen: Seen) -> None:
        self.domain, self.classes = seen.domain, seen.classes
        quick = seen.logits[:QUICK_LABELS]
        ids = quick.argmax(1, keepdim=True)
        self.ids = Frequencies(seen.logits.argmax(1, keepdim=True), (0, self.classes - 1))
        self.shift = best_shift(quick, ids, torch.zeros(len(ids), 1), seen.temperature)
        one = 1 / (1 + (self.classes - 1) * math.exp(self.shift))
        self.setting, self.fixed_bytes = f"smoothed by {1 - one:.3g}", 2 + self.ids.bytes

    @classmethod
    def fit(cls, seen: Seen, bits: int) -> Self:
        return cls(seen)

    def encode(self, labels: Tensor) -> Tensor:
        return as_logits(labels, self.domain).argmax(1, keepdim=True)

    def bits(self, codes: Tensor) -> float:
        return self.ids.bits(codes).double().sum().item()

    def decode(self, codes: Tensor) -> Tensor:
        return flat_tail(codes, torch.zeros(codes.shape), self.classes, self.shift)
