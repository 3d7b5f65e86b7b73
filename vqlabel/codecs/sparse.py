"""Labels of which k numbers are known: class ids exactly, and how far each class lies below the one before it, in steps of a logit.

A student of such labels sees a distribution over k classes, and what stands for all others. The ids take most of the bits; logits rounded
to steps of s cost at most s^2 / 24 nats, times T^2, at any temperature T, so a few bits a class are enough for their values.
"""

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.codecs.base import FitHooks, LabelCodec, LabelSample
from vqlabel.config import MAX_GAP_BITS, FitConfig, SparseConfig
from vqlabel.errors import UsageError
from vqlabel.labels import Context
from vqlabel.labels.largest import largest
from vqlabel.labels.source import NOWHERE

DEFAULT_STEP = 0.5  # nats: KL over the known classes is at most 0.0104, times T^2, whatever the temperature
STEPS = tuple(2 ** (i / 2) for i in range(-8, 3))  # nats, 1/16 .. 2: what a rate in bits chooses from
TIE = 1 / 8  # of a step: how far the second class decodes below the first at least, so that the largest class stays the largest
BELOW = 1 / 4  # of a step: the same for the classes that were not stored below the last one that was
CLIPPED = 1e-2  # share of the labels whose gap may exceed its field, which the gaps after it make up for
SAMPLED = 16_384  # labels that the widths of fields are chosen by
SMALLEST = 1e-8  # a probability below it counts as this: fp16 cannot hold less than 6e-8


class SparseCodec(LabelCodec):
    """Codes are k class ids, the largest entry first, then k - 1 gaps, each the steps that a class lies below the one before it; and, where
    the other classes share what is left of 1, the gap to the share of each.

    Gaps are chosen in turn, each against what those before it decode to, so that rounding errors do not add up.
    """

    kind = "sparse"
    config: SparseConfig

    def __init__(self, config: SparseConfig) -> None:
        super().__init__()
        self.config = config
        least = torch.zeros(len(config.gap_bits), dtype=torch.float32, device="cpu")
        least[:1] = TIE
        if config.rest_bits:
            least[-1] = BELOW
        self.least: Tensor
        self.register_buffer("least", least, persistent=False)  # steps that a gap decodes to at least

    @classmethod
    def _fit(cls, sample: LabelSample, config: FitConfig, hooks: FitHooks) -> Self:
        """Choose the step, and how wide the gaps' fields are: by `config.bits` the finest step whose labels take no more, of fewer classes
        where none does; else DEFAULT_STEP and all known classes.

        Raises:
            UsageError: the labels have all classes, and nothing names how many to keep; or the bits are too few for one class.
        """
        if sample.support is None and config.slots is None and config.bits is None:
            raise UsageError(
                "codec sparse is for labels of which k numbers are known, and these have all: name k with --slots, or --bits"
            )
        known = sample.classes if sample.support is None else sample.support.k
        rest = "zero" if sample.support is None else sample.support.rest
        labels = sample.seen[torch.linspace(0, len(sample.seen) - 1, min(len(sample.seen), SAMPLED)).long()]
        k = min(config.slots or known, known)
        while k:
            depth = _depths(labels, k, sample.domain, rest)[1]
            for step in (DEFAULT_STEP,) if config.bits is None else STEPS:
                codec = cls(_sized(sample.classes, sample.domain, rest, step, k, depth))
                if config.bits is None or sum(codec.code_bits) <= config.bits:
                    return codec
            k = min(k - 1, max(1, (config.bits or 0) // codec.config.id_bits))
        raise UsageError(f"sparse needs {sum(codec.code_bits)} bits for one of {sample.classes} classes; --bits is {config.bits}")

    @classmethod
    def build(cls, config: SparseConfig, tensors: Mapping[str, Tensor]) -> Self:
        return cls(config)

    @property
    def holds_sets(self) -> bool:
        return self.config.rest == "zero" and self.config.k < self.config.classes

    def _encode(self, labels: Tensor, context: Context | None) -> Tensor:
        config = self.config
        ids, depth = _depths(labels, config.k, config.domain, config.rest)
        least, reached = self.least.tolist(), np.zeros(len(ids))
        gaps = np.empty((len(ids), len(least)), np.int64)
        for at, width in enumerate(config.gap_bits):
            gaps[:, at] = np.rint((depth[:, at + 1] - reached) / config.step).clip(0, (1 << width) - 1)
            reached += config.step * np.maximum(gaps[:, at], least[at])
        # Classes that decode alike stand in the order of their ids, so that decoded labels have the codes that they came from.
        alike = np.cumsum(gaps[:, : config.k - 1] != 0, axis=1) - (gaps[:, :1] != 0)
        ids[:, 1:] = np.sort(alike * config.classes + ids[:, 1:], axis=1) % config.classes
        return torch.from_numpy(np.concatenate([ids, gaps], 1)).int().to(labels.device)

    def _decode(self, codes: Tensor, context: Context | None) -> Tensor:
        config = self.config
        ids, gaps = codes[:, : config.k].long(), codes[:, config.k :].float()
        depth = (config.step * torch.maximum(gaps, self.least)).cumsum(1)
        logits = torch.cat([depth.new_zeros(len(codes), 1), -depth], 1)
        if config.domain == "logits":
            return depth.new_full((len(codes), config.classes), NOWHERE).scatter(1, ids, logits)
        each = logits.exp()
        others = each[:, config.k :]  # [n, 1] what each class that was not stored has, or [n, 0]
        total = each[:, : config.k].sum(1, keepdim=True) + (config.classes - config.k) * others.sum(1, keepdim=True)
        rest = others.sum(1, keepdim=True) / total
        return rest.expand(-1, config.classes).scatter(1, ids, each[:, : config.k] / total)


def _depths(labels: Tensor, k: int, domain: str, rest: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Of labels [n, C]: the k largest classes [n, k], and how far each lies below the first in logits [n, k]; in a last column [n, k + 1]
    the same of each other class, where these share what is left of 1."""
    more = rest == "uniform" and k < labels.shape[1]
    array = labels.float().cpu().numpy() if labels.dtype == torch.bfloat16 else labels.cpu().numpy()
    ids, values = largest(array, k + more, signed=domain == "probs")
    values = values.astype(np.float64)
    if domain == "probs":
        values = np.log(values.clip(SMALLEST))
    return ids[:, :k], values[:, :1] - values


def _sized(classes: int, domain: str, rest: str, step: float, k: int, depth: NDArray[np.float64]) -> SparseConfig:
    """The configuration whose fields hold nearly all gaps of labels with these depths, and all gaps to the rest."""
    gaps = np.diff(np.rint(depth / step), axis=1)
    largest_gaps = np.quantile(gaps, 1 - CLIPPED, axis=0, method="higher")
    widths = [max(1, min(MAX_GAP_BITS, int(top).bit_length())) for top in largest_gaps[: k - 1]]
    falling = np.maximum.accumulate(np.array(widths[::-1], np.int64))  # a field is no narrower than those behind it
    counts = np.bincount(falling, minlength=MAX_GAP_BITS + 1)[1:]
    rest_bits = max(1, min(MAX_GAP_BITS, int(gaps[:, -1].max()).bit_length())) if depth.shape[1] > k else 0
    return SparseConfig(classes=classes, domain=domain, k=k, rest=rest, step=step, gaps=tuple(counts.tolist()), rest_bits=rest_bits)
