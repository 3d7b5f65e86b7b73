"""What every dump becomes: batches of labels with their place and their augmentation, checked before anybody uses them."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, require
from vqlabel.labels.image_set import ImageSet
from vqlabel.type_checks import check_field_types

SUM_TOLERANCE = 0.02  # fp16 probabilities of 100,000 classes add up to 1 within this
NOWHERE = -10_000.0  # the logit of a class that was not stored: its softmax is 0 at every temperature up to 500, and fp16 holds it
ABSENT = 64.0  # nats below a label's largest logit from which on a class was not kept, where labels hold k classes: at T = 1 its share is 1e-28


OF_RECORDS = ("image", "crop", "flip", "cutout", "patches", "ops", "seed")  # columns of a batch with a row a record
OF_PARTNERS = ("partner_image", "partner_crop", "partner_flip")  # likewise, of what is mixed in
OF_BATCHES = ("mix_index", "mix_lam", "mix_box")
PARTS_MOST, OPS_MOST = 256, 64  # strips of an image along a side; operations of RandAugment


class Place(NamedTuple):
    """Where a batch stands in the training that the labels are for."""

    epoch: int
    batch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Support:
    """Labels of which only the k largest numbers were stored, and what stands for the others.

    `rest` is "zero" (probability 0: logits of NOWHERE; probabilities may then sum to less than 1, who uses them re-normalises) or
    "uniform" (what is left of 1, in equal parts; probabilities only).
    """

    k: int
    rest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What holds for a whole dump.

    Attributes:
        layout: name of the dump's layout.
        classes: C.
        domain: "logits" or "probs".
        dtype: type of the stored labels: "F16", "BF16" or "F32".
        order: "explicit" (batches carry image indices), "rows" (record i of an epoch is image i) or "none".
        temperature: of the students that this layout's scripts train; None where they leave it open.
        support: which numbers of a label are known; None: all.
        names: of the images, by index, where the dump finds its images by name.
        images: which images the labels are of; None where that is unknown.
        view: pixels along a view; None where that is unknown.
        details: what only a writer of the same layout needs, to write the very items again; JSON.
    """

    layout: str
    classes: int
    domain: str
    dtype: str
    order: str
    temperature: float | None = None
    support: Support | None = None
    names: Sequence[str] | None = None
    images: ImageSet | None = None
    view: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


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
        values = {one.name: getattr(self, one.name) for one in fields(self)}
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
    partner_image: NDArray[np.int64] | None = None  # [n] the view mixed in, where it is no record of the batch: its image,
    partner_crop: NDArray[np.float32] | None = None  # [n, 4] its crop
    partner_flip: NDArray[np.bool_] | None = None  # [n] and whether it was flipped
    cutout: NDArray[np.float32] | None = None  # [n, 7] centre row/h, column/w, height/h, width/w, r, g, b
    patches: NDArray[np.int64] | None = (
        None  # [n, 2, parts] order of the strips that the image was cut in, before the crop: columns, then rows
    )
    ops: NDArray[np.float32] | None = None  # [n, ops, 3] RandAugment: operation, decision, level; as the dump has them
    seed: NDArray[np.int64] | None = None  # [n] in -2^31 .. 2^31 - 1: of the view, for the pipeline that the dump was made with

    def __post_init__(self) -> None:
        check_field_types(self)
        require(self.labels.ndim == 2, "labels", list(self.labels.shape), "must be [n, C], a row a label")

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, at: NDArray[np.int64]) -> "LabelBatch":
        """Of the records `at`, whose partners are then no records of the batch."""
        context = self.context()
        own = {name: getattr(self, name) for name in OF_RECORDS}
        partners = {"partner_image": context.partner, "partner_crop": context.partner_crop, "partner_flip": context.partner_flip}
        chosen: dict[str, Any] = {name: None if value is None else value[at] for name, value in {**own, **partners}.items()}
        return replace(self, labels=self.labels[at], mix_index=None, **chosen)

    def label_bytes(self) -> memoryview:
        """The labels as they are hashed: one after the other, so that `labels_sha256` does not depend on how a dump is cut in batches."""
        return np.ascontiguousarray(self.labels).data

    def context(self) -> Context:
        """What a codec may condition on."""
        n, index = len(self), self.mix_index

        def of_partner(column: NDArray[Any] | None, named: NDArray[Any] | None) -> NDArray[Any] | None:
            return named if column is None or index is None else column[index]

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


