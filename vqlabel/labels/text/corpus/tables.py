"""A Parquet or Arrow file -> documents: a list of token ids, or a text, in each row."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqlabel.labels.layouts.arrow import SUFFIXES as SUFFIXES
from vqlabel.labels.text.corpus.columns import MASK, TEXT, tokens_column, unpadded
from vqlabel.labels.text.corpus.corpus import CorpusFile
from vqlabel.labels.text.corpus.jsonl import tokenized
from vqlabel.labels.text.corpus.tokenizer import TextTokenizer
from vqlabel.labels.text.layouts.table_rows import TableRows


class TableFile(CorpusFile):
    """A table.

    Raises:
        MissingExtra: pyarrow is not installed.
        UsageError: it has texts, and there is no tokenizer (in `scan`).
        BadInput: the file is damaged, or has no tokens.
    """

    def __init__(self, path: Path, tokenizer: TextTokenizer | None) -> None:
        self.path, self._tokenizer, self._rows = path, tokenizer, TableRows(path)
        self._column = tokens_column(self._rows.columns, str(path))
        self._has_mask = self._column != TEXT and MASK in self._rows.columns

    def scan(self) -> Iterator[NDArray[np.int64]]:
        """See `CorpusFile`."""
        for index in range(self._rows.count):
            yield self.read(index)

    def read(self, index: int) -> NDArray[np.int64]:
        """See `CorpusFile`."""
        if self._column == TEXT:
            return tokenized(self._tokenizer, self._rows.read_text(TEXT, index), self.name(index))
        tokens = self._rows.read_integers(self._column, index)
        return unpadded(tokens, self._rows.read_integers(MASK, index), self.name(index)) if self._has_mask else tokens

    def name(self, index: int) -> str:
        """See `CorpusFile`."""
        return f"{self.path}, row {index}"

    def close(self) -> None:
        """See `CorpusFile`."""
        self._rows.close()
