"""The k largest logits of a label and one logit for all other classes; for hard labels, the largest class alone."""

import math
from typing import Self

import torch
from torch import Tensor

from vqlabel.metrics.distortion import as_logits
from vqlabel.metrics.flat_tail import SHIFT_LABELS, best_shift, flat_tail
from vqlabel.report.baselines.base import Baseline, TrainingLabels, round_to_fp16
from vqlabel.report.baselines.entropy import Frequencies, bits_of_distinct

STEP = 0.25  # nats, between levels of coded logits; adds STEP^2 / 24 = 0.003 nats of KL at T = 1, less at higher T
SHIFT_BYTES = 2  # fixed part: the tail's shift in fp16


class TopK(Baseline):
    """LPQLD's MR-k: the k largest logits in fp16 and their class ids in ceil(log2 C) bits each.

    LPQLD's student re-normalises over the k classes, which makes the KL to the teacher infinite; here the tail is flat
    at the best level.
    """

    title = "top-k (MR-k, flat tail)"

    def __init__(self, train: TrainingLabels, k: int, bits_per_class: int) -> None:
        self.domain, self.classes, self.k, self.bits_per_class = train.domain, train.classes, k, bits_per_class
        logits = train.logits[:SHIFT_LABELS]
        kept, ids = logits.topk(k, 1)
        self.shift = best_shift(logits, ids, round_to_fp16(kept), train.temperature)
        self.setting, self.fixed_bytes = f"k {k}", SHIFT_BYTES

    @classmethod
    def fit(cls, train: TrainingLabels, bits: int) -> Self | None:
        bits_per_class = 16 + max(1, (train.classes - 1).bit_length())
        return cls(train, min(bits // bits_per_class, train.classes), bits_per_class) if bits >= bits_per_class else None

    def encode(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [n, k], logits [n, k]."""
        kept, ids = as_logits(labels, self.domain).topk(self.k, 1)
        return ids, round_to_fp16(kept)

    def bits(self, codes: tuple[Tensor, Tensor]) -> float:
        return float(self.bits_per_class * codes[0].numel())

    def decode(self, codes: tuple[Tensor, Tensor]) -> Tensor:
        return flat_tail(*codes, self.classes, self.shift)


class TopKCoded(Baseline):
    """Top-k after an entropy coder: ids by class frequency, logits as differences between quantized neighbours.

    Ids are coded by falling logit; an id is not coded twice in a label (`bits_of_distinct`). Each rank has its own
    frequencies of differences.
    """

    title = "top-k, entropy-coded"

    def __init__(self, train: TrainingLabels, k: int, differences: Tensor) -> None:
        self.domain, self.classes, self.k, self.id_model = train.domain, train.classes, k, train.top_ids
        self.difference_model = Frequencies(differences[:, :k])
        logits = train.logits[:SHIFT_LABELS]
        kept, ids = logits.topk(k, 1)
        self.shift = best_shift(logits, ids, _quantize(kept) * STEP, train.temperature)
        self.setting, self.fixed_bytes = f"k {k}", SHIFT_BYTES + self.id_model.bytes + self.difference_model.bytes

    @classmethod
    def fit(cls, train: TrainingLabels, bits: int) -> Self | None:
        kept, ids = train.logits.topk(min(train.classes, bits), 1)
        differences = _differences(_quantize(kept))
        bits_by_rank = bits_of_distinct(ids, train.top_ids).mean(0) + Frequencies(differences).bits(differences).mean(0)
        k = int((bits_by_rank.cumsum(0) <= bits).sum())
        return cls(train, k, differences) if k else None

    def encode(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [n, k], quantized logits [n, k] in units of STEP."""
        kept, ids = as_logits(labels, self.domain).topk(self.k, 1)
        return ids, _quantize(kept)

    def bits(self, codes: tuple[Tensor, Tensor]) -> float:
        ids, levels = codes
        of_ids = bits_of_distinct(ids, self.id_model).double().sum()
        return (of_ids + self.difference_model.bits(_differences(levels)).double().sum()).item()

    def decode(self, codes: tuple[Tensor, Tensor]) -> Tensor:
        return flat_tail(codes[0], codes[1] * STEP, self.classes, self.shift)


def _quantize(kept: Tensor) -> Tensor:
    return (kept / STEP).round().long()


def _differences(levels: Tensor) -> Tensor:
    """[n, k] quantized logits, falling -> the first, then how much each is below the one before it."""
    return torch.cat([levels[:, :1], -levels.diff(dim=1)], 1)


class HardLabel(Baseline):
    """The class of the largest logit, at its entropy; decoded as one logit above all others, by the same difference for
    all labels.

    The KL to a one-hot label is infinite; the difference (label smoothing) is the one with the least KL on the training
    labels.
    """

    title = "hard label"
    has_rate = False

    def __init__(self, train: TrainingLabels) -> None:
        self.domain, self.classes = train.domain, train.classes
        logits = train.logits[:SHIFT_LABELS]
        ids = logits.argmax(1, keepdim=True)
        self.id_model = Frequencies(train.logits.argmax(1, keepdim=True), (0, self.classes - 1))
        self.shift = best_shift(logits, ids, torch.zeros(len(ids), 1), train.temperature)
        probability = 1 / (1 + (self.classes - 1) * math.exp(self.shift))  # of the largest class
        self.setting, self.fixed_bytes = f"smoothed by {1 - probability:.3g}", SHIFT_BYTES + self.id_model.bytes

    @classmethod
    def fit(cls, train: TrainingLabels, bits: int) -> Self:
        return cls(train)

    def encode(self, labels: Tensor) -> Tensor:
        """Ids [n, 1]."""
        return as_logits(labels, self.domain).argmax(1, keepdim=True)

    def bits(self, codes: Tensor) -> float:
        return self.id_model.bits(codes).double().sum().item()

    def decode(self, codes: Tensor) -> Tensor:
        return flat_tail(codes, torch.zeros(codes.shape), self.classes, self.shift)
