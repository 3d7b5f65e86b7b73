"""The output head of a teacher in memory."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqlabel.errors import UsageError
from vqlabel.labels.text.norm import FinalNorm

NAMES = ("head", "lm_head")  # of a teacher's attribute
_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryHead:
    """A `Head` that a teacher's function brings; logits = h @ weight.T + bias.

    Attributes:
        path: name of the teacher, for messages.
        name: of the attribute.
        weight: [V, d] float16, bfloat16 or float32, on the CPU.
        bias_weight: [V] of these types; None: 0.
    """

    path: Path
    name: str
    weight: Tensor
    bias_weight: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    norm: FinalNorm | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self.weight)

    @property
    def width(self) -> int:
        """d."""
        return self.weight.shape[1]

    @cached_property
    def bias(self) -> NDArray[np.float32] | None:
        """[V]; None: 0."""
        return None if self.bias_weight is None else self.bias_weight.float().numpy()

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """See `Head`."""
        rows: NDArray[np.float32] = self.weight[start:stop].float().numpy()
        return rows

    @cached_property
    def sha256(self) -> str:
        """As of a file with these tensors, see `Head`."""
        digest = hashlib.sha256()
        for part, tensor in (("weight", self.weight), ("bias", self.bias_weight)):
            if tensor is not None:
                digest.update(f"{part} {_DTYPES[tensor.dtype]} {list(tensor.shape)}\n".encode())
                digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def head_of(target: Any, name: str) -> MemoryHead | str | Path | None:
    """The head that a teacher has as its attribute: in memory, or the path of its file; None: it has none.

    Args:
        target: the teacher: a module or function.
        name: of the teacher, for messages.

    Raises:
        UsageError: the attribute is no head.
    """
    for attribute in NAMES:
        head = getattr(target, attribute, None)
        if isinstance(head, str | Path):
            return head
        weight = head if isinstance(head, Tensor) else getattr(head, "weight", None)
        if isinstance(weight, Tensor):
            bias = getattr(head, "bias", None) if isinstance(head, nn.Module) else None
            plain_bias = None if bias is None else _plain(bias, [len(weight)], name)
            return MemoryHead(
                path=Path(name),
                name=attribute,
                weight=_plain(weight, [len(weight), weight.shape[-1]], name),
                bias_weight=plain_bias,
            )
    return None


def _plain(tensor: Tensor, shape: list[int], name: str) -> Tensor:
    """A tensor on the CPU; raises UsageError unless it has this shape and a type of heads."""
    if tensor.dtype not in _DTYPES or list(tensor.shape) != shape:
        raise UsageError(
            f"teacher {name}: its head has a tensor {list(tensor.shape)} of {tensor.dtype}; a head is [V, d], with a bias [V] if it has one, of "
            "float16, bfloat16 or float32"
        )
    return tensor.detach().cpu().contiguous()
