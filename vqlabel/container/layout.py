"""docs/format.md as constants and small types: names, limits, and what the header says of a stream."""

import re
from dataclasses import dataclass
from typing import Any

from vqlabel.bitstream import packed_size, planes_size
from vqlabel.errors import BadContainer

FORMAT = "vql"
VERSION = (1, 0)
FEATURES = frozenset(  # what this reader knows of `vql.requires`
    {"variable_slots", "seeded_views", "view_columns", "sigmoid_labels"}
)
SUPPORTED_CODINGS = ("fixed", "zstd", "ans")

HEADER_STEP = 4096  # the header area is a multiple of it
HEADER_RESERVED = 8192  # reserved before the streams; a larger header moves them
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 4096
MAX_CHUNKS = 1 << 26
MAX_CHUNK_ROWS = 1 << 16  # a chunk takes 112 bytes of a file or more, so no byte of a file stands for more than 585 rows
MAX_CHUNK_BYTES = 64 << 20  # raw bytes of one chunk
MAX_RANK = 8
MAX_JSON_DEPTH = 8
INTEGER_MOST = 1 << 53
MAX_FIELDS = 1 << 21  # of one stream
MAX_FILE_FIELDS = 1 << 22  # of all streams of a file: a few bytes of header can ask for many
ALIGN = 64  # a compressed chunk, and the payload of a stream, is padded with zeros to a multiple of it

CODEC_FILE = b'{"__metadata__":{"vqlabel.codec"'  # how the header of a codec file begins, which is no .vql
SEAL = "vql.seal"
CHUNKS = ".chunks"  # stream "codes" has its chunk table in the tensor "codes.chunks"
CHUNK_FIELDS = 6  # offset, stored length, raw length, first record, records, crc32
NAME = re.compile(r"[a-z0-9_.]{1,128}")
ITEM_BYTES = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4, "U64": 8}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """Rows of unsigned integer fields, bit-packed or compressed, cut in chunks.

    Attributes:
        bits: width of every field of a row, 1..32.
        rows: number of rows.
        chunk_rows: rows of every chunk but the last; a multiple of 8, so that chunks of packed bits begin at a byte.
        coding: "fixed" (row i begins at bit i * sum(bits)), "zstd" (byte planes) or "ans" (entropy-coded, field by field).
    """

    bits: tuple[int, ...]
    rows: int
    chunk_rows: int
    coding: str

    @property
    def chunks(self) -> int:
        return -(-self.rows // self.chunk_rows)

    def raw_size(self, rows: int) -> int:
        """Bytes of `rows` rows before compression: as byte planes, or of "fixed" as they are stored."""
        return packed_size(rows, self.bits) if self.coding == "fixed" else planes_size(rows, self.bits)

    def to_json(self) -> dict[str, Any]:
        """Runs of equal widths are written as [width, count]: a raw label has C fields."""
        runs: list[list[int]] = []
        for width in self.bits:
            if runs and runs[-1][0] == width:
                runs[-1][1] += 1
            else:
                runs.append([width, 1])
        return {"bits": runs, "rows": self.rows, "chunk_rows": self.chunk_rows, "coding": self.coding}

    @classmethod
    def from_json(cls, name: str, value: Any) -> "Stream":
        """Raises BadContainer where `value` is not what `to_json` gives, or leaves the limits."""
        if not isinstance(value, dict) or set(value) != {"bits", "rows", "chunk_rows", "coding"}:
            raise BadContainer(f"stream {name!r} is described by {value!r}; it needs bits, rows, chunk_rows and coding")
        runs, rows, chunk_rows, coding = value["bits"], value["rows"], value["chunk_rows"], value["coding"]
        runs_good = isinstance(runs, list) and all(
            isinstance(run, list) and len(run) == 2 and all(type(v) is int for v in run) and 1 <= run[0] <= 32 and run[1] >= 1
            for run in runs
        )
        if not runs_good or not 1 <= sum(run[1] for run in runs) <= MAX_FIELDS:
            raise BadContainer(
                f"stream {name!r}: bits {str(runs)[:80]} are not [width 1..32, count] runs of 1..{MAX_FIELDS} fields"
            )
        if not (
            type(rows) is int
            and 0 <= rows < INTEGER_MOST
            and type(chunk_rows) is int
            and 8 <= chunk_rows <= MAX_CHUNK_ROWS
            and chunk_rows % 8 == 0
        ):
            raise BadContainer(
                f"stream {name!r}: {rows!r} rows in chunks of {chunk_rows!r}; rows must be 0..2^53-1, chunks a multiple of 8 up to "
                f"{MAX_CHUNK_ROWS}"
            )
        if coding not in SUPPORTED_CODINGS:
            raise BadContainer(f"stream {name!r}: coding {coding!r} is unknown; this reader has {', '.join(SUPPORTED_CODINGS)}")
        stream = cls(
            bits=tuple(w for width, count in runs for w in [width] * count), rows=rows, chunk_rows=chunk_rows, coding=coding
        )
        if stream.raw_size(min(rows, chunk_rows)) > MAX_CHUNK_BYTES or stream.chunks > MAX_CHUNKS:
            raise BadContainer(
                f"stream {name!r}: {stream.chunks} chunks of {chunk_rows} rows exceed {MAX_CHUNK_BYTES} bytes or {MAX_CHUNKS} chunks"
            )
        return stream
