"""Arrays of labels, read by rows -> label batches; of whatever file, alone or as the shards of one dump."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels.layouts.axes import IMAGES_FIRST, read_shape
from vqlabel.labels.source import LabelBatch, LabelSource, Place

BATCH_RECORDS, BATCH_BYTES = 4096, 16 << 20
BF16 = np.dtype("V2")  # what NumPy, which has no such type, calls the numbers of a bfloat16 array
DEFLATE_MOST = 1032  # bytes that one byte of a compressed file can expand to
_CODES = {"f2": "F16", "V2": "BF16", "f4": "F32", "f8": "F64"}


class Rows(ABC):
    """An array of labels [n, C] or [epochs, n, C].

    Attributes:
        name: of its file, for messages.
        dtype: "F16", "BF16" or "F32"; float64 is narrowed to the last.
        layout: what its shape means.
        domain: as file or name declare it; None: neither does.
        names: of its images, one a label, where the file has them; None: it has not.
        notes: what a user might expect otherwise, by subject.
    """

    names: Sequence[str] | None = None

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        domain: str | None = None,
        axes: tuple[str, ...] | None = None,
        note: str | None = None,
    ) -> None:
        code = _CODES.get(dtype.str[1:])
        if code is None:
            raise BadLabels(f"{name}: type {dtype}; {_remedy(dtype)}")
        self.name, self.domain, self.type = name, domain, dtype
        self.layout = read_shape(shape, name, axes)
        self.dtype = "F32" if code == "F64" else code
        self.notes = {} if note is None else {"array": note}
        if code == "F64":
            self.notes["type"] = f"{name}: float64 is narrowed to float32"
        if self.layout.stored != shape:
            self.notes["shape"] = f"{name}: shape {list(shape)} is read as {list(self.layout.stored)}"

    def read(self, epoch: int, start: int, stop: int) -> NDArray[np.floating]:
        """Labels start:stop of an epoch, [stop - start, C]; bf16 widened to float32."""
        layout = self.layout
        try:
            if layout.images_first:
                rows = self._read(start * layout.epochs, stop * layout.epochs)
                rows = rows.reshape(stop - start, layout.epochs, layout.classes)[:, epoch]
            else:
                rows = self._read(epoch * layout.images + start, epoch * layout.images + stop)
        except BadLabels:
            raise
        except Exception as error:  # zipfile and other libraries' readers raise nearly anything on damaged bytes
            raise BadLabels(
                f"{self.name}: unreadable at row {start} ({str(error)[:200]}); it is damaged or changed meanwhile"
            ) from None
        if self.dtype == "BF16":
            return (np.ascontiguousarray(rows).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # Inf comes of a float64 that is too large, and is refused
            return np.array(rows, np.float16 if self.dtype == "F16" else np.float32, order="C")

    @abstractmethod
    def _read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start:stop of [epochs * n, C], as they are stored: of one epoch, or where images stand first of whole images."""


def check_count(rows: int, path: Path) -> None:
    """Raises BadLabels where a header declares more rows than its file can hold however well it is compressed."""
    if rows > DEFLATE_MOST * (size := path.stat().st_size):
        raise BadLabels(f"{path}: declares {rows:,} rows in a file of {size:,} bytes; it is forged or damaged")


