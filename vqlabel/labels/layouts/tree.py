"""epoch_E/batch_B.tar, the tree that SRe2L began with: its files in order, and the order of images that LPLD writes beside them."""

import json
import re
import threading
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, require
from vqlabel.labels.image_set import WholeEpochs
from vqlabel.labels.layouts.torch_items import narrowed
from vqlabel.labels.source import LabelBatch, LabelSource, Place
from vqlabel.storage.filetypes import foreign_file_message, read_text

NAMED = 4  # missing batches that a note names
SEED = 42  # of SRe2L's shuffle: its reader knows no other
DRAWS = 2  # permutations that RandomSampler draws an epoch since PyTorch 1.11, of which it uses the first; before it was one
ORDER_FILE = "sampler_indices_epoch.json"
Indices = NDArray[np.int64]


class TreeSource(LabelSource):
    """A tree. Counts come from the files; epochs and batches are sorted as numbers; other entries are ignored, missing ones noted."""

    title: str  # of the system, for messages
    temperature: float | None = 20.0  # of the students of SRe2L, CDA and LPLD

    def __init__(self, path: Path, domain: str | None) -> None:
        self.path, self.domain = path, domain or "logits"
        if not path.is_dir():
            raise BadLabels(f"{path}: is no folder; {self.title}'s tree is one, with epoch_E/batch_B.tar in it")
        self.files = find_batches(path)
        if not self.files:
            raise BadLabels(f"{path}: no epoch_E/batch_B.tar in it; a dump has at least one batch")
        self.places = list(self.files)
        self.notes += missing(path, self.places)
        first, self._stored = self.parse(self.files[self.places[0]], self.places[0])
        self.dtype = narrowed(self, self._stored)
        self.classes = first.labels.shape[1]
        self.order = "none" if first.image is None else "explicit"

    @abstractmethod
    def parse(self, file: Path, place: Place) -> tuple[LabelBatch, str]:
        """One file's batch, checked, and the type of its labels."""

    def files_of(self, at: int) -> tuple[Path, ...]:
        return (self.files[self.places[at]],)

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        place = self.places[at]
        file = self.files[place]
        batch, stored = self.parse(file, place)
        if stored != self._stored:
            raise BadLabels(f"{file}: labels are {stored}; the dump began with {self._stored}: regenerate one of them")
        return batch, str(file)


class EpochOrder:
    """Which image each record of a tree is of, where a list for every epoch says so."""

    def __init__(self, path: Path, files: dict[Place, Path], epochs: dict[int, Indices]) -> None:
        self._path, self._files, self._epochs = path, files, epochs
        self._starts: dict[Place, int] = {}

    def images(self) -> int | None:
        """How many images the whole epochs of the order imply; None: it has no such epoch."""
        whole = WholeEpochs()
        for epoch, order in self._epochs.items():
            whole.add(epoch, order)
        return whole.images()

    def of(self, batch: LabelBatch, source: TreeSource) -> LabelBatch:
        """The batch with its images: those of its epoch's order that follow the ones of the epoch's earlier batches."""
        place, records = batch.place, len(batch)
        order = self._epochs.get(place.epoch)
        if order is None:
            raise BadLabels(f"{self._path}: no order for epoch {place.epoch}, whose labels are there")
        start = self._start(place, source)
        if start + records > len(order):
            raise BadLabels(
                f"{self._files[place]}: its records end at {start + records}, the order of epoch {place.epoch} has {len(order)} images"
            )
        self._starts[Place(place.epoch, place.batch + 1)] = start + records
        return replace(batch, image=order[start : start + records])

    def _start(self, place: Place, source: TreeSource) -> int:
        known = place.batch
        while known and Place(place.epoch, known) not in self._starts:
            known -= 1
            if Place(place.epoch, known) not in self._files:
                raise BadLabels(
                    f"{self._files[place]}: batch {known} of epoch {place.epoch} is missing, so the order cannot be placed"
                )
        start = self._starts[Place(place.epoch, known)] if known else 0
        for batch in range(known, place.batch):
            at = Place(place.epoch, batch)
            start += len(source.parse(self._files[at], at)[0])
            self._starts[Place(place.epoch, batch + 1)] = start
        return start


def find_batches(path: Path) -> dict[Place, Path]:
    """Every epoch_E/batch_B.tar below `path`, in numeric order."""
    found: dict[Place, Path] = {}
    for folder in path.iterdir():
        epoch = re.fullmatch(r"epoch_(\d{1,9})", folder.name)
        for file in folder.iterdir() if epoch and folder.is_dir() else ():
            batch = re.fullmatch(r"batch_(\d{1,9})\.tar", file.name)
            if epoch and batch:
                place = Place(int(epoch[1]), int(batch[1]))
                if place in found:
                    raise BadLabels(f"{file}: is the same batch as {found[place]}; remove one of them")
                found[place] = file
    return dict(sorted(found.items()))


