"""Streams of small integers in the container -> the place and the augmentation of any record, bit for bit.

Source: docs/format.md, "Columns".
"""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.container import ContainerReader
from vqlabel.errors import BadContainer
from vqlabel.labels import Context, LabelBatch
from vqlabel.labels.places import Places
from vqlabel.labels.schema import CROP_COLUMNS, FLOAT_COLUMNS, MAX_BATCH_RECORDS
from vqlabel.labels.sparse import Labels
from vqlabel.views.crops import to_fractions
from vqlabel.vql.column_limits import PREFIX, check_streams


def as_lambda(words: NDArray[np.unsignedinteger]) -> NDArray[np.float64]:
    """[n, 2] low and high 32-bit words -> [n] float64 lambdas."""
    return np.ascontiguousarray(words.astype("<u4")).view("<f8")[:, 0]


class ColumnReader:
    """The columns of a `.vql`, by batch or by record.

    Attributes:
        places: [B] (epoch, batch) of every batch.
        starts: [B + 1] first record of every batch; the last entry is the number of records.
        order: "explicit", "rows" or "none", see `labels.source.About`.
        path: of the file.

    Args:
        header: `vql.columns`.
        records: n.

    Raises:
        BadContainer: columns, header and number of records contradict each other, or exceed a limit of the format.
    """

    def __init__(self, reader: ContainerReader, header: dict[str, Any], records: int) -> None:
        self._reader, self.path = reader, reader.path
        self.order, self._kinds = str(header.get("order")), {name: header[name] for name in FLOAT_COLUMNS if name in header}
        allowed = {
            name: ("integers", "float16", "float32") if name in CROP_COLUMNS else ("float16", "float32") for name in FLOAT_COLUMNS
        }
        if self.order not in ("explicit", "rows", "none") or any(kind not in allowed[name] for name, kind in self._kinds.items()):
            raise BadContainer(f"{self.path}: vql.columns is {str(header)[:120]}; damaged or from a newer version")
        if PREFIX + "batch" not in reader.streams:
            raise BadContainer(f"{self.path}: has no column 'batch'; damaged or forged")
        check_streams(reader, self._kinds, records)
        table = reader.rows(PREFIX + "batch")
        counts = table[:, 2].astype(np.int64)
        if int(counts.sum()) != records:
            raise BadContainer(f"{self.path}: its batches contain {int(counts.sum())} records, the header declares {records}")
        if int(counts.max(initial=0)) > MAX_BATCH_RECORDS:
            raise BadContainer(f"{self.path}: a batch of {int(counts.max())} records; the format allows {MAX_BATCH_RECORDS}")
        self.places = Places(table[:, 0], table[:, 1])
        self.starts = np.append(0, np.cumsum(counts))
        self._sizes = reader.rows(PREFIX + "image_size") if "integers" in self._kinds.values() else None
        if self._sizes is not None and not (len(self._sizes) and self._sizes.all()):
            raise BadContainer(f"{self.path}: its table of image sizes is empty, or has a zero; damaged or forged")

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

    def batch(self, at: int, labels: Labels) -> LabelBatch:
        """The batch at `places[at]`, with these labels."""
        start, stop = int(self.starts[at]), int(self.starts[at + 1])
        record = np.arange(start, stop)
        lam, box = self._of_batch("mix_lam", at), self._of_batch("mix_box", at)
        index = self.column("mix_index", record)
        if index is not None and len(index) and int(index.max()) >= len(record):
            raise BadContainer(f"{self.path}: mix_index {int(index.max())} in batch {at} is outside its {len(record)} records")
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
        """[n] image index of each record; None if unknown."""
        if self.order == "rows":
            return np.asarray(record - self._epoch_start[self.batch_of(record)])
        return self._integer("image", record)

    def crop(self, record: NDArray[np.int64], name: str = "crop") -> NDArray[np.float32] | None:
        """[n, 4] shares of height and width, bit for bit those of the dump; `name`: "crop" or "partner_crop"."""
        if self._kinds.get(name) != "integers":
            return self.numbers(name, record)
        crop = self.column(name, record)
        if crop is None or self._sizes is None:
            return None
        if len(self._sizes) == 1:
            return to_fractions(crop, self._sizes[np.zeros(len(record), np.int64)])
        image = self.image(record) if name == "crop" else self._integer("partner_image", record)
        if image is None or (len(image) and int(image.max()) >= len(self._sizes)):
            raise BadContainer(f"{self.path}: an image has no size; damaged or forged")
        return to_fractions(crop, self._sizes[image])

    @property
    def names(self) -> list[str] | None:
        """The names of the images, by index, if the dump identifies images by name; else None.

        Raises:
            BadContainer: the names are not UTF-8, or more than the stream has bytes.
        """
        if PREFIX + "names" not in self._reader.streams:
            return None
        text, payload = self._reader.rows(PREFIX + "names").tobytes(), self._reader.sections[PREFIX + "names"]
        count, max_count = text.count(b"\n") + 1, payload.stop - payload.start
        if count > max_count:  # a few bytes may decompress to many empty names
            raise BadContainer(
                f"{self.path}: {count} names of images in {max_count} bytes; the format requires a byte per name: forged"
            )
        try:
            return text.decode().split("\n")
        except UnicodeDecodeError as error:
            raise BadContainer(f"{self.path}: the images' names are not UTF-8 ({error}); damaged or forged") from None

    def context(self, record: NDArray[np.int64]) -> Context:
        """The side information of these records; their partners are looked up in their batches.

        Raises:
            BadContainer: a mix_index is outside its batch.
        """
        batch = self.batch_of(record)
        image = self.image(record)
        index, lam, box = (self.column(name, row) for name, row in (("mix_index", record), ("mix_lam", batch), ("mix_box", batch)))
        partner = self._integer("partner_image", record), self.crop(record, "partner_crop"), self._flip("partner_flip", record)
        if index is not None:
            other = self.starts[batch] + index[:, 0].astype(np.int64)
            if len(other) and (other >= self.starts[batch + 1]).any():
                raise BadContainer(f"{self.path}: a mix_index is outside its batch; damaged or forged")
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
        """[n, fields] float32 of a column whose numbers are stored as floats; None if the file does not have it."""
        bits = self.column(name, record)
        if bits is None:
            return None
        if self._kinds.get(name, "float32") == "float16":
            return bits.astype(np.uint16).view(np.float16).astype(np.float32)
        return bits.astype(np.uint32).view(np.float32)

    def column(self, name: str, row: NDArray[np.int64]) -> NDArray[np.unsignedinteger] | None:
        """[n, fields] of a column as stored; None if the file does not have it."""
        return self._reader.take(PREFIX + name, row) if PREFIX + name in self._reader.streams else None

    def _of_batch(self, name: str, at: int) -> NDArray[np.unsignedinteger] | None:
        row = self.column(name, np.array([at]))
        return None if row is None else row[0]
