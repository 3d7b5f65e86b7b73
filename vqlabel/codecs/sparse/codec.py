"""Labels of which k numbers are known: class ids exactly, and how far each class lies below the one before it, in steps of a logit.

A student of such labels sees a distribution over k classes, and what stands for all others. The ids take most of the bits: each class but
the first is stored by its place in a list of those that often come with the first. Logits rounded to steps of s cost at most s^2 / 24 nats,
times T^2, at any temperature T, so a bit or two a class are enough for their values. An entropy coder makes use of both.
"""

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.bitstream import pack_ans, pack_fixed, packed_size, unpack_fixed
from vqlabel.codecs.base import LabelCodec
from vqlabel.codecs.sparse.config import SparseConfig
from vqlabel.codecs.sparse.neighbours import to_ids, to_ranks
from vqlabel.codecs.weights import take
from vqlabel.errors import BadContainer
from vqlabel.labels import Context
from vqlabel.labels.batch import NOWHERE
from vqlabel.labels.topk import topk

TIE = 1 / 8  # of a step: how far the second class decodes below the first at least, so that the largest class stays the largest
BELOW = 1 / 4  # of a step: the same for the classes that were not stored below the last one that was
NEIGHBOURS = "neighbours"  # codec tensor: [C, R] class ids as a bitstream
SMALLEST = 1e-8  # a probability below it counts as this: fp16 cannot hold less than 6e-8


class SparseCodec(LabelCodec):
    """Codes are k class ids, the largest entry first, the others by their ranks among its neighbours; then k - 1 gaps, each the steps that a
    class lies below the one before it; and, where the other classes share what is left of 1, the gap to the share of each.

    Gaps are chosen in turn, each against what those before it decode to, so that rounding errors do not add up.
    """

    config: SparseConfig

    def __init__(self, config: SparseConfig, neighbours: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        least = torch.zeros(len(config.gap_bits), dtype=torch.float32, device="cpu")
        least[:1] = TIE
        if config.rest_bits:
            least[-1] = BELOW
        self.least: Tensor
        self.neighbours: Tensor
        self.register_buffer("least", least)  # steps that a gap decodes to at least
        none = torch.empty(config.classes, 0, dtype=torch.long, device="cpu")
        self.register_buffer("neighbours", none if neighbours is None else neighbours)

    @classmethod
    def build(cls, config: SparseConfig, tensors: Mapping[str, Tensor]) -> Self:
        if not config.neighbours:
            return cls(config)
        shape = (config.classes, config.neighbours)
        packed = take(tensors, NEIGHBOURS, (packed_size(config.classes * config.neighbours, [config.id_bits]),), torch.uint8)
        ids = unpack_fixed(packed.numpy().tobytes(), config.classes * config.neighbours, [config.id_bits])[:, 0].astype(np.int64)
        table = ids.reshape(shape)
        if int(table.max()) >= config.classes or (np.diff(np.sort(table, 1), axis=1) == 0).any():
            raise BadContainer(
                f"codec tensor {NEIGHBOURS!r} names a class twice, or one above {config.classes - 1}; damaged or forged"
            )
        return cls(config, torch.from_numpy(table))

    def decoder_tensors(self) -> dict[str, Tensor]:
        if not self.config.neighbours:
            return {}
        ids = self.neighbours.cpu().numpy().astype(np.uint32).reshape(-1, 1)
        return {NEIGHBOURS: torch.frombuffer(bytearray(pack_fixed(ids, [self.config.id_bits])), dtype=torch.uint8)}

    def stored_bits(self, codes: Tensor) -> float:
        rows = codes.cpu().numpy().view(np.uint32)
        return min(super().stored_bits(codes), 8.0 * len(pack_ans(rows, self.code_bits)))

    def _encode(self, labels: Tensor, context: Context | None) -> Tensor:
        config = self.config
        ids, depth = depths_of(labels, config.k, config.domain, config.rest)
        least, reached = self.least.tolist(), np.zeros(len(ids))
        gaps = np.empty((len(ids), len(least)), np.int64)
        for at, width in enumerate(config.gap_bits):
            gaps[:, at] = np.rint((depth[:, at + 1] - reached) / config.step).clip(0, (1 << width) - 1)
            reached += config.step * np.maximum(gaps[:, at], least[at])
        # Classes that decode alike stand in the order of their ids, so that decoded labels have the codes that they came from.
        alike = np.cumsum(gaps[:, : config.k - 1] != 0, axis=1) - (gaps[:, :1] != 0)
        ids[:, 1:] = np.sort(alike * config.classes + ids[:, 1:], axis=1) % config.classes
        if config.neighbours:
            ids = to_ranks(ids, self.neighbours.cpu().numpy())
        return torch.from_numpy(np.concatenate([ids, gaps], 1)).int().to(labels.device)

    def _decode(self, codes: Tensor, context: Context | None) -> Tensor:
        config = self.config
        ids, gaps = codes[:, : config.k].long(), codes[:, config.k :].float()
        if config.neighbours:
            ids = to_ids(ids, self.neighbours)
        depth = (config.step * torch.maximum(gaps, self.least)).cumsum(1)
        logits = torch.cat([depth.new_zeros(len(codes), 1), -depth], 1)
        if config.domain == "logits":
            return depth.new_full((len(codes), config.classes), NOWHERE).scatter(1, ids, logits)
        each = logits.exp()
        others = each[:, config.k :]  # [n, 1] what each class that was not stored has, or [n, 0]
        total = each[:, : config.k].sum(1, keepdim=True) + (config.classes - config.k) * others.sum(1, keepdim=True)
        rest = others.sum(1, keepdim=True) / total
        return rest.expand(-1, config.classes).scatter(1, ids, each[:, : config.k] / total)


def depths_of(labels: Tensor, k: int, domain: str, rest: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Of labels [n, C]: the k largest classes [n, k], and how far each lies below the first in logits [n, k]; in a last column [n, k + 1]
    the same of each other class, where these share what is left of 1."""
    array = labels.float().cpu().numpy() if labels.dtype == torch.bfloat16 else labels.cpu().numpy()
    ids, values = topk(array, k, signed_zeros=domain == "probs")
    values = values.astype(np.float64)
    if rest == "uniform" and k < array.shape[1]:
        others = array.sum(1, keepdims=True, dtype=np.float64) - values.sum(1, keepdims=True)
        values = np.concatenate([values, others / (array.shape[1] - k)], 1)
    if domain == "probs":
        values = np.log(values.clip(SMALLEST))
    return ids, values[:, :1] - values
