"""Labels of a language model as hidden states and an output head; logits exist only for a few rows at a time."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputHead:
    """The map from final hidden states to logits: cap * tanh(scale * (h @ weight.T + bias) / cap).

    Attributes:
        weight: [V, d] float32.
        bias: [V] float32; None: 0.
        scale: factor on the logits.
        soft_cap: limit of the logits' magnitude, as in Gemma 2; None: no limit.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self.weight)

    def to(self, device: str | torch.device) -> "OutputHead":
        """The head on a device."""
        return replace(self, weight=self.weight.to(device), bias=None if self.bias is None else self.bias.to(device))

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, d] of any floating type -> [n, V] float32."""
        logits = hidden.float() @ self.weight.T
        if self.bias is not None:
            logits += self.bias
        if self.scale != 1:
            logits *= self.scale
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenLabels:
    """n labels: the final hidden states of their rows, and the head.

    Attributes:
        hidden: [n, d] of any floating type.
    """

    hidden: Tensor
    head: OutputHead

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, V), the shape of the dense labels."""
        return len(self), self.head.vocabulary

    @property
    def ndim(self) -> int:
        """2, as of dense labels."""
        return 2

    def to(self, device: str | torch.device) -> "HiddenLabels":
        """The labels and their head on a device."""
        return HiddenLabels(hidden=self.hidden.to(device), head=self.head.to(device))

    def __getitem__(self, rows: slice | Tensor) -> "HiddenLabels":
        """The labels at a slice, an index or a mask."""
        return HiddenLabels(hidden=self.hidden[rows], head=self.head)

    def logits(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """[rows, V] float32."""
        return self.head.logits(self.hidden[rows])

    def probs(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """[rows, V] float32."""
        return F.softmax(self.logits(rows), 1)
