"""Documents and the codes of their labels -> a `.vql`: added one by one, then the decoder's tensors and the header."""

from collections.abc import Mapping
from os import PathLike
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vqlabel.codecs.config import CodecConfig
from vqlabel.container import ContainerWriter, canonical
from vqlabel.dtypes import stored_type
from vqlabel.version import __version__
from vqlabel.vql.file import CODEC
from vqlabel.vql.spool import Spool
from vqlabel.vql.text.streams import Fields, split_streams
from vqlabel.vql.text.table import TABLE, WORDS, table_row


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
        folder, runs = self._container.path.parent, self._config.runs
        first, *others = self._config.streams[::-1]  # the longest stream is written at once, the others when it has ended
        self._first = first
        self._spools = {stream.name: (stream, Spool(folder, len(stream.bits))) for stream in others}
        self._table = Spool(folder, WORDS + 1 + len(runs))
        self.documents = self.rows = 0
        self._begin(first)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._container.__exit__(kind, error, trace)

    def add(self, token_hash: bytes, fields: Fields) -> None:
        """Append a document and the fields [n, f] of its labels, as the codec encodes them."""
        streams = split_streams(self._config, fields)
        self._table.add(table_row(token_hash, len(fields), [len(streams[run.stream]) for run in self._config.runs]))
        self._container.append(streams[self._first.name])
        for name, (_, spool) in self._spools.items():
            spool.add(streams[name].astype(np.uint32))
        self.documents, self.rows = self.documents + 1, self.rows + len(fields)

    def finish(self, label: Mapping[str, Any], text: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> int:
        """Write the other streams, tensors and header. Returns the size of the file in bytes.

        Args:
            label: content of `vql.label`.
            text: content of `vql.text`: tokenizer, teacher, head, and how the file was made.
            tensors: of the decoder, by name, in their stored dtypes.
        """
        container, config = self._container, self._config
        container.end()
        for stream, spool in self._spools.values():
            self._begin(stream)
            for rows in spool:
                container.append(rows)
            container.end()
        container.begin(TABLE, [32] * self._table.fields)
        for rows in self._table:
            container.append(rows)
        container.end()
        for name, tensor in tensors.items():
            container.tensor(CODEC + name, stored_type(tensor.dtype), tensor)
        metadata = {
            "vql.label": canonical(label),
            "vql.codec": canonical({"kind": config.kind, "config": config.to_dict()}),
            "vql.text": canonical(text),
            "vql.writer": f"vqlabel {__version__}",
        }
        return container.finish(metadata, [TABLE])

    def _begin(self, stream: Any) -> None:
        rows = {} if stream.chunk_rows is None else {"chunk_rows": stream.chunk_rows}
        self._container.begin(stream.name, list(stream.bits), stream.codings, **rows)
