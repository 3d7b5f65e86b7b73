"""One batch of a dump: labels, their place, their augmentation, and the side information that codecs condition on."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import require
from vqlabel.labels.schema import OWN_COLUMNS
from vqlabel.labels.sparse import SparseLabels
from vqlabel.type_checks import check_field_types

NOWHERE = -10_000.0  # logit of a class that was not stored: finite in fp16, and its softmax is 0 at temperatures up to 500
ABSENT = 64.0  # nats below a label's largest logit from which a class counts as not stored (top-k labels); exp(-64) is 2e-28


class Place(NamedTuple):
    """Key of a batch: its position in the training run that the labels are for.

    The key of a record is the place of its batch and its index in the batch.
    """

    epoch: int
    batch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Support:
    """Which numbers of a label are known, if a dump stores only the k largest.

    Attributes:
        k: known numbers of a label.
        rest: what stands for the others. "zero": probability 0, as logits NOWHERE; the known probabilities may sum to
            less than 1, and students renormalise them. "uniform": equal shares of the remaining probability;
            probabilities only.
    """

    k: int
    rest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """Side information of n records: what a file knows about them besides their labels. Any field may be absent.

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
    views: Any = None  # [n, 3, h, w] float32 tensor in 0..1: pixels of the views, for codecs that need them

    @classmethod
    def join(cls, parts: Sequence["Context"]) -> "Context":
        """Concatenate the contexts of several batches; a field that any part lacks is absent."""

        def joined(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if any(value is None for value in values) else np.concatenate(values)

        return cls(**{field.name: joined(field.name) for field in fields(cls)})

    def rows(self, at: slice) -> "Context":
        """The context of the records `at`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Context(**{name: None if value is None else value[at] for name, value in values.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelBatch:
    """The labels of one batch as the teacher wrote them, with the augmentation of each image.

    `labels` [n, C], dense or sparse, is float16 or float32; bf16 dumps are read as float32, which represents them
    exactly.
    """

    labels: NDArray[np.floating] | SparseLabels
    place: Place
    image: NDArray[np.int64] | None = None  # [n] index in the sorted image list
    crop: NDArray[np.float32] | None = None  # [n, 4] top/H, left/W, height/H, width/W of RandomResizedCrop
    flip: NDArray[np.bool_] | None = None  # [n]
    mix_index: NDArray[np.int64] | None = None  # [n] slot, in this batch, of the view mixed in
    mix_lam: float | None = None  # lambda, as the dump stores it
    mix_box: tuple[int, int, int, int] | None = None  # row0, col0, row1, col1 in pixels of the view; None for mixup
    # The view mixed in, if it is not a record of the batch:
    partner_image: NDArray[np.int64] | None = None  # [n] its image
    partner_crop: NDArray[np.float32] | None = None  # [n, 4] its crop
    partner_flip: NDArray[np.bool_] | None = None  # [n] its flip
    cutout: NDArray[np.float32] | None = None  # [n, 7] centre row/h, column/w, height/h, width/w, r, g, b
    patches: NDArray[np.int64] | None = None  # [n, 2, parts] order of the image's strips before the crop: columns, then rows
    ops: NDArray[np.float32] | None = None  # [n, ops, 3] RandAugment: operation, decision, level; as the dump stores them
    seed: NDArray[np.int64] | None = None  # [n] in -2^31 .. 2^31 - 1: seed of the view in the pipeline that made the dump

    def __post_init__(self) -> None:
        check_field_types(self)
        require(self.labels.ndim == 2, "labels", list(self.labels.shape), "must be [n, C], one row per label")

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, at: NDArray[np.int64]) -> "LabelBatch":
        """The records `at` as a batch. Partners may be outside it, so they are stored by image, crop and flip."""
        context = self.context()
        own = {name: getattr(self, name) for name in OWN_COLUMNS}
        partners = {"partner_image": context.partner, "partner_crop": context.partner_crop, "partner_flip": context.partner_flip}
        columns: dict[str, Any] = {name: None if value is None else value[at] for name, value in {**own, **partners}.items()}
        return replace(self, labels=self.labels[at], mix_index=None, **columns)

    def context(self) -> Context:
        """The side information of the batch, with partners looked up in it."""
        n, index = len(self), self.mix_index

        def of_partner(column: NDArray[Any] | None, stored: NDArray[Any] | None) -> NDArray[Any] | None:
            return stored if column is None or index is None else column[index]

        return Context(
            image=self.image,
            partner=of_partner(self.image, self.partner_image),
            partner_crop=of_partner(self.crop, self.partner_crop),
            partner_flip=of_partner(self.flip, self.partner_flip),
            mix=None if self.mix_lam is None else np.full(n, self.mix_lam, np.float32),
            crop=self.crop,
            flip=self.flip,
            box=None if self.mix_box is None else np.tile(np.array(self.mix_box, np.int64), (n, 1)),
        )


def in_order(patches: NDArray[np.int64] | None) -> bool:
    """Whether strips [n, 2, parts] stay in place, as in the dumps that EDC's script writes."""
    return patches is not None and bool((patches == np.arange(patches.shape[2])).all())
