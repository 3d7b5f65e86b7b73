"""A recipe and its seed <-> the columns of a `.vql`: places and augmentation are drawn again instead of stored.

Source: docs/format.md, "Seeded columns".
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.container import ContainerReader, ContainerWriter
from vqlabel.errors import BadContainer, BadLabels, NoSuchFile, UsageError, VqlabelError
from vqlabel.labels import Context, LabelBatch, LabelSource, Place
from vqlabel.labels.batch import in_order
from vqlabel.labels.image_set import ImageSet
from vqlabel.labels.schema import DRAWN_COLUMNS, NEVER_DRAWN
from vqlabel.labels.sparse import Labels
from vqlabel.storage.filetypes import read_text
from vqlabel.storage.formats import INTERNAL
from vqlabel.storage.targets import atomic_target
from vqlabel.views.recipe import DrawnColumns, Recipe, ReorderedColumns
from vqlabel.vql.column_limits import PREFIX, check_streams
from vqlabel.vql.column_writer import widths
from vqlabel.vql.columns import ColumnReader

SEEDED_VIEWS = "seeded_views"  # in `vql.requires`: views are drawn from a recipe
VIEW_COLUMNS = "view_columns"  # in `vql.requires`: views have a column that the first version of the format lacks
RECIPE = ".recipe.json"  # suffix of the file beside a dump that records how its views were drawn
MAX_DRAWN_PER_RECORD = 10_000  # records of a complete recipe per record of its pruned file; bounds the work of opening it
COMPARED_COLUMNS = (*DRAWN_COLUMNS, "patches")  # in the order of the digest; a recipe may shuffle patches
IMAGES_A_BYTE = 256  # maximum images of a recipe per byte of its file: drawing an epoch's order costs 0.3 us and 40 bytes per image


class DrawnPart:
    """Some of the batches that a recipe draws, with the records numbered within them; interface as of `ColumnReader`.

    Args:
        at: indices of the batches, ascending.
    """

    order, names = "explicit", None

    def __init__(self, drawn: DrawnColumns, at: Sequence[int] | NDArray[np.int64]) -> None:
        self.drawn, self._at = drawn, np.asarray(at, np.int64)
        self.places = drawn.places.take(self._at)
        self._first = drawn.starts[self._at]
        self.starts = np.append(0, np.cumsum(drawn.starts[self._at + 1] - self._first))

    @property
    def recipe(self) -> Recipe:
        return self.drawn.recipe

    @property
    def sizes(self) -> NDArray[np.int64]:
        return self.drawn.sizes

    def has(self, name: str) -> bool:
        return self.drawn.has(name)

    def batch_of(self, record: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.starts, record, side="right") - 1

    def batch(self, at: int, labels: Labels) -> LabelBatch:
        return self.drawn.batch(int(self._at[at]), labels)

    def image(self, record: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.drawn.image(self._drawn_index(record))

    def crop(self, record: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.drawn.crop(self._drawn_index(record))

    def context(self, record: NDArray[np.int64]) -> Context:
        return self.drawn.context(self._drawn_index(record))

    def _drawn_index(self, record: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n] indices of these records among all that the recipe draws."""
        batch = self.batch_of(record)
        return np.asarray(self._first[batch] + record - self.starts[batch])


Columns = ColumnReader | DrawnColumns | DrawnPart


def write_drawn(writer: ContainerWriter, drawn: DrawnColumns, places: Sequence[Place]) -> dict[str, Any]:
    """Write the sizes of the images and, for a pruned dump, the indices of its batches. Returns the content of
    `vql.columns`.

    Raises:
        UsageError: the batches are in another order than the recipe draws them.
    """
    sizes = drawn.sizes.astype(np.uint32)
    _write(writer, "image_size", sizes)
    if list(places) != drawn.places:
        index = {place: i for i, place in enumerate(drawn.places)}
        batches = np.array([[index[place]] for place in places], np.uint32)
        if (np.diff(batches[:, 0].astype(np.int64)) <= 0).any():
            raise UsageError("the batches are not in the order in which their recipe draws them; pack with --augmentation keep")
        _write(writer, "drawn", batches)
    return {"order": "seeded", "recipe": drawn.recipe.to_dict(), "digest": digest(drawn)}


