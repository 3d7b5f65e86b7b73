"""Every logit stored, as it is or as an integer of 8 or 4 bits, then compressed by zstd."""

from typing import ClassVar, Self

import numpy as np
import torch
import zstandard
from torch import Tensor

from vqlabel.bitstream import pack_planes
from vqlabel.metrics.distortion import as_logits
from vqlabel.report.baselines.base import Baseline, TrainingLabels, round_to_fp16

ZSTD_LEVEL = 19
MIN_STEP = 6e-8  # the smallest positive fp16 number: the step of a label whose logits are all equal


def compressed_bytes(data: bytes) -> int:
    """Size of `data` after zstd."""
    return len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data))


class Raw(Baseline):
    """fp16 (bf16 if the dump has it) in byte planes, class by class, through zstd."""

    title = "raw + zstd"
    has_rate, compresses = False, True

    def __init__(self, domain: str, dtype: str) -> None:
        self.domain, self.dtype = domain, torch.bfloat16 if dtype == "BF16" else torch.float16
        self.setting = "bf16" if dtype == "BF16" else "fp16"

    @classmethod
    def fit(cls, train: TrainingLabels, bits: int) -> Self:
        return cls(train.domain, train.dtype)

    def encode(self, labels: Tensor) -> Tensor:
        """[n, C] labels in 16 bits."""
        return labels.to(self.dtype)

    def bits(self, codes: Tensor) -> float:
        rows = codes.contiguous().view(torch.int16).numpy().view(np.uint16)
        return 8.0 * len(pack_planes(rows, [16] * rows.shape[1], ZSTD_LEVEL))

    def decode(self, codes: Tensor) -> Tensor:
        return as_logits(codes, self.domain)


class Integers(Baseline):
    """Every logit as one of 2^width levels between the label's extremes; extremes in fp16, levels through zstd."""

    has_rate, compresses = False, True
    width: ClassVar[int]

    def __init__(self, domain: str) -> None:
        self.domain, self.setting = domain, f"{self.width} bits a logit"

    @classmethod
    def fit(cls, train: TrainingLabels, bits: int) -> Self:
        return cls(train.domain)

    def encode(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Levels [n, C] uint8; the smallest logit [n, 1] and the step [n, 1], rounded to fp16.

        Rounding the ends clips less than half a step: centred logits lie on both sides of 0.
        """
        x = as_logits(labels, self.domain)
        low = round_to_fp16(x.amin(1, keepdim=True))
        step = round_to_fp16((x.amax(1, keepdim=True) - low) / (2**self.width - 1)).clamp_min(MIN_STEP)
        levels = ((x - low) / step).round_().clamp_(0, 2**self.width - 1)
        return levels.to(torch.uint8), low, step

    def bits(self, codes: tuple[Tensor, Tensor, Tensor]) -> float:
        levels = codes[0].numpy()
        if self.width == 4:
            levels = np.pad(levels, ((0, 0), (0, levels.shape[1] % 2)))
            levels = levels[:, ::2] | levels[:, 1::2] << 4
        return 8.0 * compressed_bytes(levels.tobytes()) + 32 * len(levels)

    def decode(self, codes: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        levels, low, step = codes
        return levels.float() * step + low


class Int8(Integers):
    """256 levels."""

    title, width = "int8 + zstd", 8


class Int4(Integers):
    """16 levels, two per byte."""

    title, width = "int4 + zstd", 4
