"""SRe2L's and CDA's tree <-> label batches.

epoch_E/batch_B.tar          torch.save list of 6: coords f32 [b, 4], flip bool [b], mix_index i64 [b] or None,
                             mix_lam float or None, mix_bbox 4 ints or None, logits f16 or f32 [b, C]

Item 1 of LPLD's dumps of ImageNet-21K is a cutout instead, f32 [b, 7]. No file says which image a label is of: SRe2L's reader repeats the
shuffle, and `labels/order.py` does.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from vqlabel.errors import UsageError
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
from vqlabel.labels.layouts.tree import DRAWS, SEED, Indices, TreeSource, batch_file, fitting_draws
from vqlabel.labels.source import About, LabelBatch, LabelWriter, Place, in_order

ITEMS = "coords, flip, mix_index, mix_lam, mix_bbox, logits"
INSTEAD = (
    "write lpld, whose order stands beside it, or train SRe2L's script from the .vql (vqlabel.training.sre2l, docs/training.md)"
)
EXTRAS = ("partner_image", "cutout", "patches", "ops", "seed")  # columns that only some layouts have


class Sre2lSource(TreeSource):
    """The tree without an order file."""

    layout, title = "sre2l", "SRe2L"

    def parse(self, file: Path, place: Place) -> tuple[LabelBatch, str]:
        return parse_six(file, place, read_items(file, (6,), self.title, ITEMS))


class TreeWriter(LabelWriter):
    """The tree, of epochs 0, 1, ... whose batches have B records each, but for the last."""

    layout: str
    extras: tuple[str, ...] = ("cutout",)

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        self.out, self.about, self._images = out, about, dict[int, list[Indices]]()
        refuse_form(self.layout, form)
        require_logits(self.layout, about)
        self.require_order()
        self.batches: dict[int, int] = {}  # of every epoch so far
        self.records: dict[int, int] = {}
        self._each = 0  # B
        out.mkdir()

    def add(self, batch: LabelBatch) -> None:
        refuse_columns(batch, self.layout, self.extras)
        file, (epoch, at) = batch_file(self.out, batch.place), batch.place
        there, before, self._each = self.batches.get(epoch, 0), self.records.get(epoch, 0), self._each or len(batch)
        if at != there:
            raise UsageError(
                f"{self.layout} finds a batch's images by its number, and batch {there} of epoch {epoch} is missing: write lpqld"
            )
        if before != at * self._each or len(batch) > self._each:
            raise UsageError(
                f"{self.layout} finds row i of an epoch in batch i // {self._each}, and batch {at} of epoch {epoch} has {len(batch)} "
                f"records after {before}: write lpqld, which holds batches of any size"
            )
        if not there and len(self.batches) == 1:  # early: the first epoch is whole
            self.check_epochs()
        self.batches[epoch], self.records[epoch] = at + 1, before + len(batch)
        write_items(self.counted(file), self.items(batch))
        if batch.image is not None and self.about.order != "none":
            self._images.setdefault(epoch, []).append(batch.image.astype(np.int32))

    def finish(self) -> None:
        missing = next((epoch for epoch in range(len(self.batches)) if epoch not in self.batches), None)
        if missing is not None:
            raise UsageError(f"{self.layout} has as many epochs as there are folders, and epoch {missing} is missing: write lpqld")
        self.check_epochs()

    def order(self) -> dict[int, Indices]:
        """The images of every epoch so far; none where they are unknown."""
        return {epoch: np.concatenate(parts) for epoch, parts in self._images.items()}

    def require_order(self) -> None:
        """Raises UsageError where nobody knows whether the layout's reader shows labels their own images."""
        require_images(self.layout, self.about)

    @abstractmethod
    def check_epochs(self) -> None:
        """Raises UsageError where the layout's reader would misread the epochs so far, which are whole."""

    def items(self, batch: LabelBatch) -> list[Any]:
        """Of one file."""
        return six_items(batch, self.about)


