"""Labels bit for bit: the lossless reference for all other codecs."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from vqlabel.codecs.base import LabelCodec
from vqlabel.codecs.raw.config import RawConfig
from vqlabel.codecs.sample import FitHooks, LabelSample
from vqlabel.config import FitConfig
from vqlabel.labels import Context


class RawCodec(LabelCodec):
    """Every entry of a label is a code: its 16 bits (fp16, bf16) or 32 bits (fp32)."""

    config: RawConfig

    def __init__(self, config: RawConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def build(cls, config: RawConfig, tensors: Mapping[str, Tensor]) -> Self:
        return cls(config)

    def _encode(self, labels: Tensor, context: Context | None) -> Tensor:
        if self.config.dtype == "F32":
            return labels.float().contiguous().view(torch.int32)
        short = labels.to(torch.float16 if self.config.dtype == "F16" else torch.bfloat16)
        return short.contiguous().view(torch.int16).int() & 0xFFFF

    def _decode(self, codes: Tensor, context: Context | None) -> Tensor:
        if self.config.dtype == "F32":
            return codes.to(torch.int32).contiguous().view(torch.float32)
        short = codes.to(torch.int32).to(torch.int16)  # wraps around, which keeps the 16 bits
        return short.contiguous().view(torch.float16 if self.config.dtype == "F16" else torch.bfloat16).float()


def fit(sample: LabelSample, config: FitConfig, hooks: FitHooks) -> RawCodec:
    """The codec for the dtype of the labels; nothing is learned."""
    return RawCodec(RawConfig(classes=sample.classes, domain=sample.domain, dtype=sample.dtype))
