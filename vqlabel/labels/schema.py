"""The one table of columns: what a record may have besides its label. Batches, readers, writers and checks follow it.

The key of a record is its group and its index in the group. A group is what a training script reads at once: of views,
the batch (epoch, batch).

Source: docs/format.md, "Columns" and "Limits".
"""

from dataclasses import dataclass

MAX_STRIPS = 256  # strips along a side of an image, so fields of "patches"
MAX_OPS = 64  # RandAugment operations of a view
MAX_IMAGES = 1 << 24
MAX_BATCHES = 1 << 22  # a reader keeps the places of all batches in memory, 16 bytes each
MAX_BATCH_RECORDS = 1 << 20  # readers load a batch as a whole
MAX_NAME_BYTES = 1 << 28  # of the names of all images
SHORT_BITS = 16  # width of a number that is stored as an integer or a half
RECORD, GROUP, FILE = "record", "group", "file"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a `.vql`.

    Attributes:
        per: RECORD or GROUP: the column has one row for each; FILE: a table with up to `max_rows` rows.
        fields: numbers per row; if `repeats` > 1, numbers of one item, of which a row has 1..repeats.
        bits: maximum width of a field.
        kind: "integer", "float" (float32, stored as halves if that is exact), "lambda" (float64) or "table" (per file).
        of: "own" (the record's view), "partner" (the view mixed in, if it is not a record of the batch), "mix" (how two
            views are mixed); "" for tables.
        repeats: maximum number of items of a row.
        image: the column with the image whose sides a crop is a share of; "" for other columns.
        drawn: whether a recipe can draw it again.
        max_rows: of a table.
    """

    name: str
    per: str
    fields: int
    bits: int
    kind: str
    of: str = ""
    repeats: int = 1
    image: str = ""
    drawn: bool = False
    max_rows: int = 0


COLUMNS = {
    column.name: column
    for column in (
        Column("batch", FILE, 3, 32, "table", max_rows=MAX_BATCHES),  # epoch, batch, records
        Column(
            "drawn", FILE, 1, 22, "table", max_rows=MAX_BATCHES
        ),  # indices of the stored batches among those that the recipe draws
        Column("image_size", FILE, 2, 16, "table", max_rows=MAX_IMAGES),  # height, width
        Column("names", FILE, 1, 8, "table", max_rows=MAX_NAME_BYTES),  # of the images, UTF-8, one line each
        Column("image", RECORD, 1, 24, "integer", "own", drawn=True),
        Column("crop", RECORD, 4, 32, "float", "own", image="image", drawn=True),
        Column("flip", RECORD, 1, 1, "integer", "own", drawn=True),
        Column("mix_index", RECORD, 1, 20, "integer", "mix", drawn=True),
        Column("partner_image", RECORD, 1, 24, "integer", "partner"),
        Column("partner_crop", RECORD, 4, 32, "float", "partner", image="partner_image"),
        Column("partner_flip", RECORD, 1, 1, "integer", "partner"),
        Column("cutout", RECORD, 7, 32, "float", "own"),
        Column("patches", RECORD, 2, 32, "integer", "own", repeats=MAX_STRIPS),
        Column("ops", RECORD, 3, 32, "float", "own", repeats=MAX_OPS),
        Column("seed", RECORD, 1, 32, "integer", "own"),
        Column("mix_lam", GROUP, 2, 32, "lambda", "mix", drawn=True),
        Column("mix_box", GROUP, 4, 32, "integer", "mix", drawn=True),
    )
}

OWN_COLUMNS = tuple(name for name, column in COLUMNS.items() if column.of == "own")
PARTNER_COLUMNS = tuple(name for name, column in COLUMNS.items() if column.of == "partner")
MIX_COLUMNS = tuple(name for name, column in COLUMNS.items() if column.of == "mix")
INTEGER_COLUMNS = tuple(name for name, column in COLUMNS.items() if column.kind == "integer" and column.per == RECORD)
FLOAT_COLUMNS = tuple(name for name, column in COLUMNS.items() if column.kind == "float")
CROP_COLUMNS = {name: column.image for name, column in COLUMNS.items() if column.image}
DRAWN_COLUMNS = tuple(name for name, column in COLUMNS.items() if column.drawn)
NEVER_DRAWN = tuple(name for name, column in COLUMNS.items() if column.of and not column.drawn)
