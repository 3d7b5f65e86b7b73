"""The table of documents: which labels a document has, found by the hash of its tokens. Numpy only.

Source: docs/format.md, "Documents".
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vqlabel.container import ContainerReader
from vqlabel.errors import BadContainer
from vqlabel.labels.text.documents import HASH_BYTES

TABLE = "documents"  # name of the stream, and of the feature in `vql.requires`
WORDS = HASH_BYTES // 4  # fields of the hash
FIELDS = (32,) * (WORDS + 1)  # of a row: the hash, and the number of labels
MAX_DOCUMENTS = 1 << 28
MAX_ROWS_PER_BYTE = 64  # rows per byte of the stream: readers keep the table in memory


class DocumentTable:
    """The documents of a file, in its order.

    Args:
        records: number of labels in the file.

    Attributes:
        hashes: [D] of 16 bytes each.
        starts: [D + 1] first label of each document, and the number of labels.

    Raises:
        BadContainer: the table is missing or malformed, or contradicts the number of labels.
    """

    def __init__(self, container: ContainerReader, records: int) -> None:
        where, stream = f"{container.path}: its table of documents", container.streams.get(TABLE)
        if stream is None or stream.bits != FIELDS:
            raise BadContainer(f"{where} is missing, or its fields are not {len(FIELDS)} of 32 bits; damaged or forged")
        if stream.rows > min(MAX_DOCUMENTS, MAX_ROWS_PER_BYTE * container.stored(TABLE)):
            raise BadContainer(f"{where} has {stream.rows} rows in {container.stored(TABLE)} bytes; damaged or forged")
        table = container.rows(TABLE)
        self.hashes = np.ascontiguousarray(table[:, :WORDS], "<u4").view(f"V{HASH_BYTES}")[:, 0]
        self.starts = np.concatenate([[0], np.cumsum(table[:, WORDS], dtype=np.int64)])
        if self.starts[-1] != records:
            raise BadContainer(f"{where} has {self.starts[-1]} labels, the file {records}; damaged or forged")

    def __len__(self) -> int:
        """D."""
        return len(self.hashes)

    @property
    def rows(self) -> NDArray[np.int64]:
        """[D] labels of each document."""
        return np.diff(self.starts)

    def find(self, token_hash: bytes) -> int | None:
        """Index of the document with these tokens; None: the file does not have it."""
        order, keys = self._sorted
        key = int.from_bytes(token_hash[:8], "little")
        for at in range(int(np.searchsorted(keys, np.uint64(key))), len(keys)):
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


def table_row(token_hash: bytes, rows: int) -> NDArray[np.uint32]:
    """[1, f] the row of a document."""
    return np.array([[*np.frombuffer(token_hash, "<u4"), rows]], np.uint32)
