"""A dump of documents -> the sample of a fit: documents from the whole dump, some of them held out."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.codecs.hidden_labels import HiddenLabels
from vqlabel.codecs.token_vqae.sample import TextSample, TextSplit
from vqlabel.errors import BadLabels
from vqlabel.labels.text.documents import Documents, token_hash
from vqlabel.labels.text.open import refuse_topk
from vqlabel.labels.text.source import TextDocument, TextSource
from vqlabel.progress import Progress
from vqlabel.workflows.text.open import OpenedText

HELD_OUT = 1 / 20  # share of the sampled labels; documents that the fit does not see


class DocumentSample(NamedTuple):
    """Documents of a fit, and held-out ones; at least one of each, and no two with the same tokens."""

    train: list[TextDocument]
    held_out: list[TextDocument]


def read_sample(source: TextSource, labels: int, seed: int, progress: Progress) -> DocumentSample:
    """Read random documents with about `labels` labels in all; of documents with the same tokens, one.

    Raises:
        BadLabels: fewer than 2 different documents have a label; or see `TextSource.read`.
    """
    rows = np.maximum(source.lengths - 1, 0)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(rows))
    if len(order) < 2:
        raise BadLabels(
            f"{source.path}: {len(order)} documents of two tokens or more; a fit holds one out, so it needs 2: cut the text into documents"
        )
    chosen = order[: max(2, int(np.searchsorted(np.cumsum(rows[order]), labels)) + 1)]
    held_out = max(1, min(len(chosen) - 1, int(np.searchsorted(np.cumsum(rows[chosen]), HELD_OUT * rows[chosen].sum())) + 1))
    reader = _Reader(source, len(chosen), progress)
    held, train = reader.read(chosen[:held_out]), reader.read(chosen[held_out:])
    if not train:
        raise BadLabels(
            f"{source.path}: all sampled documents have the same tokens; a fit holds one document out, so it needs 2 different ones"
        )
    return DocumentSample(train, held)


def read_text_sample(opened: OpenedText, labels: int, seed: int, progress: Progress) -> TextSample:
    """As `read_sample`, with labels as tensors.

    Raises:
        UsageError: these are top-k labels.
    """
    refuse_topk(opened.source)
    drawn = read_sample(opened.source, labels, seed, progress)
    return TextSample(train=_split(opened, drawn.train), held_out=_split(opened, drawn.held_out))


def _split(opened: OpenedText, documents: list[TextDocument]) -> TextSplit:
    labels = opened.labels(documents)
    assert isinstance(labels, HiddenLabels)
    return TextSplit(documents=Documents.of([document.tokens for document in documents]), labels=labels)


class _Reader:
    """Reads documents, each text once, so that no document is held out and learned from."""

    def __init__(self, source: TextSource, total: int, progress: Progress) -> None:
        self.source, self.total, self.progress = source, total, progress
        self.seen, self.done = set[bytes](), 0

    def read(self, index: NDArray[np.int64]) -> list[TextDocument]:
        """The documents at `index` that were not read before."""
        documents: list[TextDocument] = []
        for document in self.source.read_many(np.sort(index)):
            key = token_hash(document.tokens)
            if key not in self.seen:
                self.seen.add(key)
                documents.append(document)
            self.done += 1
            self.progress("reading", self.done, self.total, {})
        return documents
