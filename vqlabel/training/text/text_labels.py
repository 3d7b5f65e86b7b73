"""A `.vql` of documents in a training loop: tokens of a batch -> the labels of its tokens."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.codecs.token_vqae.codec import DecodedLabels, TokenVqae
from vqlabel.errors import UsageError
from vqlabel.labels.text.documents import Documents, token_hash
from vqlabel.training.text.labels import TokenLabels
from vqlabel.vql.text.decode import attach_head, read_text_codec
from vqlabel.vql.text.file import TextVqlFile, as_fields


class UnknownDocument(UsageError):
    """The file has no document with these tokens."""


class TextLabels:
    """The labels of documents, found by their tokens.

    Args:
        path: a `.vql` with labels of documents.
        device: of the decoded labels.
        head: the teacher's output head, for files that name it and do not contain it: a path, as `--head` takes it.

    Raises:
        UsageError: the file has labels of images, or the head is another one.
        BadContainer: the file is damaged.
    """

    def __init__(
        self, path: str | PathLike[str], *, device: str | torch.device = "cpu", head: str | PathLike[str] | None = None
    ) -> None:
        self.file = TextVqlFile(path)
        self.codec: TokenVqae = read_text_codec(self.file)
        attach_head(self.file, self.codec, head)
        self.codec.to(device)
        self.device = torch.device(device)

    def __repr__(self) -> str:
        return (
            f"TextLabels({str(self.file.container.path)!r}: {self.file.rows:,} labels of {len(self.file.documents):,} documents, "
            f"{self.file.classes:,} tokens in the vocabulary, {self.file.label_bits:.1f} bits per label)"
        )

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.file.documents)

    def __contains__(self, tokens: Any) -> bool:
        """Whether the file has the labels of a document with these tokens."""
        return self.file.documents.find(token_hash(_as_ids(tokens))) is not None

    def of(self, tokens: Tensor, *, mask: Tensor | None = None, position_ids: Tensor | None = None) -> TokenLabels:
        """The labels of a batch.

        Args:
            tokens: [b, L] ids, a document a row; or several documents a row, if `position_ids` says where they begin.
            mask: [b, L] attention mask: 0 marks padding, which no document includes.
            position_ids: [b, L] position of each token in its document; 0 begins one.

        Raises:
            UnknownDocument: the file has no document with these tokens.
        """
        if tokens.ndim != 2:
            raise UsageError(f"tokens have shape {list(tokens.shape)}; they must be [batch, length]")
        starts, lengths = _documents_in(tokens, mask, position_ids)
        ids = tokens.reshape(-1).cpu().numpy().astype(np.int64)
        documents = Documents.of([ids[start : start + length] for start, length in zip(starts, lengths, strict=True)])
        first = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)  # of the batch's index over the documents'
        position = documents.position + first[documents.position]
        decoded = self.decode(documents)
        return TokenLabels(
            position=torch.from_numpy(position).to(self.device),
            next_tokens=torch.from_numpy(documents.next_tokens).to(self.device),
            classes=self.file.classes,
            source=decoded,
            hidden_states=self.codec.decoder.hidden(decoded.latent),
        )

    def decode(self, documents: Documents) -> DecodedLabels:
        """The labels of whole documents, one for each token but their first.

        Raises:
            UnknownDocument: the file does not have one of them.
        """
        ends = np.cumsum(documents.lengths)
        fields = [self._fields(documents.tokens[end - length : end]) for end, length in zip(ends, documents.lengths, strict=True)]
        joined = np.concatenate(fields) if fields else np.zeros((0, len(self.file.config.widths)), np.uint32)
        return self.codec.decode(torch.from_numpy(as_fields(joined)).to(self.device), documents)

    def _fields(self, tokens: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        if len(tokens) < 2:
            return np.zeros((0, len(self.file.config.widths)), np.uint32)
        index = self.file.documents.find(token_hash(tokens))
        if index is None:
            rows = self.file.documents.rows
            lengths = f"{rows.min() + 1} to {rows.max() + 1} tokens" if len(rows) else "no tokens"
            raise UnknownDocument(
                f"{self.file.container.path}: has no document with these {len(tokens)} tokens, {_shown(tokens)}; its {len(rows):,} documents "
                f"have {lengths} each. A document is found if all its tokens are the same as when it was labelled: tokenize without "
                "truncation, with the teacher's tokenizer and the same special tokens"
            )
        return self.file.fields(index)


def open_text(
    path: str | PathLike[str], *, device: str | torch.device = "cpu", head: str | PathLike[str] | None = None
) -> TextLabels:
    """Open the labels of documents for training: `TextLabels`."""
    return TextLabels(path, device=device, head=head)


def _as_ids(tokens: Sequence[int] | NDArray[np.integer] | Tensor) -> NDArray[np.int64]:
    return np.asarray(tokens.cpu() if isinstance(tokens, Tensor) else tokens, np.int64).reshape(-1)


def _shown(tokens: NDArray[np.int64]) -> str:
    """The first and last tokens of a document."""
    if len(tokens) <= 8:
        return str(tokens.tolist())
    return f"[{', '.join(map(str, tokens[:4]))}, ..., {', '.join(map(str, tokens[-2:]))}]"


def _documents_in(tokens: Tensor, mask: Tensor | None, position_ids: Tensor | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First index, in the flattened batch, and length of every document of a batch."""
    count, length = tokens.shape
    for name, value in (("mask", mask), ("position_ids", position_ids)):
        if value is not None and value.shape != tokens.shape:
            raise UsageError(f"{name} has shape {list(value.shape)}; it must be that of the tokens, {list(tokens.shape)}")
    kept = np.ones((count, length), bool) if mask is None else mask.cpu().numpy().astype(bool)
    begins = np.zeros((count, length), bool)
    begins[:, 0] = True
    begins[:, 1:] = kept[:, 1:] & ~kept[:, :-1]
    if position_ids is not None:
        begins |= position_ids.cpu().numpy() == 0
    begins &= kept
    index = np.flatnonzero(kept)
    first = np.flatnonzero(begins.reshape(-1)[index])
    return index[first].astype(np.int64), np.diff(np.append(first, len(index))).astype(np.int64)
