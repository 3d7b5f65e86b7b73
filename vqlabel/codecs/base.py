"""The contract of a codec: labels and side information -> codes -> labels, at a stated rate."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from vqlabel.codecs.config import CodecConfig
from vqlabel.codecs.fitted_on import FittedOn
from vqlabel.codecs.precision import float32_arithmetic
from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels import Context

EFFORTS = ("fast", "normal", "best")


class LabelCodec(nn.Module, ABC):
    """Base of the codecs.

    What it decodes by, it encodes by: the same tensors travel in the `.vql` and lie in the codec file. Its weights keep their types, and
    encode and decode compute in float32, whatever a training loop around it casts, compiles or sets as a default.
    """

    effort: str = "normal"  # see `set_effort`
    config: CodecConfig
    fitted_on: FittedOn = FittedOn()  # as far as the codec's file says

    @classmethod
    @abstractmethod
    def build(cls, config: Any, tensors: Mapping[str, Tensor]) -> Self:
        """From a resolved configuration and the tensors of `decoder_tensors`, or of `file_tensors`.

        Raises:
            BadContainer: a tensor is missing, of another shape or not finite.
        """

    @property
    def kind(self) -> str:
        """Name of the codec in the registry."""
        return self.config.kind

    @property
    def needs(self) -> tuple[str, ...]:
        """Side information that encode and decode need: see `CodecConfig.needs`."""
        return self.config.needs

    @property
    def rates(self) -> list[int]:
        """Code bits per label that `at_rate` gives, the most first."""
        return [sum(self.code_bits)]

    def at_rate(self, *, bits: int | None = None, slots: int | None = None) -> "LabelCodec":
        """The same codec at a lower rate, named in code bits per label or in slots.

        Raises:
            UsageError: the codec has no such rate.
        """
        raise UsageError(f"a {self.kind} codec has one rate; fit one with these bits or slots")

    def fit_figures(self, measure: Callable[["LabelCodec"], dict[str, float]]) -> dict[str, Any]:
        """What the report of a fit holds of this codec alone.

        Args:
            measure: codec -> its distortion on the labels held out.
        """
        return {}

    @property
    def code_bits(self) -> list[int]:
        """[m] stored width of each code in bits; their sum is the rate in code bits per label, the most where labels have rates of
        their own: see `stored_bits`."""
        return self.config.widths

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
