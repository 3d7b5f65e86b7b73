"""A dump that does not say its images -> the order it was written in: its writer's shuffle made again, and held against its labels.

SRe2L and CDA walk RandomSampler(generator.manual_seed(42)) over ImageFolder's sorted files, epoch after epoch. PyTorch before 1.11 drew
one permutation an epoch; since then it draws two and uses the first. Both give the same epoch 0, and no other. Which one it was, and
whether these are the images at all, only labels tell: the largest class of most is the class of their image, or of the one mixed in.
They cannot tell images of one class apart: as many others of the same classes would pass.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.image_set import ImageSet, image_names
from vqlabel.labels.images import class_folders, list_images
from vqlabel.labels.layouts.tree import SEED, Indices, Shuffle
from vqlabel.labels.source import LabelBatch, LabelSource
from vqlabel.storage.filetypes import read_text

LOOK_LABELS, LOOK_BATCHES = 5000, 250  # at most so many labels, of so many batches, are held against their images
CLEAR, AT_CHANCE = 6.0, 3.0  # standard deviations above chance: an order that was guessed needs more; one that was said needs this
PART_HITS = 64  # a part of the sample in which so many labels should agree is also judged alone
EPOCHS_MOST = 10_000  # a folder's name asks for every shuffle before its own
_DRAWN = {1: "one permutation an epoch (PyTorch before 1.11)", 2: "two permutations an epoch (PyTorch 1.11 or later)"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """How many labels agree with the images that an order gives them: with the class of the image, or of the one mixed in.

    Attributes:
        order: what the order is, in plain words.
        draws: permutations an epoch; None where both numbers give the same order, or the dump says its own.
        labels: how many were looked at.
        agreement: share of them that agree.
        other: share that would with the other number of draws; None where `draws` is.
        chance: share that would, were every label paired with the images of every other.
    """

    order: str
    draws: int | None
    labels: int
    agreement: float
    other: float | None
    chance: float

    @property
    def z(self) -> float:
        """How far above chance they agree, in standard deviations of as many coins."""
        variance = max(self.chance * (1 - self.chance), 1 / self.labels)
        return (self.agreement - self.chance) / float(np.sqrt(variance / self.labels))

    @property
    def clear(self) -> bool:
        """Three times chance (or half the way from a large chance to all), never by luck, and twice as far above it as the other order."""
        enough = self.agreement >= min(3 * self.chance, (1 + self.chance) / 2)
        apart = self.other is None or self.agreement - self.chance > 2 * (self.other - self.chance)
        return self.z > CLEAR and enough and apart

    @property
    def said(self) -> str:
        """All of it in one sentence."""
        shares = f"{_percent(self.agreement)} of {self.labels:,} labels agree with the classes of their images"
        other = "" if self.draws is None or self.other is None else f", {_percent(self.other)} with {_DRAWN[3 - self.draws]}"
        return f"{self.order}: {shares}{other}, {_percent(self.chance)} by chance"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


class Shuffled:
    """The simulated order, in batches of `size`. It holds one epoch's, and begins again where an earlier epoch is asked for."""

    def __init__(self, source: LabelSource, images: int, size: int, draws: int, seed: int) -> None:
        self._path, epochs = source.path, source.places[-1].epoch + 1
        self._images, self._size, self.draws = images, size, draws
        if epochs > EPOCHS_MOST:
            raise BadLabels(f"{source.path}: epoch {epochs - 1} is there; the order of {EPOCHS_MOST} epochs can be found")
        self._shuffle = Shuffle(images, epochs, draws, seed)

    def place(self, batch: LabelBatch) -> LabelBatch:
        """The batch with its images.

        Raises:
            BadLabels: it has more or fewer records than there is room for at its place.
        """
        epoch, number = batch.place
        start = number * self._size
        stop = min(start + self._size, self._images)
        if len(batch) != stop - start:
            raise BadLabels(
                f"{self._path}: batch {number} of epoch {epoch} has {len(batch)} labels; {self._images} images in batches of {self._size} "
                f"leave it {stop - start}: regenerate it"
            )
        return replace(batch, image=self._shuffle.order_of(epoch)[start:stop].copy())


