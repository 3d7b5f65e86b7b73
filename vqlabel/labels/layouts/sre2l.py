"""The tree of SRe2L and CDA <-> label batches.

epoch_E/batch_B.tar          torch.save list of 6: coords f32 [b, 4], flip bool [b], mix_index i64 [b] or None,
                             mix_lam float or None, mix_bbox 4 ints or None, logits f16 or f32 [b, C]

In LPLD's dumps of ImageNet-21K, item 1 is a cutout, f32 [b, 7]. No file records which image a label belongs to: SRe2L's
reader repeats the shuffle, and so does `labels/image_order.py`.
"""

import re
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from vqlabel.errors import UsageError
from vqlabel.labels.batch import LabelBatch, Place, in_order
from vqlabel.labels.layouts.layout import Layout
from vqlabel.labels.layouts.torch_items import (
    array_item,
    box_item,
    index_item,
    label_item,
    lam_item,
    read_items,
    to_tensor,
    write_items,
)
from vqlabel.labels.layouts.tree import DRAWS, ORDER_FILE, SEED, Indices, TreeSource, batch_file, detect_tree, matching_draws
from vqlabel.labels.source import About
from vqlabel.labels.sparse import as_dense
from vqlabel.labels.writer import LabelWriter

ITEMS = "coords, flip, mix_index, mix_lam, mix_bbox, logits"
ALTERNATIVES = (
    "write lpld, which stores the order, or train SRe2L's script from the .vql (vqlabel.training.sre2l, docs/training.md)"
)
EXTRAS = ("partner_image", "cutout", "patches", "ops", "seed")  # columns that only some layouts store


class Sre2lSource(TreeSource):
    """The tree without an order file."""

    layout, title = "sre2l", "SRe2L"

    def parse(self, file: Path, place: Place) -> tuple[LabelBatch, str]:
        return parse_six(file, place, read_items(file, (6,), self.title, ITEMS))


class TreeWriter(LabelWriter):
    """The tree: epochs 0, 1, ... whose batches have B records each, except the last batch of an epoch.

    Attributes:
        extras: columns of EXTRAS that the layout stores.
        batches, records: numbers of these written so far, by epoch.

    Raises:
        UsageError: the labels are not logits, or record no images that the layout needs (in the constructor); a batch
            is out of place or has a column that the layout does not store (in `add`); the layout's reader would misread
            the epochs (in `add` and `finish`).
    """

    layout: str
    extras: tuple[str, ...] = ("cutout",)

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        self.out, self.about, self._images = out, about, dict[int, list[Indices]]()
        refuse_form(self.layout, form)
        require_logits(self.layout, about)
        self.check_order_known()
        self.batches: dict[int, int] = {}
        self.records: dict[int, int] = {}
        self._batch_size = 0  # B
        out.mkdir()

    def add(self, batch: LabelBatch) -> None:
        refuse_columns(batch, self.layout, self.extras)
        file, epoch = batch_file(self.out, batch.place), batch.place.epoch
        self._check_position(batch)
        if epoch not in self.batches and len(self.batches) == 1:  # the first epoch is complete: an error need not wait for the last
            self.check_epochs()
        self.batches[epoch] = batch.place.batch + 1
        self.records[epoch] = self.records.get(epoch, 0) + len(batch)
        write_items(self.counted(file), self.items(batch))
        if batch.image is not None and self.about.order != "none":
            self._images.setdefault(epoch, []).append(batch.image.astype(np.int32))

    def _check_position(self, batch: LabelBatch) -> None:
        """Raises UsageError if readers, which look for row i of an epoch in batch i // B, would miss the records."""
        epoch, number = batch.place
        written, records = self.batches.get(epoch, 0), self.records.get(epoch, 0)
        self._batch_size = self._batch_size or len(batch)
        if number != written:
            raise UsageError(
                f"{self.layout} finds the images of a batch by its number, but batch {written} of epoch {epoch} is missing: write lpqld"
            )
        if records != number * self._batch_size or len(batch) > self._batch_size:
            raise UsageError(
                f"{self.layout} finds row i of an epoch in batch i // {self._batch_size}, but batch {number} of epoch {epoch} has "
                f"{len(batch)} records after {records}: write lpqld, whose batches may have any size"
            )

    def finish(self) -> None:
        missing = next((epoch for epoch in range(len(self.batches)) if epoch not in self.batches), None)
        if missing is not None:
            raise UsageError(f"{self.layout} counts its epochs by their folders, but epoch {missing} is missing: write lpqld")
        self.check_epochs()

    def order(self) -> dict[int, Indices]:
        """The images of every epoch so far; empty if they are unknown."""
        return {epoch: np.concatenate(parts) for epoch, parts in self._images.items()}

    def check_order_known(self) -> None:
        """Raises UsageError if it is unknown whether the layout's reader would give labels their own images."""
        require_images(self.layout, self.about)

    @abstractmethod
    def check_epochs(self) -> None:
        """Raises UsageError if the layout's reader would misread the epochs so far, which are complete."""

    def items(self, batch: LabelBatch) -> list[Any]:
        """The items of one file."""
        return six_items(batch, self.about)