def drawn_bits(drawn: DrawnColumns) -> int:
    """Size in bits of what `write_drawn` stores for a complete dump, without the header."""
    return sum(widths(drawn.sizes.max(0))) * len(drawn.sizes)


def _write(writer: ContainerWriter, name: str, rows: NDArray[np.uint32]) -> None:
    writer.begin(PREFIX + name, widths(rows.max(0)))
    writer.append(rows)
    writer.end()


def read_columns(reader: ContainerReader, header: dict[str, Any], records: int) -> Columns:
    """The places and the augmentation of a `.vql`, stored or drawn.

    Args:
        header: `vql.columns`.
        records: n, from the streams of codes.

    Raises:
        BadContainer: header, streams and number of records contradict each other, or this program draws other views
            than those that were labelled.
    """
    if (header.get("order") == "seeded") != (SEEDED_VIEWS in reader.requires):
        raise BadContainer(f"{reader.path}: vql.requires is {reader.requires}, vql.columns {str(header)[:120]}; damaged or forged")
    if header.get("order") != "seeded":
        return ColumnReader(reader, header, records)
    check_streams(reader, {}, records)
    drawn = _read_drawn(reader, header, records)
    columns: DrawnColumns | DrawnPart = drawn
    if PREFIX + "drawn" in reader.streams:
        batches = reader.rows(PREFIX + "drawn")[:, 0].astype(np.int64)
        if (batches >= len(drawn.places)).any() or (np.diff(batches) <= 0).any():
            raise BadContainer(f"{reader.path}: has batches that its recipe does not draw; damaged or forged")
        columns = DrawnPart(drawn, batches)
    if int(columns.starts[-1]) != records:
        raise BadContainer(f"{reader.path}: its recipe draws {int(columns.starts[-1])} records, the header declares {records}")
    if digest(drawn) != header.get("digest"):
        raise BadContainer(
            f"{reader.path}: its recipe draws other views here than those that were labelled (the digests differ); please report this as a bug"
        )
    return columns


def _read_drawn(reader: ContainerReader, header: dict[str, Any], records: int) -> DrawnColumns:
    """All that the recipe of a file draws; limits are checked before anything is drawn."""
    try:
        recipe = Recipe.from_dict(header.get("recipe"))
        total = recipe.images * recipe.epochs
        if total != records and (PREFIX + "drawn" not in reader.streams or total > MAX_DRAWN_PER_RECORD * max(1, records)):
            raise BadContainer(f"{reader.path}: its recipe draws {total} records, the file has {records}; damaged or forged")
        if recipe.images > IMAGES_A_BYTE * reader.size:
            raise BadContainer(
                f"{reader.path}: its recipe draws from {recipe.images} images; the format allows {IMAGES_A_BYTE * reader.size} in a file "
                f"of {reader.size} bytes"
            )
        return DrawnColumns(recipe, reader.rows(PREFIX + "image_size"))
    except UsageError as error:
        raise BadContainer(f"{reader.path}: {error}; damaged, forged or from a newer version") from None


def digest(drawn: DrawnColumns) -> str:
    """sha256 of the columns of the first and the last batch, to check that views that are drawn again are the same."""
    total = hashlib.sha256()
    for index in (0, len(drawn.places) - 1):
        batch = drawn.batch(index, np.empty((0, 0), np.float32))
        for name in COMPARED_COLUMNS:
            value = getattr(batch, name)
            if value is not None:
                total.update(np.ascontiguousarray(value).tobytes())
    return total.hexdigest()


