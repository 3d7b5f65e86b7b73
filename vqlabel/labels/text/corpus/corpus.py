"""The documents of a corpus by index, and what is known of all of them after one pass."""

import hashlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadInput
from vqlabel.labels.text.documents import HASH_BYTES, MAX_TOKEN, token_hash


class CorpusFile(ABC):
    """A file of documents. Memory holds one of them at a time, and where each lies.

    Attributes:
        path: of the file.
    """

    path: Path

    @abstractmethod
    def scan(self) -> Iterator[NDArray[np.int64]]:
        """The tokens of every document in order. All of them are read once before any is read by its index."""

    @abstractmethod
    def read(self, index: int) -> NDArray[np.int64]:
        """[L] tokens of a document."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Where a document is, for messages."""

    def close(self) -> None:  # noqa: B027  (most files are opened for each read)
        """Release what reading keeps open; the next read opens it again."""


class Corpus:
    """Documents of token ids. All are read once when a corpus is opened, so that a long run meets no broken one.

    Args:
        path: of the corpus, for messages.
        files: of the corpus, in order.
        tokenizer: name and sha256 of the tokenizer, as far as they are known.

    Attributes:
        lengths: [D] tokens of each document, at least 1.

    Raises:
        BadInput: there is no document; or one is empty, or has an id outside 0..2^31 - 1.
    """

    def __init__(self, path: Path, files: Sequence[CorpusFile], tokenizer: Mapping[str, str]) -> None:
        self.path, self.tokenizer, self._files, self._open = path, tokenizer, files, files[0]
        lengths, hashes, counts, self._largest = array("q"), bytearray(), [], (-1, 0)
        for file in files:
            before = len(lengths)
            for index, tokens in enumerate(file.scan()):
                top = _check(tokens, file, index)
                self._largest = max(self._largest, (top, -len(lengths)))  # of equal ids, that of the first document
                lengths.append(len(tokens))
                hashes += token_hash(tokens)
            counts.append(len(lengths) - before)
            file.close()
        if not lengths:
            raise BadInput(f"{path}: contains no documents; a corpus has at least one")
        self.lengths: NDArray[np.int64] = np.array(lengths, np.int64)
        self._hashes, self._ends = bytes(hashes), np.cumsum(counts)

    def __len__(self) -> int:
        """D."""
        return len(self.lengths)

    @cached_property
    def sha256(self) -> str:
        """In hex, of the hashes of all documents in order."""
        return hashlib.sha256(self._hashes).hexdigest()

    def hash(self, index: int) -> bytes:
        """`token_hash` of a document."""
        return self._hashes[HASH_BYTES * index : HASH_BYTES * (index + 1)]

    @cached_property
    def distinct(self) -> NDArray[np.int64]:
        """Indices of the documents that have labels, those of two tokens or more; of equal ones, the first."""
        _, first = np.unique(np.frombuffer(self._hashes, f"V{HASH_BYTES}"), return_index=True)
        return np.sort(first[self.lengths[first] > 1]).astype(np.int64)

    def read(self, index: int) -> NDArray[np.int64]:
        """[L] tokens of a document.

        Raises:
            BadInput: the file was changed since the corpus was opened.
        """
        file, number = self._place(index)
        if file is not self._open:
            self._open.close()
            self._open = file
        tokens = file.read(number)
        if token_hash(tokens) != self.hash(index):
            raise BadInput(f"{file.name(number)}: has other tokens than when the corpus was opened; it was changed since")
        return tokens

    def name(self, index: int) -> str:
        """Where a document is, for messages."""
        file, number = self._place(index)
        return file.name(number)

    def check_vocabulary(self, vocabulary: int, owner: str) -> None:
        """Raises BadInput if an id is not below V, that of `owner`."""
        largest, document = self._largest
        if largest >= vocabulary:
            raise BadInput(
                f"{self.name(-document)}: token {largest} is outside 0..{vocabulary - 1}, the vocabulary of {owner}; tokenize the corpus with the "
                "teacher's own tokenizer"
            )

    def _place(self, index: int) -> tuple[CorpusFile, int]:
        """The file of a document, and its index in that file."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._files[number], index - (int(self._ends[number - 1]) if number else 0)


def _check(tokens: NDArray[np.int64], file: CorpusFile, index: int) -> int:
    """The largest id of a document; raises BadInput if it has none, or one that is no id."""
    if not len(tokens):
        raise BadInput(f"{file.name(index)}: has no tokens; remove this document")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high > MAX_TOKEN:
        raise BadInput(
            f"{file.name(index)}: token {low if low < 0 else high} is outside 0..{MAX_TOKEN}; a document has no padding and no masked labels: "
            "remove them"
        )
    return high
