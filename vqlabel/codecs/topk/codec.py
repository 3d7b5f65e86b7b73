"""LPQLD's MR-k: the k largest entries and their class ids; students re-normalise over them."""

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from vqlabel.codecs.base import LabelCodec
from vqlabel.codecs.sample import FitHooks, LabelSample
from vqlabel.codecs.topk.config import TopkConfig
from vqlabel.config import FitConfig
from vqlabel.errors import UsageError
from vqlabel.labels import Context, SparseLabels
from vqlabel.labels.batch import NOWHERE
from vqlabel.labels.topk import topk

MAX_FP16 = 65504.0  # larger logits are clamped to it


class TopkCodec(LabelCodec):
    """Codes are k class ids, the largest entry first, then their k values in fp16.

    Other classes decode to a logit of -1e4 or a probability of 0 (the k probabilities are re-normalised), so that
    softmax over the decoded label is softmax over the k entries, as in LPQLD's trainer.
    """

    takes_sparse: ClassVar[bool] = True
    config: TopkConfig

    def __init__(self, config: TopkConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def build(cls, config: TopkConfig, tensors: Mapping[str, Tensor]) -> Self:
        return cls(config)

    def _encode(self, labels: Tensor, context: Context | None) -> Tensor:
        value, index = labels.float().topk(self.config.k, 1)
        return _to_codes(index, value)

    def _encode_sparse(self, labels: SparseLabels, context: Context | None) -> Tensor:
        index, value = (torch.from_numpy(part) for part in topk(labels.map(lambda tensor: tensor.cpu().numpy()), self.config.k))
        return _to_codes(index, value).to(labels.device)

    def _decode(self, codes: Tensor, context: Context | None) -> Tensor:
        index, value, fill = self._known(codes)
        out = torch.full((len(codes), self.config.classes), fill, dtype=torch.float32, device=codes.device)
        return out.scatter_(1, index, value)

    def _decode_sparse(self, codes: Tensor, context: Context | None) -> SparseLabels:
        index, value, fill = self._known(codes)
        return SparseLabels(ids=index, values=value, rest=value.new_full((len(codes), 1), fill), classes=self.config.classes)

    def _known(self, codes: Tensor) -> tuple[Tensor, Tensor, float]:
        """Codes -> class ids [n, k], their values [n, k], and the value of every other class."""
        k = self.config.k
        index, value = codes[:, :k].long(), codes[:, k:].to(torch.int32).to(torch.int16).contiguous().view(torch.float16).float()
        if self.config.domain == "probs":
            return index, value / value.sum(1, keepdim=True).clamp_min(1e-12), 0.0
        return index, value, NOWHERE


def _to_codes(index: Tensor, value: Tensor) -> Tensor:
    """[n, k] class ids and their values -> [n, 2k] codes."""
    return torch.cat([index.int(), value.float().clamp(-MAX_FP16, MAX_FP16).half().view(torch.int16).int() & 0xFFFF], 1)


def fit(sample: LabelSample, config: FitConfig, hooks: FitHooks) -> TopkCodec:
    """The codec of k classes: `config.slots`, else as many as `config.bits` hold, else all known ones.

    Raises:
        UsageError: the bits are too few for one class; or the other classes share the remaining mass, which topk does
            not store.
    """
    class_bits = 16 + TopkConfig(classes=sample.classes, domain=sample.domain, k=1).id_bits
    if sample.support is not None and sample.support.rest == "uniform":
        raise UsageError(
            "topk drops the mass that the other classes of these labels share; use codec sparse (the default for them)"
        )
    known = None if sample.support is None or config.bits is not None else sample.support.k
    k = config.slots or known or config.target_bits // class_bits
    if k < 1:
        raise UsageError(f"topk needs {class_bits} bits for one of {sample.classes} classes; --bits is {config.target_bits}")
    return TopkCodec(TopkConfig(classes=sample.classes, domain=sample.domain, k=min(k, sample.classes)))
