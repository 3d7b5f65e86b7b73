"""Inputs of a fit: training and held-out labels, and hooks for progress and saved state."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

from vqlabel.codecs.fitted_on import FittedOn
from vqlabel.labels import Context, SparseLabels, Support
from vqlabel.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class LabelSample:
    """Training labels `train` and held-out labels `held_out` of a fit.

    Both are [n, C] in the dump's domain, dense or sparse as the dump's, and their contexts have as many records.
    `dtype` is that of the dump: F16, BF16 or F32.
    """

    train: Any  # Tensor | SparseLabels
    held_out: Any
    train_context: Context | None
    held_out_context: Context | None
    domain: str
    dtype: str
    support: Support | None = None  # known entries of a label; None: all
    notes: tuple[str, ...] = ()  # remarks on the labels for the report, in sentences
    total: int = 0  # labels in the whole dump; 0: the number of labels above
    fitted_on: FittedOn = field(default_factory=FittedOn)

    @property
    def classes(self) -> int:
        return int(self.train.shape[1])

    def dense(self) -> Self:
        """The sample with dense labels, for codecs that take no others and for baselines."""
        if not isinstance(self.train, SparseLabels):
            return self
        return replace(self, train=self.train.as_dense(), held_out=self.held_out.as_dense())

    def steps(self, split: str, size: int) -> Iterator[tuple[Any, Context | None]]:
        """Labels and contexts of a split ("train" or "held_out"), `size` labels at a time."""
        labels, context = getattr(self, split), getattr(self, split + "_context")
        for start in range(0, len(labels), size):
            rows = slice(start, start + size)
            yield labels[rows], None if context is None else context.rows(rows)


@dataclass(frozen=True, kw_only=True)
class FitHooks:
    """Callbacks of a fit: `progress(stage, done, total, figures)` and `save(state)`; `resumed`: a state to resume."""

    progress: Progress = silent
    save: Callable[[dict[str, Any]], None] = lambda _: None
    resumed: dict[str, Any] | None = None
