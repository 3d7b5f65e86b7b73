"""epoch_E/batch_B.tar, the tree that SRe2L introduced: its files in order, and the order of images that LPLD adds."""

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
from vqlabel.labels.batch import LabelBatch, Place
from vqlabel.labels.image_set import WholeEpochs
from vqlabel.labels.layouts.torch_items import label_dtype, list_length
from vqlabel.labels.source import About, LabelSource
from vqlabel.storage.filetypes import foreign_file_message, read_text

MAX_SHOWN = 4  # missing batches that a note lists
SEED = 42  # of the shuffle in SRe2L's scripts, which is fixed
DRAWS = 2  # permutations that RandomSampler draws per epoch since PyTorch 1.11, of which it uses the first; older versions draw one
ORDER_FILE = "sampler_indices_epoch.json"
Indices = NDArray[np.int64]


class TreeSource(LabelSource):
    """A tree. Files that are not batches are ignored; missing batches are noted.

    Attributes:
        layout: its name.
        title: of the system, for messages.
        temperature: see `About`.

    Raises:
        BadLabels: the path is not a folder, or has no batch in it; or the first batch is malformed.
    """

    layout: str
    title: str
    temperature: float | None = 20.0  # of the students of SRe2L, CDA and LPLD

    def __init__(self, path: Path, domain: str | None) -> None:
        self.path = path
        if not path.is_dir():
            raise BadLabels(f"{path}: not a folder; {self.title}'s dump is a folder that contains epoch_E/batch_B.tar")
        self.files = find_batches(path)
        if not self.files:
            raise BadLabels(f"{path}: contains no epoch_E/batch_B.tar; a dump has at least one batch")
        self.places = list(self.files)
        self.notes += missing_batches(path, self.places)
        first, self._stored_dtype = self.parse(self.files[self.places[0]], self.places[0])
        self.about = About(
            layout=self.layout,
            classes=first.labels.shape[1],
            domain=domain or "logits",
            dtype=label_dtype(self, self._stored_dtype),
            order="none" if first.image is None else "explicit",
            temperature=self.temperature,
        )

    @abstractmethod
    def parse(self, file: Path, place: Place) -> tuple[LabelBatch, str]:
        """The batch in a file, with its items checked, and the stored type of its labels."""

    def files_of(self, index: int) -> tuple[Path, ...]:
        return (self.files[self.places[index]],)

    def _load(self, index: int) -> tuple[LabelBatch, str]:
        place = self.places[index]
        file = self.files[place]
        batch, dtype = self.parse(file, place)
        if dtype != self._stored_dtype:
            raise BadLabels(
                f"{file}: labels are {dtype}, but those of the first batch are {self._stored_dtype}: regenerate one of them"
            )
        return batch, str(file)


class EpochOrder:
    """The image of each record of a tree, from a list of all images of every epoch.

    Args:
        path: the order file, for messages.
        files: the batches of the tree.
        epochs: the images of every epoch, in order.
    """

    def __init__(self, path: Path, files: dict[Place, Path], epochs: dict[int, Indices]) -> None:
        self._path, self._files, self._epochs = path, files, epochs
        self._starts: dict[Place, int] = {}  # records of an epoch before a batch

    def images(self) -> int | None:
        """The number of images that the complete epochs of the order imply; None: there is no complete epoch."""
        whole = WholeEpochs()
        for epoch, order in self._epochs.items():
            whole.add(epoch, order)
        return whole.images()

    def assign_images(self, batch: LabelBatch, source: TreeSource) -> LabelBatch:
        """The batch with its images: those in its epoch's order that follow the images of the epoch's earlier batches.

        Raises:
            BadLabels: the order has no such epoch or too few images, or an earlier batch is missing.
        """
        place, records = batch.place, len(batch)
        order = self._epochs.get(place.epoch)
        if order is None:
            raise BadLabels(f"{self._path}: has no order for epoch {place.epoch}, which the dump contains")
        start = self._start(place, source)
        if start + records > len(order):
            raise BadLabels(
                f"{self._files[place]}: its records end at {start + records}, but the order of epoch {place.epoch} has {len(order)} images"
            )
        self._starts[Place(place.epoch, place.batch + 1)] = start + records
        return replace(batch, image=order[start : start + records])

    def _start(self, place: Place, source: TreeSource) -> int:
        """The number of records in the epoch's earlier batches, which are read if they have not been."""
        known = place.batch
        while known and Place(place.epoch, known) not in self._starts:
            known -= 1
            if Place(place.epoch, known) not in self._files:
                raise BadLabels(
                    f"{self._files[place]}: batch {known} of epoch {place.epoch} is missing, so the images of later batches are unknown"
                )
        start = self._starts[Place(place.epoch, known)] if known else 0
        for batch in range(known, place.batch):
            earlier = Place(place.epoch, batch)
            start += len(source.parse(self._files[earlier], earlier)[0])
            self._starts[Place(place.epoch, batch + 1)] = start
        return start


def find_batches(path: Path) -> dict[Place, Path]:
    """Every epoch_E/batch_B.tar below `path`, in numeric order.

    Raises:
        BadLabels: two files have the same numbers, such as batch_0 and batch_00.
    """
    batches: dict[Place, Path] = {}
    for folder in path.iterdir():
        epoch = re.fullmatch(r"epoch_(\d{1,9})", folder.name)
        for file in folder.iterdir() if epoch and folder.is_dir() else ():
            batch = re.fullmatch(r"batch_(\d{1,9})\.tar", file.name)
            if epoch and batch:
                place = Place(int(epoch[1]), int(batch[1]))
                if place in batches:
                    raise BadLabels(f"{file}: is the same batch as {batches[place]}; remove one of them")
                batches[place] = file
    return dict(sorted(batches.items()))