def _remedy(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "iu":
        return "integers are class numbers or quantized; labels are the teacher's float outputs [n, C]: save those, or (z * scale).astype(np.float16)"
    return "labels are float16, bfloat16 or float32: convert them first"


class Span(NamedTuple):
    """A batch's labels: rows start:stop of an epoch of one shard."""

    rows: Rows
    epoch: int  # of the shard
    start: int
    stop: int
    image: int  # of row `start`


class RowsSource(LabelSource):
    """The shards of one dump, one after the other.

    Args:
        path: what the user named.
        shards: at least one; of one type and number of classes.
        domain: as the user declares it; None: as the first shard does, else logits.
        axes_named: whether the user named the axes, so that they need no note.
        by_image: row i of [n, C] is image i.
    """

    layout = "arrays"

    def __init__(self, path: Path, shards: Sequence[Rows], domain: str | None, axes_named: bool, by_image: bool = False) -> None:
        self.path, self._shards = path, shards
        first = shards[0]
        for shard in shards[1:]:
            _check_alike(shard, first)
        self.classes, self.dtype, self.domain = first.layout.classes, first.dtype, domain or first.domain or "logits"
        self.names = _joined_names(shards)
        by_image = by_image or first.layout.by_image or self.names is not None
        self.order = "rows" if by_image else "none"
        spans = _spans_of_images(shards) if first.layout.images_first or self.names is not None else _spans_of_epochs(shards)
        self._spans = [span for _, span in spans]
        self.places = [place for place, _ in spans]
        self._by_image = by_image
        told = {subject: note for shard in reversed(shards) for subject, note in shard.notes.items()}
        self.notes.extend(told.values())
        if first.layout.by_image and not axes_named:
            epochs = 1 + max(place.epoch for place in self.places)
            self.notes.append(
                f"{path}: read as {epochs:,} epochs of {first.layout.images:,} images; where images stand first, pass --axes {IMAGES_FIRST}"
            )

    def files_of(self, at: int) -> tuple[Path, ...]:
        return (Path(self._spans[at].rows.name),)

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        place, span = self.places[at], self._spans[at]
        labels = span.rows.read(span.epoch, span.start, span.stop)
        image = np.arange(span.image, span.image + len(labels), dtype=np.int64) if self._by_image else None
        first = span.epoch * span.rows.layout.images + span.start
        name = f"{span.rows.name}, rows from {first}" if first else span.rows.name
        return LabelBatch(labels=labels, place=place, image=image), name


def _check_alike(shard: Rows, first: Rows) -> None:
    """Raises BadLabels where two shards are not of one dump."""
    if shard.layout.classes != first.layout.classes:
        raise BadLabels(
            f"{shard.name}: {shard.layout.classes} classes; {first.name} has {first.layout.classes}: one dump has one teacher"
        )
    if (shard.dtype, shard.layout.by_image) != (first.dtype, first.layout.by_image):
        form = "[epochs, n, C]" if shard.layout.by_image else "[n, C]"
        raise BadLabels(f"{shard.name}: {shard.dtype}, {form}, unlike {first.name}")
    if first.layout.images_first and shard.layout.epochs != first.layout.epochs:
        raise BadLabels(
            f"{shard.name}: {shard.layout.epochs} views of an image; {first.name} has {first.layout.epochs}: save whole epochs"
        )


def _joined_names(shards: Sequence[Rows]) -> list[str] | None:
    """The images' names in all shards; None where some have none, or two images have one name."""
    parts = [shard.names for shard in shards if shard.names is not None]
    names = [name for part in parts for name in part]
    return names if len(parts) == len(shards) and len(set(names)) == len(names) else None


def _cuts(rows: Rows) -> list[tuple[int, int]]:
    """start, stop of the batches of one epoch."""
    layout = rows.layout
    width = 4 * layout.classes * (layout.epochs if layout.images_first else 1)
    step = max(1, min(BATCH_RECORDS, BATCH_BYTES // width))
    return [(start, min(start + step, layout.images)) for start in range(0, layout.images, step)]


def _spans_of_epochs(shards: Sequence[Rows]) -> list[tuple[Place, Span]]:
    """Shards go on with more epochs, or with more records where there are none."""
    spans: list[tuple[Place, Span]] = []
    epoch = batch = 0
    for shard in shards:
        for part in range(shard.layout.epochs):
            batch = 0 if shard.layout.by_image else batch
            for start, stop in _cuts(shard):
                spans.append((Place(epoch, batch), Span(shard, part, start, stop, start)))
                batch += 1
            epoch += shard.layout.by_image
    return spans


def _spans_of_images(shards: Sequence[Rows]) -> list[tuple[Place, Span]]:
    """Shards go on with more images, of which each has labels in every epoch."""
    spans: list[tuple[Place, Span]] = []
    for epoch in range(shards[0].layout.epochs):
        image = batch = 0
        for shard in shards:
            for start, stop in _cuts(shard):
                spans.append((Place(epoch, batch), Span(shard, epoch, start, stop, image + start)))
                batch += 1
            image += shard.layout.images
    return spans
