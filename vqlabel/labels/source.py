"""What every dump becomes: batches of labels with their place and their augmentation, checked before anybody uses them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels

SUM_TOLERANCE = 0.02  # fp16 probabilities of 100,000 classes add up to 1 within this


class Place(NamedTuple):
    """Where a batch stands in the training that the labels are for."""

    epoch: int
    batch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """A record without its label: what the file knows of n records at no cost. Any field may be absent.

    Crops and boxes are shares of height and width, so that codecs need no image sizes.
    """

    image: NDArray[np.int64] | None = None  # [n] index of the image
    partner: NDArray[np.int64] | None = None  # [n] index of the image mixed in
    mix: NDArray[np.float32] | None = None  # [n] lambda: the share of the first image
    crop: NDArray[np.float32] | None = None  # [n, 4] top, left, height, width
    flip: NDArray[np.bool_] | None = None  # [n]
    partner_crop: NDArray[np.float32] | None = None  # [n, 4]
    partner_flip: NDArray[np.bool_] | None = None  # [n]
    box: NDArray[np.int64] | None = None  # [n, 4] row0, col0, row1, col1 in pixels of the view

    def rows(self, at: slice) -> "Context":
        """Of the records `at`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Context(**{name: None if value is None else value[at] for name, value in values.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelBatch:
    """Labels as the teacher wrote them for one batch, with what was done to the images.

    `labels` [n, C] is float16 or float32; bf16 dumps come as float32, which holds them exactly.
    """

    labels: NDArray[np.floating]
    place: Place
    image: NDArray[np.int64] | None = None  # [n] index in the sorted image list
    crop: NDArray[np.float32] | None = None  # [n, 4] top/H, left/W, height/H, width/W of RandomResizedCrop
    flip: NDArray[np.bool_] | None = None  # [n]
    mix_index: NDArray[np.int64] | None = None  # [n] slot, in this batch, of the view mixed in
    mix_lam: float | None = None  # lambda, as the dump has it
    mix_box: tuple[int, int, int, int] | None = None  # row0, col0, row1, col1 in pixels of the view; None for mixup

    def __len__(self) -> int:
        return len(self.labels)

    def label_bytes(self) -> memoryview:
        """The labels as they are hashed: one after the other, so that `labels_sha256` does not depend on how a dump is cut in batches."""
        return np.ascontiguousarray(self.labels).data

    def context(self) -> Context:
        """What a codec may condition on."""
        n, index = len(self), self.mix_index

        def of_partner(field: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if field is None or index is None else field[index]

        return Context(
            image=self.image,
            partner=of_partner(self.image),
            partner_crop=of_partner(self.crop),
            partner_flip=of_partner(self.flip),
            mix=None if self.mix_lam is None else np.full(n, self.mix_lam, np.float32),
            crop=self.crop,
            flip=self.flip,
            box=None if self.mix_box is None else np.tile(np.array(self.mix_box, np.int64), (n, 1)),
        )


class LabelSource(ABC):
    """A dump: its places in order, and a batch at each. Never more than the batch asked for is in memory.

    Attributes:
        layout: name of the dump's layout.
        classes: C.
        domain: "logits" or "probs".
        dtype: type of the stored labels: "F16", "BF16" or "F32".
        places: (epoch, batch) of every batch, in order.
        order: "explicit" (batches carry image indices), "rows" (record i of an epoch is image i) or "none".
        temperature: of the students that this layout's scripts train; None where they leave it open.
    """

    path: Path
    layout: str
    classes: int
    domain: str
    dtype: str
    places: Sequence[Place]
    order: str
    temperature: float | None = None

    def __len__(self) -> int:
        """Batches."""
        return len(self.places)

    def __iter__(self) -> Iterator[LabelBatch]:
        for at in range(len(self)):
            yield self.read(at)

    def read(self, at: int) -> LabelBatch:
        """The batch at `places[at]`.

        Raises:
            BadLabels: it is malformed, has another number of classes, holds NaN or Inf, or is of the other domain.
        """
        batch, name = self._load(at)
        if batch.labels.shape[1] != self.classes:
            raise BadLabels(
                f"{name}: {batch.labels.shape[1]} classes; the dump began with {self.classes}: one dump has one teacher"
            )
        check_finite(batch.labels, name)
        check_domain(batch.labels, self.domain, name)
        return batch

    @abstractmethod
    def _load(self, at: int) -> tuple[LabelBatch, str]:
        """The batch and its name in messages: file, and first row where a file has several batches."""


def check_finite(labels: NDArray[np.floating], name: str) -> None:
    """Raises BadLabels, naming file and row, where a label holds NaN or Inf."""
    if labels.dtype == np.float16:  # on the bits: eight times as fast as isfinite on halves
        bad = (labels.view(np.uint16) & 0x7C00) == 0x7C00
    else:
        bad = ~np.isfinite(labels)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise BadLabels(
            f"{name}, row {row}: class {column} is {labels[row, column]}; labels must be finite: regenerate or drop this row"
        )


def check_domain(labels: NDArray[np.floating], domain: str, name: str) -> None:
    """Raises BadLabels where probabilities were called logits, or the other way round: rows that sum to 1 decide."""
    negative = bool(np.signbit(labels).any())
    if domain == "logits" and (negative or not len(labels)):
        return
    total = labels.sum(1, dtype=np.float32)
    ones = np.abs(total - 1) <= SUM_TOLERANCE
    if domain == "logits" and ones.all():
        raise BadLabels(f"{name}: every row is non-negative and sums to 1, so these are probabilities; pass --domain probs")
    if domain == "probs" and (negative or not ones.all()):
        row = int(np.argmin(ones)) if not ones.all() else int(np.signbit(labels).any(1).argmax())
        raise BadLabels(
            f"{name}, row {row}: sums to {total[row]:.4g} with smallest value {labels[row].min():.4g}, so these are no probabilities; "
            "pass --domain logits"
        )
