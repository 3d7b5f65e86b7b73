"""Tokens of a document, in any form in which training loops hold them -> the document of a `.vql` that has them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.errors import UsageError
from vqlabel.labels.text.documents import token_hash
from vqlabel.vql.text.file import TextVqlFile

TOKENS, MASK = "input_ids", "attention_mask"  # columns of datasets


class UnknownDocument(UsageError):
    """The file has no document with these tokens."""


def as_ids(tokens: Any) -> NDArray[np.int64]:
    """A list, array or tensor of token ids -> [L] int64.

    Raises:
        UsageError: they are not integers, or have more than one axis.
    """
    ids = np.asarray(tokens.cpu() if isinstance(tokens, Tensor) else tokens)
    if ids.ndim != 1 or (ids.dtype.kind not in "iu" and ids.size):
        raise UsageError(f"tokens are {ids.dtype} {list(ids.shape)}; they must be a list of token ids, one document")
    return ids.astype(np.int64)


def kept_tokens(tokens: Any, mask: Any = None) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The ids that an attention mask keeps, and [L] which these are; without a mask, all."""
    ids = as_ids(tokens)
    kept = np.ones(len(ids), bool) if mask is None else as_ids(mask) != 0
    if len(kept) != len(ids):
        raise UsageError(f"{MASK} has {len(kept)} numbers for {len(ids)} tokens")
    return ids[kept], kept


def tokens_of(element: Any) -> NDArray[np.int64]:
    """[L] token ids of an element of a corpus: those of `input_ids` that its attention mask keeps, or the element.

    Raises:
        UsageError: it has no input_ids.
    """
    if not isinstance(element, Mapping):
        return as_ids(element)
    if TOKENS not in element:
        raise UsageError(f"the example has the columns {sorted(element)}, and no {TOKENS}: tokenize the text first")
    return kept_tokens(element[TOKENS], element.get(MASK))[0]


def find_document(file: TextVqlFile, tokens: NDArray[np.int64]) -> int:
    """Index, in the file, of the document with these tokens.

    Raises:
        UnknownDocument: the file does not have it.
    """
    index = file.documents.find(token_hash(tokens))
    if index is not None:
        return index
    rows = file.documents.rows
    lengths = f"{rows.min() + 1} to {rows.max() + 1} tokens" if len(rows) else "no tokens"
    raise UnknownDocument(
        f"{file.container.path}: has no document with these {len(tokens)} tokens, {_shown(tokens)}; its {len(rows):,} documents have "
        f"{lengths} each. A document is found if all its tokens are the same as when it was labelled: tokenize without truncation, "
        "with the teacher's tokenizer and the same special tokens"
    )


def _shown(tokens: NDArray[np.int64]) -> str:
    """The first and last tokens of a document."""
    if len(tokens) <= 8:
        return str(tokens.tolist())
    return f"[{', '.join(map(str, tokens[:4]))}, ..., {', '.join(map(str, tokens[-2:]))}]"
