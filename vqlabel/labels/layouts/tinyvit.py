"""TinyViT's saved logits, a package for every epoch and rank <-> label batches.

logits_topK_epochE/rankR-keys.txt     a line per record: the key of its image, or its index if the dataset has no keys
logits_topK_epochE/rankR-values.bin   per record: seed i32, classes i16 [k], probabilities f16 [k]; little-endian

The probabilities are those at temperature 1, the k largest in descending order; all other classes share the rest of 1
equally. The seed is that of the view: TinyViT's pipeline draws crop, flip, colours and mixing from it again. A package
becomes batches of its epoch, which are numbered through all ranks.
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels.batch import LabelBatch, Place, Support
from vqlabel.labels.layouts.layout import SHARED_NAMES, Layout
from vqlabel.labels.layouts.tensor import refuse_augmentation
from vqlabel.labels.source import About, LabelSource
from vqlabel.labels.topk import check_topk_probs, sparse_probs, to_probabilities, topk
from vqlabel.labels.writer import LabelWriter
from vqlabel.storage.filetypes import read_text

BATCH_RECORDS, BATCH_BYTES = 4096, 64 << 20  # a batch of dense fp16 labels exceeds neither
MAX_CLASSES = 1 << 15  # classes are stored as int16
DEFAULT_K = 10  # of TinyViT's labels of ImageNet-1k
FOLDER = r"logits_top([1-9]\d{0,4})_epoch(0|[1-9]\d{0,8})"


class Package(NamedTuple):
    """What one rank saved in one epoch."""

    epoch: int
    rank: int
    keys: Path
    values: Path
    records: int


class TinyVitSource(LabelSource):
    """The folder with the folders of all epochs.

    Image i is the i-th key of the dump; keys that are the numbers 0..N-1 are image indices.

    Args:
        classes: C, which no file records. None: the largest class in all records, plus 1.

    Raises:
        UsageError: `domain` is not probs.
        BadLabels: there is no package, packages differ in k, or one is malformed.
    """

    def __init__(self, path: Path, domain: str | None, classes: int | None = None) -> None:
        require(domain in (None, "probs"), "domain", domain, "must be probs, which is what tinyvit stores")
        self.path, names = path, None
        self._k, self._packages = find_packages(path)
        self._image_of_key: dict[str, int] = {}
        for package in self._packages:
            for key in read_keys(package):
                self._image_of_key.setdefault(key, len(self._image_of_key))
        if all(str(number) in self._image_of_key for number in range(len(self._image_of_key))):
            self._image_of_key = {key: int(key) for key in self._image_of_key}
        else:
            names = list(self._image_of_key)
        self._cached_images: tuple[Package | None, NDArray[np.int64]] = None, np.empty(0, np.int64)
        classes = classes or max(2, 1 + max(self._largest_class(package) for package in self._packages))
        self._step = max(1, min(BATCH_RECORDS, BATCH_BYTES // (2 * classes)))
        self.about = About(
            layout="tinyvit",
            classes=classes,
            domain="probs",
            dtype="F16",
            order="explicit",
            temperature=1.0,
            support=Support(k=self._k, rest="uniform"),
            names=names,
            details={"ranks": self._place_batches()},
        )

    def _largest_class(self, package: Package) -> int:
        starts = range(0, package.records, BATCH_RECORDS)
        return max(int(read_records(package, self._k, start, start + BATCH_RECORDS)["ids"].max()) for start in starts)

    def _place_batches(self) -> list[list[int]]:
        """Set the place and the records of every batch; returns the epoch, rank and first batch of every package."""
        self.places: list[Place] = []
        self._starts: list[tuple[Package, int]] = []
        ranks: list[list[int]] = []
        batches: Counter[int] = Counter()  # by epoch, so far
        for package in self._packages:
            ranks.append([package.epoch, package.rank, batches[package.epoch]])
            for start in range(0, package.records, self._step):
                self.places.append(Place(package.epoch, batches[package.epoch]))
                self._starts.append((package, start))
                batches[package.epoch] += 1
        return ranks

    def _images(self, package: Package) -> NDArray[np.int64]:
        """The image of every record of a package."""
        if self._cached_images[0] != package:
            self._cached_images = package, np.array([self._image_of_key[key] for key in read_keys(package)], np.int64)
        return self._cached_images[1]

    def files_of(self, index: int) -> tuple[Path, ...]:
        package, _ = self._starts[index]
        return package.keys, package.values

    def _load(self, index: int) -> tuple[LabelBatch, str]:
        package, start = self._starts[index]
        rows = read_records(package, self._k, start, start + self._step)
        name = f"{package.values}, records from {start}" if start else str(package.values)
        return LabelBatch(
            labels=sparse_probs(check_topk_probs(rows["ids"], rows["values"], name), rows["values"], self.classes, name),
            place=self.places[index],
            image=self._images(package)[start : start + self._step],
            seed=rows["seed"].astype(np.int64),
        ), name


class TinyVitWriter(LabelWriter):
    """The folders of all epochs. If the labels are of a TinyViT dump, each rank gets its records; else rank 0 gets all.

    The records are the same bytes if probabilities descend and the classes of equal ones ascend; else the same k pairs
    in that order.

    Raises:
        UsageError: the form is not a valid k, there are more classes than int16 can hold, or the records have no image
            index (in the constructor); records have no seed or other augmentation, or an image occurs twice in a
            package (in `add`).
    """

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        k = form or str(about.support.k if about.support else DEFAULT_K)
        require(
            re.fullmatch(r"[1-9]\d{0,4}", k) and int(k) <= about.classes,
            "layout", f"tinyvit:{k}", f"must be tinyvit:k with k in 1..{about.classes}, the number of classes",
        )  # fmt: skip
        require(
            about.classes <= MAX_CLASSES,
            "classes",
            about.classes,
            f"must be at most {MAX_CLASSES}: tinyvit stores classes as int16",
        )
        if about.order == "none":
            raise UsageError("tinyvit finds labels by the key of their image, but these records have no image index: pass --images")
        self._out, self._about, self._k = out, about, int(k)
        self._ranks = _ranks(about)
        self._created: set[Path] = set()
        self._package: tuple[int, int] | None = None  # epoch, rank
        self._package_images: set[int] = set()
        out.mkdir()

    def add(self, batch: LabelBatch) -> None:
        if batch.seed is None or batch.image is None:
            raise UsageError(
                "tinyvit draws the view again from the seed of every label, but these records have no seed; write a layout that stores crops, "
                "or .npy"
            )
        refuse_augmentation(batch, "tinyvit", ("seed",), "its pipeline draws the view from the seed alone")
        ids, values = topk(to_probabilities(batch.labels, self._about), self._k, signed_zeros=True)
        rows = np.empty(len(batch), record_type(self._k))
        rows["seed"], rows["ids"], rows["values"] = batch.seed, ids, values
        epoch, number = batch.place
        rank = next((rank for first, rank in self._ranks.get(epoch, []) if first <= number), 0)
        folder = self._out / f"logits_top{self._k}_epoch{epoch}"
        folder.mkdir(exist_ok=True)
        self._append(folder / f"rank{rank}-keys.txt", self._keys(batch.image.tolist(), (epoch, rank)).encode())
        self._append(folder / f"rank{rank}-values.bin", rows.tobytes())

    def _append(self, file: Path, data: bytes) -> None:
        """Append to a file, which must be new at first and must exist afterwards."""
        with file.open("xb" if file not in self._created else "r+b") as out:
            out.seek(0, os.SEEK_END)
            out.write(data)
        if file not in self._created:
            self._created.add(self.counted(file))

    def _keys(self, images: list[int], package: tuple[int, int]) -> str:
        """A line for each image; of two records with one key in a package, TinyViT would read one."""
        if package != self._package:
            self._package, self._package_images = package, set()
        names = self._about.names
        for image in images:
            if image in self._package_images:
                raise UsageError(
                    f"tinyvit stores one label per image and epoch, but image {image} has several in epoch {package[0]}; write fkd or .npy"
                )
            if names is not None and (image >= len(names) or names[image].strip().splitlines() != [names[image]]):
                raise UsageError(f"image {image} has no name, or one that TinyViT would strip or split; rename it")
            self._package_images.add(image)
        return "".join(f"{image if names is None else names[image]}\n" for image in images)


def find_packages(path: Path) -> tuple[int, list[Package]]:
    """k, and the packages below `path` by epoch and rank; other entries are ignored.

    Raises:
        BadLabels: there is no package, packages differ in k, or one is truncated.
    """
    if not path.is_dir():
        raise BadLabels(f"{path}: not a folder; TinyViT's dump is a folder that contains logits_topK_epochE/rankR-values.bin")
    packages: set[tuple[int, int, int]] = set()  # k, epoch, rank
    for folder in path.iterdir():
        match = re.fullmatch(FOLDER, folder.name)
        for file in folder.iterdir() if match and folder.is_dir() else ():
            rank = re.fullmatch(r"rank(0|[1-9]\d{0,8})-(?:keys\.txt|values\.bin)", file.name)
            if match and rank:
                packages.add((int(match[1]), int(match[2]), int(rank[1])))
    ks = sorted({k for k, _, _ in packages})
    if not ks:
        raise BadLabels(f"{path}: contains no logits_topK_epochE/rankR-values.bin; a dump has at least one")
    if len(ks) > 1:
        raise BadLabels(f"{path}: contains logits_topK_epochE with k of {ks}; a dump has one k: move the others to another folder")
    (k,) = ks
    return k, [_package(path / f"logits_top{k}_epoch{epoch}", k, epoch, rank) for _, epoch, rank in sorted(packages)]


def _package(folder: Path, k: int, epoch: int, rank: int) -> Package:
    values, width = folder / f"rank{rank}-values.bin", record_type(k).itemsize
    size = values.stat().st_size if values.is_file() else 0
    if size % width or not size:
        raise BadLabels(f"{values}: {size} bytes; it must have {width} per record, and at least one record: it may be truncated")
    return Package(epoch, rank, folder / f"rank{rank}-keys.txt", values, size // width)


def record_type(k: int) -> np.dtype[np.void]:
    """The type of a record, 4 + 4k bytes."""
    return np.dtype([("seed", "<i4"), ("ids", "<i2", (k,)), ("values", "<f2", (k,))])


def read_records(package: Package, k: int, start: int, stop: int) -> NDArray[np.void]:
    """Records start:stop of a package, which may end before `stop`.

    Raises:
        BadLabels: the file was truncated since it was opened.
    """
    dtype, count = record_type(k), min(stop, package.records) - start
    rows = np.fromfile(package.values, dtype, count, offset=start * dtype.itemsize)
    if len(rows) != count:
        raise BadLabels(f"{package.values}: {len(rows)} of {count} records from {start}; it was truncated since it was opened")
    return rows


def read_keys(package: Package) -> list[str]:
    """The key of every record.

    Raises:
        BadLabels: the file is not UTF-8, has another number of lines than there are records, or has a key twice.
    """
    file = package.keys
    try:
        keys = [key.strip() for key in read_text(file).removesuffix("\n").split("\n")]  # as TinyViT does
    except (OSError, UnicodeDecodeError) as error:
        raise BadLabels(f"{file}: keys cannot be read ({error}); each must be one line of UTF-8") from None
    if len(keys) != package.records:
        raise BadLabels(
            f"{file}: {len(keys)} keys, but {package.values.name} has {package.records} records; one of them is truncated"
        )
    if len(set(keys)) != len(keys):
        repeated = next(key for key, count in Counter(keys).items() if count > 1)
        raise BadLabels(
            f"{file}: key {repeated[:200]!r} occurs twice; TinyViT finds labels by their key: remove one of the records"
        )
    return keys


def _ranks(about: About) -> dict[int, list[tuple[int, int]]]:
    """Epoch -> (first batch, rank) of every rank, last first; from the details of labels of a TinyViT dump."""
    entries = about.details.get("ranks", []) if about.layout == "tinyvit" else []
    ranks: dict[int, list[tuple[int, int]]] = {}
    for entry in entries if isinstance(entries, list) else [None]:
        if not isinstance(entry, list) or len(entry) != 3 or not all(type(number) is int and number >= 0 for number in entry):
            raise UsageError(
                f"the details of these labels have the rank {str(entry)[:80]}; it must be [epoch, rank, first batch]: damaged or forged"
            )
        epoch, rank, first = entry
        ranks.setdefault(epoch, []).append((first, rank))
    return {epoch: sorted(starts, reverse=True) for epoch, starts in ranks.items()}


LAYOUT = Layout(
    source=TinyVitSource,
    writer=TinyVitWriter,
    detect=lambda path: "tinyvit" if any(re.fullmatch(FOLDER, entry.name) for entry in path.iterdir()) else None,
    step=SHARED_NAMES,
    entries=FOLDER,
    options="topk",
)
