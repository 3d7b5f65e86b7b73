"""A corpus of documents -> the tokens of any document of a `.vql`."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import UsageError
from vqlabel.labels.text.documents import token_hash
from vqlabel.training.text.lookup import MASK, TOKENS, UnknownDocument, tokens_of
from vqlabel.vql.text.file import TextVqlFile


class Corpus:
    """The tokens of the documents of a file, out of a corpus in any order, which may have others, too.

    The first use reads the corpus once, to find each document by the hash of its tokens; 8 bytes per document of the
    file stay in memory.

    Args:
        elements: of the corpus, by index: lists, arrays or tensors of token ids; or mappings with `input_ids`, such as
            a `datasets.Dataset`, of whose tokens an `attention_mask` may exclude padding.

    Raises:
        UsageError: the corpus has no length or no index, or no column input_ids.
    """

    def __init__(self, elements: Any, file: TextVqlFile) -> None:
        check_corpus(elements)
        columns = getattr(elements, "column_names", None)
        if columns is not None and hasattr(elements, "with_format"):
            if TOKENS not in columns:
                raise UsageError(f"corpus has the columns {sorted(columns)}, and no {TOKENS}: tokenize it first")
            elements = elements.with_format("numpy", columns=[name for name in (TOKENS, MASK) if name in columns])
        self._corpus, self._file = elements, file

    def tokens(self, document: int) -> NDArray[np.int64]:
        """[L] the tokens of a document of the file.

        Raises:
            UnknownDocument: the corpus does not have it.
            UsageError: the corpus was changed after it was read.
        """
        at = int(self._places[document])
        if at < 0:
            raise UnknownDocument(
                f"corpus has {len(self._corpus):,} documents, and none is document {document} of {self._file.container.path}, of "
                f"{self._file.documents.rows[document] + 1} tokens; pass the documents as labels.attach found them, before they are packed or "
                "shortened"
            )
        tokens = tokens_of(self._corpus[at])
        if token_hash(tokens) != self._file.documents.hashes[document].tobytes():
            raise UsageError(f"corpus has other tokens at {at} than when it was first read; do not change it after it is passed")
        return tokens

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """[D] index in the corpus of each document; -1: the corpus does not have it."""
        table = self._file.documents
        places = np.full(len(table), -1)
        for at, element in enumerate(self._elements()):
            document = table.find(token_hash(tokens_of(element)))
            if document is not None:
                places[document] = at
        return places

    def _elements(self) -> Iterator[Any]:
        """All elements; a dataset reads faster in order than by index."""
        if hasattr(self._corpus, "with_format"):
            return iter(self._corpus)
        return (self._corpus[at] for at in range(len(self._corpus)))


def check_corpus(elements: Any) -> None:
    """Raises UsageError unless `elements` has a length and is indexed."""
    is_indexed = hasattr(elements, "__len__") and hasattr(elements, "__getitem__")
    if not is_indexed or isinstance(elements, str | bytes | PathLike | Mapping):
        raise UsageError(
            f"corpus is of type {type(elements).__name__}; it must be a datasets.Dataset with {TOKENS}, or a list with the token ids of "
            "each document"
        )