def missing_batches(path: Path, places: Sequence[Place]) -> list[str]:
    """A note if epochs are missing, or batches that another epoch has: the dump was pruned, or is incomplete."""
    batches: dict[int, set[int]] = {}
    for place in places:
        batches.setdefault(place.epoch, set()).add(place.batch)
    per_epoch, epochs = 1 + max(place.batch for place in places), 1 + max(batches)
    count = epochs - len(batches) + per_epoch * len(batches) - len(places)
    if not count:
        return []
    missing_epochs = (f"epoch {epoch}" for epoch in range(epochs) if epoch not in batches)
    gaps = (f"batch {batch} of epoch {epoch}" for epoch in batches for batch in range(per_epoch) if batch not in batches[epoch])
    shown = ", ".join(islice(chain(missing_epochs, gaps), MAX_SHOWN))  # never all: the name of a folder may contain any number
    more = f" and {count - MAX_SHOWN:,} more" if count > MAX_SHOWN else ""
    return [f"{path}: {shown}{more} missing; if the dump was not pruned, it is incomplete: copy it again"]


def batch_file(folder: Path, place: Place) -> Path:
    """The path to write a batch to; creates the folder of its epoch.

    Raises:
        UsageError: the batch was written before.
    """
    epoch = folder / f"epoch_{place.epoch}"
    epoch.mkdir(exist_ok=True)  # without parents: if the tree was removed meanwhile, it must not be recreated in part
    file = epoch / f"batch_{place.batch}.tar"
    require(not file.exists(), "batch", place.batch, f"occurs twice in epoch {place.epoch}; a tree has one file for it")
    return file


def simulated_orders(images: int, epochs: int, draws: int, seed: int = SEED) -> Iterator[Indices]:
    """The order [images] of every epoch of RandomSampler, for a PyTorch that draws `draws` permutations per epoch."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order, *_ = [torch.randperm(images, generator=generator, device="cpu") for _ in range(draws)]
        yield order.numpy()


class Shuffle:
    """The simulated orders; one is in memory, and going back to an earlier epoch restarts the simulation.

    Thread-safe.
    """

    def __init__(self, images: int, epochs: int, draws: int = DRAWS, seed: int = SEED) -> None:
        self._arguments, self._lock = (images, epochs, draws, seed), threading.Lock()
        self._orders, self._next = simulated_orders(*self._arguments), 0

    def order_of(self, epoch: int) -> Indices:
        """The order [images] of an epoch."""
        with self._lock:
            if epoch < self._next - 1:
                self._orders, self._next = simulated_orders(*self._arguments), 0
            while self._next <= epoch:
                self._order, self._next = next(self._orders), self._next + 1
            return self._order


def matching_draws(order: Mapping[int, Indices], seed: int = SEED) -> list[int]:
    """The numbers of draws (2, 1) with which SRe2L's shuffle gives exactly these images; empty if neither does.

    Args:
        order: the images of every epoch; the epochs must be 0, 1, ...
    """
    epochs, images = len(order), len(next(iter(order.values())))
    if sorted(order) != list(range(epochs)):
        return []
    return [
        draws
        for draws in (DRAWS, 1)
        if all(
            np.array_equal(order[epoch], simulated) for epoch, simulated in enumerate(simulated_orders(images, epochs, draws, seed))
        )
    ]


class _Pairs(list[tuple[str, Any]]):
    """The (key, value) pairs of a JSON object, in which a key may occur twice."""


def read_order(file: Path) -> dict[int, Indices]:
    """Read an order file: {"0": [image indices of epoch or batch 0, in order], ...}.

    Raises:
        BadLabels: the file is something else, or has a key twice ("0" and "00" are the same).
    """
    try:
        pairs = json.loads(read_text(file), object_pairs_hook=_Pairs)
        if not isinstance(pairs, _Pairs) or not all(re.fullmatch("[0-9]{1,9}", key) for key, _ in pairs):
            raise ValueError("it is not an object with integer keys")
        order = {int(key): check_indices(ids) for key, ids in pairs}
    except BadLabels:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, OSError) as error:
        if message := foreign_file_message(file, "an order file"):
            raise BadLabels(message) from None
        raise BadLabels(f"{file}: not an order file ({error}); it must map epochs to lists of image indices") from None
    if len(order) < len(pairs):
        repeated = next(key for key, count in Counter(int(key) for key, _ in pairs).items() if count > 1)
        raise BadLabels(f"{file}: has two orders for {repeated}; remove one of them")
    return order


def check_indices(ids: Any) -> Indices:
    """[n] image indices as int64.

    Raises:
        ValueError: `ids` are not a list of integers in 0..2^31-1.
    """
    array = np.asarray(ids)
    if array.dtype.kind not in "iu" or array.ndim != 1 or (array.size and (array.min() < 0 or array.max() >= 1 << 31)):
        raise ValueError("image indices must be integers in 0..2^31-1")
    return array.astype(np.int64)


def write_order(file: Path, order: Mapping[int, Sequence[int] | Indices]) -> None:
    """Write an order file, inverse of `read_order`; one epoch or batch at a time is converted to text."""
    with file.open("w") as out:
        for i, (key, ids) in enumerate(sorted(order.items())):
            out.write(("{" if i == 0 else ", ") + f'"{key}": ' + json.dumps(np.asarray(ids).tolist()))
        out.write("}" if order else "{}")


def detect_tree(path: Path) -> str | None:
    """The layout of a tree epoch_E/batch_B.tar, by the length of the lists in its files; None: not such a tree."""
    batches = find_batches(path)
    if not batches:
        return None
    of_six = "lpld" if (path / ORDER_FILE).exists() else "sre2l"
    return {7: "gvbsm", 8: "edc"}.get(list_length(next(iter(batches.values()))), of_six)
