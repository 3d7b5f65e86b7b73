"""Documents of tokens: which token each label belongs to, and the hash by which a document is found again."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import UsageError

HASH_BYTES = 16  # of a document's tokens; two of 2^40 documents agree by chance with a probability of 2^-49
MAX_TOKEN = (1 << 31) - 1


def token_hash(tokens: NDArray[np.integer]) -> bytes:
    """Hash of the tokens of a document: BLAKE2b, HASH_BYTES long, of the ids as little-endian int32.

    Source: docs/format.md, "Documents".
    """
    return hashlib.blake2b(np.ascontiguousarray(tokens, "<i4").tobytes(), digest_size=HASH_BYTES).digest()


@dataclass(frozen=True, eq=False)
class Documents:
    """D documents one after the other, T tokens in all.

    Row t of a document of L tokens is the distribution of its token t + 1, so it has L - 1 rows.

    Attributes:
        tokens: [T] int64 ids.
        lengths: [D] int64 tokens of each document, at least 1.
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.lengths.min(initial=1) < 1 or int(self.lengths.sum()) != len(self.tokens):
            raise UsageError(f"documents have {int(self.lengths.sum())} tokens by their lengths, and {len(self.tokens)} tokens")

    @classmethod
    def of(cls, documents: Sequence[NDArray[np.integer]]) -> "Documents":
        """From one array of ids per document."""
        lengths = np.array([len(tokens) for tokens in documents], np.int64)
        tokens = np.concatenate([np.asarray(tokens, np.int64) for tokens in documents]) if documents else np.empty(0, np.int64)
        return cls(tokens, lengths)

    def __len__(self) -> int:
        """D."""
        return len(self.lengths)

    @property
    def rows(self) -> int:
        """Number of labels, T - D."""
        return len(self.tokens) - len(self.lengths)

    @property
    def document(self) -> NDArray[np.int64]:
        """[T] index of the document of each token."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def position(self) -> NDArray[np.int64]:
        """[T - D] index, in `tokens`, of the token before the one that each label is the distribution of."""
        last = np.cumsum(self.lengths) - 1
        return np.delete(np.arange(len(self.tokens)), last)

    @property
    def next_tokens(self) -> NDArray[np.int64]:
        """[T - D] the token that follows in the document of each label."""
        return self.tokens[self.position + 1]

    def take(self, index: NDArray[np.int64]) -> "tuple[Documents, NDArray[np.int64]]":
        """The documents at `index`, and the indices of their labels among all labels."""
        starts = np.cumsum(self.lengths) - self.lengths
        lengths = self.lengths[index]
        return Documents(self.tokens[_spans(starts[index], lengths)], lengths), _spans(
            (starts - np.arange(len(self)))[index], lengths - 1
        )

    def groups(self, order: NDArray[np.int64], tokens: int) -> Iterator[NDArray[np.int64]]:
        """Indices of documents, in `order`, in groups of at least `tokens` tokens; the last one may have fewer."""
        total = np.cumsum(self.lengths[order])
        while len(order):
            count = int(np.searchsorted(total, tokens)) + 1
            yield order[:count]
            order, total = order[count:], total[count:] - total[count - 1 : count]


def _spans(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The integers start .. start + length - 1 of every span, one span after the other."""
    before = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.asarray(np.repeat(starts, lengths) + np.arange(int(lengths.sum())) - before)
