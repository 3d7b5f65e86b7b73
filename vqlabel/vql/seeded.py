"""A recipe and its seed <-> the columns of a `.vql`: places and augmentation that are drawn again instead of stored.

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
from vqlabel.storage.filetypes import read_text
from vqlabel.storage.formats import INTERNAL
from vqlabel.storage.targets import atomic_target
from vqlabel.views.recipe import DrawnColumns, Recipe, ReorderedColumns
from vqlabel.vql.column_limits import PREFIX, check_streams
from vqlabel.vql.columns import ColumnReader, widths

SEEDED_VIEWS, VIEW_COLUMNS = "seeded_views", "view_columns"  # in `vql.requires`: views are drawn; they need columns that came later
RECIPE = ".recipe.json"  # beside a dump: how its views were drawn
MIN_KEPT_RECORDS = 10_000  # a pruned file has one record of so many or more, so that a small one cannot ask for long work
IMAGES_A_BYTE = 256  # of a file, at most: an epoch's order is drawn of all images, 0.3 us and 40 bytes each


class DrawnPart:
    """Some batches of what a recipe draws, with the records of a file that has no others; like `ColumnReader`."""

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

    def batch(self, at: int, labels: NDArray[np.floating]) -> LabelBatch:
        return self.drawn.batch(int(self._at[at]), labels)

    def image(self, record: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.drawn.image(self._of_all(record))

    def crop(self, record: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.drawn.crop(self._of_all(record))

    def context(self, record: NDArray[np.int64]) -> Context:
        return self.drawn.context(self._of_all(record))

    def _of_all(self, record: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers among all records that the recipe draws."""
        batch = self.batch_of(record)
        return np.asarray(self._first[batch] + record - self.starts[batch])


Columns = ColumnReader | DrawnColumns | DrawnPart


def write_drawn(writer: ContainerWriter, drawn: DrawnColumns, places: Sequence[Place]) -> dict[str, Any]:
    """Write the sizes of the images, and which batches there are where some are missing. Returns what `vql.columns` says."""
    sizes = drawn.sizes.astype(np.uint32)
    _write(writer, "image_size", sizes)
    if list(places) != drawn.places:
        at = {place: i for i, place in enumerate(drawn.places)}
        numbers = np.array([[at[place]] for place in places], np.uint32)
        if (np.diff(numbers[:, 0].astype(np.int64)) <= 0).any():
            raise UsageError("the batches are not in the order in which their recipe draws them; pack with --augmentation keep")
        _write(writer, "drawn", numbers)
    return {"order": "seeded", "recipe": drawn.recipe.to_dict(), "digest": digest(drawn)}


def drawn_bits(drawn: DrawnColumns) -> int:
    """What `write_drawn` stores of a whole dump besides the header."""
    return sum(widths(drawn.sizes.max(0))) * len(drawn.sizes)


def _write(writer: ContainerWriter, name: str, rows: NDArray[np.uint32]) -> None:
    writer.begin(PREFIX + name, widths(rows.max(0)))
    writer.append(rows)
    writer.end()


def read_columns(reader: ContainerReader, says: dict[str, Any], records: int) -> Columns:
    """The places and the augmentation of a `.vql`, stored or drawn.

    Raises:
        BadContainer: they contradict each other, or this program draws other views than those that the labels are of.
    """
    if (says.get("order") == "seeded") != (SEEDED_VIEWS in reader.requires):
        raise BadContainer(f"{reader.path}: vql.requires is {reader.requires}, vql.columns {str(says)[:120]}; damaged or forged")
    if says.get("order") != "seeded":
        return ColumnReader(reader, says, records)
    check_streams(reader, {}, records)
    try:
        recipe = Recipe.from_dict(says.get("recipe"))
        whole = recipe.images * recipe.epochs
        if whole != records and (PREFIX + "drawn" not in reader.streams or whole > MIN_KEPT_RECORDS * max(1, records)):
            raise BadContainer(f"{reader.path}: its recipe draws {whole} records, the file has {records}; damaged or forged")
        if recipe.images > IMAGES_A_BYTE * reader.size:
            raise BadContainer(
                f"{reader.path}: its recipe draws from {recipe.images} images; the format allows {IMAGES_A_BYTE * reader.size} in a file "
                f"of {reader.size} bytes"
            )
        drawn = DrawnColumns(recipe, reader.rows(PREFIX + "image_size"))
    except UsageError as error:
        raise BadContainer(f"{reader.path}: {error}; damaged, forged or from a newer version") from None
    columns: DrawnColumns | DrawnPart = drawn
    if PREFIX + "drawn" in reader.streams:
        at = reader.rows(PREFIX + "drawn")[:, 0].astype(np.int64)
        if (at >= len(drawn.places)).any() or (np.diff(at) <= 0).any():
            raise BadContainer(f"{reader.path}: names batches that its recipe does not draw; damaged or forged")
        columns = DrawnPart(drawn, at)
    if int(columns.starts[-1]) != records:
        raise BadContainer(f"{reader.path}: its recipe draws {int(columns.starts[-1])} records, the header says {records}")
    if digest(drawn) != says.get("digest"):
        raise BadContainer(
            f"{reader.path}: its recipe draws other views here than where the labels were made; report this, it must not be"
        )
    return columns


