"""The one contract that all codecs keep: labels + context -> codes -> labels, at a stated rate."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vqlabel.bitstream import FIXED, ZSTD, Coding
from vqlabel.codecs.fitted_on import FittedOn
from vqlabel.codecs.precision import cpu_by_default, float32_arithmetic
from vqlabel.config import FitConfig
from vqlabel.errors import BadLabels, require
from vqlabel.labels import Context, Support
from vqlabel.progress import Progress, silent
from vqlabel.threads import small_operations

EFFORTS = ("fast", "normal", "best")


@dataclass(frozen=True, kw_only=True)
class LabelSample:
    """The labels that a codec is fitted to, and those it is judged by.

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


class LabelCodec(nn.Module, ABC):
    """Base of the codecs.

    What it decodes by, it encodes by: the same tensors travel in the `.vql` and lie in the codec file. Its weights keep their types, and
    all three of fit, encode and decode compute in float32, whatever a training loop around it casts, compiles or sets as a default.
    """

    kind: ClassVar[str]
    uses_context: bool = False  # False: callers need not look the context up
    effort: str = "normal"  # see `set_effort`
    codings: ClassVar[tuple[Coding, ...]] = (FIXED, ZSTD)  # of the container, by which codes may be stored: the smallest is taken
    counted: bool = False  # True: the first column of codes is a label's count, and codes beyond it are 0 and not stored
    config: Any
    fitted_on: FittedOn = FittedOn()  # as far as the codec's file says

    @property
    def holds_sets(self) -> bool:
        """Whether a decoded label holds some of the classes and nothing for the others: a logit of NOWHERE, a probability of 0."""
        return False

    @classmethod
    def fit(cls, sample: LabelSample, config: FitConfig, hooks: FitHooks) -> Self:
        """Fit to `sample.seen`, stopping by `sample.held`."""
        device = torch.device(config.device)
        with small_operations(), torch.inference_mode(False), torch.enable_grad(), cpu_by_default(), float32_arithmetic(device):
            return cls._fit(sample, config, hooks)

    @classmethod
    @abstractmethod
    def _fit(cls, sample: LabelSample, config: FitConfig, hooks: FitHooks) -> Self:
        """`fit`, in float32 arithmetic."""

    @classmethod
    @abstractmethod
    def build(cls, config: Any, tensors: Mapping[str, Tensor]) -> Self:
        """From a resolved configuration and the tensors of `decoder_tensors`, or of `file_tensors`.

        Raises:
            BadContainer: a tensor is missing, of another shape or not finite.
        """

    @property
    def code_bits(self) -> list[int]:
        """[m] stored width of each code in bits; their sum is the rate in code bits per label, the most where labels have rates of
        their own: see `stored_bits`."""
        widths: list[int] = self.config.widths
        return widths

    def stored_bits(self, codes: Tensor) -> float:
        """What a file takes for codes [n, m], without its tables and tensors."""
        return float(len(codes) * sum(self.code_bits))

    @torch.no_grad()
    def encode(self, labels: Tensor, context: Context | None = None) -> Tensor:
        """[n, C] labels in the codec's domain -> [n, m] int32 codes (read as unsigned).

        Raises:
            BadLabels: labels of another number of classes.
            UsageError: see `check_context`.
        """
        self.check_labels(labels)
        with float32_arithmetic(labels.device):
            return self._encode(labels, context)

    @abstractmethod
    def _encode(self, labels: Tensor, context: Context | None) -> Tensor:
        """`encode` for labels that were checked, in float32 arithmetic."""

    def decode(self, codes: Tensor, context: Context | None = None) -> Tensor:
        """[n, m] codes of any integer type -> [n, C] float32 labels in the codec's domain.

        Differentiable in the decoder's weights and free of Python branches on values, so it can run inside a training step and be
        compiled as one graph. The same labels under any autocast, default dtype, grad mode or precision of products.

        Raises:
            UsageError: see `check_context`.
        """
        with float32_arithmetic(codes.device):
            return self._decode(codes, context)

    @abstractmethod
    def _decode(self, codes: Tensor, context: Context | None) -> Tensor:
        """`decode`, in float32 arithmetic."""

    def decoder_tensors(self) -> dict[str, Tensor]:
        """What a reader needs, by name, in the types that travel."""
        return {}

    def file_tensors(self) -> dict[str, Tensor]:
        """What a codec file holds: those of `decoder_tensors`, and what other rates of the codec need."""
        return self.decoder_tensors()

    def set_effort(self, effort: str) -> None:
        """How hard `encode` looks for the best codes: "fast", "normal" or "best"; codecs with nothing to search take no notice."""
        require(effort in EFFORTS, "effort", effort, f"must be one of {', '.join(EFFORTS)}")
        self.effort = effort

    def forward(self, codes: Tensor, context: Context | None = None) -> Tensor:
        """`decode`, so that a codec is the decoder module of a training loop."""
        return self.decode(codes, context)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Weights move to any device and keep their types: `.half()` of a module around the codec must not change its labels."""

        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(moved, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def check_context(self, context: Context | None) -> None:
        """Raises UsageError unless records of this context can be encoded and decoded; the message is "what is wrong; what to do"."""

    def check_labels(self, labels: Tensor) -> None:
        """Raises BadLabels unless `labels` has this codec's number of classes."""
        if labels.dim() != 2 or labels.shape[1] != self.config.classes:
            raise BadLabels(
                f"labels have shape {list(labels.shape)}, the codec was fitted for {self.config.classes} classes; "
                "fit a codec on this dump, or name the right one"
            )