class Sre2lWriter(TreeWriter):
    """The tree and nothing beside it, for SRe2L's reader takes any other entry for an epoch. It shuffles the images by itself, so labels in
    another order are refused."""

    layout = "sre2l"

    def require_order(self) -> None:
        if self.about.order == "none" and self.about.layout != self.layout:
            raise UsageError(
                f"sre2l: SRe2L's script shuffles images by itself (seed {SEED}), and these records do not say their images, so nobody knows "
                "whether it would show labels their own: write .npy, or pass --images"
            )

    def check_epochs(self) -> None:
        order = self.order()
        self._draws = fitting_draws(order) if order else [DRAWS]
        if not self._draws:
            raise UsageError(
                f"sre2l: SRe2L's script shuffles images by itself (seed {SEED}), and these labels come in another order: it would put them on "
                f"other images, without a word. {INSTEAD[0].upper()}{INSTEAD[1:]}"
            )

    def finish(self) -> None:
        super().finish()
        if DRAWS not in self._draws:
            self.notes.append(
                f"sre2l: labels come in the order of PyTorch before 1.11, which draws one permutation an epoch; newer ones draw {DRAWS}, so that "
                f"SRe2L's script puts these labels on other images: there {INSTEAD}"
            )


def parse_six(file: Path, place: Place, items: list[Any]) -> tuple[LabelBatch, str]:
    """The six items that all trees share."""
    import torch

    labels, dtype = label_item(file, 5, items[5])
    b = len(labels)
    cutout = isinstance(items[1], torch.Tensor) and items[1].dim() == 2
    return LabelBatch(
        labels=labels,
        place=place,
        crop=array_item(file, 0, items[0], (b, 4), "float32"),
        flip=None if cutout else array_item(file, 1, items[1], (b,), "bool"),
        cutout=array_item(file, 1, items[1], (b, 7), "float32") if cutout else None,
        mix_index=index_item(file, 2, items[2], b, "int64"),
        mix_lam=lam_item(file, items[3]),
        mix_box=box_item(file, items[4]),
    ), dtype


def six_items(batch: LabelBatch, about: About) -> list[Any]:
    """Inverse of `parse_six`."""
    second = batch.flip if batch.cutout is None else batch.cutout
    box = None if batch.mix_box is None else [int(v) for v in batch.mix_box]
    labels = to_tensor(batch.labels, "bfloat16" if about.dtype == "BF16" else None)
    return [to_tensor(batch.crop), to_tensor(second), to_tensor(batch.mix_index), batch.mix_lam, box, labels]


def require_logits(layout: str, about: About) -> None:
    """Raises UsageError for probabilities: students of logits divide them by a temperature, and log p has lost nothing but says so nowhere."""
    if about.domain != "logits":
        raise UsageError(
            f"{layout} holds logits, these are probabilities, and logits cannot be had back: write fkd, tinyvit or .npy"
        )


def require_images(layout: str, about: About) -> None:
    """Raises UsageError where nobody knows which image a label is of."""
    if about.order == "none":
        raise UsageError(
            f"{layout} writes which image every label is of, and these records do not say it: write sre2l, or pass --images"
        )


def refuse_columns(batch: LabelBatch, layout: str, extras: tuple[str, ...]) -> None:
    """Raises UsageError for a column that the layout has no place for, and for two that share one.

    An order of patches that changes nothing, as EDC's writer leaves it, is none.
    """
    for name in EXTRAS:
        value = getattr(batch, name)
        idle = name == "patches" and in_order(value)
        if value is not None and name not in extras and not idle:
            raise UsageError(f"{layout} has no place for {name}, which these records have; choose another layout, or drop it first")
    if batch.cutout is not None and batch.flip is not None:
        raise UsageError(f"{layout} holds a flip or a cutout, these records have both; choose another layout")


def refuse_form(layout: str, form: str | None) -> None:
    """Raises UsageError where a layout that has no forms is given one."""
    if form is not None:
        raise UsageError(f"--layout {layout}:{form}: {layout} has no forms; write --layout {layout}")
