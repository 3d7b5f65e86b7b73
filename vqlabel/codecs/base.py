"""The interface of a codec: labels and side information -> codes -> labels, at a known rate."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vqlabel.codecs.config import CodecConfig
from vqlabel.codecs.fitted_on import FittedOn
from vqlabel.codecs.precision import float32_arithmetic
from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels import Context, SparseLabels

EFFORTS = ("fast", "normal", "best")


class StoredCodec(nn.Module, ABC):
    """A codec as files store it: a configuration and tensors.

    Encoding needs no tensors beyond those of decoding, so a `.vql` and a codec file store the same ones. Weights keep
    their dtypes, regardless of casts of the training loop.
    """

    config: CodecConfig
    fitted_on: FittedOn = FittedOn()  # as far as the codec file records it

    @classmethod
    @abstractmethod
    def build(cls, config: Any, tensors: Mapping[str, Tensor]) -> Self:
        """Build from a resolved configuration and the tensors of `decoder_tensors` or `file_tensors`.

        Raises:
            BadContainer: a tensor is missing, of another shape or not finite.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config.classes:,} classes, {self.config.domain}{self._rate_in_words()})"

    def _rate_in_words(self) -> str:
        return ""

    @property
    def kind(self) -> str:
        """Name of the codec in the registry."""
        return self.config.kind

    def decoder_tensors(self) -> dict[str, Tensor]:
        """Tensors that a `.vql` stores for decoding, by name, in their stored dtypes."""
        return {}

    def file_tensors(self) -> dict[str, Tensor]:
        """Tensors that a codec file stores: those of `decoder_tensors`, and those of the codec's other rates."""
        return self.decoder_tensors()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move weights to any device but keep their dtypes: `.half()` of an enclosing module must not change labels."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            return converted if converted.dtype == tensor.dtype else tensor.to(converted.device)

        return super()._apply(keep_dtype, recurse)  # type: ignore[no-any-return, no-untyped-call]


class LabelCodec(StoredCodec):
    """Base class of the codecs of single labels: `encode` and `decode` map [n, C] labels to codes and back.

    Both compute in float32, regardless of casts, compilation and default dtypes of the training loop.
    """

    takes_sparse: ClassVar[bool] = False  # whether `encode` also takes sparse labels, and there is `decode_sparse`
    effort: str = "normal"  # see `set_effort`

    def _rate_in_words(self) -> str:
        return f", {'up to ' if self.config.max_codes is not None else ''}{sum(self.code_bits):,} bits per label"

    @property
    def needs(self) -> tuple[str, ...]:
        """Side information that encode and decode need: `CodecConfig.needs`."""
        return self.config.needs

    def at_rate(self, *, bits: int | None = None, slots: int | None = None) -> "LabelCodec":
        """The codec at a lower rate, given in code bits per label or in slots.

        Raises:
            UsageError: the codec has no such rate.
        """
        raise UsageError(f"a {self.kind} codec has one rate; fit one with these bits or slots")

    def fit_figures(self, measure: Callable[["LabelCodec"], dict[str, float]]) -> dict[str, Any]:
        """Entries of a fit's report that only this kind of codec has.

        Args:
            measure: codec -> its distortion on held-out labels.
        """
        return {}

    def calibrated(self) -> Self:
        """The codec whose decoded labels have the lowest KL; a codec that rescales its labels overrides this."""
        return self

    @property
    def code_bits(self) -> list[int]:
        """[m] stored width of each code in bits. Their sum is the rate in code bits per label; at a variable rate it is
        the maximum, and `stored_bits` gives the actual rate.
        """
        return self.config.widths

    def stored_bits(self, codes: Tensor) -> float:
        """Bits of codes [n, m] in a file, without tables and tensors."""
        return float(len(codes) * sum(self.code_bits))

    @torch.no_grad()
    def encode(self, labels: Tensor | SparseLabels, context: Context | None = None) -> Tensor:
        """[n, C] labels in the codec's domain -> [n, m] int32 codes, whose bits are those of uint32.

        Args:
            labels: dense; or sparse, of tensors, if the codec `takes_sparse`.

        Raises:
            BadLabels: the labels have another number of classes, or are sparse and the codec takes dense ones only.
            UsageError: see `check_context`.
        """
        self.check_labels(labels)
        with float32_arithmetic(labels.device):
            if isinstance(labels, SparseLabels):
                return self._encode_sparse(labels, context)
            return self._encode(labels, context)

    @abstractmethod
    def _encode(self, labels: Tensor, context: Context | None) -> Tensor:
        """`encode` for checked labels, in float32 arithmetic."""

    def _encode_sparse(self, labels: SparseLabels, context: Context | None) -> Tensor:
        """`encode` for checked sparse labels, in float32 arithmetic, if the codec `takes_sparse`."""
        raise NotImplementedError

    def decode(self, codes: Tensor, context: Context | None = None) -> Tensor:
        """[n, m] codes of any integer type -> [n, C] float32 labels in the codec's domain.

        Differentiable in the decoder's weights, and without Python branches on values, so that it can run inside a
        training step and be compiled as one graph. Labels do not depend on autocast, default dtype, grad mode or
        precision of products.

        Raises:
            UsageError: see `check_context`.
        """
        with float32_arithmetic(codes.device):
            return self._decode(codes, context)

    @abstractmethod
    def _decode(self, codes: Tensor, context: Context | None) -> Tensor:
        """`decode`, in float32 arithmetic."""

    def decode_sparse(self, codes: Tensor, context: Context | None = None) -> SparseLabels:
        """As `decode`, as sparse labels of tensors; for codecs that `takes_sparse`."""
        with float32_arithmetic(codes.device):
            return self._decode_sparse(codes, context)

    def _decode_sparse(self, codes: Tensor, context: Context | None) -> SparseLabels:
        """`decode_sparse`, in float32 arithmetic."""
        raise NotImplementedError

    def set_effort(self, effort: str) -> None:
        """Set the effort of the search in `encode`: "fast", "normal" or "best"; ignored by codecs without a search.

        Raises:
            UsageError: another value.
        """
        require(effort in EFFORTS, "effort", effort, f"must be one of {', '.join(EFFORTS)}")
        self.effort = effort

    def forward(self, codes: Tensor, context: Context | None = None) -> Tensor:
        """`decode`, so that a training loop can use a codec as a module."""
        return self.decode(codes, context)

    def check_context(self, context: Context | None) -> None:
        """Raises UsageError unless records with this context can be encoded and decoded."""

    def check_labels(self, labels: Tensor | SparseLabels) -> None:
        """Raises BadLabels unless `labels` has this codec's number of classes, in a form that it takes."""
        if isinstance(labels, SparseLabels) and not self.takes_sparse:
            raise BadLabels(f"labels are sparse, and codec {self.kind} takes dense ones [n, C]: pass labels.as_dense()")
        if labels.ndim != 2 or labels.shape[1] != self.config.classes:
            raise BadLabels(
                f"labels have shape {list(labels.shape)}, the codec was fitted for {self.config.classes} classes; "
                "fit a codec on this dump, or give another one"
            )
