"""Chunk tables: the chunks of a stream <-> a tensor U64 [K, 6], checked to tile rows and bytes.

Source: docs/format.md, "Streams".
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.container.layout import ALIGN, CHUNK_FIELDS
from vqlabel.container.stream import Stream, chunk_padding
from vqlabel.errors import BadContainer


class Chunk(NamedTuple):
    """One row of a chunk table."""

    offset: int  # in the payload, bytes
    stored: int  # bytes as stored, without padding
    raw: int  # bytes before compression
    first: int  # number of its first row
    rows: int
    crc32: int  # of the stored bytes


def to_table(chunks: Sequence[Chunk]) -> NDArray[np.uint64]:
    """[K, 6] uint64, little endian."""
    return np.array(chunks, "<u8").reshape(-1, CHUNK_FIELDS)


def chunk_at(table: NDArray[np.uint64], number: int) -> Chunk:
    """Row `number` of a table [K, 6]."""
    return Chunk(*(int(value) for value in table[number]))


def check_tiling(table: NDArray[np.uint64], stream: Stream, payload: int, where: str) -> None:
    """Check that the chunks follow each other without a gap and cover all rows and all bytes.

    Args:
        table: [K, 6], K = `stream.chunks`.
        payload: bytes of the stream's tensor.
        where: file and stream, for messages.

    Raises:
        BadContainer: they do not, or a size is impossible for the rows and the coding.
    """
    offset, stored, raw, first, rows, _ = (table[:, field].tolist() for field in range(CHUNK_FIELDS))
    end = done = 0  # bytes and rows covered so far
    for i in range(stream.chunks):
        expected = min(stream.chunk_rows, stream.rows - done)
        tiles = offset[i] == end and first[i] == done and rows[i] == expected and raw[i] == stream.raw_size(expected)
        if not (tiles and stream.coding.allows(stored[i], raw[i])):
            raise BadContainer(f"{where}: chunk {i} does not tile rows and bytes ({table[i].tolist()}); damaged or forged")
        end, done = end + stored[i] + chunk_padding(stream.coding, stored[i]), done + expected
    if end + -end % ALIGN != payload:
        raise BadContainer(f"{where}: its chunks end at byte {end} of {payload}; damaged or forged")
