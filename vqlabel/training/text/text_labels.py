"""A `.vql` of documents in a training loop: tokens of a batch, or references to labels -> the labels of the batch."""

from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.codecs.documents import DecodedRows, DocumentCodec
from vqlabel.errors import UsageError
from vqlabel.labels.text.documents import Documents, token_hash
from vqlabel.training.reopened import Reopened, checked_device
from vqlabel.training.text.collator import Collator, LabelCollator
from vqlabel.training.text.corpus import Corpus, check_corpus
from vqlabel.training.text.labels import TokenLabels
from vqlabel.training.text.lookup import UnknownDocument as UnknownDocument
from vqlabel.training.text.lookup import as_ids, find_document
from vqlabel.training.text.references import COLUMN, Attach, References, split_references
from vqlabel.training.text.windows import Window, windows
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.describe import text_info
from vqlabel.vql.text.decode import attach_head, read_text_codec
from vqlabel.vql.text.file import TextVqlFile, as_fields
from vqlabel.vql.text.streams import Fields


class TextLabels(Reopened):
    """The labels of documents: `of` finds them by all tokens of a document, `at` by references that tokens carry.

    References are for loops that shuffle, pack, cut or pad documents:

        labels = vqlabel.open_text("labels.vql", corpus=dataset)
        dataset = dataset.map(labels.attach)      # column "vqlabel", one int64 per token
        collate = labels.collator(collate)        # pads it, beside input_ids
        batch_labels = labels.at(batch["vqlabel"], batch["input_ids"])

    It pickles to the path, the options and the corpus, and opens only the same file again.

    Args:
        path: a `.vql` with labels of documents.
        device: of the decoded labels.
        head: the teacher's output head, for files that name it and do not contain it: a path, as `--head` takes it.
        corpus: the documents, whole and in any order, for `at`: see `Corpus`.

    Attributes:
        file: the open `.vql`.
        codec: its decoder.
        device: of the decoded labels.

    Raises:
        UsageError: the file has labels of images, the head is another one, or the corpus cannot be read by index.
        BadContainer: the file is damaged.
    """

    @check_argument_types
    def __init__(
        self,
        path: str | PathLike[str],
        *,
        device: str | torch.device = "cpu",
        head: str | PathLike[str] | None = None,
        corpus: Any = None,
    ) -> None:
        self._open(path, device, head, corpus, None)

    def _open(
        self,
        path: str | PathLike[str],
        device: str | torch.device,
        head: str | PathLike[str] | None,
        corpus: Any,
        seal: bytes | None,
    ) -> None:
        if corpus is not None:
            check_corpus(corpus)
        self.file = TextVqlFile(path, seal)
        self.codec: DocumentCodec = read_text_codec(self.file)
        attach_head(self.file, self.codec, head)
        self._head, self._elements = head, corpus
        self._corpus = None if corpus is None else Corpus(corpus, self.file)
        self.to(device)

    def _state(self) -> dict[str, Any]:
        container = self.file.container
        return {
            "path": str(container.path), "device": str(self.device), "head": self._head, "corpus": self._elements, "seal": container.seal
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self._open(**state)

    def __repr__(self) -> str:
        return f"TextLabels({self.file.summary})"

    @property
    def classes(self) -> int:
        """V, tokens in the vocabulary."""
        return self.file.classes

    @property
    def info(self) -> dict[str, Any]:
        """The file's header, as `vqlabel.info` returns it."""
        return text_info(self.file)

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        self.file.container.close()

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.file.documents)

    def __contains__(self, tokens: Any) -> bool:
        """Whether the file has the labels of a document with these tokens."""
        return self.file.documents.find(token_hash(as_ids(tokens))) is not None

    def to(self, device: str | torch.device) -> Self:
        """Decode on this device from now on."""
        self.device = checked_device(device)
        self.codec.to(self.device)
        return self

    @property
    def attach(self) -> Attach:
        """A function for `dataset.map`: adds the references of an example's tokens as the column "vqlabel"."""
        return Attach(self.file)

    def collator(self, base: Collator) -> LabelCollator:
        """`base`, a collator of Hugging Face, with the references [b, L] of the tokens added to its batches."""
        return LabelCollator(base)

    def of(self, tokens: Tensor, *, mask: Tensor | None = None, position_ids: Tensor | None = None) -> TokenLabels:
        """The labels of a batch of whole documents.

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
        return self._labels(position, documents.next_tokens, self.decode(documents))

    def at(self, references: Tensor, tokens: Tensor | None = None) -> TokenLabels:
        """The labels that the tokens of a batch refer to.

        A label depends on tokens around it in its document, `codec.config.reach` on each side. They are read from the
        corpus, because the batch may have a part of the document.

        Args:
            references: [b, L] int64, the column "vqlabel"; tokens below 0 have no label.
            tokens: [b, L] ids of the batch, which are compared with the corpus; None: they are not.

        Returns:
            labels in the order of the batch; without a corpus their next tokens are not known.

        Raises:
            UsageError: the codec reads tokens and there is no corpus; references are of another file, or the tokens
                are others.
            UnknownDocument: the corpus does not have a document.
        """
        flat = self._checked(references)
        position = np.flatnonzero(flat >= 0)
        distinct, inverse = np.unique(flat[position], return_inverse=True)
        parts = list(windows(*split_references(distinct), self.file.documents.rows, self.codec.config.reach))
        documents = Documents.of([self._tokens(part) for part in parts])
        fields = np.concatenate([self._no_fields(0), *(self._window_fields(part) for part in parts)])
        decoded = self.codec.decode(torch.from_numpy(as_fields(fields)).to(self.device), documents)
        starts = np.cumsum(documents.lengths) - documents.lengths  # of the windows, in their tokens
        needed = [start + part.rows - part.start for start, part in zip(starts, parts, strict=True)]
        token = np.concatenate([np.empty(0, np.int64), *needed])[inverse]
        next_tokens = None
        if self._corpus is not None:
            self._check_tokens(tokens, references, position, documents.tokens[token])
            next_tokens = documents.tokens[token + 1]
        label = torch.from_numpy(np.searchsorted(documents.position, token)).to(self.device)
        return self._labels(position, next_tokens, decoded[label])

    def hidden(self, tokens: Any) -> Tensor:
        """[L - 1, d] float32 teacher's final hidden states of a document, for trainers that multiply them by its head.

        They are those of the codes. The exact ids of labels are probabilities and change no hidden state, so `of` gives
        labels that are nearer to the teacher's.

        Args:
            tokens: [L] ids of the document.

        Raises:
            UnknownDocument: the file has no document with these tokens.
            UsageError: the labels were packed from logits or top-k labels, or their head caps its logits.
        """
        return self._document(tokens).hidden()

    def distillkit(self, tokens: Any, k: int = 128) -> dict[str, NDArray[Any]]:
        """The columns that DistillKit's trainer reads of a captured dataset, for a document.

        Its loss compares row t of the labels with the student's logits at token t, so all columns have L - 1 rows and
        the last token is left out, as its own packing does. Columns of L rows, such as labels, must be cut or removed.

        Args:
            tokens: [L] ids of the document.
            k: tokens per label, 1..V.

        Returns:
            input_ids: [L - 1] int64.
            token_ids: [L - 1, k] int64, from the likeliest down.
            top_values: [L - 1, k] float32 log-probabilities of the whole vocabulary, not normalised to the k.

        Raises:
            UnknownDocument: the file has no document with these tokens.
            UsageError: k is out of range.
        """
        ids, log_probabilities = self._document(tokens).topk(k)
        return {"input_ids": as_ids(tokens)[:-1], "token_ids": ids.cpu().numpy(), "top_values": log_probabilities.cpu().numpy()}

    def decode(self, documents: Documents) -> DecodedRows:
        """The labels of whole documents, one for each token but their first.

        Raises:
            UnknownDocument: the file does not have one of them.
        """
        ends = np.cumsum(documents.lengths)
        fields = [self._fields(documents.tokens[end - length : end]) for end, length in zip(ends, documents.lengths, strict=True)]
        joined = np.concatenate(fields) if fields else self._no_fields(0)
        return self.codec.decode(torch.from_numpy(as_fields(joined)).to(self.device), documents)

    def _document(self, tokens: Any) -> TokenLabels:
        return self.of(torch.from_numpy(as_ids(tokens))[None])

    def _labels(self, position: NDArray[np.int64], next_tokens: NDArray[np.int64] | None, decoded: DecodedRows) -> TokenLabels:
        return TokenLabels(
            position=torch.from_numpy(position).to(self.device),
            next_tokens=None if next_tokens is None else torch.from_numpy(next_tokens).to(self.device),
            classes=self.file.classes,
            source=decoded,
            hidden_states=self.codec.hidden_states(decoded) if self._has_hidden_states else None,
        )

    @property
    def _has_hidden_states(self) -> bool:
        """Whether latents are hidden states of a head that is known, and linear in them."""
        head = self.file.text["head"]
        return bool(head) and head.get("soft_cap") is None

    def _fields(self, tokens: NDArray[np.int64]) -> Fields:
        """Fields of a whole document."""
        return self._no_fields(0) if len(tokens) < 2 else self.file.fields(find_document(self.file, tokens))

    def _no_fields(self, rows: int) -> NDArray[np.uint32]:
        return np.zeros((rows, len(self.file.config.widths)), np.uint32)

    def _checked(self, references: Tensor) -> References:
        """[b * L], all below 0 or of labels that the file has."""
        if references.ndim != 2 or references.dtype != torch.int64:
            raise UsageError(
                f"references are {references.dtype} {list(references.shape)}; they must be torch.int64 [batch, length], the column {COLUMN}"
            )
        flat: References = references.reshape(-1).cpu().numpy()
        document, row = split_references(np.maximum(flat, 0))
        rows = self.file.documents.rows
        outside = (flat >= 0) & ((document >= len(rows)) | (row >= np.append(rows, 0)[np.minimum(document, len(rows))]))
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            raise UsageError(
                f"{self.file.container.path}: has no row {row[at]} of document {document[at]}, only {len(rows):,} documents; the column {COLUMN} "
                "is of another file: map labels.attach of this one"
            )
        return flat

    def _tokens(self, part: Window) -> NDArray[np.int64]:
        """Tokens of a window; zeros if no label depends on them."""
        if self._corpus is not None:
            return self._corpus.tokens(part.document)[part.start : part.stop]
        if self.codec.config.needs:
            raise UsageError(
                f"{self.file.container.path}: its labels depend on the tokens around them, {self.codec.config.reach} on each side, and "
                "references contain no tokens; open the file with corpus=, the dataset or the list of documents' token ids that labels.attach "
                "was mapped over"
            )
        return np.zeros(part.stop - part.start, np.int64)

    def _window_fields(self, part: Window) -> NDArray[np.uint32]:
        """Fields of all rows of a window; zeros for rows that are not needed."""
        fields = self._no_fields(part.stop - part.start - 1)
        first, last = int(part.rows[0]), int(part.rows[-1])
        fields[first - part.start : last + 1 - part.start] = self.file.fields(part.document, first, last + 1)
        return fields

    def _check_tokens(
        self, tokens: Tensor | None, references: Tensor, position: NDArray[np.int64], expected: NDArray[np.int64]
    ) -> None:
        """Raises UsageError if references stand at other tokens than those of their documents."""
        if tokens is None:
            return
        if tokens.shape != references.shape:
            raise UsageError(
                f"tokens have shape {list(tokens.shape)}; they must be of the references' shape, {list(references.shape)}"
            )
        found = tokens.reshape(-1).cpu().numpy()[position]
        if (found != expected).any():
            at = int(np.flatnonzero(found != expected)[0])
            raise UsageError(
                f"token {found[at]} at {divmod(int(position[at]), references.shape[1])} of the batch refers to a label after token {expected[at]}; "
                f"the column {COLUMN} was moved against the tokens, or is of another file: collate it by labels.collator"
            )


@check_argument_types
def open_text(
    path: str | PathLike[str],
    *,
    device: str | torch.device = "cpu",
    head: str | PathLike[str] | None = None,
    corpus: Any = None,
) -> TextLabels:
    """Open the labels of documents for training: `TextLabels`."""
    return TextLabels(path, device=device, head=head, corpus=corpus)


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