class LabelSource(ABC):
    """A dump: its places in order, and a batch at each. Never more than the batch asked for is in memory.

    Attributes:
        path: where it lies, for messages.
        places: (epoch, batch) of every batch, in order.
        layout, classes, domain, dtype, order, temperature, support, names, images, view, details: see `About`.
        evidence: how well labels agree with their images, where somebody looked; a sentence.
        notes: how it is read, where a user might expect otherwise.
    """

    path: Path
    places: Sequence[Place]
    layout: str
    classes: int
    domain: str
    dtype: str
    order: str
    temperature: float | None = None
    support: Support | None = None
    names: Sequence[str] | None = None
    images: ImageSet | None = None
    view: int | None = None
    details: Mapping[str, Any] = MappingProxyType({})
    evidence: str | None = None

    @cached_property
    def notes(self) -> list[str]:
        """How the dump is read where a user might expect otherwise, such as a type that is narrowed: whole sentences that begin with a path.

        A source appends to it when it is opened; the command line prints it to stderr.
        """
        return []

    @property
    def about(self) -> About:
        """What holds for all of it."""
        return About(**{one.name: getattr(self, one.name) for one in fields(About)})

    def describe_as(self, about: About) -> None:
        """Say the same of this dump as of another."""
        for one in fields(About):
            setattr(self, one.name, getattr(about, one.name))

    def __len__(self) -> int:
        """Batches."""
        return len(self.places)

    def __iter__(self) -> Iterator[LabelBatch]:
        for at in range(len(self)):
            yield self.read(at)

    def read(self, at: int) -> LabelBatch:
        """The batch at `places[at]`.

        Raises:
            BadLabels: it is malformed, has another number of classes, holds NaN or Inf, or is of the other domain; or its file changed since
                it was read before.
        """
        self._stamp(at)
        batch, name = self._load(at)
        if batch.labels.shape[1] != self.classes:
            raise BadLabels(
                f"{name}: {batch.labels.shape[1]} classes; the dump began with {self.classes}: one dump has one teacher"
            )
        check_finite(batch.labels, name)
        check_domain(batch.labels, self.domain, name, self.support)
        return batch

    def load(self, at: int) -> tuple[LabelBatch, str]:
        """The batch at `places[at]` before it is checked, and its name in messages."""
        return self._load(at)

    def files_of(self, at: int) -> tuple[Path, ...]:
        """The files that the batch at `places[at]` is read from; none where it is made when it is read."""
        return (self.path,) if self.path.is_file() else ()

    @property
    def inputs(self) -> tuple[Path, ...]:
        """What no target may replace: `path`, where batches are read from files in it."""
        return (self.path,) if len(self) and self.files_of(0) else ()

    def check_unchanged(self) -> None:
        """Raises BadLabels where a file changed since a batch was first read from it."""
        for at in np.flatnonzero(self._stamps):
            self._stamp(int(at))

    @cached_property
    def _stamps(self) -> NDArray[np.int64]:
        """Of every batch, a hash of size and time of its files when it was first read; 0: not yet."""
        return np.zeros(len(self), np.int64)

    def _stamp(self, at: int) -> None:
        files = self.files_of(at)
        try:
            found = hash(tuple((now.st_size, now.st_mtime_ns) for now in map(os.stat, files)))
        except OSError as error:
            raise BadLabels(f"{error.filename}: {error.strerror}; it was there when the dump was opened") from None
        if self._stamps[at] not in (0, found):
            raise BadLabels(
                f"{' or '.join(map(str, files or (self.path,)))}: changed while it was read: nothing was written. Run again when the dump is whole"
            )
        self._stamps[at] = found

    @abstractmethod
    def _load(self, at: int) -> tuple[LabelBatch, str]:
        """The batch and its name in messages: file, and first row where a file has several batches."""


