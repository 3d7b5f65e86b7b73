"""References of tokens to their labels: a column of a dataset that survives packing, shuffling and re-sharding.

The reference of a token is one int64, document << ROW_BITS | row, or NO_LABEL: the label that is the distribution of
the token after it is row `row` of document `document` of the `.vql`. The last token of a document has none.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import UsageError
from vqlabel.training.text.lookup import MASK, TOKENS, find_document, kept_tokens
from vqlabel.vql.text.file import TextVqlFile

COLUMN = "vqlabel"
NO_LABEL = -1
ROW_BITS = 32

References = NDArray[np.int64]


def references_of(document: int, tokens: int) -> References:
    """[L] references of the tokens of a document of L tokens."""
    references = np.arange(tokens, dtype=np.int64) | np.int64(document) << ROW_BITS
    references[-1:] = NO_LABEL
    return references


def split_references(references: References) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[n] references to labels -> [n] documents, [n] rows."""
    return references >> ROW_BITS, references & ((1 << ROW_BITS) - 1)


class Attach:
    """An example with `input_ids` -> {"vqlabel": its references}, for `datasets.Dataset.map`, also with batched=True.

    Tokens that `attention_mask` excludes have no label. It pickles to the path of the `.vql` and the file's seal, so
    `map` caches its result under the same fingerprint in every process and run, until the file is replaced.
    """

    def __init__(self, file: TextVqlFile) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (str(self._file.container.path), self._file.container.seal)

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """The references of an example as an array [L] of int64; those of a batch of examples as a list of arrays.

        Raises:
            UsageError: the example has no input_ids.
            UnknownDocument: the file has no document with these tokens.
        """
        if TOKENS not in example:
            raise UsageError(
                f"the example has the columns {sorted(example)}, and no {TOKENS}: tokenize the text before labels are attached"
            )
        tokens, mask = example[TOKENS], example.get(MASK)
        if not len(tokens) or np.ndim(tokens[0]) == 0:
            return {COLUMN: self._references(tokens, mask)}
        masks = [None] * len(tokens) if mask is None else mask
        return {COLUMN: [self._references(own, kept) for own, kept in zip(tokens, masks, strict=True)]}

    def _references(self, tokens: Any, mask: Any) -> References:
        ids, kept = kept_tokens(tokens, mask)
        references = np.full(len(kept), NO_LABEL)
        if len(ids) > 1:
            references[kept] = references_of(find_document(self._file, ids), len(ids))
        return references


def _reopened(path: str, seal: bytes) -> Attach:
    return Attach(TextVqlFile(path, seal))
