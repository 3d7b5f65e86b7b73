"""The final norm of a model: hidden states before it -> those that its output head reads.

vLLM's `extract_hidden_states` saves the states of the last layer before this norm, so a dump of it needs the norm.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import UsageError
from vqlabel.labels.text.source import MappedSource, TextDocument, TextSource

KINDS = ("rms", "layer")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FinalNorm:
    """RMSNorm, or LayerNorm, which subtracts the mean first.

    Attributes:
        name: of the weight, in the model's file.
        kind: one of KINDS.
        weight: [d] float32 factors, as they are applied (of models that store them less 1: with the 1).
        bias: [d] float32; None: 0.
        eps: added to the mean of squares.
    """

    name: str
    kind: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    eps: float

    def __call__(self, hidden: NDArray[np.floating]) -> NDArray[np.float32]:
        """[n, d] of any floating type -> [n, d] float32."""
        values = hidden.astype(np.float32)
        if self.kind == "layer":
            values -= values.mean(1, keepdims=True)
        values /= np.sqrt(np.square(values).mean(1, keepdims=True) + np.float32(self.eps))
        values *= self.weight
        return values if self.bias is None else values + self.bias


class NormedSource(MappedSource):
    """A dump of hidden states, with the final norm applied to its rows.

    Raises:
        UsageError: the rows are no hidden states of the norm's width.
    """

    def __init__(self, source: TextSource, norm: FinalNorm) -> None:
        width = len(norm.weight)
        if source.about.domain != "hidden" or source.about.width != width:
            raise UsageError(
                f"{source.path}: holds {source.about.domain} rows of {source.about.width} numbers; the norm {norm.name} is of hidden states of {width}"
            )
        details = {**source.about.details, "final_norm": {"name": norm.name, "kind": norm.kind, "eps": norm.eps}}
        super().__init__(source, replace(source.about, dtype="F32", details=details))
        self._norm = norm

    @cached_property
    def notes(self) -> list[str]:
        """Those of the dump, and a sentence on the norm."""
        return [*self._source.notes, f"{self.path}: the final norm {self._norm.name} is applied to the hidden states"]

    def _mapped(self, document: TextDocument) -> TextDocument:
        assert isinstance(document.rows, np.ndarray)
        return replace(document, rows=self._norm(document.rows))