def missing(path: Path, places: Sequence[Place]) -> list[str]:
    """A note where epochs, or batches that another epoch has, are left out: a dump that was pruned, or whose copy was interrupted."""
    batches: dict[int, set[int]] = {}
    for place in places:
        batches.setdefault(place.epoch, set()).add(place.batch)
    each, epochs = 1 + max(place.batch for place in places), 1 + max(batches)
    count = epochs - len(batches) + each * len(batches) - len(places)
    if not count:
        return []
    absent = (f"epoch {epoch}" for epoch in range(epochs) if epoch not in batches)
    gaps = (f"batch {batch} of epoch {epoch}" for epoch in batches for batch in range(each) if batch not in batches[epoch])
    named = ", ".join(islice(chain(absent, gaps), NAMED))  # never all: a name of a folder may hold any number
    more = f" and {count - NAMED:,} more" if count > NAMED else ""
    return [f"{path}: {named}{more} missing; unless it was pruned, the dump is incomplete: copy it again"]


def batch_file(folder: Path, place: Place) -> Path:
    """Where a batch is written; its epoch's folder is made.

    Raises:
        UsageError: it was written already.
    """
    epoch = folder / f"epoch_{place.epoch}"
    epoch.mkdir(exist_ok=True)  # without parents: a tree that was removed meanwhile is not begun again from its middle
    file = epoch / f"batch_{place.batch}.tar"
    require(not file.exists(), "batch", place.batch, f"stands twice in epoch {place.epoch}; a tree has one file for it")
    return file


def simulated(images: int, epochs: int, draws: int, seed: int = SEED) -> Iterator[Indices]:
    """The order [images] of every epoch, as RandomSampler has it where it draws so many permutations an epoch."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order, *_ = [torch.randperm(images, generator=generator, device="cpu") for _ in range(draws)]
        yield order.numpy()


class Shuffle:
    """The simulated orders, one held at a time; it begins again where an earlier epoch is asked for. Threads may share it."""

    def __init__(self, images: int, epochs: int, draws: int = DRAWS, seed: int = SEED) -> None:
        self._arguments, self._lock = (images, epochs, draws, seed), threading.Lock()
        self._orders, self._next = simulated(*self._arguments), 0

    def order_of(self, epoch: int) -> Indices:
        """[images] of an epoch."""
        with self._lock:
            if epoch < self._next - 1:
                self._orders, self._next = simulated(*self._arguments), 0
            while self._next <= epoch:
                self._now, self._next = next(self._orders), self._next + 1
            return self._now


def fitting_draws(order: Mapping[int, Indices], seed: int = SEED) -> list[int]:
    """With how many permutations an epoch SRe2L's shuffle, 2 or 1, gives these images of all epochs, 0 to the last; none where it does not."""
    epochs, images = len(order), len(next(iter(order.values())))
    if sorted(order) != list(range(epochs)):
        return []
    return [
        draws
        for draws in (DRAWS, 1)
        if all(np.array_equal(order[at], want) for at, want in enumerate(simulated(images, epochs, draws, seed)))
    ]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its keys, of which one may come again."""


def read_order(file: Path) -> dict[int, Indices]:
    """An order file: {"0": [image indices of group 0, in order], ...}.

    Raises:
        BadLabels: it is something else, or names a group twice ("0" and "00" are one).
    """
    try:
        groups = json.loads(read_text(file), object_pairs_hook=_Pairs)
        if not isinstance(groups, _Pairs) or not all(re.fullmatch("[0-9]{1,9}", group) for group, _ in groups):
            raise ValueError("it is no object whose keys are whole numbers")
        order = {int(group): indices(ids) for group, ids in groups}
    except BadLabels:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, OSError) as error:
        if known := foreign_file_message(file, "an order file"):
            raise BadLabels(known) from None
        raise BadLabels(f"{file}: not an order file ({error}); it maps epochs to lists of image indices") from None
    if len(order) < len(groups):
        twice = next(group for group, times in Counter(int(group) for group, _ in groups).items() if times > 1)
        raise BadLabels(f"{file}: names group {twice} twice, with an order each; remove one of them")
    return order


def indices(ids: Any) -> Indices:
    """[n] image indices, of a list of integers.

    Raises:
        ValueError: it is none.
    """
    array = np.asarray(ids)
    if array.dtype.kind not in "iu" or array.ndim != 1 or (array.size and (array.min() < 0 or array.max() >= 1 << 31)):
        raise ValueError("image indices must be integers in 0..2^31-1")
    return array.astype(np.int64)


def write_order(file: Path, order: Mapping[int, Sequence[int] | Indices]) -> None:
    """Inverse of `read_order`; never more than a group as text."""
    with file.open("w") as out:
        for at, (group, ids) in enumerate(sorted(order.items())):
            out.write(("{" if at == 0 else ", ") + f'"{group}": ' + json.dumps(np.asarray(ids).tolist()))
        out.write("}" if order else "{}")