class Sre2lWriter(TreeWriter):
    """The tree and nothing beside it: SRe2L's reader takes any other entry for an epoch.

    That reader shuffles the images itself, so labels in another order are refused.
    """

    layout = "sre2l"

    def check_order_known(self) -> None:
        if self.about.order == "none" and self.about.layout != self.layout:
            raise UsageError(
                f"sre2l: SRe2L's script shuffles the images itself (seed {SEED}), and these records have no image index, so it is unknown "
                "whether labels would get their own images: write .npy, or pass --images"
            )

    def check_epochs(self) -> None:
        order = self.order()
        self._draws = matching_draws(order) if order else [DRAWS]
        if not self._draws:
            raise UsageError(
                f"sre2l: SRe2L's script shuffles the images itself (seed {SEED}), and these labels are in another order: it would assign them "
                f"to other images without an error. {ALTERNATIVES[0].upper()}{ALTERNATIVES[1:]}"
            )

    def finish(self) -> None:
        super().finish()
        if DRAWS not in self._draws:
            self.notes.append(
                f"sre2l: the labels are in the order of PyTorch before 1.11, which draws one permutation per epoch; newer versions draw {DRAWS}, "
                f"so with these SRe2L's script assigns the labels to other images: {ALTERNATIVES}"
            )


def parse_six(file: Path, place: Place, items: list[Any]) -> tuple[LabelBatch, str]:
    """A batch of the six items that all trees share, and the stored type of its labels.

    Raises:
        BadLabels: an item is malformed.
    """
    import torch

    labels, dtype = label_item(file, 5, items[5])
    b = len(labels)
    has_cutout = isinstance(items[1], torch.Tensor) and items[1].dim() == 2
    return LabelBatch(
        labels=labels,
        place=place,
        crop=array_item(file, 0, items[0], (b, 4), "float32"),
        flip=None if has_cutout else array_item(file, 1, items[1], (b,), "bool"),
        cutout=array_item(file, 1, items[1], (b, 7), "float32") if has_cutout else None,
        mix_index=index_item(file, 2, items[2], b, "int64"),
        mix_lam=lam_item(file, items[3]),
        mix_box=box_item(file, items[4]),
    ), dtype


def six_items(batch: LabelBatch, about: About) -> list[Any]:
    """The six items of a batch; inverse of `parse_six`."""
    flip_or_cutout = batch.flip if batch.cutout is None else batch.cutout
    box = None if batch.mix_box is None else [int(edge) for edge in batch.mix_box]
    labels = to_tensor(as_dense(batch.labels), "bfloat16" if about.dtype == "BF16" else None)
    return [to_tensor(batch.crop), to_tensor(flip_or_cutout), to_tensor(batch.mix_index), batch.mix_lam, box, labels]


def require_logits(layout: str, about: About) -> None:
    """Raises UsageError for probabilities.

    Students of these layouts divide logits by a temperature. Logarithms would serve as logits only for probabilities at
    temperature 1, and the layouts cannot record that the labels are such.
    """
    if about.domain != "logits":
        raise UsageError(
            f"{layout} stores logits, but these labels are probabilities, from which logits cannot be recovered: write fkd, tinyvit or .npy"
        )


def require_images(layout: str, about: About) -> None:
    """Raises UsageError if the records have no image index."""
    if about.order == "none":
        raise UsageError(
            f"{layout} stores the image index of every label, which these records do not have: write sre2l, or pass --images"
        )


def refuse_columns(batch: LabelBatch, layout: str, extras: tuple[str, ...]) -> None:
    """Raises UsageError if a batch has a column of EXTRAS that the layout does not store, or both flip and cutout.

    Flip and cutout share an item of the file. An order of patches that leaves them in place, as EDC's writer may store
    it, is dropped.
    """
    for name in EXTRAS:
        value = getattr(batch, name)
        unchanged = name == "patches" and in_order(value)
        if value is not None and name not in extras and not unchanged:
            raise UsageError(f"{layout} cannot store {name}, which these records have; choose another layout, or drop the column")
    if batch.cutout is not None and batch.flip is not None:
        raise UsageError(f"{layout} stores a flip or a cutout, but these records have both; choose another layout")


def refuse_form(layout: str, form: str | None) -> None:
    """Raises UsageError if a form is given for a layout that has none."""
    if form is not None:
        raise UsageError(f"--layout {layout}:{form}: {layout} has no forms; pass --layout {layout}")


LAYOUT = Layout(
    source=Sre2lSource,
    writer=Sre2lWriter,
    detect=detect_tree,  # the other trees, too
    entries=rf"epoch_\d{{1,9}}|{re.escape(ORDER_FILE)}",
)
