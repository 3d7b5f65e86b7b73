"""A dump of documents -> the sample of a fit: documents from the whole dump, some of them held out."""

import numpy as np
import torch
from numpy.typing import NDArray

from vqlabel.codecs.hidden_labels import HiddenLabels, OutputHead
from vqlabel.codecs.token_vqae.sample import TextSample, TextSplit
from vqlabel.errors import BadLabels
from vqlabel.labels.text.documents import Documents
from vqlabel.labels.text.source import TextSource
from vqlabel.progress import Progress

HELD_OUT = 1 / 20  # share of the sampled labels; documents that the fit does not see


def read_sample(source: TextSource, head: OutputHead, labels: int, seed: int, progress: Progress) -> TextSample:
    """Read random documents with about `labels` labels in all.

    Raises:
        BadLabels: fewer than 2 documents have a label; or see `TextSource.read`.
    """
    rows = np.maximum(source.lengths - 1, 0)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(rows))
    if len(order) < 2:
        raise BadLabels(
            f"{source.path}: {len(order)} documents of two tokens or more; a fit holds one out, so it needs 2: cut the text into documents"
        )
    chosen = order[: max(2, int(np.searchsorted(np.cumsum(rows[order]), labels)) + 1)]
    held_out = max(1, min(len(chosen) - 1, int(np.searchsorted(np.cumsum(rows[chosen]), HELD_OUT * rows[chosen].sum())) + 1))
    done = 0

    def read(index: NDArray[np.int64]) -> TextSplit:
        nonlocal done
        documents = []
        for i in np.sort(index):
            documents.append(source.read(int(i)))
            done += 1
            progress("reading", done, len(chosen), {})
        hidden = torch.from_numpy(np.concatenate([np.asarray(document.rows) for document in documents]))
        labels = HiddenLabels(hidden=hidden, head=head)
        return TextSplit(documents=Documents.of([document.tokens for document in documents]), labels=labels)

    return TextSample(held_out=read(chosen[:held_out]), train=read(chosen[held_out:]))
