"""The sparse codec for documents: top-k labels of a language model, each coded by itself."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from vqlabel.codecs.documents import DocumentCodec, check_rows
from vqlabel.codecs.sparse.codec import SparseCodec
from vqlabel.codecs.sparse.config import SparseConfig
from vqlabel.errors import BadContainer
from vqlabel.labels.sparse import SparseLabels
from vqlabel.labels.text.documents import Documents


@dataclass(frozen=True, kw_only=True, eq=False)
class CodedRows:
    """n labels as their codes, which are decoded for the rows that are asked for.

    Attributes:
        codes: [n, m].
    """

    codec: SparseCodec
    codes: Tensor

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """The labels at a slice, an index or a mask."""
        return replace(self, codes=self.codes[rows])

    @torch.no_grad()
    def logits(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """[rows, V] float32; -inf: probability 0."""
        logits: Tensor = self.codec.decode_logits(self.codes[rows]).as_dense()
        return logits


class SparseDocuments(DocumentCodec):
    """The k likeliest tokens of each label, and what the others have. Tokens of the documents are not read."""

    config: SparseConfig

    def __init__(self, codec: SparseCodec) -> None:
        super().__init__()
        self.codec, self.config, self.fitted_on = codec, codec.config, codec.fitted_on

    @classmethod
    def build(cls, config: SparseConfig, tensors: Mapping[str, Tensor]) -> Self:
        if config.domain != "probs":
            raise BadContainer(f"domain is {config.domain}; sparse labels of documents are probs: damaged or forged")
        return cls(SparseCodec.build(config, tensors))

    def decoder_tensors(self) -> dict[str, Tensor]:
        return self.codec.decoder_tensors()

    def encode(self, labels: SparseLabels, documents: Documents) -> Tensor:
        check_rows(len(labels), documents, "labels")
        return self.codec.encode(labels)

    def decode(self, fields: Tensor, documents: Documents) -> CodedRows:
        check_rows(len(fields), documents, "rows of codes")
        return CodedRows(codec=self.codec, codes=fields)