class Ordered(LabelSource):
    """A source without an order, with the one that was found for it.

    Attributes:
        found: how well labels and images agree.
    """

    def __init__(self, source: LabelSource, shuffle: Shuffled, found: Evidence) -> None:
        self.describe_as(source.about)
        self.path, self.places, self.order = source.path, source.places, "explicit"
        self.notes = source.notes
        self.found, self.evidence = found, found.said
        self._source, self._shuffle = source, shuffle

    def files_of(self, at: int) -> tuple[Path, ...]:
        return self._source.files_of(at)

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        batch, name = self._source._load(at)
        return self._shuffle.place(batch), name


def with_images(
    source: LabelSource, images: Path, columns: str | PathLike[str] | None = None, digest: str = "names"
) -> LabelSource:
    """The source with its order found, or with its own held against the images; its `evidence` says how well they agree.

    Args:
        images: the images that were labelled, in one folder a class, as ImageFolder has them.
        columns: JSON, folder of `images` -> the teacher's class; None: class i is the i-th folder.
        digest: by what the images are told from others later: their "names", or their "bytes" too.

    Raises:
        UsageError: the folder holds other images, or its classes are not the labels'.
        BadLabels: the labels do not agree with their images.
    """
    if source.order == "none":
        source = reconstruct(source, images, columns=columns)
    else:
        source.evidence = verify(source, images, columns=columns).said
    files = [image.path for image in list_images(images)]
    source.images = ImageSet.of(image_names(files, images), files if digest == "bytes" else None)
    return source


def reconstruct(source: LabelSource, images: Path, *, columns: str | PathLike[str] | None = None, seed: int = SEED) -> Ordered:
    """Find the order of a dump that says none; see `with_images`.

    Raises:
        BadLabels: of the two orders neither fits, or not clearly better than the other, or some epochs have another one.
    """
    if source.order != "none":
        raise UsageError(f"{source.path}: says which images its labels are of, so there is no order to find")
    classes = image_classes(images, columns, source.classes)
    size = _batch_size(source, len(classes), images)
    later = [at for at, place in enumerate(source.places) if place.epoch]
    shuffles = [Shuffled(source, len(classes), size, draws, seed) for draws in ((2, 1) if later else (2,))]
    looks = _look(source, later or range(len(source)), classes, [shuffle.place for shuffle in shuffles])
    (best, shuffle), *others = sorted(zip(looks, shuffles, strict=True), key=lambda pair: -pair[0].agreement)
    if others:
        found = _evidence(f"{_DRAWN[shuffle.draws]}, after epoch 0", best, shuffle.draws, others[0][0].agreement)
    else:
        found = _evidence("epoch 0, which every PyTorch shuffles alike", best)
    if not found.clear:
        raise BadLabels(
            f"{source.path}: shuffling {images} with seed {seed} does not give its order ({found.said}): these are other images, classes in "
            "another order (--columns), or labels of another seed"
        )
    _refuse_other_parts(source, best, found)
    return Ordered(source, shuffle, found)


def verify(source: LabelSource, images: Path, *, columns: str | PathLike[str] | None = None) -> Evidence:
    """Hold the order that a dump says against its images; see `with_images`.

    Raises:
        BadLabels: they agree no better than by chance.
    """
    if source.names is not None:
        raise UsageError(
            f"{source.path}: finds its images by name, so a folder of images tells nothing of their order; leave it out"
        )
    classes = image_classes(images, columns, source.classes)
    (look,) = _look(source, range(len(source)), classes, [lambda batch: batch])
    found = _evidence("the order that the dump says", look)
    if found.z < AT_CHANCE:
        raise BadLabels(
            f"{source.path}: its labels are not of {images} ({found.said}): these are other images, or classes in another order (--columns)"
        )
    return found


def image_classes(folder: Path, columns: str | PathLike[str] | None, classes: int) -> Indices:
    """[N] the teacher's class of every image in ImageFolder's order: folders sorted, then all files below each."""
    names = class_folders(folder)
    if not names:
        raise UsageError(f"{folder}: no folders in it; name the images that were labelled, in one folder a class")
    number = {name: at for at, name in enumerate(names)}
    of = [number[image.folder] for image in list_images(folder) if image.folder]
    found = _columns_of(folder, names, columns, classes)[np.array(of, np.int64)]
    if len(np.unique(found)) < 2:
        raise UsageError(
            f"{folder}: {len(found)} images, of one class at most, by which no order can be told from another; leave it out"
        )
    return found


