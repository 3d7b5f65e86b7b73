"""FKD's and FerKD's files, one an image <-> label batches.

.../<class folder>/<image>.tar   torch.save list of 3: coords f32 or f16 [crops, 4], flip bool [crops], and labels of one form:
                                     hard      i64 [crops]        class
                                     smoothing f32 [crops, 2]     class, probability
                                     ms-k5     f32 [crops, 2, 5]  classes, probabilities; likewise of any k
                                     full      f32 [crops, C]     probabilities

They are probabilities, of crops that were not mixed: FKD mixes images and labels when it trains. It finds the file of an image by the image's
path. What a label of form ms-k leaves of 1 belongs to all other classes in equal parts (marginal smoothing); a file for marginal
re-normalisation, mr-k, is the same, and only its reader leaves that away.
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels.layouts.tensor import refuse_augmentation
from vqlabel.labels.layouts.torch_items import array_item, describe, list_length, narrowed, read_items, to_tensor, write_items
from vqlabel.labels.source import About, LabelBatch, LabelSource, LabelWriter, Place, Support
from vqlabel.labels.topk import check_pairs, largest, probabilities, spread
from vqlabel.storage.filetypes import is_sidecar

HALF_IDS = 2048  # from here on two classes may be one half
FORMS = "hard, smoothing, ms-k5 (or any other k), mr-k5, full"


class Stored(NamedTuple):
    """One file: an image's crops and their labels as they are stored."""

    crop: NDArray[np.floating]  # [n, 4]
    flip: NDArray[np.bool_]  # [n]
    form: str
    ids: NDArray[np.int64] | None  # [n, k]; None: all classes, in order
    values: NDArray[np.floating]  # [n, k] or [n, C], fp16 or fp32
    dtype: str  # that item 2 has in the file: fp64 is narrowed, classes alone are "int64"

    @property
    def kind(self) -> tuple[str, str, str]:
        """What all files of a dump have in common: form, type of the values, type of coords."""
        return self.form, self.dtype, self.crop.dtype.name

    @property
    def rest(self) -> str:
        """What stands for classes that were not stored, see `Support`."""
        return "zero" if self.form == "hard" else "uniform"


class FkdSource(LabelSource):
    """A folder with such files at any depth, sorted by path: file i has the labels of image i, which is named as the file is.

    Args:
        classes: C, which files of full labels alone say. None: the largest class that a file names, plus 1; all files are read to find it, and a teacher of
            whose last classes no label speaks had more.
    """

    layout, order, temperature = "fkd", "explicit", 1.0
    names: list[str]

    def __init__(self, path: Path, domain: str | None, classes: int | None = None) -> None:
        require(domain in (None, "probs"), "domain", domain, "must be probs, which is what fkd stores")
        self.path, self.domain, self.names = path, "probs", find_images(path)
        self.places = [Place(0, image) for image in range(len(self.names))]
        first = read_image(self._file(0))
        self._kind, (form, values, coords) = first.kind, first.kind
        self.dtype = narrowed(self, {"float32": "F32", "float64": "F64"}.get(values, "F16"))
        self.details = {"form": form, "coords": coords}
        if first.ids is None:
            self.classes = first.values.shape[1]
            require(classes in (None, self.classes), "classes", classes, f"must be {self.classes}, as the files have, or left out")
        else:
            self.support = Support(k=first.ids.shape[1], rest=first.rest)
            self.classes = classes or max(2, 1 + max(self._largest_class(at) for at in range(len(self))))

    def _file(self, at: int) -> Path:
        return self.path / f"{self.names[at]}.tar"

    def _stored(self, at: int) -> Stored:
        found = read_image(self._file(at))
        if found.kind != self._kind:
            have, want = ("{}, {}, coords {}".format(*kind) for kind in (found.kind, self._kind))
            raise BadLabels(f"{self._file(at)}: labels are {have}; the dump began with {want}: regenerate one of them")
        return found

    def _largest_class(self, at: int) -> int:
        ids = self._stored(at).ids
        return 0 if ids is None else int(ids.max())

    def files_of(self, at: int) -> tuple[Path, ...]:
        return (self._file(at),)

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        found, name = self._stored(at), str(self._file(at))
        labels = found.values if found.ids is None else spread(found.ids, found.values, self.classes, name, found.rest)
        return LabelBatch(
            labels=labels,
            place=self.places[at],
            image=np.full(len(found.flip), at, np.int64),
            crop=found.crop.astype(np.float32),
            flip=found.flip,
        ), name


