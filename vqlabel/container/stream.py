"""The description of a stream <-> its entry in `vql.streams`, checked against the limits. docs/format.md, "Streams"."""

from dataclasses import dataclass
from typing import Any

from vqlabel.bitstream import CODINGS, Coding
from vqlabel.container.layout import (
    ALIGN,
    MAX_CHUNK_BYTES,
    MAX_CHUNK_ROWS,
    MAX_CHUNKS,
    MAX_FIELDS,
    MAX_INTEGER,
)
from vqlabel.errors import BadContainer

KEYS = ("bits", "rows", "chunk_rows", "coding")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """Rows of unsigned integer fields, packed or compressed, cut into chunks.

    Attributes:
        bits: width of every field of a row in bits, 1..32.
        rows: number of rows.
        chunk_rows: rows of every chunk but the last; a multiple of 8, so that chunks of packed bits start at a byte.
        coding: of all chunks.
    """

    bits: tuple[int, ...]
    rows: int
    chunk_rows: int
    coding: Coding

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.rows // self.chunk_rows)

    def raw_size(self, rows: int) -> int:
        """Bytes of `rows` rows before compression."""
        return self.coding.raw_size(rows, self.bits)

    def to_json(self) -> dict[str, Any]:
        """The entry in `vql.streams`. Equal widths are stored as runs [width, count]: a raw label has C fields."""
        runs: list[list[int]] = []
        for width in self.bits:
            if runs and runs[-1][0] == width:
                runs[-1][1] += 1
            else:
                runs.append([width, 1])
        return {"bits": runs, "rows": self.rows, "chunk_rows": self.chunk_rows, "coding": self.coding.name}

    @classmethod
    def from_json(cls, name: str, value: Any) -> "Stream":
        """Inverse of `to_json`.

        Raises:
            BadContainer: `value` is not what `to_json` returns, or exceeds a limit.
        """
        if not isinstance(value, dict) or set(value) != set(KEYS):
            raise BadContainer(f"stream {name!r} is described by {value!r}; it needs bits, rows, chunk_rows and coding")
        runs, rows, chunk_rows, coding = (value[key] for key in KEYS)
        if not _valid_runs(runs):
            raise BadContainer(
                f"stream {name!r}: bits {str(runs)[:80]} are not [width 1..32, count] runs of 1..{MAX_FIELDS} fields"
            )
        if not _valid_rows(rows, chunk_rows):
            raise BadContainer(
                f"stream {name!r}: {rows!r} rows in chunks of {chunk_rows!r}; rows must be 0..2^53-1, chunks a multiple of 8 up to "
                f"{MAX_CHUNK_ROWS}"
            )
        if not isinstance(coding, str) or coding not in CODINGS:
            raise BadContainer(f"stream {name!r}: coding {coding!r} is unknown; this reader supports {', '.join(CODINGS)}")
        bits = tuple(width for width, count in runs for _ in range(count))
        stream = cls(bits=bits, rows=rows, chunk_rows=chunk_rows, coding=CODINGS[coding])
        if stream.raw_size(min(rows, chunk_rows)) > MAX_CHUNK_BYTES or stream.chunks > MAX_CHUNKS:
            raise BadContainer(
                f"stream {name!r}: {stream.chunks} chunks of {chunk_rows} rows exceed {MAX_CHUNK_BYTES} bytes or {MAX_CHUNKS} chunks"
            )
        return stream


def chunk_padding(coding: Coding, stored: int) -> int:
    """Zeros behind a chunk of `stored` bytes; none behind packed bits, so that all chunks are one bitstream."""
    return -stored % ALIGN if coding.compressed else 0


def _valid_runs(runs: Any) -> bool:
    return (
        isinstance(runs, list)
        and all(
            isinstance(run, list) and len(run) == 2 and all(type(v) is int for v in run) and 1 <= run[0] <= 32 and run[1] >= 1
            for run in runs
        )
        and 1 <= sum(run[1] for run in runs) <= MAX_FIELDS
    )


def _valid_rows(rows: Any, chunk_rows: Any) -> bool:
    return (
        type(rows) is int
        and 0 <= rows <= MAX_INTEGER
        and type(chunk_rows) is int
        and 8 <= chunk_rows <= MAX_CHUNK_ROWS
        and chunk_rows % 8 == 0
    )
