"""Bytes of a `.vql` of documents before it is written, and the rate that a budget leaves for its labels."""

from typing import NamedTuple, Self

import numpy as np

from vqlabel.codecs.documents import DocumentCodec
from vqlabel.labels.text.source import TextSource
from vqlabel.vql.text.table import FIELDS

HEADER_BYTES = 1 << 14  # of a file, with its seal
OVERHEAD = 0.01  # of chunk tables and padding, relative to codes
DOCUMENT_BYTES = sum(FIELDS) // 8  # of a document's row in the table of documents


class DumpSize(NamedTuple):
    """What a file of a whole dump holds: labels, and documents that have one."""

    labels: int
    documents: int

    @classmethod
    def of(cls, source: TextSource) -> Self:
        """The size of a dump."""
        return cls(int(np.maximum(source.lengths - 1, 0).sum()), int((source.lengths > 1).sum()))

    @property
    def table_bytes(self) -> int:
        """Bytes of the table of documents."""
        return DOCUMENT_BYTES * self.documents

    def fixed_bytes(self, codec: DocumentCodec) -> int:
        """Bytes of a file besides its labels."""
        return HEADER_BYTES + self.table_bytes + sum(tensor.nbytes for tensor in codec.decoder_tensors().values())

    def file_bytes(self, fixed: int, bits: float) -> int:
        """Bytes of a file at a rate in code bits per label."""
        return fixed + int(bits * self.labels / 8 * (1 + OVERHEAD))

    def budget(self, bytes: int | None, ratio: float | None, vocabulary: int) -> int | None:
        """Bytes that `bytes`, or the compression ratio against fp16 logits, allows; None: neither is given."""
        return bytes if ratio is None else int(2 * self.labels * vocabulary / ratio)

    def bits_left(self, budget: int, fixed: int) -> float:
        """Code bits per label that a budget in bytes leaves beside fixed parts; below 0 if it is less than these."""
        return 8 * (budget - fixed) / max(1, self.labels) / (1 + OVERHEAD)
