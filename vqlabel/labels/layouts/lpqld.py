"""LPQLD's flat files <-> label batches: the k largest logits of every label, and their classes.

batch_N.tar                  torch.save list of 7: coords f16 [B, 4], flip bool [B], mix_index u8 [B] or None,
                             mix_lam float or None, mix_bbox 4 tensors u8 or None, logits f16 [B, k] descending, classes
                             i16 [B, k]
sampler_indices_batch.json   {"0": [image index of every record of batch 0], ...}

Without quantisation the list ends with logits f16 [B, C]; dumps made without --use-fp16 have f32. ImageNet-21K has a
cutout f32 [B, 7] in place of the flip. The operations of RandAugment follow item 1, as a list of [operation i64,
decision f16, level f16], each [B]; level -99 means none.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.batch import NOWHERE, LabelBatch, Place, Support
from vqlabel.labels.layouts.layout import SHARED_NAMES, Layout
from vqlabel.labels.layouts.lpqld_items import LpqldFile, Recipe, box_as_uint8, describe_place, ops_item, read_file
from vqlabel.labels.layouts.sre2l import refuse_columns, require_images, require_logits
from vqlabel.labels.layouts.torch_items import to_tensor, write_items
from vqlabel.labels.layouts.tree import Indices, read_order, write_order
from vqlabel.labels.layouts.webdataset import is_tar
from vqlabel.labels.source import About, LabelSource
from vqlabel.labels.sparse import as_dense
from vqlabel.labels.topk import sparse_labels, topk
from vqlabel.labels.writer import LabelWriter

BATCH_ORDER_FILE = "sampler_indices_batch.json"
MAX_CLASSES, MAX_SLOTS = 1 << 15, 256  # classes are written as int16, mix_index as uint8


class LpqldSource(LabelSource):
    """Flat files, in numeric order. Without the order file the images of the records are unknown.

    Args:
        classes: C, which files with top-k logits do not record; None: the largest class in all files, plus 1.

    Raises:
        BadLabels: there is no such file, or one is malformed or differs in its recipe from the first.
    """

    def __init__(self, path: Path, domain: str | None, classes: int | None = None) -> None:
        self.path = path
        files = find_flat_batches(path)
        self._numbers, self.files = list(files), list(files.values())
        if not files:
            raise BadLabels(f"{path}: contains no batch_N.tar; a dump has at least one batch")
        order_file = path / BATCH_ORDER_FILE
        self._order = read_order(order_file) if order_file.exists() else None
        self.places = infer_places(self._numbers, self._order)
        first = read_file(self.files[0], self.places[0])
        self._recipe = first.recipe
        k = first.recipe.k
        self.about = About(  # without a temperature: its students change it from 20 to 2 while they train
            layout="lpqld",
            classes=first.batch.labels.shape[1] if k is None else classes or 1 + max(self._largest_classes()),
            domain=domain or "logits",
            dtype="F16" if first.recipe.labels == "float16" else "F32",
            order="none" if self._order is None else "explicit",
            support=None if k is None else Support(k=k, rest="zero"),
            details={"coords": first.recipe.coords},
        )

    def _largest_classes(self) -> Iterator[int]:
        """The largest class of each file."""
        for index in range(len(self)):
            classes = self._read_file(index).classes
            assert classes is not None
            yield int(classes.max())

    def _read_file(self, index: int) -> LpqldFile:
        file = self.files[index]
        content = read_file(file, self.places[index])
        for name, value, first in zip(Recipe._fields, content.recipe, self._recipe, strict=True):
            if value != first:
                raise BadLabels(f"{file}: {name} is {value}, but {first} in the first batch: a dump must have one recipe")
        return content

    def files_of(self, index: int) -> tuple[Path, ...]:
        return (self.files[index],)

    def _load(self, index: int) -> tuple[LabelBatch, str]:
        batch, classes, _ = self._read_file(index)
        name, labels = str(self.files[index]), batch.labels
        if classes is not None:
            labels = sparse_labels(classes, as_dense(labels), self.classes, name, NOWHERE)
        return replace(batch, labels=labels, image=self._images(self._numbers[index], len(batch))), name

    def _images(self, number: int, records: int) -> Indices | None:
        if self._order is None:
            return None
        images = self._order.get(number)
        if images is None or len(images) != records:
            count = "no images" if images is None else f"{len(images)} images"
            raise BadLabels(f"{self.path / BATCH_ORDER_FILE}: has {count} for batch {number}, whose file has {records} labels")
        return images


class LpqldWriter(LabelWriter):
    """Flat files, numbered in the order in which they are added, and at the end their order file.

    Args:
        form: k; None: as many logits as are known of every label.

    Raises:
        UsageError: the labels are not logits, record no images, or `form` is not valid (in the constructor); a batch
            does not fit the layout's integer types, or begins with the same images as another (in `add`).
    """

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        require_logits("lpqld", about)
        require_images("lpqld", about)
        self._out, self._k = out, choose_k(about, form)
        from_lpqld = about.layout == "lpqld"
        self._coords = "float32" if from_lpqld and about.details.get("coords") == "float32" else "float16"
        self._dtype = np.dtype(np.float32 if from_lpqld and about.dtype == "F32" else np.float16)
        self._order: dict[int, Indices] = {}
        self._first_images: dict[tuple[int, ...], int] = {}  # the first three images of a batch -> its number
        out.mkdir()

    def add(self, batch: LabelBatch) -> None:
        refuse_columns(batch, "lpqld", ("cutout", "ops"))
        number, items = len(self._order), self._items(batch)
        assert batch.image is not None
        self._order[number] = batch.image.astype(np.int32)
        first_images = self._order[number][:3].tolist()
        same = self._first_images.setdefault(tuple(first_images), number)
        if same != number:
            raise UsageError(
                f"lpqld finds a batch by its first three images, but batches {same} and {number} both begin with {first_images}: write gvbsm"
            )
        write_items(self.counted(self._out / f"batch_{number}.tar"), items)

    def finish(self) -> None:
        write_order(self.counted(self._out / BATCH_ORDER_FILE), self._order)

    def _items(self, batch: LabelBatch) -> list[Any]:
        if batch.mix_index is not None and len(batch) > MAX_SLOTS:
            raise UsageError(
                f"lpqld stores mix_index as uint8, but {describe_place(batch)} has {len(batch)} records, more than {MAX_SLOTS}: write lpld"
            )
        flip_or_cutout = batch.flip if batch.cutout is None else batch.cutout
        ops = [] if batch.ops is None else [ops_item(batch.ops)]
        mix = [to_tensor(batch.mix_index, "uint8"), batch.mix_lam, box_as_uint8(batch)]
        return [to_tensor(batch.crop, self._coords), to_tensor(flip_or_cutout), *ops, *mix, *self._label_items(batch)]

    def _label_items(self, batch: LabelBatch) -> list[Any]:
        if self._k is None:
            return [to_tensor(self._narrow(as_dense(batch.labels), batch))]
        classes, logits = topk(batch.labels, self._k)
        if (logits <= NOWHERE).any():
            raise UsageError(
                f"{describe_place(batch)} has labels with fewer than {self._k} logits above {NOWHERE:g}: write a smaller k, lpqld:k"
            )
        return [to_tensor(self._narrow(logits, batch)), to_tensor(classes, "int16")]

    def _narrow(self, logits: NDArray[np.floating], batch: LabelBatch) -> NDArray[np.floating]:
        with np.errstate(over="ignore"):
            narrow = logits.astype(self._dtype)
        overflow = np.isinf(narrow)
        if overflow.any():
            raise UsageError(
                f"{describe_place(batch)} has a logit of {logits[overflow][0]:.6g}; lpqld stores fp16, up to 65504: write lpld"
            )
        return narrow


def infer_places(numbers: list[int], order: dict[int, Indices] | None) -> list[Place]:
    """Epoch and batch of every file: a batch that repeats an image of its epoch begins the next epoch.

    Args:
        numbers: of the files, ascending.
        order: number -> images of the batch; None: unknown, and all files are of epoch 0.
    """
    places, seen, epoch, first_number = list[Place](), set[int](), 0, 0
    for number in numbers:
        images = set() if order is None else set(order.get(number, np.empty(0, np.int64)).tolist())
        if seen & images:
            seen, epoch, first_number = set(), epoch + 1, number
        places.append(Place(epoch, number - first_number))
        seen |= images
    return places


def find_flat_batches(path: Path) -> dict[int, Path]:
    """Every batch_N.tar in `path`, by its number, ascending."""
    files = path.iterdir() if path.is_dir() else ()
    matches = {file: re.fullmatch(r"batch_(0|[1-9]\d{0,8})\.tar", file.name) for file in files}
    return dict(sorted((int(match[1]), file) for file, match in matches.items() if match))


def choose_k(about: About, form: str | None) -> int | None:
    """How many logits per label are written; None: those of all classes, without class ids.

    Raises:
        UsageError: `form` is not a number of known logits, or C is more than int16 can hold.
    """
    known = about.classes if about.support is None else about.support.k
    if form is None:
        k = None if about.support is None else known
    elif re.fullmatch(r"[1-9]\d{0,6}", form) and int(form) <= known:
        k = int(form)
    else:
        raise UsageError(f"--layout lpqld:{form}: must be lpqld:1 to lpqld:{known}, the number of logits known of every label")
    if k is not None and about.classes > MAX_CLASSES:
        raise UsageError(f"lpqld stores classes as int16, but there are {about.classes}, more than {MAX_CLASSES}: write lpld")
    return k


def _detect(path: Path) -> str | None:
    flat = find_flat_batches(path)
    return "lpqld" if flat and not is_tar(next(iter(flat.values()))) else None


LAYOUT = Layout(
    source=LpqldSource,
    writer=LpqldWriter,
    detect=_detect,
    step=SHARED_NAMES,
    entries=rf"batch_\d{{1,9}}\.tar|{re.escape(BATCH_ORDER_FILE)}",
    options="topk",
)