def find_images(path: Path) -> list[str]:
    """The names of the images that have a file below `path`: where it lies, without .tar."""
    if not path.is_dir():
        raise BadLabels(f"{path}: is no folder; fkd's dump is one, with a .tar file for every image")
    names = sorted(file.relative_to(path).as_posix().removesuffix(".tar") for file in path.rglob("*.tar") if not is_sidecar(file))
    if not names:
        raise BadLabels(f"{path}: no .tar file in it; a dump has at least one image")
    for name in names:
        if re.search("[\n\ud800-\udfff]", name):
            raise BadLabels(f"{path}: an image is named {name!r}; names are one line of UTF-8: rename its file")
    return names


def holds_images(path: Path) -> bool:
    """Whether a folder holds such files and nothing else. Real .tar archives, of which the first is looked at, are something else."""
    files = (entry for entry in path.rglob("*") if not entry.is_dir())
    first = next(files, None)
    return first is not None and all(file.suffix == ".tar" for file in (first, *files)) and list_length(first) == 3


def read_image(file: Path) -> Stored:
    """One file, checked; arrays may be NumPy's, as FKD saves them, or tensors."""
    items = read_items(file, (3,), "FKD", "coords, flip, labels")
    dtype = str(getattr(items[2], "dtype", "")).removeprefix("torch.")
    form, ids, values = _parts(file, items[2].float() if dtype == "float64" else items[2])
    crop = array_item(file, 0, items[0], (len(values), 4), "float32", "float16")
    flip = array_item(file, 1, items[1], (len(values),), "bool")
    if crop is None or flip is None:
        raise BadLabels(f"{file}: has labels without coords or flip, so nobody knows the crops that they are of; regenerate it")
    if ids is None:
        return Stored(crop, flip, form, None, values, dtype)
    if ids.dtype == np.float16 and ids.max() >= HALF_IDS:
        raise BadLabels(
            f"{file}: names class {ids.max():.0f} in fp16, which rounds classes from {HALF_IDS} on; regenerate it in fp32"
        )
    return Stored(crop, flip, form, check_pairs(ids, values, str(file)), values, dtype)


def _parts(file: Path, item: Any) -> tuple[str, NDArray[Any] | None, NDArray[np.floating]]:
    """Item 2 -> its form, classes and probabilities."""
    kind, shape = str(getattr(item, "dtype", None)).removeprefix("torch."), tuple(getattr(item, "shape", ()))
    if kind == "int64" and len(shape) == 1 and shape[0]:
        return "hard", item.numpy()[:, None], np.ones((*shape, 1), np.float16)
    if kind in ("float16", "float32") and len(shape) in (2, 3) and shape[0] and shape[1] >= 2 and shape[-1]:
        stored = item.numpy()
        if len(shape) == 3 and shape[1] == 2:
            return f"ms-k{shape[2]}", stored[:, 0], stored[:, 1]
        if len(shape) == 2:
            return ("smoothing", stored[:, :1], stored[:, 1:]) if shape[1] == 2 else ("full", None, stored)
    raise BadLabels(
        f"{file}: item 2 is {describe(item)}; it must be labels int64 [n], or fp16, fp32 or fp64 [n, 2], [n, 2, k] or [n, C], and not empty"
    )


