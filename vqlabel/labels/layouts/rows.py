"""Arrays of labels that are read by rows -> label batches: of any file type, one file or the shards of one dump."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels.batch import LabelBatch, Place
from vqlabel.labels.layouts.array_columns import PLACES, records_of_batch
from vqlabel.labels.layouts.axes import IMAGES_FIRST, read_shape
from vqlabel.labels.layouts.label_dtypes import NARROWED_NOTE, numpy_dtype_name
from vqlabel.labels.layouts.select_array import SelectedArray
from vqlabel.labels.source import About, LabelSource

BATCH_RECORDS, BATCH_BYTES = 4096, 16 << 20  # a batch of labels in float32 reaches neither limit by more than one image
MAX_DEFLATE_RATIO = 1032  # bytes that one byte of a deflated file can expand to


class Rows(ABC):
    """An array of labels [n, C] or [epochs, n, C].

    Attributes:
        path: of its file.
        array: name of the array in the file; "" if the file is a single array.
        dtype: "F16", "BF16" or "F32"; float64 is narrowed to F32.
        layout: the meaning of its shape.
        domain: as declared by the file or implied by the array's name; None: neither.
        names: of the images, one per label, if the file has them; else None.
        notes: by topic, what a user might not expect of how the array is read.
        columns: by name, [epochs, images, ...]: what the file has besides labels (`array_columns`).
    """

    names: Sequence[str] | None = None
    columns: Mapping[str, NDArray[Any]] = MappingProxyType({})

    def __init__(
        self, path: Path, labels: SelectedArray, shape: tuple[int, ...], dtype: np.dtype[Any], axes: tuple[str, ...] | None
    ) -> None:
        stored = numpy_dtype_name(dtype)
        if stored is None:
            raise BadLabels(f"{path}: type {dtype}; {_remedy(dtype)}")
        self.path, self.array, self.domain, self.type = path, labels.name, labels.domain, dtype
        self.layout = read_shape(shape, str(path), axes)
        self.dtype = "F32" if stored == "F64" else stored
        self.notes = {} if labels.note is None else {"array": labels.note}
        if stored == "F64":
            self.notes["type"] = f"{path}: {NARROWED_NOTE}"
        if self.layout.stored != shape:
            self.notes["shape"] = f"{path}: shape {list(shape)} is read as {list(self.layout.stored)}"

    def read(self, epoch: int, start: int, stop: int) -> NDArray[np.floating]:
        """Labels start:stop of an epoch, [stop - start, C]; bf16 is widened to float32.

        Raises:
            BadLabels: the file is damaged.
        """
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
                f"{self.path}: cannot be read at row {start} ({str(error)[:200]}); it is damaged, or was changed since it was opened"
            ) from None
        if self.dtype == "BF16":
            return (np.ascontiguousarray(rows).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes Inf, which the source refuses
            return np.array(rows, np.float16 if self.dtype == "F16" else np.float32, order="C")

    @abstractmethod
    def _read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start:stop as [rows, C], in the stored type: of one epoch, or whole images if they come first."""


def check_count(rows: int, path: Path) -> None:
    """Raises BadLabels if a header declares more rows than its file can hold, however well it is compressed."""
    if rows > MAX_DEFLATE_RATIO * (size := path.stat().st_size):
        raise BadLabels(f"{path}: declares {rows:,} rows in a file of {size:,} bytes; it is forged or damaged")


