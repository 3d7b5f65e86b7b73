"""The contract of codecs of documents' labels: labels of whole documents -> fields; fields and documents -> labels."""

from abc import abstractmethod
from typing import Any, Protocol, Self

from torch import Tensor

from vqlabel.codecs.base import StoredCodec
from vqlabel.errors import UsageError
from vqlabel.labels.text.documents import Documents


class DecodedRows(Protocol):
    """n decoded labels, one for each row of some documents; logits exist only for the rows that are asked for."""

    def __len__(self) -> int:
        """n."""

    def __getitem__(self, rows: slice | Tensor, /) -> Self:
        """The labels at a slice, an index or a mask."""

    def logits(self, rows: slice | Tensor = slice(None), /) -> Tensor:
        """[rows, V] float32, up to a constant per label; -inf: probability 0."""


class DocumentCodec(StoredCodec):
    """Base class of the codecs of documents' labels."""

    @abstractmethod
    def encode(self, labels: Any, documents: Documents) -> Tensor:
        """Labels of whole documents, in the form that the codec takes -> [n, f] int32 fields, whose bits are those of
        uint32; f is the length of `config.widths`.

        Raises:
            UsageError: there are not as many labels as the documents have rows.
        """

    @abstractmethod
    def decode(self, fields: Tensor, documents: Documents) -> DecodedRows:
        """Fields [n, f] of whole documents -> their labels.

        Raises:
            UsageError: there are not as many rows of fields as the documents have.
        """

    def hidden_states(self, decoded: Any) -> Tensor | None:
        """[n, d] the teacher's final hidden states of decoded labels; None: the codec stores none."""
        return None


def check_rows(count: int, documents: Documents, what: str) -> None:
    """Raises UsageError unless there are as many as the documents have rows."""
    if count != documents.rows:
        raise UsageError(f"{count} {what}; the documents have {documents.rows} rows, one for each token but their first")
