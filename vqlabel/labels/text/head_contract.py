"""The contract of output heads: those in files (head.py), and those of teachers in memory."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vqlabel.labels.text.norm import FinalNorm


class Head(Protocol):
    """An output head: logits = cap * tanh(scale * (h @ weight.T + bias) / cap); its weight is read by rows."""

    @property
    def path(self) -> Path:
        """Where it is, for messages."""

    @property
    def name(self) -> str:
        """Of the weight, in the model."""

    @property
    def width(self) -> int:
        """d."""

    @property
    def vocabulary(self) -> int:
        """V: rows of the weight that are used; those behind are padding."""

    @property
    def bias(self) -> NDArray[np.float32] | None:
        """[V]; None: 0."""

    @property
    def scale(self) -> float:
        """Factor on the logits."""

    @property
    def soft_cap(self) -> float | None:
        """Limit of the logits' magnitude; None: no limit."""

    @property
    def norm(self) -> FinalNorm | None:
        """Of the model, which hidden states pass before they reach the head; None: it is unknown."""

    @property
    def notes(self) -> list[str]:
        """How the head is read if that may surprise a user: sentences that begin with a path."""

    @property
    def sha256(self) -> str:
        """In hex, of the stored bytes: "weight BF16 [rows, d]" and a line feed, the weight, and the same of a bias.

        Padding counts: the sum tells which file the head is of, whatever `vocabulary`.
        """

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """[stop - start, d] rows of the weight; bf16 is widened exactly."""