def _remedy(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "iu":
        return "integers are hard labels or quantized outputs; save the teacher's float outputs [n, C], or (z * scale).astype(np.float16)"
    return "labels must be float16, bfloat16 or float32: convert them first"


class Span(NamedTuple):
    """The labels of a batch: rows start:stop of an epoch of one shard."""

    rows: Rows
    epoch: int  # within the shard
    start: int
    stop: int
    image: int  # of row `start`


class RowsSource(LabelSource):
    """The shards of one dump, one after the other.

    Args:
        path: the path that the user passed.
        shards: at least one; all of one type and number of classes.
        domain: as the user passed it; None: as the first shard declares it, else logits.
        axes_named: whether the user passed --axes, so that no note on the axes is needed.
        by_image: row i of [n, C] is the label of image i.

    Raises:
        BadLabels: the shards differ in type, shape or number of classes.
    """

    layout = "arrays"  # its name

    def __init__(self, path: Path, shards: Sequence[Rows], domain: str | None, axes_named: bool, by_image: bool = False) -> None:
        self.path, self._shards = path, shards
        first = shards[0]
        for shard in shards[1:]:
            _check_same_form(shard, first)
        names = _joined_names(shards)
        self._by_image = by_image or first.layout.by_image or names is not None
        self.about = About(
            layout=self.layout,
            classes=first.layout.classes,
            domain=domain or first.domain or "logits",
            dtype=first.dtype,
            order="explicit" if "image" in first.columns else "rows" if self._by_image else "none",
            names=names,
        )
        more_images = first.layout.images_first or names is not None
        if any(name in first.columns for name in PLACES):
            spans = _spans_of_columns(shards)
        else:
            spans = _spans_of_images(shards) if more_images else _spans_of_epochs(shards)
        self._spans = [span for _, span in spans]
        self.places = [place for place, _ in spans]
        notes = {
            topic: note for shard in reversed(shards) for topic, note in shard.notes.items()
        }  # per topic, that of the first shard
        self.notes.extend(notes.values())
        if first.layout.by_image and not axes_named:
            epochs = 1 + max(place.epoch for place in self.places)
            self.notes.append(
                f"{path}: read as {epochs:,} epochs of {first.layout.images:,} images; if the first axis is images, pass --axes {IMAGES_FIRST}"
            )

    def files_of(self, index: int) -> tuple[Path, ...]:
        return (self._spans[index].rows.path,)

    def _load(self, index: int) -> tuple[LabelBatch, str]:
        place, span = self.places[index], self._spans[index]
        labels = span.rows.read(span.epoch, span.start, span.stop)
        columns = records_of_batch(span.rows.path, span.rows.columns, span.epoch, span.start, span.stop)
        if self._by_image:
            columns.setdefault("image", np.arange(span.image, span.image + len(labels), dtype=np.int64))
        first_row = span.epoch * span.rows.layout.images + span.start
        name = f"{span.rows.path}, rows from {first_row}" if first_row else str(span.rows.path)
        return LabelBatch(labels=labels, place=place, **columns), name


def _check_same_form(shard: Rows, first: Rows) -> None:
    """Raises BadLabels if two shards cannot be of one dump."""
    if shard.layout.classes != first.layout.classes:
        raise BadLabels(
            f"{shard.path}: {shard.layout.classes} classes, but {first.path} has {first.layout.classes}: a dump has one teacher"
        )
    if (shard.dtype, shard.layout.by_image) != (first.dtype, first.layout.by_image):
        form = "[epochs, n, C]" if shard.layout.by_image else "[n, C]"
        raise BadLabels(f"{shard.path}: {shard.dtype} {form} differs from {first.path}; save all shards in one type and form")
    if shard.columns.keys() != first.columns.keys():
        raise BadLabels(
            f"{shard.path}: has the columns {sorted(shard.columns) or 'none'}, but {first.path} has {sorted(first.columns) or 'none'}; save all "
            "shards in one form"
        )
    if first.layout.images_first and shard.layout.epochs != first.layout.epochs:
        raise BadLabels(
            f"{shard.path}: {shard.layout.epochs} views per image, but {first.path} has {first.layout.epochs}: save whole epochs"
        )


def _joined_names(shards: Sequence[Rows]) -> list[str] | None:
    """The names of the images of all shards; None if a shard has none, or two images share a name."""
    parts = [shard.names for shard in shards if shard.names is not None]
    names = [name for part in parts for name in part]
    return names if len(parts) == len(shards) and len(set(names)) == len(names) else None


def _batch_bounds(rows: Rows) -> list[tuple[int, int]]:
    """(start, stop) of the batches of one epoch."""
    layout = rows.layout
    width = 4 * layout.classes * (layout.epochs if layout.images_first else 1)
    step = max(1, min(BATCH_RECORDS, BATCH_BYTES // width))
    return [(start, min(start + step, layout.images)) for start in range(0, layout.images, step)]


def _spans_of_epochs(shards: Sequence[Rows]) -> list[tuple[Place, Span]]:
    """The batches of shards that continue with further epochs or, for arrays [n, C], with further records."""
    spans: list[tuple[Place, Span]] = []
    epoch = batch = 0
    for shard in shards:
        for shard_epoch in range(shard.layout.epochs):
            batch = 0 if shard.layout.by_image else batch
            for start, stop in _batch_bounds(shard):
                spans.append((Place(epoch, batch), Span(shard, shard_epoch, start, stop, start)))
                batch += 1
            epoch += shard.layout.by_image
    return spans


def _spans_of_images(shards: Sequence[Rows]) -> list[tuple[Place, Span]]:
    """The batches of shards that continue with further images, each of which has a label in every epoch."""
    spans: list[tuple[Place, Span]] = []
    for epoch in range(shards[0].layout.epochs):
        image = batch = 0
        for shard in shards:
            for start, stop in _batch_bounds(shard):
                spans.append((Place(epoch, batch), Span(shard, epoch, start, stop, image + start)))
                batch += 1
            image += shard.layout.images
    return spans


def _spans_of_columns(shards: Sequence[Rows]) -> list[tuple[Place, Span]]:
    """The batches of shards whose columns tell the epoch of every record, its batch, or both.

    Raises:
        BadLabels: places do not rise.
    """
    spans: list[tuple[Place, Span]] = []
    epochs = 0  # of the shards so far
    for shard in shards:
        for shard_epoch in range(shard.layout.epochs):
            for place, start, stop in _runs(shard, shard_epoch, epochs + shard_epoch, spans[-1][0] if spans else None):
                if spans and place <= spans[-1][0]:
                    raise BadLabels(
                        f"{shard.path}: label {start} is of epoch {place.epoch}, batch {place.batch}, after epoch {spans[-1][0].epoch}, batch "
                        f"{spans[-1][0].batch}; order labels by epoch and batch, and give 'epoch' if batches are numbered anew in each"
                    )
                spans.append((place, Span(shard, shard_epoch, start, stop, start)))
        epochs += shard.layout.epochs if shard.layout.by_image else 0
    return spans


def _runs(shard: Rows, shard_epoch: int, epoch: int, last: Place | None) -> Iterator[tuple[Place, int, int]]:
    """(place, start, stop) of the batches of one epoch of a shard.

    Args:
        epoch: its number, if the shard has no column "epoch".
        last: place of the batch before the first one.
    """
    columns, images = shard.columns, shard.layout.images
    epochs = columns["epoch"][shard_epoch] if "epoch" in columns else np.full(images, epoch)
    batches = columns["batch"][shard_epoch] if "batch" in columns else np.zeros(images, np.int64)
    changes = np.flatnonzero((np.diff(epochs) != 0) | (np.diff(batches) != 0)) + 1
    for start, stop in itertools.pairwise([0, *changes.tolist(), images]):
        place = Place(int(epochs[start]), int(batches[start]))
        if "batch" in columns:
            yield place, start, stop
            continue
        first = last.batch + 1 if last is not None and last.epoch == place.epoch else 0  # the epoch began in the shard before
        step = _batch_bounds(shard)[0][1]
        for number, begin in enumerate(range(start, stop, step)):
            yield Place(place.epoch, first + number), begin, min(begin + step, stop)
        last = None
