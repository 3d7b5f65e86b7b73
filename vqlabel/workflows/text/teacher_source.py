"""A corpus and a teacher -> a dump of documents whose labels are computed when they are read."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.errors import BadInput, UsageError, require
from vqlabel.labels.text.corpus.corpus import Corpus
from vqlabel.labels.text.source import TextAbout, TextDocument, TextSource
from vqlabel.workflows.text.teachers import TextTeacher

BATCH = 8  # documents that a teacher reads at a time
WINDOW_BATCHES, WINDOW_TOKENS = 8, 1 << 16  # whose documents are sorted by length, and whose hidden states are in memory
_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F32"}


class TeacherTextSource(TextSource):
    """The documents of a corpus that have labels, each once, labelled by a teacher when they are read.

    Args:
        batch: documents that the teacher reads at a time. A label depends on it by rounding only.

    Attributes:
        corpus: all documents.

    Raises:
        UsageError: the teacher fails, or reads no documents of this length.
        BadInput: no document has a label, or an id is not in the teacher's vocabulary.
    """

    def __init__(self, corpus: Corpus, teacher: TextTeacher, batch: int = BATCH) -> None:
        require(1 <= batch <= 1 << 16, "batch", batch, "must be 1..65536 documents")
        self.path, self.corpus, self.teacher, self._batch = corpus.path, corpus, teacher, batch
        if not len(corpus.distinct):
            raise BadInput(f"{corpus.path}: has no document of two tokens or more; a label is the distribution of a next token")
        head = teacher.head
        corpus.check_vocabulary(head.vocabulary, f"{head.name} in {head.path}")
        self._check_lengths()
        first = teacher([corpus.read(int(corpus.distinct[0]))[:2]])[0]
        if first.dtype not in _DTYPES:
            raise UsageError(f"teacher {teacher.name}: returns {first.dtype}; hidden states must be float16, bfloat16 or float32")
        self.about = TextAbout(
            layout="relabel",
            domain="hidden",
            width=head.width,
            dtype=_DTYPES[first.dtype],
            vocabulary=head.vocabulary,
            tokenizer=corpus.tokenizer,
            teacher=teacher.identity,
        )

    def _check_lengths(self) -> None:
        """Raises UsageError if a document is longer than the positions of the teacher."""
        lengths, longest = self.corpus.lengths, self.teacher.longest
        if longest is not None and lengths.max() > longest:
            document = int(lengths.argmax())
            raise UsageError(
                f"{self.corpus.name(document)}: has {lengths[document]} tokens; teacher {self.teacher.name} reads at most {longest} "
                f"(max_position_embeddings): cut the documents (flat arrays: --document-length {longest})"
            )

    def __len__(self) -> int:
        return len(self.corpus.distinct)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[D]"""
        return self.corpus.lengths[self.corpus.distinct]

    def _load(self, index: int) -> tuple[TextDocument, str]:
        return next(self._load_many(np.array([index]), 0))

    def _load_many(self, index: NDArray[np.int64], first: int) -> Iterator[tuple[TextDocument, str]]:
        """Batches do not depend on `first`: those that have no document behind it are left out whole."""
        for start, stop in _windows(self.lengths[index], self._batch):
            if stop > first:
                yield from self._label(index[start:stop], max(0, first - start))

    def _label(self, window: NDArray[np.int64], first: int) -> Iterator[tuple[TextDocument, str]]:
        """The documents `window[first:]`; batches are of documents of the window that are about as long."""
        places = self.corpus.distinct[window].tolist()
        tokens = [self.corpus.read(place) for place in places]
        states: dict[int, Tensor] = {}
        order = np.argsort(-self.lengths[window], kind="stable")
        for start in range(0, len(order), self._batch):
            batch = order[start : start + self._batch]
            if batch.max() >= first:
                hidden = self.teacher([tokens[number] for number in batch])
                states |= {int(number): rows for number, rows in zip(batch, hidden, strict=True) if number >= first}
        for number in range(first, len(places)):
            rows = states.pop(number)[:-1]  # the last one is of a token that the document does not have
            yield TextDocument(tokens=tokens[number], rows=_as_numpy(rows)), self.corpus.name(places[number])


def _windows(lengths: NDArray[np.int64], batch: int) -> Iterator[tuple[int, int]]:
    """Spans of documents, each as long as the limits of a window allow."""
    start = tokens = 0
    for at, length in enumerate(lengths.tolist()):
        if at > start and (at - start == WINDOW_BATCHES * batch or tokens + length > WINDOW_TOKENS):
            yield start, at
            start, tokens = at, 0
        tokens += length
    yield start, len(lengths)


def _as_numpy(rows: Tensor) -> NDArray[np.floating]:
    """float16 as it is, all else as float32; bf16, which NumPy lacks, is widened exactly."""
    values: NDArray[np.floating] = (rows if rows.dtype == torch.float16 else rows.float()).numpy()
    return values