class FkdWriter(LabelWriter):
    """The files, as tensors with classes and probabilities in fp32: FKD's own trainer fails on arrays and on halves.

    Records of an image may come in any batch, so all of them wait in a nameless file beside the result until the last one is there; in memory
    is the image of each. Coords have the type that FKD's had, else fp32.
    """

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        theirs = about.details if about.layout == "fkd" else {}
        self._form = form or str(theirs.get("form", "ms-k5"))
        self._k = form_k(self._form, about.classes)
        if about.order == "none" or about.names is None:
            raise UsageError(
                "fkd finds labels by the path of their image, and these records have none; fkd has them, and tinyvit where its keys are paths: write .npy"
            )
        self._out, self._about, self._names = out, about, about.names
        self._coords = "float16" if theirs.get("coords") == "float16" else "float32"
        shapes = {"hard": ("<i8", ()), "smoothing": ("<f4", (2,)), "full": ("<f4", (about.classes,))}
        label = shapes.get(self._form, ("<f4", (2, self._k)))
        self._record = np.dtype([("crop", "<f4", (4,)), ("flip", "?"), ("label", *label)], align=True)
        self._images: list[NDArray[np.int64]] = []
        out.mkdir()
        self._spool = tempfile.TemporaryFile(dir=out)  # noqa: SIM115  (closed in close)

    def add(self, batch: LabelBatch) -> None:
        refuse_augmentation(batch, "fkd", ("crop", "flip"), "its labels are of one image each, which its trainer mixes itself")
        if batch.image is None or batch.crop is None or batch.flip is None:
            raise UsageError("fkd repeats the crop and the flip of every label, and these records have none; write tinyvit or .npy")
        rows = np.empty(len(batch), self._record)
        rows["crop"], rows["flip"], rows["label"] = batch.crop, batch.flip, self._stored(batch.labels)
        self._spool.write(rows.tobytes())
        self._images.append(batch.image)

    def _stored(self, labels: NDArray[np.floating]) -> NDArray[Any]:
        probs = probabilities(labels, self._about)
        if self._form == "full":
            return probs
        ids, values = largest(probs, self._k, signed=True)
        if self._form == "hard":
            return ids[:, 0]
        pairs = np.stack([ids.astype(np.float32), values], 1)  # [n, 2, k]
        return pairs[:, :, 0] if self._form == "smoothing" else pairs

    def finish(self) -> None:
        self._spool.flush()
        images = np.concatenate(self._images)
        order = np.argsort(images, kind="stable")
        rows = np.memmap(self._spool, self._record, "r")
        for part in np.split(order, np.flatnonzero(np.diff(images[order])) + 1):
            crops, image = rows[part], int(images[part[0]])
            file = self._out / image_file(self._names, image)
            if file.exists():
                raise UsageError(f"fkd names files up to the first dot, and two images would be {file.name}: rename one of them")
            file.parent.mkdir(parents=True, exist_ok=True)
            items = [to_tensor(crops["crop"], self._coords), to_tensor(crops["flip"]), to_tensor(crops["label"])]
            write_items(self.counted(file), items)

    def close(self) -> None:
        self._spool.close()


def form_k(form: str, classes: int) -> int:
    """How many probabilities of a label a form stores."""
    found = re.fullmatch(r"hard|smoothing|full|m[sr]-k([1-9]\d{0,6})", form)
    require(found, "layout", f"fkd:{form}", f"must have one of the forms {FORMS}")
    assert found is not None
    k = int(found[1] or 1)
    require(k <= classes, "layout", f"fkd:{form}", f"must store no more than the {classes} classes that there are")
    return k


def image_file(names: Sequence[str], image: int) -> Path:
    """Where the labels of an image lie: its path, and of its name what is in front of the first dot.

    Raises:
        UsageError: it has no name, or one that leads out of the dump.
    """
    if image >= len(names):
        raise UsageError(f"fkd finds labels by the path of their image, and image {image} has none: {len(names)} are named")
    *folders, name = names[image].split("/")
    stem = name.split(".")[0]
    if {"", ".", ".."} & {*folders, stem} or re.search(r"[\0\\]", names[image]):
        raise UsageError(f"image {image} is named {names[image]!r}, which is no path in a folder; rename it")
    return Path(*folders, f"{stem}.tar")
