"""What a fit works on: labels to fit to, labels held out, and how it reports progress and saves its state."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vqlabel.codecs.fitted_on import FittedOn
from vqlabel.labels import Context, Support
from vqlabel.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class LabelSample:
    """The labels that a codec is fitted to, and the held-out labels that it is judged by.

    `seen` and `held` are [n, C] in the dump's domain; the contexts have as many records. `dtype` is the dump's: F16, BF16 or F32.
    """

    seen: Tensor
    held: Tensor
    seen_context: Context | None
    held_context: Context | None
    domain: str
    dtype: str
    support: Support | None = None  # which numbers of a label are known; None: all
    notes: tuple[str, ...] = ()  # what whoever fits to them should know of them, in sentences
    total: int = 0  # labels in the whole dump; 0: those above are all
    fitted_on: FittedOn = field(default_factory=FittedOn)

    @property
    def classes(self) -> int:
        return self.seen.shape[1]

    def steps(self, part: str, size: int) -> Iterator[tuple[Tensor, Context | None]]:
        """Labels and contexts of the `part` ("seen" or "held"), `size` at a time."""
        labels, context = getattr(self, part), getattr(self, part + "_context")
        for at in range(0, len(labels), size):
            yield labels[at : at + size], None if context is None else context.rows(slice(at, at + size))


@dataclass(frozen=True, kw_only=True)
class FitHooks:
    """How a fit talks to its caller: progress(stage, done, total, figures) and a place to save and find its state."""

    progress: Progress = silent
    save: Callable[[dict[str, Any]], None] = lambda _: None
    resumed: dict[str, Any] | None = None
