"""The table of documents: which labels a document has, found by the hash of its tokens. Numpy only.

Source: docs/format.md, "Documents".
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vqlabel.codecs.config import CodecConfig
from vqlabel.container import ContainerReader
from vqlabel.errors import BadContainer
from vqlabel.labels.text.documents import HASH_BYTES
from vqlabel.vql.text.streams import counts_stream

TABLE = "documents"  # name of the stream, and of the feature in `vql.requires`
WORDS = HASH_BYTES // 4  # fields of the hash
MAX_DOCUMENTS = 1 << 28
MAX_ROWS_PER_BYTE = 64  # rows per byte of the stream: readers keep the table in memory


class DocumentTable:
    """The documents of a file, in its order.

    Attributes:
        hashes: [D] of 16 bytes each.
        rows: [D] labels of each document.
        starts: stream -> [D + 1] its first row of each document, and its number of rows.

    Raises:
        BadContainer: the table contradicts a stream, or has a document twice.
    """

    def __init__(self, container: ContainerReader, config: CodecConfig) -> None:
        where, runs = f"{container.path}: its table of documents", config.runs
        stream = container.streams.get(TABLE)
        fields = (32,) * (WORDS + 1 + len(runs))
        if stream is None or stream.bits != fields:
            raise BadContainer(f"{where} is missing, or its fields are not {len(fields)} of 32 bits; damaged or forged")
        if stream.rows > min(MAX_DOCUMENTS, MAX_ROWS_PER_BYTE * container.stored(TABLE)):
            raise BadContainer(f"{where} has {stream.rows} rows in {container.stored(TABLE)} bytes; damaged or forged")
        table = container.rows(TABLE)
        self.hashes = np.ascontiguousarray(table[:, :WORDS], "<u4").view(f"V{HASH_BYTES}")[:, 0]
        self.rows = table[:, WORDS].astype(np.int64)
        counts = {counts_stream(config): self.rows}
        counts |= {run.stream: table[:, WORDS + 1 + i].astype(np.int64) for i, run in enumerate(runs)}
        self.starts: dict[str, NDArray[np.int64]] = {}
        for name, count in counts.items():
            self.starts[name] = np.concatenate([[0], np.cumsum(count)])
            if name not in container.streams or self.starts[name][-1] != container.streams[name].rows:
                raise BadContainer(f"{where} has {self.starts[name][-1]} rows of {name}, the stream has others; damaged or forged")

    def __len__(self) -> int:
        """D."""
        return len(self.rows)

    def find(self, token_hash: bytes) -> int | None:
        """Index of the document with these tokens; None: the file does not have it."""
        order, keys = self._sorted
        key = int.from_bytes(token_hash[:8], "little")
        for at in range(int(np.searchsorted(keys, key)), len(keys)):
            if int(keys[at]) != key:
                return None
            if self.hashes[order[at]].tobytes() == token_hash:
                return int(order[at])
        return None

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Documents by the first 8 bytes of their hashes, and these bytes."""
        keys = self.hashes.view("<u8").reshape(-1, 2)[:, 0]
        order = np.argsort(keys, kind="stable")
        return order, keys[order]


def table_row(token_hash: bytes, rows: int, run_rows: list[int]) -> NDArray[np.uint32]:
    """[1, f] the row of a document."""
    return np.array([[*np.frombuffer(token_hash, "<u4"), rows, *run_rows]], np.uint32)
