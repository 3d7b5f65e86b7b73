"""A collator of Hugging Face -> one that carries the references of tokens to their labels into the batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.errors import UsageError
from vqlabel.training.text.lookup import MASK, TOKENS, as_ids, kept_tokens
from vqlabel.training.text.references import COLUMN, NO_LABEL

Collator = Callable[[list[dict[str, Any]]], Any]


class LabelCollator:
    """Collates all columns but the references by another collator, and puts each reference where its token is.

    The other collator may pad on either side, if it returns `attention_mask`, or on the right; or join the examples
    to one row. Examples without the column, such as those of a validation set, are left to it.

    Args:
        base: examples -> a batch with `input_ids`.
    """

    def __init__(self, base: Collator) -> None:
        self.base = base

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Any:
        """The batch of `base`, with the references [b, L] int64 in "vqlabel", NO_LABEL for padding.

        Raises:
            UsageError: only some examples have the column, it has another length than input_ids, or the tokens of the
                batch are not those of the examples.
        """
        batch = self.base([{name: value for name, value in example.items() if name != COLUMN} for example in examples])
        with_column = sum(COLUMN in example for example in examples)
        if not with_column:
            return batch
        if with_column < len(examples):
            raise UsageError(
                f"{with_column} of the {len(examples)} examples of a batch have the column {COLUMN}; map labels.attach over all of them"
            )
        tokens, references = (np.concatenate(parts) for parts in zip(*map(_kept, examples), strict=True))
        ids = torch.as_tensor(batch[TOKENS])
        kept = _places(ids, batch.get(MASK), [len(example[TOKENS]) for example in examples])
        if int(kept.sum()) != len(tokens) or not np.array_equal(ids[kept].cpu().numpy(), tokens):
            raise UsageError(
                f"the collator {type(self.base).__name__} made a batch {list(ids.shape)} of {int(kept.sum())} tokens of examples with "
                f"{len(tokens)}, or changed them; labels need all tokens of the examples in their order: pad without truncation, and "
                f"return {MASK} if the padding is on the left"
            )
        batch[COLUMN] = torch.full(ids.shape, NO_LABEL, dtype=torch.int64)
        batch[COLUMN][kept.cpu()] = torch.from_numpy(references)
        return batch


def _kept(example: Mapping[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens and references of an example, those of its padding left out."""
    references = as_ids(example[COLUMN])
    if len(references) != len(example[TOKENS]):
        raise UsageError(
            f"an example has {len(example[TOKENS])} tokens in {TOKENS} and {len(references)} references in {COLUMN}: something shortened one "
            "of the columns after labels.attach, such as max_length of TRL's SFTConfig; cut all columns alike, or pass max_length=None"
        )
    tokens, kept = kept_tokens(example[TOKENS], example.get(MASK))
    return tokens, references[kept]


def _places(ids: Tensor, mask: Tensor | None, lengths: list[int]) -> Tensor:
    """[b, L] bool: which tokens of the batch are those of the examples."""
    if mask is not None and mask.shape == ids.shape:
        return mask != 0
    rows = [sum(lengths)] if len(ids) == 1 else lengths
    row_lengths = torch.tensor(rows if len(rows) == len(ids) else [0] * len(ids), device=ids.device)
    return torch.arange(ids.shape[1], device=ids.device) < row_lengths[:, None]
