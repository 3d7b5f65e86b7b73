"""Documents and the codes of their labels -> a `.vql`: added one by one, then the decoder's tensors and the header."""

from collections.abc import Mapping
from os import PathLike
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vqlabel.codecs.config import COUNTS, CodecConfig, CodeStream
from vqlabel.container import ContainerWriter, canonical
from vqlabel.dtypes import stored_type
from vqlabel.version import __version__
from vqlabel.vql.file import CODEC
from vqlabel.vql.spool import Spool
from vqlabel.vql.text.file import SUMS
from vqlabel.vql.text.streams import Fields, run_lengths, split_streams
from vqlabel.vql.text.table import FIELDS, TABLE, table_row

WIDE_CHUNK_ROWS = 1024  # if a label is one row: a document is read by whole chunks; shorter ones have more tables to code


class TextVqlWriter:
    """Writes a `.vql` of documents, as a context manager: the complete file appears if `finish` was called, else none.

    Args:
        out: the file.
        config: of the codec; it declares the streams.

    Raises:
        TargetExists: `out` exists and `overwrite` is false.
    """

    def __init__(self, out: str | PathLike[str], config: CodecConfig, *, overwrite: bool = False) -> None:
        self._container, self._config = ContainerWriter(out, overwrite=overwrite), config

    def __enter__(self) -> Self:
        self._container.__enter__()
        folder = self._container.path.parent
        self._spools = [(stream, Spool(folder, len(stream.bits))) for stream in self._config.streams]
        self._table = Spool(folder, len(FIELDS))
        self.documents = self.rows = 0
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._container.__exit__(kind, error, trace)

    def add(self, token_hash: bytes, fields: Fields) -> None:
        """Append a document and the fields [n, f] of its labels, as the codec encodes them."""
        streams = split_streams(self._config, fields)
        self._table.add(table_row(token_hash, len(fields)))
        for stream, spool in self._spools:
            spool.add(streams[stream.name].astype(np.uint32))
        self.documents, self.rows = self.documents + 1, self.rows + len(fields)

    def finish(self, label: Mapping[str, Any], text: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> int:
        """Write the other streams, tensors and header. Returns the size of the file in bytes.

        Args:
            label: content of `vql.label`.
            text: content of `vql.text`: tokenizer, teacher, head, and how the file was made.
            tensors: of the decoder, by name, in their stored dtypes.
        """
        container, config = self._container, self._config
        for stream, spool in self._spools:
            self._write(stream, spool)
            if stream.name == COUNTS:
                container.tensor(SUMS, "U64", self._sums(spool))
        self._write(CodeStream(TABLE, FIELDS), self._table)
        for name, tensor in tensors.items():
            container.tensor(CODEC + name, stored_type(tensor.dtype), tensor)
        metadata = {
            "vql.label": canonical(label),
            "vql.codec": canonical({"kind": config.kind, "config": config.to_dict()}),
            "vql.text": canonical(text),
            "vql.writer": f"vqlabel {__version__}",
        }
        return container.finish(metadata, [TABLE])

    def _write(self, stream: CodeStream, spool: Spool) -> None:
        is_wide = stream.name != TABLE and not self._config.runs
        chunk_rows = stream.chunk_rows or (WIDE_CHUNK_ROWS if is_wide else None)
        self._container.begin(stream.name, stream.bits, stream.codings, chunk_rows)
        for rows in spool:
            self._container.append(rows)
        self._container.end()

    def _sums(self, counts: Spool) -> NDArray[np.uint64]:
        """[chunks, runs] rows of every run before each chunk of counts, from which a reader begins to add."""
        stream, done = self._container.streams[COUNTS], 0
        in_chunk = np.zeros((stream.chunks, len(self._config.runs)), np.int64)
        for rows in counts:
            np.add.at(in_chunk, (done + np.arange(len(rows))) // stream.chunk_rows, run_lengths(self._config, rows))
            done += len(rows)
        return (np.cumsum(in_chunk, 0) - in_chunk).astype(np.uint64)