def digest(drawn: DrawnColumns) -> str:
    """sha256 of the first and the last batch's columns, so that views that are drawn again are known to be the same."""
    total = hashlib.sha256()
    for at in (0, len(drawn.places) - 1):
        batch = drawn.batch(at, np.empty((0, 0), np.float32))
        for name in DRAWN_COLUMNS:
            value = getattr(batch, name)
            if value is not None:
                total.update(np.ascontiguousarray(value).tobytes())
    return total.hexdigest()


def check_drawn(batch: LabelBatch, drawn: DrawnColumns, at: int, where: Path) -> None:
    """Raises BadLabels where a batch of a dump is not the one that the recipe draws."""
    for name in NEVER_DRAWN:
        if getattr(batch, name) is not None and not (name == "patches" and in_order(batch.patches)):
            raise BadLabels(f"{where}: has {name}, which no recipe draws; pack with --augmentation keep")
    want = drawn.batch(at, batch.labels)
    for name in DRAWN_COLUMNS:
        found, wanted = getattr(batch, name), getattr(want, name)
        same = found is None and wanted is None
        if name == "crop" and found is not None and wanted is not None:  # LPQLD writes halves
            same = np.array_equal(found, wanted.astype(np.float16).astype(np.float32))
        if not same and (found is None or wanted is None or not np.array_equal(found, wanted)):
            raise BadLabels(
                f"{where}: {name} of epoch {batch.place.epoch}, batch {batch.place.batch} is not what the recipe draws; the labels are of "
                "other views: pack with --augmentation keep"
            )


def known_views(source: LabelSource) -> tuple[ImageSet | None, int | None]:
    """Which images the labels of a source are of, and the pixels along their views: as it knows them itself, or by the recipe that lies
    beside its dump. None: unknown."""
    try:
        drawn, _ = _read_recipe(recipe_file(source.path))
    except (VqlabelError, OSError):
        return source.images, source.view
    named = source.images is not None and source.images.names_sha256 is not None
    return source.images if named or drawn.images is None else drawn.images, source.view or drawn.recipe.view


def recipe_file(dump: Path) -> Path:
    """Where the recipe of a dump lies: beside it, for readers take anything in its folder for labels."""
    whole = dump.resolve()  # of ".", too
    return whole.with_name(whole.name + RECIPE)


def write_recipe(file: Path, drawn: DrawnColumns, *, overwrite: bool = False) -> None:
    """Recipe, image sizes and, where it is known, which images these are; as JSON."""
    said: dict[str, Any] = {"recipe": drawn.recipe.to_dict(), "sizes": drawn.sizes.tolist()}
    if isinstance(drawn, ReorderedColumns):
        said["order"] = drawn.order_name
    if drawn.images is not None:
        said["images"] = drawn.images.to_dict()
    with atomic_target(file, INTERNAL, overwrite=overwrite) as partial:
        partial.write_text(json.dumps(said) + "\n")


def read_recipe(file: Path) -> DrawnColumns:
    """Inverse of `write_recipe`.

    Raises:
        UsageError: there is no such file, or the batches are in another order than the recipe draws.
        BadLabels: it is malformed.
    """
    drawn, order = _read_recipe(file)
    if order is not None:
        raise UsageError(
            f"{file}: the images of the dump are in the order of {order}, which no recipe draws: pack with --augmentation keep"
        )
    return drawn


def _read_recipe(file: Path) -> tuple[DrawnColumns, str | None]:
    """And the name of the order of images, where it is not the recipe's."""
    try:
        said = json.loads(read_text(file))
        images = ImageSet.from_dict(said["images"], file) if "images" in said else None
        order = None if said.get("order") is None else str(said["order"])[:80]
        return DrawnColumns(Recipe.from_dict(said["recipe"]), np.array(said["sizes"], np.int64), images), order
    except FileNotFoundError:
        raise NoSuchFile(
            f"{file}: no such file, so nobody knows how these views were drawn; `vqlabel relabel` writes it beside its dumps"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, VqlabelError) as error:
        raise BadLabels(f"{file}: no recipe ({error}); it has a recipe and the sizes of the images") from None
