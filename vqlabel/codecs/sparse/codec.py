"""Labels with k known entries: class ids exactly, and the gaps between successive logits in steps.

A student of such labels sees a distribution over k classes and a fill value for all others. Ids take most of the bits:
each but the first is stored as its rank in a list of classes that often occur with the first. Logits rounded to steps
of s add at most s^2 / 24 nats, times T^2, at any temperature T, so that one or two bits per class suffice for their
values. An entropy coder exploits both.
"""

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.bitstream import pack_ans, pack_fixed, packed_size, unpack_fixed
from vqlabel.codecs.base import LabelCodec
from vqlabel.codecs.precision import float32_arithmetic
from vqlabel.codecs.sparse.config import SparseConfig
from vqlabel.codecs.sparse.neighbours import to_ids, to_ranks
from vqlabel.codecs.weights import take
from vqlabel.errors import BadContainer
from vqlabel.labels import Context, SparseLabels
from vqlabel.labels.batch import NOWHERE
from vqlabel.labels.sparse import Labels, row_sums
from vqlabel.labels.topk import topk

MIN_FIRST_GAP = 1 / 8  # steps; least decoded gap below the first class, so that the top-1 class is kept
MIN_REST_GAP = 1 / 4  # steps; least decoded gap between the last stored class and the others
NEIGHBOURS = "neighbours"  # codec tensor: [C, R] class ids as a bitstream
MIN_PROBABILITY = 1e-8  # smaller ones are clamped to it; fp16's smallest is 6e-8
MIN_MASS = 1e-5  # of all C classes together, if each has the smallest probability: it is lower if C is above 1,000


class SparseCodec(LabelCodec):
    """Codes are k class ids, the largest entry first and the others as ranks among its neighbours; then k - 1 gaps in
    steps, each from the class before; and, if the other classes share the remaining mass, the gap to each of them.

    Each gap is rounded relative to the decoded sum of those before it, so that rounding errors do not accumulate.
    """

    takes_sparse: ClassVar[bool] = True
    config: SparseConfig

    def __init__(self, config: SparseConfig, neighbours: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        min_gaps = torch.zeros(len(config.gap_bits), dtype=torch.float32, device="cpu")
        min_gaps[:1] = MIN_FIRST_GAP
        if config.rest_bits:
            min_gaps[-1] = MIN_REST_GAP
        self.min_gaps: Tensor
        self.neighbours: Tensor
        self.register_buffer("min_gaps", min_gaps)  # steps; smaller gaps decode to these
        empty = torch.empty(config.classes, 0, dtype=torch.long, device="cpu")
        self.register_buffer("neighbours", empty if neighbours is None else neighbours)

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
                f"codec tensor {NEIGHBOURS!r} contains a class twice, or one above {config.classes - 1}; damaged or forged"
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
        return self._encode_known(labels)

    def _encode_sparse(self, labels: SparseLabels, context: Context | None) -> Tensor:
        return self._encode_known(labels)

    def _encode_known(self, labels: Tensor | SparseLabels) -> Tensor:
        config = self.config
        ids, depth = depths_of(labels, config.k, config.domain, config.rest)
        min_gaps, decoded_depth = self.min_gaps.tolist(), np.zeros(len(ids))
        gaps = np.empty((len(ids), len(min_gaps)), np.int64)
        for field, width in enumerate(config.gap_bits):
            gaps[:, field] = np.rint((depth[:, field + 1] - decoded_depth) / config.step).clip(0, (1 << width) - 1)
            decoded_depth += config.step * np.maximum(gaps[:, field], min_gaps[field])
        # Classes that decode to equal logits are ordered by id, so that encoding a decoded label gives the same codes.
        tie_group = np.cumsum(gaps[:, : config.k - 1] != 0, axis=1) - (gaps[:, :1] != 0)
        ids[:, 1:] = np.sort(tie_group * config.classes + ids[:, 1:], axis=1) % config.classes
        if config.neighbours:
            ids = to_ranks(ids, self.neighbours.cpu().numpy())
        return torch.from_numpy(np.concatenate([ids, gaps], 1)).int().to(labels.device)

    def _decode(self, codes: Tensor, context: Context | None) -> Tensor:
        ids, values, rest = self._known(codes)
        return rest.expand(-1, self.config.classes).scatter(1, ids, values)

    def _decode_sparse(self, codes: Tensor, context: Context | None) -> SparseLabels:
        ids, values, rest = self._known(codes)
        return SparseLabels(ids=ids, values=values, rest=rest, classes=self.config.classes)

    def decode_logits(self, codes: Tensor) -> SparseLabels:
        """[n, m] codes -> float32 logits whose softmax is the label; -inf: the other classes have probability 0."""
        k = self.config.k
        with float32_arithmetic(codes.device):
            ids, logits = self._ids_and_logits(codes)
        rest = logits[:, k:] if self.config.rest_bits else logits.new_full((len(codes), 1), -torch.inf)
        return SparseLabels(ids=ids, values=logits[:, :k], rest=rest, classes=self.config.classes)

    def _ids_and_logits(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes -> ids [n, k], and logits [n, k]; with a gap to the other classes [n, k + 1], the last being theirs."""
        ids, gaps = codes[:, : self.config.k].long(), codes[:, self.config.k :].float()
        if self.config.neighbours:
            ids = to_ids(ids, self.neighbours)
        depth = (self.config.step * torch.maximum(gaps, self.min_gaps)).cumsum(1)
        return ids, torch.cat([depth.new_zeros(len(codes), 1), -depth], 1)

    def _known(self, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes -> ids [n, k], their values [n, k], and the value of each other class [n, 1]."""
        config = self.config
        ids, logits = self._ids_and_logits(codes)
        if config.domain == "logits":
            return ids, logits, logits.new_full((len(codes), 1), NOWHERE)
        mass = logits.exp()
        other = mass[:, config.k :]  # [n, 1] of each class that is not stored, or [n, 0]
        total = mass[:, : config.k].sum(1, keepdim=True) + (config.classes - config.k) * other.sum(1, keepdim=True)
        return ids, mass[:, : config.k] / total, other.sum(1, keepdim=True) / total


def depths_of(labels: Tensor | SparseLabels, k: int, domain: str, rest: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k largest classes of labels, and their depths: the differences from the first class's logit.

    Args:
        labels: [n, C] in `domain`, dense or sparse.
        rest: "zero", or "uniform": the other classes share the remaining mass.

    Returns:
        ids [n, k], and depths [n, k] in nats; with a uniform rest and k < C [n, k + 1], the last column being that of
        each other class.
    """
    known: Labels = labels.map(_as_array) if isinstance(labels, SparseLabels) else _as_array(labels)
    ids, values = topk(known, k, signed_zeros=domain == "probs")
    values = values.astype(np.float64)
    if rest == "uniform" and k < labels.shape[1]:
        others = (row_sums(known, np.float64) - values.sum(1))[:, None]
        values = np.concatenate([values, others / (labels.shape[1] - k)], 1)
    if domain == "probs":
        values = np.log(values.clip(min(MIN_PROBABILITY, MIN_MASS / labels.shape[1])))
    return ids, values[:, :1] - values


def _as_array(tensor: Tensor) -> NDArray[np.floating]:
    array: NDArray[np.floating] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
    return array
