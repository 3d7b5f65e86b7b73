"""What streams the columns of a `.vql` may be: rows, fields and widths, held against a table before one of them is read.

Source: docs/format.md, "Columns" and "Limits".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vqlabel.container import ContainerReader
from vqlabel.errors import BadContainer
from vqlabel.labels.source import OPS_MOST, PARTS_MOST
from vqlabel.views.recipe import MAX_BATCHES

PREFIX = "columns."
IMAGES_MOST = 1 << 24
BATCH_RECORDS_MOST = 1 << 20  # of one batch, which readers take as a whole: a checkpoint of training is a batch
NAMES_MOST = 1 << 28  # bytes of all images' names
ROWS_A_BYTE = 64  # of a column that a reader holds in memory, for each byte of its payload; 4096 zeros take 64 bytes in zstd
RECORD, BATCH = "record", "batch"
SHORT_BITS = 16


@dataclass(frozen=True, slots=True)
class Column:
    """`rows`: one for each RECORD or BATCH of the file, or a number: at most so many. A row has `fields` of up to `bits` bits, or up to
    `times` as many; of numbers that are stored as integers or halves, of SHORT_BITS."""

    rows: str | int
    fields: int
    bits: int
    times: int = 1


COLUMNS = {
    "batch": Column(MAX_BATCHES, 3, 32),
    "drawn": Column(MAX_BATCHES, 1, 22),
    "image_size": Column(IMAGES_MOST, 2, 16),
    "names": Column(NAMES_MOST, 1, 8),
    "image": Column(RECORD, 1, 24),
    "crop": Column(RECORD, 4, 32),
    "flip": Column(RECORD, 1, 1),
    "mix_index": Column(RECORD, 1, 20),
    "partner_image": Column(RECORD, 1, 24),
    "partner_crop": Column(RECORD, 4, 32),
    "partner_flip": Column(RECORD, 1, 1),
    "cutout": Column(RECORD, 7, 32),
    "patches": Column(RECORD, 2, 32, PARTS_MOST),
    "ops": Column(RECORD, 3, 32, OPS_MOST),
    "seed": Column(RECORD, 1, 32),
    "mix_lam": Column(BATCH, 2, 32),
    "mix_box": Column(BATCH, 4, 32),
}


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
        rows = {RECORD: records, BATCH: batches}.get(str(column.rows))
        good = fields % column.fields == 0 and fields <= column.fields * column.times
        if not good or rows not in (None, stream.rows):
            some = f"{column.fields} times 1..{column.times}" if column.times > 1 else column.fields
            raise BadContainer(
                f"{where} has {stream.rows} rows of {fields} fields; {'its' if rows is None else rows} of {some} belong"
            )
        if max(stream.bits) > bits:
            raise BadContainer(f"{where} has fields of {max(stream.bits)} bits; its numbers have {bits}: damaged or forged")
        if isinstance(column.rows, int):
            payload = reader.sections[PREFIX + name]
            most = min(column.rows, ROWS_A_BYTE * (payload.stop - payload.start))
            if stream.rows > most:
                raise BadContainer(f"{where} has {stream.rows} rows; the format allows {most} in a column of this size")
