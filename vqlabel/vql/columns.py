"""Where a record belongs and what was done to its image <-> streams of small integers in the container, bit for bit.

Source: docs/format.md, "Columns".
"""

import math
import re
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.container import ContainerReader, ContainerWriter
from vqlabel.errors import BadContainer, BadLabels
from vqlabel.labels import Context, LabelBatch
from vqlabel.labels.places import Places
from vqlabel.views.crops import SizeFinder, to_fractions, to_pixels
from vqlabel.views.recipe import MAX_BATCHES
from vqlabel.vql.column_limits import BATCH_RECORDS_MOST, IMAGES_MOST, NAMES_MOST, PREFIX, check_streams

_SPOOL_ROWS = 1 << 16
INTEGERS = ("image", "flip", "mix_index", "partner_image", "partner_flip", "patches", "seed")  # columns with a row a record
FLOATS = ("crop", "partner_crop", "cutout", "ops")  # likewise, of float32
CROPS = {"crop": "image", "partner_crop": "partner_image"}  # shares of an image's sides, and the image
AUGMENTATION = (*(name for name in INTEGERS if name != "image"), *FLOATS, "mix_lam", "mix_box")
ONE_SIZE = np.ones((1, 2), np.int64)


class ColumnWriter:
    """Collects the columns of every batch in temporary files, so memory does not grow with the dump, and writes them as streams.

    Which columns there are is decided by the first batch; later ones must have the same.
    """

    def __init__(self, folder: Path, order: str) -> None:
        self._folder, self._order = folder, order
        self._spools: dict[str, Spool] = {}
        self._sizes = SizeFinder()
        self._says: dict[str, str] = {}  # how numbers of a column are stored
        self._halves: dict[str, bool] = {}  # whether all numbers of a column are halves
        self._batches = 0
        self._present: dict[str, bool] | None = None

    def add(self, batch: LabelBatch) -> None:
        """Take the place and the augmentation of one batch.

        Raises:
            BadLabels: a column is missing that the first batch had, or the other way round.
        """
        present = {name: getattr(batch, name) is not None for name in AUGMENTATION}
        self._present = self._present or present
        for name in AUGMENTATION:
            if present[name] != self._present[name]:
                have = "has" if present[name] else "lacks"
                raise BadLabels(
                    f"epoch {batch.place.epoch}, batch {batch.place.batch} {have} {name}, unlike the first batch: mix no recipes"
                )
        self._batches += 1
        if self._batches > MAX_BATCHES:
            raise BadLabels(f"the dump has more than {MAX_BATCHES} batches; the format allows no more: use larger batches")
        if len(batch) > BATCH_RECORDS_MOST:
            raise BadLabels(
                f"epoch {batch.place.epoch}, batch {batch.place.batch} has {len(batch)} labels; the format allows {BATCH_RECORDS_MOST} "
                "in a batch: cut it into smaller ones"
            )
        self._put("batch", np.array([[batch.place.epoch, batch.place.batch, len(batch)]]))
        for name in INTEGERS:
            value = getattr(batch, name)
            if value is not None and (name != "image" or self._order == "explicit"):
                if name in ("image", "partner_image") and len(batch) and int(value.max()) >= IMAGES_MOST:
                    raise BadLabels(f"image index {int(value.max())} is above {IMAGES_MOST - 1}; number the images from 0")
                self._put(name, flat(value).astype(np.int64))
        for name in FLOATS:
            value = getattr(batch, name)
            if value is not None:
                self._put_floats(name, flat(value))
        if batch.crop is not None:
            self._sizes.add(batch.crop, batch.image if self._order == "explicit" else None)
        if batch.partner_crop is not None:
            self._sizes.add(batch.partner_crop, batch.partner_image if self._order == "explicit" else None)
        if batch.mix_lam is not None:
            self._put("mix_lam", np.array([batch.mix_lam], "<f8").view("<u4")[None])
        if batch.mix_box is not None:
            self._put("mix_box", np.array([batch.mix_box]))

    def _put_floats(self, name: str, values: NDArray[np.floating]) -> None:
        """As the bits of float32; whether halves would do is seen on the way."""
        wide = np.ascontiguousarray(values, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            back = wide.astype(np.float16).astype(np.float32)
        self._halves[name] = self._halves.get(name, True) and bool((back.view(np.uint32) == wide.view(np.uint32)).all())
        self._put(name, wide.view(np.uint32))

    def _put(self, name: str, rows: NDArray[Any]) -> None:
        if name not in self._spools:
            self._spools[name] = Spool(self._folder, rows.shape[1])
        spool = self._spools[name]
        if rows.shape[1] != spool.fields:
            raise BadLabels(f"{name} has {rows.shape[1]} numbers a record, the dump began with {spool.fields}: mix no recipes")
        spool.add(rows.astype(np.uint32))

    def write(self, writer: ContainerWriter, names: Sequence[str] | None = None) -> dict[str, str]:
        """Write every column as a stream, and the names of images. Returns what `vql.columns` says of them."""
        for name, parts, most in self._streams():
            writer.begin(PREFIX + name, widths(most))
            for rows in parts:
                writer.append(rows)
            writer.end()
        if names is not None:
            text = np.frombuffer(_joined(names), np.uint8)
            writer.begin(PREFIX + "names", [8])
            writer.append(text[:, None].astype(np.uint32))
            writer.end()
        return {"order": self._order, **self._says}

    def bits(self) -> int:
        """What the columns take before any coding, chunk tables and names apart."""
        return sum(sum(widths(most)) * sum(map(len, parts)) for _, parts, most in self._streams())

    def _streams(self) -> Iterator[tuple[str, Iterable[NDArray[np.uint32]], NDArray[Any]]]:
        """(name, rows, the largest value of every field) of each column."""
        sizes = self._sizes.sizes() if "crop" in self._spools else None
        for name in sorted(self._spools):
            spool = self._spools[name]
            if name in FLOATS:
                self._says[name] = "float16" if self._halves[name] else "float32"
                if name in CROPS and sizes is not None:
                    self._says[name] = "integers"
                    images = self._spools.get(CROPS[name]) if len(sizes) > 1 else None
                    spool = self._changed(spool, lambda shares, size: to_pixels(shares.view(np.float32), size), images, sizes)
                    if name == "crop":
                        yield "image_size", [sizes.astype(np.uint32)], sizes.max(0)
                elif self._says[name] == "float16":
                    spool = self._changed(spool, lambda bits, _: bits.view(np.float32).astype(np.float16).view(np.uint16))
            yield name, spool, spool.most

    def _changed(
        self,
        spool: "Spool",
        change: Callable[..., NDArray[Any]],
        images: "Spool | None" = None,
        sizes: NDArray[np.int64] = ONE_SIZE,
    ) -> "Spool":
        """Rows as `change` makes them of the bits of float32 and of the size of each row's image."""
        out = Spool(self._folder, spool.fields)
        which: Iterator[NDArray[np.uint32]] | None = iter(images) if images is not None else None
        for rows in spool:
            image = np.zeros(len(rows), np.int64) if which is None else next(which)[:, 0].astype(np.int64)
            out.add(change(rows, sizes[image]).astype(np.uint32))
        return out


def _joined(names: Sequence[str]) -> bytes:
    odd = next((name for name in names if re.search("[\n\ud800-\udfff]", name)), None)
    if odd is not None:
        raise BadLabels(f"an image is named {odd!r}; names are one line of UTF-8: rename it")
    text = "\n".join(names).encode()
    if len(text) > NAMES_MOST:
        raise BadLabels(f"the names of the images are {len(text)} bytes; the format allows {NAMES_MOST}: use numbers")
    return text


def flat(value: NDArray[Any]) -> NDArray[Any]:
    """[n, ...] -> [n, numbers of a record], also where n is 0."""
    return value.reshape(len(value), math.prod(value.shape[1:]))


def widths(most: NDArray[Any]) -> list[int]:
    """Bits of every field of a column, by its largest value."""
    return [max(1, int(top).bit_length()) for top in most]


def as_lambda(words: NDArray[np.unsignedinteger]) -> NDArray[np.float64]:
    """[n, 2] low and high words -> [n] lambdas."""
    return np.ascontiguousarray(words.astype("<u4")).view("<f8")[:, 0]


class Spool:
    """Rows of uint32 in a nameless temporary file, and the largest value of every field."""

    def __init__(self, folder: Path, fields: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed with the object)
        weakref.finalize(self, self._file.close)
        self.fields, self.most = fields, np.zeros(fields, np.uint32)

    def add(self, rows: NDArray[np.uint32]) -> None:
        self.most = np.maximum(self.most, rows.max(0, initial=0))
        self._file.write(np.ascontiguousarray(rows).tobytes())

    def __iter__(self) -> Iterator[NDArray[np.uint32]]:
        self._file.seek(0)
        while data := self._file.read(_SPOOL_ROWS * 4 * self.fields):
            yield np.frombuffer(data, np.uint32).reshape(-1, self.fields)


class ColumnReader:
    """The columns of a `.vql`, by batch or by record.

    Attributes:
        places: [B] (epoch, batch) of every batch.
        starts: [B + 1] first record of every batch; the last entry is the number of records.
        order: "explicit", "rows" or "none".
    """

    def __init__(self, reader: ContainerReader, says: dict[str, Any], records: int) -> None:
        self._reader, self.path = reader, reader.path
        self.order, self._floats = str(says.get("order")), {name: says[name] for name in FLOATS if name in says}
        where = reader.path
        kinds = {name: ("integers", "float16", "float32") if name in CROPS else ("float16", "float32") for name in FLOATS}
        if self.order not in ("explicit", "rows", "none") or any(kind not in kinds[name] for name, kind in self._floats.items()):
            raise BadContainer(f"{where}: vql.columns is {str(says)[:120]}; damaged or from a newer version")
        if PREFIX + "batch" not in reader.streams:
            raise BadContainer(f"{where}: has no column 'batch'; damaged or forged")
        check_streams(reader, self._floats, records)
        table = reader.rows(PREFIX + "batch")
        many = table[:, 2].astype(np.int64)
        if int(many.sum()) != records:
            raise BadContainer(f"{where}: its batches hold {int(many.sum())} records, the header says {records}")
        if int(many.max(initial=0)) > BATCH_RECORDS_MOST:
            raise BadContainer(f"{where}: a batch of {int(many.max())} records; the format allows {BATCH_RECORDS_MOST}")
        self.places = Places(table[:, 0], table[:, 1])
        self.starts = np.append(0, np.cumsum(many))
        integers = "integers" in self._floats.values()
        self._sizes = reader.rows(PREFIX + "image_size") if integers else None
        if self._sizes is not None and not (len(self._sizes) and self._sizes.all()):
            raise BadContainer(f"{where}: its image sizes are none, or hold a zero; damaged or forged")

    @cached_property
    def _epoch_start(self) -> NDArray[np.int64]:
        """[B] first record of each batch's epoch."""
        first = np.flatnonzero(np.diff(self.places.epoch.astype(np.int64), prepend=-1))
        return np.repeat(self.starts[first], np.diff(np.append(first, len(self.places))))

    def has(self, name: str) -> bool:
        """Whether the file has the column."""
        return PREFIX + name in self._reader.streams or (name == "image" and self.order == "rows")

    def batch_of(self, record: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n] batch number of each record."""
        return np.searchsorted(self.starts, record, side="right") - 1

    def batch(self, at: int, labels: NDArray[np.floating]) -> LabelBatch:
        """The batch at `places[at]`, with these labels."""
        start, stop = int(self.starts[at]), int(self.starts[at + 1])
        record = np.arange(start, stop)
        lam, box = self._of_batch("mix_lam", at), self._of_batch("mix_box", at)
        index = self.column("mix_index", record)
        if index is not None and len(index) and int(index.max()) >= len(record):
            raise BadContainer(f"{self._reader.path}: mix_index {int(index.max())} in batch {at} leaves its {len(record)} slots")
        patches, ops, seed = self.column("patches", record), self.numbers("ops", record), self.column("seed", record)
        return LabelBatch(
            labels=labels,
            place=self.places[at],
            image=self.image(record),
            crop=self.crop(record),
            flip=self._flip("flip", record),
            mix_index=None if index is None else index.astype(np.int64)[:, 0],
            mix_lam=None if lam is None else float(as_lambda(lam[None])[0]),
            mix_box=None if box is None else (int(box[0]), int(box[1]), int(box[2]), int(box[3])),
            partner_image=self._integer("partner_image", record),
            partner_crop=self.crop(record, "partner_crop"),
            partner_flip=self._flip("partner_flip", record),
            cutout=self.numbers("cutout", record),
            patches=None if patches is None else patches.astype(np.int64).reshape(len(record), 2, patches.shape[1] // 2),
            ops=None if ops is None else ops.reshape(len(record), ops.shape[1] // 3, 3),
            seed=None if seed is None else seed.astype(np.uint32).view(np.int32).astype(np.int64)[:, 0],
        )

    def image(self, record: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """[n] image of each record."""
        return (
            np.asarray(record - self._epoch_start[self.batch_of(record)])
            if self.order == "rows"
            else self._integer("image", record)
        )

    def crop(self, record: NDArray[np.int64], name: str = "crop") -> NDArray[np.float32] | None:
        """[n, 4] shares, the very floats of the dump: the record's own, or of its "partner_crop"."""
        if self._floats.get(name) != "integers":
            return self.numbers(name, record)
        crop = self.column(name, record)
        if crop is None or self._sizes is None:
            return None
        at = np.zeros(len(record), np.int64)
        if len(self._sizes) > 1:
            image = self.image(record) if name == "crop" else self._integer("partner_image", record)
            if image is None or (len(image) and int(image.max()) >= len(self._sizes)):
                raise BadContainer(f"{self._reader.path}: an image has no size; damaged or forged")
            at = image
        return to_fractions(crop, self._sizes[at])

    @property
    def names(self) -> list[str] | None:
        """The names of the images, by index, where the dump found its images by name."""
        if PREFIX + "names" not in self._reader.streams:
            return None
        text, payload = self._reader.rows(PREFIX + "names").tobytes(), self._reader.sections[PREFIX + "names"]
        count, most = text.count(b"\n") + 1, payload.stop - payload.start
        if count > most:
            raise BadContainer(f"{self._reader.path}: {count} names of images in {most} bytes; a name takes a byte: forged")
        try:
            return text.decode().split("\n")
        except UnicodeDecodeError as error:
            raise BadContainer(f"{self._reader.path}: the images' names are no UTF-8 ({error}); damaged or forged") from None

    def context(self, record: NDArray[np.int64]) -> Context:
        """What a codec may know of these records: their whole batches are looked at for the partners."""
        batch = self.batch_of(record)
        image = self.image(record)
        index, lam, box = (self.column(n, r) for n, r in (("mix_index", record), ("mix_lam", batch), ("mix_box", batch)))
        partner = self._integer("partner_image", record), self.crop(record, "partner_crop"), self._flip("partner_flip", record)
        if index is not None:
            other = self.starts[batch] + index[:, 0].astype(np.int64)
            if len(other) and (other >= self.starts[batch + 1]).any():
                raise BadContainer(f"{self._reader.path}: a mix_index leaves its batch; damaged or forged")
            partner = self.image(other), self.crop(other), self._flip("flip", other)
        return Context(
            image=image,
            partner=partner[0],
            partner_crop=partner[1],
            partner_flip=partner[2],
            mix=None if lam is None else as_lambda(lam).astype(np.float32),
            crop=self.crop(record),
            flip=self._flip("flip", record),
            box=None if box is None else box.astype(np.int64),
        )

    def _flip(self, name: str, record: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        flip = self.column(name, record)
        return None if flip is None else flip.astype(bool)[:, 0]

    def _integer(self, name: str, record: NDArray[np.int64]) -> NDArray[np.int64] | None:
        value = self.column(name, record)
        return None if value is None else value.astype(np.int64)[:, 0]

    def numbers(self, name: str, record: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """[n, fields] of a column of numbers that are not stored as integers."""
        bits = self.column(name, record)
        if bits is None:
            return None
        if self._floats.get(name, "float32") == "float16":
            return bits.astype(np.uint16).view(np.float16).astype(np.float32)
        return bits.astype(np.uint32).view(np.float32)

    def column(self, name: str, row: NDArray[np.int64]) -> NDArray[np.unsignedinteger] | None:
        """[n, fields] of a column as it is stored; None where the file has none."""
        return self._reader.take(PREFIX + name, row) if PREFIX + name in self._reader.streams else None

    def _of_batch(self, name: str, at: int) -> NDArray[np.unsignedinteger] | None:
        found = self.column(name, np.array([at]))
        return None if found is None else found[0]
