"""Rows, fields and bit widths of the column streams, checked against the schema before any column is read.

Source: docs/format.md, "Columns" and "Limits".
"""

from collections.abc import Mapping
from typing import Any

from vqlabel.container import ContainerReader
from vqlabel.container.stream import Stream
from vqlabel.errors import BadContainer
from vqlabel.labels.schema import COLUMNS, FILE, GROUP, RECORD, SHORT_BITS, Column

PREFIX = "columns."
ROWS_A_BYTE = 64  # maximum rows per payload byte of a column that a reader keeps in memory: zstd packs 4096 zeros into 64 bytes


def check_streams(reader: ContainerReader, kinds: Mapping[str, Any], records: int) -> None:
    """Check the column streams by the header and the chunk tables alone.

    Args:
        kinds: column -> how its numbers are stored ("integers", "float16", "float32"), as `vql.columns` records it.

    Raises:
        BadContainer: a column has a number of rows or fields, or a field width, that COLUMNS does not allow.
    """
    batches = reader.streams[PREFIX + "batch"].rows if PREFIX + "batch" in reader.streams else 0
    for name, column in COLUMNS.items():
        stream = reader.streams.get(PREFIX + name)
        if stream is None:
            continue
        where = f"{reader.path}: column {name!r}"
        _check_shape(stream, column, {RECORD: records, GROUP: batches}.get(column.per), where)
        max_bits = SHORT_BITS if kinds.get(name) in ("integers", "float16") else column.bits
        if max(stream.bits) > max_bits:
            raise BadContainer(f"{where} has fields of {max(stream.bits)} bits; the limit is {max_bits}: damaged or forged")
        if column.per == FILE:
            payload = reader.sections[PREFIX + name]
            max_rows = min(column.max_rows, ROWS_A_BYTE * (payload.stop - payload.start))
            if stream.rows > max_rows:
                raise BadContainer(f"{where} has {stream.rows} rows; the format allows {max_rows} in a column of this size")


def _check_shape(stream: Stream, column: Column, rows: int | None, where: str) -> None:
    """`rows`: required number of rows; None: a table, whose number of rows is limited instead."""
    fields = len(stream.bits)
    is_valid = fields % column.fields == 0 and fields <= column.fields * column.repeats
    if not is_valid or rows not in (None, stream.rows):
        expected = f"{column.fields} times 1..{column.repeats}" if column.repeats > 1 else column.fields
        raise BadContainer(
            f"{where} has {stream.rows} rows of {fields} fields; expected {'rows' if rows is None else f'{rows} rows'} of {expected} fields"
        )
