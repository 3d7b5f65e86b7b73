"""A dump of documents -> the sample of a fit: documents from the whole dump, some of them held out."""

import numpy as np
import torch
from numpy.typing import NDArray

from vqlabel.codecs.hidden_labels import HiddenLabels, OutputHead
from vqlabel.codecs.token_vqae.sample import TextSample, TextSplit
from vqlabel.errors import BadLabels
from vqlabel.labels.text.documents import Documents, token_hash
from vqlabel.labels.text.source import TextDocument, TextSource
from vqlabel.progress import Progress

HELD_OUT = 1 / 20  # share of the sampled labels; documents that the fit does not see


def read_sample(source: TextSource, head: OutputHead, labels: int, seed: int, progress: Progress) -> TextSample:
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
    reader = _Reader(source, head, len(chosen), progress)
    held, train = reader.read(chosen[:held_out]), reader.read(chosen[held_out:])
    if not len(train.labels):
        raise BadLabels(
            f"{source.path}: all sampled documents have the same tokens; a fit holds one document out, so it needs 2 different ones"
        )
    return TextSample(held_out=held, train=train)


class _Reader:
    """Reads documents, each text once, so that no document is held out and learned from."""

    def __init__(self, source: TextSource, head: OutputHead, total: int, progress: Progress) -> None:
        self.source, self.head, self.total, self.progress = source, head, total, progress
        self.seen, self.done = set[bytes](), 0

    def read(self, index: NDArray[np.int64]) -> TextSplit:
        """The documents at `index` that were not read before."""
        documents: list[TextDocument] = []
        for document in self.source.read_many(np.sort(index)):
            key = token_hash(document.tokens)
            if key not in self.seen:
                self.seen.add(key)
                documents.append(document)
            self.done += 1
            self.progress("reading", self.done, self.total, {})
        rows = [np.empty((0, self.source.about.width), np.float16), *(np.asarray(document.rows) for document in documents)]
        labels = HiddenLabels(hidden=torch.from_numpy(np.concatenate(rows[bool(documents) :])), head=self.head)
        return TextSplit(documents=Documents.of([document.tokens for document in documents]), labels=labels)
