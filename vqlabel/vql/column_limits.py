"""Whether the column streams of a `.vql` are such as the schema lists: rows, fields and widths, checked before one of them is read.

Source: docs/format.md, "Columns" and "Limits".
"""

from collections.abc import Mapping
from typing import Any

from vqlabel.container import ContainerReader
from vqlabel.errors import BadContainer
from vqlabel.labels.schema import BATCH, COLUMNS, RECORD, SHORT_BITS

PREFIX = "columns."
ROWS_A_BYTE = 64  # of a column that a reader holds in memory, for each byte of its payload; 4096 zeros take 64 bytes in zstd


def check_streams(reader: ContainerReader, kinds: Mapping[str, Any], records: int) -> None:
    """Refuse columns that are no such streams as COLUMNS lists, from the header and the chunk tables alone.

    Args:
        kinds: how columns of numbers are stored, as `vql.columns` has it.

    Raises:
        BadContainer: rows, fields or widths of a column are others.
    """
    batches = reader.streams[PREFIX + "batch"].rows if PREFIX + "batch" in reader.streams else 0
    for name, column in COLUMNS.items():
        stream = reader.streams.get(PREFIX + name)
        if stream is None:
            continue
        where = f"{reader.path}: column {name!r}"
        fields, bits = len(stream.bits), SHORT_BITS if kinds.get(name) in ("integers", "float16") else column.bits
        rows = {RECORD: records, BATCH: batches}.get(str(column.per))
        good = fields % column.fields == 0 and fields <= column.fields * column.repeats
        if not good or rows not in (None, stream.rows):
            some = f"{column.fields} times 1..{column.repeats}" if column.repeats > 1 else column.fields
            raise BadContainer(
                f"{where} has {stream.rows} rows of {fields} fields; {'its' if rows is None else rows} of {some} belong"
            )
        if max(stream.bits) > bits:
            raise BadContainer(f"{where} has fields of {max(stream.bits)} bits; its numbers have {bits}: damaged or forged")
        if isinstance(column.per, int):
            payload = reader.sections[PREFIX + name]
            most = min(column.per, ROWS_A_BYTE * (payload.stop - payload.start))
            if stream.rows > most:
                raise BadContainer(f"{where} has {stream.rows} rows; the format allows {most} in a column of this size")