def _columns_of(folder: Path, names: list[str], columns: str | PathLike[str] | None, classes: int) -> Indices:
    """The teacher's class of each folder."""
    if columns is None:
        if len(names) != classes:
            raise UsageError(
                f"{folder}: {len(names)} folders, the labels have {classes} classes; say which class each folder is with --columns"
            )
        return np.arange(classes)
    try:
        found: Any = json.loads(read_text(Path(columns)))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{columns}: no readable JSON ({error}); it says folder -> class of the teacher") from None
    for name in names:
        at = found.get(name) if isinstance(found, dict) else None
        if type(at) is not int or not 0 <= at < classes:
            raise UsageError(f"{columns}: folder {name!r} has no class in 0..{classes - 1}; it says folder -> class of the teacher")
    return np.array([found[name] for name in names])


def _batch_size(source: LabelSource, images: int, folder: Path) -> int:
    """Labels of a full batch, as the first is; where the last of all ends, the images must end, or too few for a batch be left."""
    size = len(source.read(0))
    last = max(range(len(source)), key=lambda at: source.places[at].batch)
    labels = source.places[last].batch * size + len(source.read(last))
    if labels != images and not (labels % size == 0 and labels < images < labels + size):
        raise UsageError(
            f"{folder}: {images} images; {source.path} has {labels} labels an epoch: name the images that were labelled"
        )
    return size


class _Look(NamedTuple):
    """What an order makes of a sample of n labels."""

    epoch: Indices  # [n] ascending
    hits: NDArray[np.bool_]  # [n] which agree with their images
    chance: float

    @property
    def agreement(self) -> float:
        return float(self.hits.mean())


def _evidence(order: str, look: _Look, draws: int | None = None, other: float | None = None) -> Evidence:
    return Evidence(order=order, draws=draws, labels=len(look.hits), agreement=look.agreement, other=other, chance=look.chance)


def _look(
    source: LabelSource, places: Sequence[int], classes: Indices, orders: Sequence[Callable[[LabelBatch], LabelBatch]]
) -> list[_Look]:
    """Of one batch of every stretch of `places`, and some of its labels, both at random: what each order makes of them."""
    rng = np.random.default_rng(0)
    stretches = np.array_split(np.asarray(places), min(len(places), LOOK_BATCHES))
    epoch, top = list[Indices](), list[Indices]()
    shown: list[list[Indices]] = [[] for _ in orders]
    for stretch in stretches:
        batch = source.read(int(rng.choice(stretch)))
        rows = rng.permutation(len(batch))[: LOOK_LABELS // len(stretches)]
        epoch.append(np.full(len(rows), batch.place.epoch))
        top.append(batch.labels[rows].argmax(1))
        for order, found in zip(orders, shown, strict=True):
            found.append(_classes_shown(order(batch), classes, source)[rows])
    return [_Look(np.concatenate(epoch), *agreement(np.concatenate(top), np.concatenate(s), source.classes)) for s in shown]


def _classes_shown(batch: LabelBatch, classes: Indices, source: LabelSource) -> Indices:
    """[n, 2] the class of each record's image, and of the one mixed in, or of itself again."""
    context = batch.context()
    assert context.image is not None
    both = np.stack([context.image, context.image if context.partner is None else context.partner], 1)
    if both.max() >= len(classes):
        raise UsageError(f"{source.path}: has labels of image {both.max()}, the folder has {len(classes)} images: name all of them")
    return classes[both]


def agreement(top: Indices, shown: Indices, classes: int) -> tuple[NDArray[np.bool_], float]:
    """Of n labels' largest classes [n] and the classes that their images show [n, 2]: which agree, and the share of all n² pairs that do."""
    first, second = shown.T
    shows = np.bincount(first, minlength=classes) + np.bincount(second[second != first], minlength=classes)
    by_chance = np.bincount(top, minlength=classes) @ shows / len(top) ** 2
    return (shown == top[:, None]).any(1), float(by_chance)


def _refuse_other_parts(source: LabelSource, look: _Look, found: Evidence) -> None:
    """Raises BadLabels where some epochs agree at chance or little above: whoever resumes a run shuffles from the start again."""
    least = found.chance + (found.agreement - found.chance) / 4
    parts = max(1, int(look.hits.sum()) // PART_HITS)
    for hits, epoch in zip(np.array_split(look.hits, parts), np.array_split(look.epoch, parts), strict=True):
        if hits.mean() < least:
            raise BadLabels(
                f"{source.path}: {_percent(hits.mean())} of the labels of epochs {epoch[0]} to {epoch[-1]} agree with the classes of their "
                f"images, {_percent(found.agreement)} of all: they have another order (a resumed run?); regenerate them, or leave them out"
            )
