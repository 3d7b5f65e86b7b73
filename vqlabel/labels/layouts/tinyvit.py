"""TinyViT's saved logits, a package for every epoch and rank <-> label batches.

logits_topK_epochE/rankR-keys.txt     a line a record: the key of its image in the dataset, which is its index where the dataset has no keys
logits_topK_epochE/rankR-values.bin   a record: seed i32, classes i16 [k], probabilities f16 [k]; little-endian

They are probabilities at temperature 1, the k largest in falling order; what they leave of 1 belongs to all other classes in equal parts. The
seed is of the view: TinyViT's pipeline draws crop, flip, colours and mixing from it again. A package becomes batches of its epoch, which are
numbered through all ranks.
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels.layouts.tensor import refuse_augmentation
from vqlabel.labels.source import About, LabelBatch, LabelSource, LabelWriter, Place, Support
from vqlabel.labels.topk import check_pairs, largest, probabilities, spread
from vqlabel.storage.filetypes import read_text

BATCH_RECORDS, BATCH_BYTES = 4096, 64 << 20  # of labels in fp16, spread out: the least number of records holds
CLASSES_MOST = 1 << 15  # of i16
USUAL_K = 10  # of ImageNet-1k's labels
FOLDER = r"logits_top([1-9]\d{0,4})_epoch(0|[1-9]\d{0,8})"


class Package(NamedTuple):
    """What one rank saved in one epoch."""

    epoch: int
    rank: int
    keys: Path
    values: Path
    records: int


class TinyVitSource(LabelSource):
    """The folder with the folders of all epochs. Image i is the i-th key of the dump, unless the keys are the numbers 0..N-1: then it is image i.

    Args:
        classes: C, which no file says. None: the largest class that a record names, plus 1; all values are read to find it.
    """

    layout, dtype, order, temperature = "tinyvit", "F16", "explicit", 1.0

    def __init__(self, path: Path, domain: str | None, classes: int | None = None) -> None:
        require(domain in (None, "probs"), "domain", domain, "must be probs, which is what tinyvit stores")
        self.path, self.domain = path, "probs"
        self._k, self._packages = find_packages(path)
        self.support = Support(k=self._k, rest="uniform")
        self._index: dict[str, int] = {}
        for package in self._packages:
            for key in read_keys(package):
                self._index.setdefault(key, len(self._index))
        if all(str(number) in self._index for number in range(len(self._index))):
            self._index = {key: int(key) for key in self._index}
        else:
            self.names = list(self._index)
        self._last: tuple[Package | None, NDArray[np.int64]] = None, np.empty(0, np.int64)  # the images of a package
        self.classes = classes or max(2, 1 + max(self._largest_class(package) for package in self._packages))
        self._cut()

    def _largest_class(self, package: Package) -> int:
        parts = range(0, package.records, BATCH_RECORDS)
        return max(int(read_records(package, self._k, at, at + BATCH_RECORDS)["ids"].max()) for at in parts)

    def _cut(self) -> None:
        """Where every batch lies, and which is the first of every rank."""
        step = max(1, min(BATCH_RECORDS, BATCH_BYTES // (2 * self.classes)))
        self.places: list[Place] = []
        self._starts: list[tuple[Package, int]] = []
        ranks: list[list[int]] = []
        batches: Counter[int] = Counter()  # so far, of every epoch
        for package in self._packages:
            ranks.append([package.epoch, package.rank, batches[package.epoch]])
            for start in range(0, package.records, step):
                self.places.append(Place(package.epoch, batches[package.epoch]))
                self._starts.append((package, start))
                batches[package.epoch] += 1
        self._step, self.details = step, {"ranks": ranks}

    def _images(self, package: Package) -> NDArray[np.int64]:
        if self._last[0] != package:
            self._last = package, np.array([self._index[key] for key in read_keys(package)], np.int64)
        return self._last[1]

    def files_of(self, at: int) -> tuple[Path, ...]:
        package, _ = self._starts[at]
        return package.keys, package.values

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        package, start = self._starts[at]
        rows = read_records(package, self._k, start, start + self._step)
        name = f"{package.values}, records from {start}" if start else str(package.values)
        return LabelBatch(
            labels=spread(check_pairs(rows["ids"], rows["values"], name), rows["values"], self.classes, name),
            place=self.places[at],
            image=self._images(package)[start : start + self._step],
            seed=rows["seed"].astype(np.int64),
        ), name


class TinyVitWriter(LabelWriter):
    """The folders of all epochs. Where the labels came in this layout, every rank has its records again, else rank 0 has all.

    The records are theirs byte for byte where probabilities fell and the classes of equal ones rose; else the same k pairs stand in that order.
    """

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        k = form or str(about.support.k if about.support else USUAL_K)
        require(
            re.fullmatch(r"[1-9]\d{0,4}", k) and int(k) <= about.classes,
            "layout", f"tinyvit:{k}", f"must be tinyvit:k with k in 1..{about.classes}, the classes that there are",
        )  # fmt: skip
        require(
            about.classes <= CLASSES_MOST,
            "classes",
            about.classes,
            f"must be at most {CLASSES_MOST}: tinyvit has 16 bits for a class",
        )
        if about.order == "none":
            raise UsageError(
                "tinyvit finds labels by the key of their image, and these records do not say which image they are of: pass --images"
            )
        self._out, self._about, self._k = out, about, int(k)
        self._ranks = _ranks(about)
        self._begun: set[Path] = set()
        self._package: tuple[int, int] | None = None
        self._seen: set[int] = set()  # images of that package
        out.mkdir()

    def add(self, batch: LabelBatch) -> None:
        if batch.seed is None or batch.image is None:
            raise UsageError(
                "tinyvit draws the view again from the seed of every label, and these records have none; write a layout that stores crops, or .npy"
            )
        refuse_augmentation(batch, "tinyvit", ("seed",), "its pipeline draws the view from the seed alone")
        ids, values = largest(probabilities(batch.labels, self._about), self._k, signed=True)
        rows = np.empty(len(batch), record_type(self._k))
        rows["seed"], rows["ids"], rows["values"] = batch.seed, ids, values
        epoch, number = batch.place
        rank = next((rank for first, rank in self._ranks.get(epoch, []) if first <= number), 0)
        folder = self._out / f"logits_top{self._k}_epoch{epoch}"
        folder.mkdir(exist_ok=True)
        self._append(folder / f"rank{rank}-keys.txt", self._keys(batch.image.tolist(), (epoch, rank)).encode())
        self._append(folder / f"rank{rank}-values.bin", rows.tobytes())

    def _append(self, file: Path, data: bytes) -> None:
        """To a file that is new, or there since it was."""
        with file.open("xb" if file not in self._begun else "r+b") as out:
            out.seek(0, os.SEEK_END)
            out.write(data)
        if file not in self._begun:
            self._begun.add(self.counted(file))

    def _keys(self, images: list[int], package: tuple[int, int]) -> str:
        """A line for each; of two records with one key in a package TinyViT sees one."""
        if package != self._package:
            self._package, self._seen = package, set()
        names = self._about.names
        for image in images:
            if image in self._seen:
                raise UsageError(
                    f"tinyvit has one label of an image in epoch {package[0]}, and image {image} has several; write fkd or .npy"
                )
            if names is not None and (image >= len(names) or names[image].strip().splitlines() != [names[image]]):
                raise UsageError(f"image {image} has no name, or one that TinyViT would strip or cut; rename it")
            self._seen.add(image)
        return "".join(f"{image if names is None else names[image]}\n" for image in images)


def find_packages(path: Path) -> tuple[int, list[Package]]:
    """k, and what lies below `path`, by epoch and rank. Other entries are ignored."""
    if not path.is_dir():
        raise BadLabels(f"{path}: is no folder; tinyvit's dump is one, with logits_topK_epochE/rankR-values.bin in it")
    found: set[tuple[int, int, int]] = set()
    for folder in path.iterdir():
        named = re.fullmatch(FOLDER, folder.name)
        for file in folder.iterdir() if named and folder.is_dir() else ():
            rank = re.fullmatch(r"rank(0|[1-9]\d{0,8})-(?:keys\.txt|values\.bin)", file.name)
            if named and rank:
                found.add((int(named[1]), int(named[2]), int(rank[1])))
    if len({k for k, _, _ in found}) != 1:
        many = sorted({k for k, _, _ in found})
        raise BadLabels(
            f"{path}: has logits_topK_epochE/rankR-values.bin of k {many or 'nowhere'}; one dump has one k: name a folder with one"
        )
    (k,) = {k for k, _, _ in found}
    return k, [_package(path / f"logits_top{k}_epoch{epoch}", k, epoch, rank) for _, epoch, rank in sorted(found)]


def _package(folder: Path, k: int, epoch: int, rank: int) -> Package:
    values, width = folder / f"rank{rank}-values.bin", record_type(k).itemsize
    size = values.stat().st_size if values.is_file() else 0
    if size % width or not size:
        raise BadLabels(f"{values}: {size} bytes; {width} a record are wanted, and at least one record: it may be truncated")
    return Package(epoch, rank, folder / f"rank{rank}-keys.txt", values, size // width)


def record_type(k: int) -> np.dtype[np.void]:
    """4 + 4k bytes."""
    return np.dtype([("seed", "<i4"), ("ids", "<i2", (k,)), ("values", "<f2", (k,))])


def read_records(package: Package, k: int, start: int, stop: int) -> NDArray[np.void]:
    """Those of start:stop that there are."""
    kind, count = record_type(k), min(stop, package.records) - start
    rows = np.fromfile(package.values, kind, count, offset=start * kind.itemsize)
    if len(rows) != count:
        raise BadLabels(f"{package.values}: {len(rows)} of {count} records from {start}; it was truncated meanwhile")
    return rows


def read_keys(package: Package) -> list[str]:
    """The key of every record; each once."""
    file = package.keys
    try:
        keys = [key.strip() for key in read_text(file).removesuffix("\n").split("\n")]  # as TinyViT does
    except (OSError, UnicodeDecodeError) as error:
        raise BadLabels(f"{file}: no readable keys ({error}); each is one line of UTF-8") from None
    if len(keys) != package.records:
        raise BadLabels(
            f"{file}: {len(keys)} keys, and {package.values.name} has {package.records} records; one of them is truncated"
        )
    if len(set(keys)) != len(keys):
        twice = next(key for key, times in Counter(keys).items() if times > 1)
        raise BadLabels(
            f"{file}: key {twice[:200]!r} stands there twice; TinyViT finds labels by their key: remove one of the records"
        )
    return keys


def _ranks(about: About) -> dict[int, list[tuple[int, int]]]:
    """Of every epoch: the first batch of each rank, and the rank, last first."""
    theirs = about.details.get("ranks", []) if about.layout == "tinyvit" else []
    found: dict[int, list[tuple[int, int]]] = {}
    for entry in theirs if isinstance(theirs, list) else [None]:
        if not isinstance(entry, list) or len(entry) != 3 or not all(type(v) is int and v >= 0 for v in entry):
            raise UsageError(
                f"the labels' details say of a rank {str(entry)[:80]}; epoch, rank and first batch belong there: damaged or forged"
            )
        epoch, rank, first = entry
        found.setdefault(epoch, []).append((first, rank))
    return {epoch: sorted(starts, reverse=True) for epoch, starts in found.items()}