def in_order(patches: NDArray[np.int64] | None) -> bool:
    """Whether an order of strips [n, 2, parts] leaves all where they are, as EDC's writer does."""
    return patches is not None and bool((patches == np.arange(patches.shape[2])).all())


def check_finite(labels: NDArray[np.floating], name: str) -> None:
    """Raises BadLabels, naming file and row, where a label holds NaN or Inf."""
    if labels.dtype == np.float16:  # on the bits: eight times as fast as isfinite on halves
        bad = (labels.view(np.uint16) & 0x7C00) == 0x7C00
    else:
        bad = ~np.isfinite(labels)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        value = labels[row, column]
        remedy = "write -10000 for a masked class, which stands for it as well" if value < 0 else "regenerate or drop this row"
        raise BadLabels(f"{name}, row {row}: class {column} is {value}; labels must be finite: {remedy}")


def check_domain(labels: NDArray[np.floating], domain: str, name: str, support: Support | None = None) -> None:
    """Raises BadLabels where rows [n, C] of a batch are not of the dump's domain, which `settle_domain` has settled by more than a batch.

    The k largest probabilities alone may sum to less than 1.
    """
    negative = bool(np.signbit(labels).any())
    if domain != "probs" and (negative or not len(labels)):
        return
    total = labels.sum(1, dtype=np.float32)
    least = 1e-6 if support is not None and support.rest == "zero" else 1 - SUM_TOLERANCE
    ones = (total >= least) & (total <= 1 + SUM_TOLERANCE)
    if domain != "probs":
        if (abs(total - 1) <= SUM_TOLERANCE).all():
            raise BadLabels(f"{name}: every row is non-negative and sums to 1, so these are probabilities; pass --domain probs")
        return
    below = (labels < 0).any(1) if negative else np.zeros(len(labels), np.bool_)  # -0 is not below
    bad = below | ~ones
    if not bad.any():
        return
    row = int(bad.argmax())
    if not labels[row].any():
        raise BadLabels(
            f"{name}, row {row}: all zero, and {int((~labels.any(1)).sum())} of the {len(labels)} rows here are: labels that were never "
            "written? Label them again, or leave them out"
        )
    raise BadLabels(
        f"{name}, row {row}: sums to {total[row]:.4g} with smallest value {labels[row].min():.4g}, so it is no distribution, unlike others "
        "of this dump; mend it, or leave it out"
    )


class LabelWriter(ABC):
    """A dump in the making: batches in order, then `finish`. Where a layout cannot hold what it is given, it refuses.

    Args:
        out: the file or folder to write, which is not there yet.
        about: of what will be written.
        form: what follows the colon in a layout's name, such as the "10" of "lpqld:10".

    Attributes:
        files: files written so far, where `out` is a folder.

    Raises:
        UsageError: the layout cannot hold such labels (in the constructor), or such a batch (in `add`); says what and why.
    """

    files = 0

    @abstractmethod
    def __init__(self, out: Path, about: About, form: str | None = None) -> None: ...

    @cached_property
    def notes(self) -> list[str]:
        """What users of the layout's own script must know of what was written: whole sentences that begin with the layout's name."""
        return []

    @abstractmethod
    def add(self, batch: LabelBatch) -> None:
        """Write one batch; its labels are float16, or float32 where `about.dtype` is BF16 or F32."""

    def counted(self, file: Path) -> Path:
        """`file`, which is about to be written, counted."""
        self.files += 1
        return file

    def finish(self) -> None:
        """Write what is known only at the end."""
        return None

    def close(self) -> None:
        """Let go of what is open, after `finish` or instead of it."""
        return None
