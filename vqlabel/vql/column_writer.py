"""Place and augmentation of every batch -> streams of small integers in the container, bit for bit.

Source: docs/format.md, "Columns".
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.container import ContainerWriter
from vqlabel.errors import BadLabels
from vqlabel.labels import LabelBatch
from vqlabel.labels.image_set import WholeEpochs
from vqlabel.labels.schema import (
    COLUMNS,
    CROP_COLUMNS,
    FLOAT_COLUMNS,
    INTEGER_COLUMNS,
    MAX_BATCH_RECORDS,
    MAX_BATCHES,
    MAX_IMAGES,
    MAX_NAME_BYTES,
)
from vqlabel.views.crops import SizeFinder, to_pixels
from vqlabel.vql.column_limits import PREFIX
from vqlabel.vql.spool import Spool

AUGMENTATION = tuple(name for name, column in COLUMNS.items() if column.of and name != "image")
ONE_SIZE = np.ones((1, 2), np.int64)


class ColumnWriter:
    """Collects the columns of every batch in temporary files, so that memory does not grow with the dump, and writes
    them as streams.

    The first batch decides which columns the file has; all later batches must have the same.

    Attributes:
        whole_epochs: the images that complete epochs show.
    """

    def __init__(self, folder: Path, order: str) -> None:
        self._folder, self._order = folder, order
        self._spools: dict[str, Spool] = {}
        self._sizes = SizeFinder()
        self._kinds: dict[str, str] = {}  # float column -> how its numbers are stored: "integers", "float16" or "float32"
        self._halves: dict[str, bool] = {}  # float column -> whether float16 represents all its numbers exactly
        self.whole_epochs = WholeEpochs()
        self._batches = 0
        self._present: dict[str, bool] | None = None

    def add(self, batch: LabelBatch) -> None:
        """Append the place and the augmentation of one batch.

        Raises:
            BadLabels: the batch lacks a column of the first batch, or has another one, or exceeds a format limit.
        """
        self._check(batch)
        self._batches += 1
        self._put("batch", np.array([[batch.place.epoch, batch.place.batch, len(batch)]]))
        if batch.image is not None:
            self.whole_epochs.add(batch.place.epoch, batch.image)
        explicit = self._order == "explicit"
        for name in INTEGER_COLUMNS:
            value = getattr(batch, name)
            if value is not None and (name != "image" or explicit):
                if name in ("image", "partner_image") and len(batch) and int(value.max()) >= MAX_IMAGES:
                    raise BadLabels(f"image index {int(value.max())} is above {MAX_IMAGES - 1}; number the images from 0")
                self._put(name, flat(value).astype(np.int64))
        for name in FLOAT_COLUMNS:
            value = getattr(batch, name)
            if value is not None:
                self._put_floats(name, flat(value))
        if batch.crop is not None:
            self._sizes.add(batch.crop, batch.image if explicit else None)
        if batch.partner_crop is not None:
            self._sizes.add(batch.partner_crop, batch.partner_image if explicit else None)
        if batch.mix_lam is not None:
            self._put("mix_lam", np.array([batch.mix_lam], "<f8").view("<u4")[None])
        if batch.mix_box is not None:
            self._put("mix_box", np.array([batch.mix_box]))

    def _check(self, batch: LabelBatch) -> None:
        where = f"epoch {batch.place.epoch}, batch {batch.place.batch}"
        present = {name: getattr(batch, name) is not None for name in AUGMENTATION}
        self._present = self._present or present
        for name in AUGMENTATION:
            if present[name] != self._present[name]:
                verb = "has" if present[name] else "lacks"
                raise BadLabels(f"{where} {verb} {name}, unlike the first batch: a dump must have one augmentation recipe")
        if self._batches >= MAX_BATCHES:
            raise BadLabels(f"the dump has more than {MAX_BATCHES} batches, the maximum of the format: use larger batches")
        if len(batch) > MAX_BATCH_RECORDS:
            raise BadLabels(
                f"{where} has {len(batch)} labels; the format allows {MAX_BATCH_RECORDS} in a batch: split it into smaller batches"
            )

    def _put_floats(self, name: str, values: NDArray[np.floating]) -> None:
        """Store the bits of float32, and track whether float16 would be exact."""
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
            raise BadLabels(
                f"{name} has {rows.shape[1]} numbers per record, {spool.fields} in the first batch: a dump must have one augmentation recipe"
            )
        spool.add(rows.astype(np.uint32))

    def write(self, writer: ContainerWriter, names: Sequence[str] | None = None) -> dict[str, str]:
        """Write every column as a stream, and the names of images. Returns the content of `vql.columns`."""
        for name, parts, maxima in self._streams():
            writer.begin(PREFIX + name, widths(maxima))
            for rows in parts:
                writer.append(rows)
            writer.end()
        if names is not None:
            text = np.frombuffer(_joined(names), np.uint8)
            writer.begin(PREFIX + "names", [8])
            writer.append(text[:, None].astype(np.uint32))
            writer.end()
        return {"order": self._order, **self._kinds}

    def bits(self) -> int:
        """Size of the columns in bits before any coding, without chunk tables and names."""
        return sum(sum(widths(maxima)) * sum(map(len, parts)) for _, parts, maxima in self._streams())

    def _streams(self) -> Iterator[tuple[str, Iterable[NDArray[np.uint32]], NDArray[Any]]]:
        """(name, rows, largest value of every field) of each column."""
        sizes = self._sizes.sizes() if "crop" in self._spools else None
        for name in sorted(self._spools):
            spool = self._spools[name]
            if name in FLOAT_COLUMNS:
                self._kinds[name] = "float16" if self._halves[name] else "float32"
                if name in CROP_COLUMNS and sizes is not None:
                    self._kinds[name] = "integers"
                    images = self._spools.get(CROP_COLUMNS[name]) if len(sizes) > 1 else None
                    spool = self._converted(spool, lambda shares, size: to_pixels(shares.view(np.float32), size), images, sizes)
                    if name == "crop":
                        yield "image_size", [sizes.astype(np.uint32)], sizes.max(0)
                elif self._kinds[name] == "float16":
                    spool = self._converted(spool, lambda bits, _: bits.view(np.float32).astype(np.float16).view(np.uint16))
            yield name, spool, spool.maxima

    def _converted(
        self,
        spool: "Spool",
        convert: Callable[..., NDArray[Any]],
        images: "Spool | None" = None,
        sizes: NDArray[np.int64] = ONE_SIZE,
    ) -> "Spool":
        """A spool of `convert(rows, size)`: rows as the bits of float32, and [n, 2] the size of each row's image."""
        out = Spool(self._folder, spool.fields)
        image_rows: Iterator[NDArray[np.uint32]] | None = iter(images) if images is not None else None
        for rows in spool:
            image = np.zeros(len(rows), np.int64) if image_rows is None else next(image_rows)[:, 0].astype(np.int64)
            out.add(convert(rows, sizes[image]).astype(np.uint32))
        return out


def _joined(names: Sequence[str]) -> bytes:
    """The names as UTF-8, one line each.

    Raises:
        BadLabels: a name has a line feed or is not valid Unicode, or the names exceed MAX_NAME_BYTES.
    """
    invalid = next((name for name in names if re.search("[\n\ud800-\udfff]", name)), None)
    if invalid is not None:
        raise BadLabels(f"an image is named {invalid!r}; names must be one line of UTF-8: rename it")
    text = "\n".join(names).encode()
    if len(text) > MAX_NAME_BYTES:
        raise BadLabels(f"the names of the images take {len(text)} bytes; the format allows {MAX_NAME_BYTES}: use numbers as names")
    return text


def flat(value: NDArray[Any]) -> NDArray[Any]:
    """[n, ...] -> [n, numbers per record], also if n is 0."""
    return value.reshape(len(value), math.prod(value.shape[1:]))


def widths(maxima: NDArray[Any]) -> list[int]:
    """Width in bits of every field of a column, from its largest value."""
    return [max(1, int(maximum).bit_length()) for maximum in maxima]
