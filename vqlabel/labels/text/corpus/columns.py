"""Names of the columns of a corpus, of jsonl and tables alike: which one has the tokens of documents."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadInput

IDS, TEXT, MASK = ("input_ids", "token_ids", "tokens"), "text", "attention_mask"


def tokens_column(columns: Collection[str], where: str) -> str:
    """The first column of token ids, else that of texts; raises BadInput if there is none."""
    for name in (*IDS, TEXT):
        if name in columns:
            return name
    raise BadInput(
        f"{where}: has {', '.join(columns)[:200] or 'no columns'}; a document is a list of token ids in {', '.join(IDS[:-1])} or {IDS[-1]}, or a "
        f"string in {TEXT}"
    )


def unpadded(tokens: NDArray[np.int64], mask: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    """The tokens at which a mask is 1; it is 0 at padding, which only the ends of a document may have.

    Raises:
        BadInput: the mask does not fit, or is not of one document.
    """
    if len(mask) != len(tokens):
        raise BadInput(f"{where}: {len(mask)} numbers of {MASK} for {len(tokens)} tokens; write the documents again")
    kept = np.flatnonzero(mask)
    if len(kept) and (kept[-1] - kept[0] + 1 != len(kept) or mask[kept].max() > 1 or mask.min() < 0):
        raise BadInput(f"{where}: {MASK} is not 1 at tokens and 0 at padding on the ends; write each document as one of its own")
    return tokens[kept]