def check_drawn(batch: LabelBatch, drawn: DrawnColumns, at: int, where: Path) -> None:
    """Raises BadLabels if the place or the augmentation of a batch differs from batch `at` of the recipe.

    Args:
        where: path of the dump, for messages.
    """
    for name in NEVER_DRAWN:
        can_be_drawn = name == "patches" and (drawn.recipe.patches > 1 or in_order(batch.patches))
        if getattr(batch, name) is not None and not can_be_drawn:
            raise BadLabels(f"{where}: has {name}, which recipes cannot draw; pack with --augmentation keep")
    expected = drawn.batch(at, batch.labels)
    for name in COMPARED_COLUMNS if drawn.recipe.patches > 1 else DRAWN_COLUMNS:
        if not _same_column(name, getattr(batch, name), getattr(expected, name)):
            raise BadLabels(
                f"{where}: {name} of epoch {batch.place.epoch}, batch {batch.place.batch} is not what the recipe draws; the labels are of "
                "other views: pack with --augmentation keep"
            )


def _same_column(name: str, stored: Any, drawn: Any) -> bool:
    """Whether a column of a dump equals the drawn one; crops may be rounded to float16, as in LPQLD's dumps."""
    if stored is None or drawn is None:
        return stored is drawn
    rounded = name == "crop" and np.array_equal(stored, drawn.astype(np.float16).astype(np.float32))
    return rounded or np.array_equal(stored, drawn)


def known_views(source: LabelSource) -> tuple[ImageSet | None, int | None]:
    """Which images the labels of a source are of, and the pixels along their views: from the source, else from the
    recipe beside its dump.

    Returns:
        Each None if unknown.
    """
    try:
        drawn, _ = _read_recipe(recipe_file(source.path))
    except (VqlabelError, OSError):
        return source.about.images, source.about.view
    named = source.about.images is not None and source.about.images.names_sha256 is not None
    return source.about.images if named or drawn.images is None else drawn.images, source.about.view or drawn.recipe.view


def recipe_file(dump: Path) -> Path:
    """Path of the recipe of a dump: beside it, since readers treat every file in its folder as labels."""
    path = dump.resolve()  # "." has no name
    return path.with_name(path.name + RECIPE)


def write_recipe(file: Path, drawn: DrawnColumns, *, overwrite: bool = False) -> None:
    """Write recipe, image sizes and, if known, which images these are, as JSON."""
    values: dict[str, Any] = {"recipe": drawn.recipe.to_dict(), "sizes": drawn.sizes.tolist()}
    if isinstance(drawn, ReorderedColumns):
        values["order"] = drawn.order_name
    if drawn.images is not None:
        values["images"] = drawn.images.to_dict()
    with atomic_target(file, INTERNAL, overwrite=overwrite) as partial:
        partial.write_text(json.dumps(values) + "\n")


def read_recipe(file: Path) -> DrawnColumns:
    """Inverse of `write_recipe`.

    Raises:
        UsageError: the file does not exist, or the batches are in another order than the recipe draws them.
        BadLabels: the file is malformed.
    """
    drawn, order = _read_recipe(file)
    if order is not None:
        raise UsageError(
            f"{file}: the images of the dump are in the order of {order}, which recipes cannot draw: pack with --augmentation keep"
        )
    return drawn


def _read_recipe(file: Path) -> tuple[DrawnColumns, str | None]:
    """The columns, and the name of the order of images if it is not that of the recipe."""
    try:
        values = json.loads(read_text(file))
        images = ImageSet.from_dict(values["images"], file) if "images" in values else None
        order = None if values.get("order") is None else str(values["order"])[:80]
        return DrawnColumns(Recipe.from_dict(values["recipe"]), np.array(values["sizes"], np.int64), images), order
    except FileNotFoundError:
        raise NoSuchFile(
            f"{file}: no such file; it would record how the views were drawn: `vqlabel relabel` writes it beside its dumps"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, VqlabelError) as error:
        raise BadLabels(f"{file}: not a recipe ({error}); it must have a recipe and the sizes of the images") from None
