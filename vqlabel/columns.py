"""Where a record belongs and what was done to its image <-> streams of small integers in the container, bit for bit.

Source: docs/format.md, "Columns".
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.container import ContainerReader, ContainerWriter
from vqlabel.crops import SizeFinder, to_pixels, to_shares
from vqlabel.errors import BadContainer, BadLabels
from vqlabel.labels import Context, LabelBatch, Place

IMAGES_MOST = 1 << 24
BATCHES_MOST = 1 << 22  # a reader holds their places
_SPOOL_ROWS = 1 << 16
PREFIX = "columns."


class ColumnWriter:
    """Collects the columns of every batch in temporary files, so memory does not grow with the dump, and writes them as streams.

    Which columns there are is decided by the first batch; later ones must have the same.
    """

    def __init__(self, folder: Path, order: str) -> None:
        self._folder, self._order = folder, order
        self._spools: dict[str, Spool] = {}
        self._sizes = SizeFinder()
        self._batches = 0
        self._present: dict[str, bool] | None = None

    def add(self, batch: LabelBatch) -> None:
        """Take the place and the augmentation of one batch.

        Raises:
            BadLabels: a column is missing that the first batch had, or the other way round.
        """
        fields = ("crop", "flip", "mix_index", "mix_lam", "mix_box")
        present = {name: getattr(batch, name) is not None for name in fields}
        self._present = self._present or present
        for name in fields:
            if present[name] != self._present[name]:
                have = "has" if present[name] else "lacks"
                raise BadLabels(
                    f"epoch {batch.place.epoch}, batch {batch.place.batch} {have} {name}, unlike the first batch: mix no recipes"
                )
        self._batches += 1
        if self._batches > BATCHES_MOST:
            raise BadLabels(f"the dump has more than {BATCHES_MOST} batches; the format allows no more: use larger batches")
        self._put("batch", np.array([[batch.place.epoch, batch.place.batch, len(batch)]]))
        if self._order == "explicit" and batch.image is not None:
            if len(batch) and int(batch.image.max()) >= IMAGES_MOST:
                raise BadLabels(f"image index {int(batch.image.max())} is above {IMAGES_MOST - 1}; number the images from 0")
            self._put("image", batch.image[:, None])
        if batch.crop is not None:
            self._put("crop", np.ascontiguousarray(batch.crop, np.float32).view(np.uint32))
            self._sizes.add(batch.crop, batch.image if self._order == "explicit" else None)
        if batch.flip is not None:
            self._put("flip", batch.flip[:, None])
        if batch.mix_index is not None:
            self._put("mix_index", batch.mix_index[:, None])
        if batch.mix_lam is not None:
            self._put("mix_lam", np.array([batch.mix_lam], "<f8").view("<u4")[None])
        if batch.mix_box is not None:
            self._put("mix_box", np.array([batch.mix_box]))

    def _put(self, name: str, rows: NDArray[Any]) -> None:
        if name not in self._spools:
            self._spools[name] = Spool(self._folder, rows.shape[1])
        self._spools[name].add(rows.astype(np.uint32))

    def write(self, writer: ContainerWriter) -> dict[str, str]:
        """Write every column as a stream. Returns what `vql.columns` says of them."""
        says = {"order": self._order}
        for name in sorted(self._spools):
            spool = self._spools[name]
            if name == "crop":
                sizes = self._sizes.found()
                says["crop"] = "float32" if sizes is None else "integers"
                if sizes is not None:
                    images = self._spools.get("image")
                    spool = self._whole(spool, images if len(sizes) > 1 else None, sizes)
                    _write_stream(writer, PREFIX + "image_size", iter([sizes.astype(np.uint32)]), sizes.max(0))
            _write_stream(writer, PREFIX + name, iter(spool), spool.most)
        return says

    def _whole(self, spool: "Spool", images: "Spool | None", sizes: NDArray[np.int64]) -> "Spool":
        """The crops in pixels."""
        out = Spool(self._folder, 4)
        which: Iterator[NDArray[np.uint32]] | None = iter(images) if images is not None else None
        for shares in spool:
            image = np.zeros(len(shares), np.int64) if which is None else next(which)[:, 0].astype(np.int64)
            out.add(to_pixels(shares.view(np.float32), sizes[image]))
        return out


def _write_stream(writer: ContainerWriter, name: str, parts: Iterator[NDArray[np.uint32]], most: NDArray[Any]) -> None:
    writer.begin(name, [max(1, int(top).bit_length()) for top in most])
    for rows in parts:
        writer.append(rows)
    writer.end()


class Spool:
    """Rows of uint32 in a nameless temporary file, and the largest value of every field."""

    def __init__(self, folder: Path, fields: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed with the object)
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
        self._reader = reader
        self.order = says.get("order")
        self._crop = says.get("crop")
        where = reader.path
        if self.order not in ("explicit", "rows", "none") or self._crop not in (None, "integers", "float32"):
            raise BadContainer(f"{where}: vql.columns is {says}; damaged or from a newer version")
        for name, most in (("batch", BATCHES_MOST), ("image_size", IMAGES_MOST)):
            stream = reader.streams.get(PREFIX + name)
            if stream is not None and stream.rows > most:
                raise BadContainer(f"{where}: column {name!r} has {stream.rows} rows; the format allows {most}")
        table = reader.rows(PREFIX + "batch").astype(np.int64)
        if table.shape[1:] != (3,) or int(table[:, 2].sum()) != records:
            raise BadContainer(f"{where}: its batches hold {int(table[:, -1].sum())} records, the header says {records}")
        self.places = [Place(epoch, batch) for epoch, batch in table[:, :2].tolist()]
        self.starts = np.concatenate([[0], np.cumsum(table[:, 2])])
        first = np.flatnonzero(np.diff(table[:, 0], prepend=-1))
        self._epoch_start = np.repeat(self.starts[first], np.diff(np.append(first, len(table)))) if len(table) else self.starts
        fields = {"image": 1, "crop": 4, "flip": 1, "mix_index": 1}
        for name, width in {**fields, "mix_lam": 2, "mix_box": 4}.items():
            stream = reader.streams.get(PREFIX + name)
            rows = records if name in fields else len(table)
            if stream is not None and (stream.rows, len(stream.bits)) != (rows, width):
                raise BadContainer(
                    f"{where}: column {name!r} has {stream.rows} rows of {len(stream.bits)} fields; {rows} of {width} belong"
                )
        self._sizes = reader.rows(PREFIX + "image_size").astype(np.int64) if self._crop == "integers" else None
        if self._sizes is not None and (self._sizes.shape[1:] != (2,) or not len(self._sizes) or not self._sizes.all()):
            raise BadContainer(f"{where}: its image sizes are {self._sizes.shape}, or hold a zero; damaged or forged")

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
        index = self._column("mix_index", record)
        if index is not None and len(index) and int(index.max()) >= len(record):
            raise BadContainer(f"{self._reader.path}: mix_index {int(index.max())} in batch {at} leaves its {len(record)} slots")
        return LabelBatch(
            labels=labels,
            place=self.places[at],
            image=self.image(record),
            crop=self.crop(record),
            flip=self._flip(record),
            mix_index=None if index is None else index.astype(np.int64)[:, 0],
            mix_lam=None if lam is None else float(lam.astype("<u4").view("<f8")[0]),
            mix_box=None if box is None else (int(box[0]), int(box[1]), int(box[2]), int(box[3])),
        )

    def image(self, record: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """[n] image of each record."""
        if self.order == "rows":
            return np.asarray(record - self._epoch_start[self.batch_of(record)])
        image = self._column("image", record)
        return None if image is None else image.astype(np.int64)[:, 0]

    def crop(self, record: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """[n, 4] shares, the very floats of the dump."""
        crop = self._column("crop", record)
        if crop is None or self._sizes is None:
            return None if crop is None else crop.astype(np.uint32).view(np.float32)
        at = np.zeros(len(record), np.int64)
        if len(self._sizes) > 1:
            image = self.image(record)
            if image is None or (len(image) and int(image.max()) >= len(self._sizes)):
                raise BadContainer(f"{self._reader.path}: an image has no size; damaged or forged")
            at = image
        return to_shares(crop, self._sizes[at])

    def context(self, record: NDArray[np.int64]) -> Context:
        """What a codec may know of these records: their whole batches are looked at for the partners."""
        batch = self.batch_of(record)
        image = self.image(record)
        index, lam, box = (self._column(n, r) for n, r in (("mix_index", record), ("mix_lam", batch), ("mix_box", batch)))
        other = None
        if index is not None:
            other = self.starts[batch] + index[:, 0].astype(np.int64)
            if len(other) and (other >= self.starts[batch + 1]).any():
                raise BadContainer(f"{self._reader.path}: a mix_index leaves its batch; damaged or forged")
        return Context(
            image=image,
            partner=None if other is None else self.image(other),
            partner_crop=None if other is None else self.crop(other),
            partner_flip=None if other is None else self._flip(other),
            mix=None if lam is None else np.ascontiguousarray(lam.astype("<u4")).view("<f8")[:, 0].astype(np.float32),
            crop=self.crop(record),
            flip=self._flip(record),
            box=None if box is None else box.astype(np.int64),
        )

    def _flip(self, record: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        flip = self._column("flip", record)
        return None if flip is None else flip.astype(bool)[:, 0]

    def _column(self, name: str, row: NDArray[np.int64]) -> NDArray[np.unsignedinteger] | None:
        return self._reader.take(PREFIX + name, row) if PREFIX + name in self._reader.streams else None

    def _of_batch(self, name: str, at: int) -> NDArray[np.unsignedinteger] | None:
        found = self._column(name, np.array([at]))
        return None if found is None else found[0]
