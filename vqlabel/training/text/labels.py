"""The labels of one batch of tokens; as dense numbers only for as many as asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.precision import float32_arithmetic
from vqlabel.errors import UsageError, require
from vqlabel.metrics.factored import chunk_rows
from vqlabel.training.loss_checks import check_argument_type, check_temperature

MAX_DENSE = 1 << 30  # numbers; 4 GiB


class LogitRows(Protocol):
    """A source of logits, such as labels as a codec decodes them, `HiddenLabels` or `DenseLogits`."""

    def logits(self, rows: slice | Tensor, /) -> Tensor:
        """[rows, V] float32 of the labels at a slice, an index or a mask; -inf: probability 0."""


@dataclass(frozen=True, eq=False)
class DenseLogits:
    """Logits in memory.

    Attributes:
        values: [n, V] of any floating type.
    """

    values: Tensor

    def logits(self, rows: slice | Tensor, /) -> Tensor:
        """[rows, V] float32."""
        return self.values[rows].float()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TokenLabels:
    """n labels of a batch [b, L] of tokens, each the teacher's distribution of the next token.

    Logits are float32 whatever autocast is set, and no gradient flows into them.

    Attributes:
        position: [n] int64, the indices into the flattened batch [b * L] of the tokens before the predicted ones: where
            the student predicts them, too.
        next_tokens: [n] int64, the tokens that follow in the text; None: they are not known.
        classes: V, tokens of the teacher's vocabulary.
        source: of the logits of all n labels.
        hidden_states: [n, d] the teacher's final hidden states as decoded, in the space of its output head; None: these
            labels have none.

    Raises:
        UsageError: shapes or types of the tensors are others, or they are on several devices.
    """

    position: Tensor
    next_tokens: Tensor | None
    classes: int
    source: LogitRows
    hidden_states: Tensor | None = None

    def __post_init__(self) -> None:
        check_argument_type("classes", self.classes, int)
        for name in ("position", "next_tokens"):
            index = getattr(self, name)
            if name == "next_tokens" and index is None:
                continue
            check_argument_type(name, index, Tensor)
            is_valid = index.dtype == torch.int64 and index.shape == (len(self.position),)
            require(is_valid, name, f"{index.dtype} {list(index.shape)}", f"must be torch.int64 [{len(self.position)}]")
        states = self.hidden_states
        if states is not None:
            is_valid = states.dim() == 2 and len(states) == len(self)
            require(is_valid, "shape of hidden_states", list(states.shape), f"must be [{len(self)}, d], one row per label")
        devices = {str(x.device) for x in (self.position, self.next_tokens, states) if x is not None}
        require(len(devices) == 1, "devices of position, next_tokens and hidden_states", sorted(devices), "must be one device")

    def __repr__(self) -> str:
        return f"TokenLabels({len(self):,} labels of {self.classes:,} tokens, {self.position.device})"

    def __len__(self) -> int:
        """n."""
        return len(self.position)

    @torch.no_grad()
    def logits(self, rows: slice | Tensor) -> Tensor:
        """[rows, V] float32 at temperature 1, of the labels at a slice, an index or a mask; -inf: probability 0."""
        with float32_arithmetic(self.position.device):
            return self.source.logits(rows)

    def probs(self, rows: slice | Tensor, temperature: float = 1.0) -> Tensor:
        """Probabilities, as Liger's LigerFusedLinearKLDivLoss takes them.

        Args:
            rows: a slice, an index or a mask of labels. All n at a time are [n, V] numbers: prefer chunks.
            temperature: T, above 0.

        Returns:
            [rows, V] float32, softmax(logits / T).

        Raises:
            UsageError: the temperature is not above 0.
        """
        check_temperature("temperature", temperature)
        return F.softmax(self.logits(rows) / temperature, 1)

    def topk(self, k: int) -> tuple[Tensor, Tensor]:
        """The k likeliest tokens of each label, computed a chunk at a time.

        Args:
            k: 1..V.

        Returns:
            ids: [n, k] int64, from the likeliest down.
            log_probabilities: [n, k] float32, of the whole vocabulary: they are not normalised to the k.

        Raises:
            UsageError: k is out of range.
        """
        check_argument_type("k", k, int)
        require(1 <= k <= self.classes, "k", k, f"must be 1..{self.classes} (the tokens of the vocabulary)")
        ids = torch.empty(len(self), k, dtype=torch.int64, device=self.position.device)
        log_probabilities = torch.empty(len(self), k, device=self.position.device)
        for rows in self._chunks():
            likeliest = F.log_softmax(self.logits(rows), 1).topk(k, 1)
            ids[rows], log_probabilities[rows] = likeliest.indices, likeliest.values
        return ids, log_probabilities

    def hidden(self) -> Tensor:
        """[n, d] the teacher's final hidden states, for trainers that multiply them by the teacher's output head.

        Raises:
            UsageError: these labels have none.
        """
        if self.hidden_states is None:
            raise UsageError(
                "these labels have no hidden states of the teacher: they were packed from logits or top-k labels, or the teacher's head caps its "
                "logits; use "
                "logits(rows), probs(rows) or topk(k)"
            )
        return self.hidden_states

    def dense(self) -> Tensor:
        """[n, V] float32 probabilities of all labels.

        Raises:
            UsageError: these are more than 2^30 numbers.
        """
        numbers = len(self) * self.classes
        limit = f"must be at most {MAX_DENSE} (4 GiB): read a chunk of rows at a time, such as probs(slice(0, {chunk_rows(self.classes)}))"
        require(numbers <= MAX_DENSE, f"the size of {len(self)} dense labels of {self.classes} tokens", numbers, limit)
        probabilities = torch.empty(len(self), self.classes, device=self.position.device)
        for rows in self._chunks():
            probabilities[rows] = self.probs(rows)
        return probabilities

    def _chunks(self) -> Iterator[slice]:
        size = chunk_rows(self.classes)
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))
