"""The contract of readers of language models' dumps: documents by index, each with its labels."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels.sparse import SparseLabels
from vqlabel.labels.text.documents import MAX_TOKEN


@dataclass(frozen=True, kw_only=True, slots=True)
class TextAbout:
    """Properties of a dump as a whole.

    Attributes:
        layout: name of the dump's layout.
        domain: "hidden" (rows are final hidden states, and a head gives logits), "logits" or "topk" (sparse labels of
            probabilities).
        width: numbers of a row: d of hidden states, V of logits, k of top-k labels.
        dtype: type of the stored rows: "F16", "BF16" or "F32".
        vocabulary: V, if the dump records it; None: the head, or the user, says it.
        rest: of top-k labels, what the other tokens have: "uniform", shares of the remaining mass, or "zero".
        tokenizer: name and sha256 of the tokenizer, as far as the dump records them; {}: unknown.
        teacher: the same of the teacher.
        details: JSON for a reader of the file, such as the layer that was read.
    """

    layout: str
    domain: str
    width: int
    dtype: str
    vocabulary: int | None = None
    rest: str | None = None
    tokenizer: Mapping[str, str] = field(default_factory=dict)
    teacher: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextDocument:
    """One document and its labels.

    Attributes:
        tokens: [L] int64 ids.
        rows: [L - 1, width] float16 or float32; row t is of token t + 1. Of domain "topk": SparseLabels of L - 1 labels
            that sum to at most 1, with the probability of every other id in `rest`.
    """

    tokens: NDArray[np.int64]
    rows: NDArray[np.floating] | SparseLabels


class TextSource(ABC):
    """A dump of documents. Memory holds one document at a time, or one file of them.

    Attributes:
        path: of the dump, for messages.
        about: the properties of the dump as a whole.
    """

    path: Path
    about: TextAbout

    @cached_property
    def notes(self) -> list[str]:
        """How the dump is read if that may surprise a user: sentences that begin with a path."""
        return []

    @abstractmethod
    def __len__(self) -> int:
        """Number of documents."""

    @property
    @abstractmethod
    def lengths(self) -> NDArray[np.int64]:
        """[D] tokens of each document, known without reading its rows."""

    @property
    def other_layers(self) -> Mapping[int, "TextSource"]:
        """The same dump read at each layer of hidden states that it holds besides the one that is read."""
        return {}

    @abstractmethod
    def _load(self, index: int) -> tuple[TextDocument, str]:
        """A document, unchecked, and its name for messages."""

    def _load_many(self, index: NDArray[np.int64], first: int) -> Iterator[tuple[TextDocument, str]]:
        """As `_load`, for `index[first:]`. What is read does not depend on `first`."""
        for document in index[first:].tolist():
            yield self._load(document)

    def read(self, index: int) -> TextDocument:
        """A document, checked.

        Raises:
            BadLabels: its rows do not match its tokens or the dump's width, or hold NaN or Inf (in logits, -inf is
                allowed: the token has no probability); an id is negative, or not below V; or the file was changed since
                it was opened.
        """
        return self._checked(index, *self._load(index))

    def tokens(self, index: int) -> NDArray[np.int64]:
        """[L] ids of a document, unchecked: to find documents without reading their rows."""
        return self._load(index)[0].tokens

    def read_many(self, index: NDArray[np.int64], first: int = 0) -> Iterator[TextDocument]:
        """The documents `index[first:]`, checked as by `read`, in this order. A teacher labels several at a time."""
        for document, loaded in zip(index[first:].tolist(), self._load_many(index, first), strict=True):
            yield self._checked(document, *loaded)

    def _checked(self, index: int, document: TextDocument, name: str) -> TextDocument:
        rows, tokens = document.rows, document.tokens
        if len(tokens) != self.lengths[index]:
            raise BadLabels(
                f"{name}: {len(tokens)} tokens; it had {self.lengths[index]} when the dump was opened: it was changed since"
            )
        if len(rows) != len(tokens) - 1:
            raise BadLabels(
                f"{name}: {len(rows)} rows for {len(tokens)} tokens; row t is the distribution of token t + 1, so a document of L tokens has "
                "L - 1 rows"
            )
        width = rows.ids.shape[1] if isinstance(rows, SparseLabels) else rows.shape[1]
        if width != self.about.width:
            raise BadLabels(f"{name}: rows of {width} numbers; the first document has {self.about.width}")
        low, high = int(tokens.min(initial=0)), int(tokens.max(initial=0))
        limit = MAX_TOKEN + 1 if self.about.vocabulary is None else self.about.vocabulary
        if low < 0 or high >= limit:
            raise BadLabels(f"{name}: token {low if low < 0 else high} is outside 0..{limit - 1}, the vocabulary")
        self._check_finite(rows.values if isinstance(rows, SparseLabels) else rows, name)
        return document

    def _check_finite(self, values: NDArray[np.floating], name: str) -> None:
        finite = np.isfinite(values)
        good = finite.all(1)
        if self.about.domain == "logits" and not good.all():
            good = (finite | np.isneginf(values)).all(1) & finite.any(1)
        if not good.all():
            raise BadLabels(
                f"{name}: row {int(good.argmin())} holds NaN or Inf; the teacher's arithmetic overflowed: label this document again"
            )

    def __iter__(self) -> Iterator[TextDocument]:
        return self.read_many(np.arange(len(self)))


class MappedSource(TextSource):
    """A dump whose rows are computed from those of another one, document by document."""

    def __init__(self, source: TextSource, about: TextAbout) -> None:
        self.path, self.about, self._source = source.path, about, source

    @abstractmethod
    def _mapped(self, document: TextDocument) -> TextDocument:
        """A document of the other dump -> that of this one."""

    def __len__(self) -> int:
        return len(self._source)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[D]"""
        return self._source.lengths

    def tokens(self, index: int) -> NDArray[np.int64]:
        """[L]"""
        return self._source.tokens(index)

    def _load(self, index: int) -> tuple[TextDocument, str]:
        return next(self._load_many(np.array([index]), 0))

    def _load_many(self, index: NDArray[np.int64], first: int) -> Iterator[tuple[TextDocument, str]]:
        for number, document in zip(index[first:].tolist(), self._source.read_many(index, first), strict=True):
            yield self._mapped(document), f"{self.path}, document {number}"
