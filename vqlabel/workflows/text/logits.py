"""Dense logits -> hidden states and a head: the factors of a sample's principal directions.

A language model's logits are a product of hidden states of d numbers and a head, so d directions of the [V] numbers
hold them all, without knowing the head.
"""

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vqlabel.codecs.hidden_labels import OutputHead
from vqlabel.errors import BadLabels
from vqlabel.labels.text.source import MappedSource, TextDocument, TextSource

MAX_VOCABULARY = 1 << 16  # tokens; above, a dump of dense logits is larger than its model
SAMPLE_ROWS, SAMPLE_NUMBERS = 4096, 1 << 28
MAX_RANK = 4096
MAX_LOSS = 1e-3  # nats of KL that the directions left out may cost, on average over the sampled labels
STEPS = 32  # numbers of directions that are tried, evenly spaced up to the largest
JUDGED_ROWS = 512


class FactoredLogits(MappedSource):
    """A dump of logits, read as hidden states whose head is `head`.

    Args:
        source: of domain "logits".

    Raises:
        BadLabels: the vocabulary is too large, or a logit is -inf.
    """

    def __init__(self, source: TextSource, seed: int = 0) -> None:
        vocabulary = source.about.width
        if vocabulary > MAX_VOCABULARY:
            raise BadLabels(
                f"{source.path}: dense logits of {vocabulary:,} tokens; the limit is {MAX_VOCABULARY:,}: save the final hidden states instead, "
                f"which are far smaller, and pass the head with --head"
            )
        self._mean, self._basis, self._loss = _factor(_sample(source, seed))
        self.head = OutputHead(weight=self._basis.T.contiguous(), bias=self._mean)
        super().__init__(source, replace(source.about, domain="hidden", width=len(self._basis), vocabulary=vocabulary, dtype="F32"))

    @cached_property
    def notes(self) -> list[str]:
        """Those of the dump, and a sentence on the factors."""
        return [
            *self._source.notes,
            f"{self.path}: logits are read as hidden states of {len(self._basis)} numbers, which lose {self._loss:.2g} nats of KL per label",
        ]

    def _mapped(self, document: TextDocument) -> TextDocument:
        rows = (_finite(document, self.path) - self._mean) @ self._basis.T
        return replace(document, rows=rows.numpy())


def _sample(source: TextSource, seed: int) -> Tensor:
    """[n, V] logits of random documents, less their means over tokens."""
    limit = min(SAMPLE_ROWS, SAMPLE_NUMBERS // source.about.width)
    rows: list[Tensor] = []
    for index in np.random.default_rng(seed).permutation(np.flatnonzero(source.lengths > 1)):
        rows.append(_finite(source.read(int(index)), source.path))
        if sum(map(len, rows)) >= limit:
            break
    return torch.cat(rows)[:limit] if rows else torch.zeros(0, source.about.width)


def _finite(document: TextDocument, path: object) -> Tensor:
    """[L - 1, V] float32 logits, less their means over tokens: softmax does not depend on them."""
    rows = torch.tensor(np.asarray(document.rows, np.float32))
    if not bool(rows.isfinite().all()):
        raise BadLabels(
            f"{path}: a logit is -inf, which a product of hidden states and a head cannot give; write a finite number, such as -30 below the "
            "largest logit of the row"
        )
    return rows - rows.mean(1, keepdim=True)


def _factor(logits: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean [V], basis [r, V] of orthonormal rows, and the KL that the basis loses, of logits [n, V]."""
    mean = logits.mean(0)
    centred = logits - mean
    values, vectors = torch.linalg.eigh((centred @ centred.T).double())
    most = min(MAX_RANK, max(1, len(logits) // 2))
    order = values.argsort(descending=True)[:most]
    order = order[values[order] > values[order[:1]] * 1e-12]
    basis = (vectors[:, order].float().T @ centred) / values[order].sqrt().float()[:, None]
    judged, rank, loss = centred[:JUDGED_ROWS], len(basis), 0.0
    p = torch.softmax(judged + mean, 1)
    for step in range(1, STEPS + 1):
        rank = max(1, len(basis) * step // STEPS)
        log_q = torch.log_softmax(judged @ basis[:rank].T @ basis[:rank] + mean, 1)
        loss = float((torch.special.xlogy(p, p) - p * log_q).sum(1).mean())
        if loss <= MAX_LOSS:
            break
    return mean, basis[:rank].contiguous(), loss
