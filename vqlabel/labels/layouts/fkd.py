"""The files of FKD and FerKD, one per image <-> label batches.

.../<class folder>/<image>.tar   torch.save list of 3: coords f32 or f16 [crops, 4], flip bool [crops], labels:
                                     hard      i64 [crops]        class
                                     smoothing f32 [crops, 2]     class, probability
                                     ms-k5     f32 [crops, 2, 5]  classes, probabilities; likewise for any k
                                     full      f32 [crops, C]     probabilities

The labels are probabilities of unmixed crops: FKD mixes images and labels while it trains. It finds the file of an
image by the image's path. In the form ms-k, all other classes share the rest of 1 equally (marginal smoothing). A file
for marginal re-normalisation, mr-k, is the same, but its reader drops the rest.
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels.batch import LabelBatch, Place, Support
from vqlabel.labels.layouts.label_dtypes import torch_dtype_name
from vqlabel.labels.layouts.layout import ANY_TAR, Layout
from vqlabel.labels.layouts.tensor import refuse_augmentation
from vqlabel.labels.layouts.torch_items import array_item, describe, label_dtype, list_length, read_items, to_tensor, write_items
from vqlabel.labels.layouts.webdataset import is_tar
from vqlabel.labels.source import About, LabelSource
from vqlabel.labels.sparse import Labels, as_dense
from vqlabel.labels.topk import check_topk_probs, sparse_probs, to_probabilities, topk
from vqlabel.labels.writer import LabelWriter
from vqlabel.storage.filetypes import is_sidecar

MIN_AMBIGUOUS_CLASS = 2048  # from here on fp16 rounds two classes to one number
FORMS = "hard, smoothing, ms-k5 (or any other k), mr-k5, full"


class FkdFile(NamedTuple):
    """One file: the crops of an image, and their labels as they are stored."""

    crop: NDArray[np.floating]  # [n, 4]
    flip: NDArray[np.bool_]  # [n]
    form: str
    ids: NDArray[np.int64] | None  # [n, k]; None: all classes, in order
    values: NDArray[np.floating]  # [n, k] or [n, C], fp16 or fp32
    dtype: str  # of item 2 in the file: fp64 is narrowed; hard labels are "int64"

    @property
    def kind(self) -> tuple[str, str, str]:
        """What all files of a dump must have in common: form, type of the labels, type of the coords."""
        return self.form, self.dtype, self.crop.dtype.name

    @property
    def rest(self) -> str:
        """What the classes that are not stored have, see `Support`."""
        return "zero" if self.form == "hard" else "uniform"


class FkdSource(LabelSource):
    """A folder with such files at any depth, sorted by path: file i has the labels of image i and gives it its name.

    Args:
        classes: C, which only the form "full" records. None: the largest class in all files, plus 1, which is too few
            if no label contains the teacher's last class.

    Raises:
        UsageError: `domain` is not probs, or `classes` contradicts the files.
        BadLabels: there is no such file, or one is malformed or differs from the first in form or type.
    """

    def __init__(self, path: Path, domain: str | None, classes: int | None = None) -> None:
        require(domain in (None, "probs"), "domain", domain, "must be probs, which is what fkd stores")
        self.path, self._names = path, find_images(path)
        self.places = [Place(0, image) for image in range(len(self._names))]
        first = read_file(self._file(0))
        self._kind, (form, labels_dtype, coords_dtype) = first.kind, first.kind
        self.about = About(
            layout="fkd",
            classes=self._count_classes(first, classes),
            domain="probs",
            dtype=label_dtype(self, torch_dtype_name(labels_dtype) or "F16"),  # hard labels are held as probabilities 1 in fp16
            order="explicit",
            temperature=1.0,
            support=None if first.ids is None else Support(k=first.ids.shape[1], rest=first.rest),
            names=self._names,
            details={"form": form, "coords": coords_dtype},
        )

    def _count_classes(self, first: FkdFile, classes: int | None) -> int:
        """C, from the first file or from all, or as the user passed it."""
        if first.ids is not None:
            return classes or max(2, 1 + max(self._largest_class(index) for index in range(len(self))))
        stored = int(first.values.shape[1])
        require(classes in (None, stored), "classes", classes, f"must be {stored}, as in the files, or left out")
        return stored

    def _file(self, index: int) -> Path:
        return self.path / f"{self._names[index]}.tar"

    def _read_file(self, index: int) -> FkdFile:
        content = read_file(self._file(index))
        if content.kind != self._kind:
            this, first = ("{}, {}, coords {}".format(*kind) for kind in (content.kind, self._kind))
            raise BadLabels(f"{self._file(index)}: labels are {this}, but {first} in the first file: regenerate one of them")
        return content

    def _largest_class(self, index: int) -> int:
        ids = self._read_file(index).ids
        return 0 if ids is None else int(ids.max())

    def files_of(self, index: int) -> tuple[Path, ...]:
        return (self._file(index),)

    def _load(self, index: int) -> tuple[LabelBatch, str]:
        content, name = self._read_file(index), str(self._file(index))
        labels: Labels = content.values
        if content.ids is not None:
            labels = sparse_probs(content.ids, content.values, self.classes, name, content.rest)
        return LabelBatch(
            labels=labels,
            place=self.places[index],
            image=np.full(len(content.flip), index, np.int64),
            crop=content.crop.astype(np.float32),
            flip=content.flip,
        ), name


def find_images(path: Path) -> list[str]:
    """The sorted names of the images that have a file below `path`: its path in it, without .tar.

    Raises:
        BadLabels: there is none, or a name contains a line feed or is not UTF-8.
    """
    if not path.is_dir():
        raise BadLabels(f"{path}: not a folder; FKD's dump is a folder with a .tar file for every image")
    names = sorted(file.relative_to(path).as_posix().removesuffix(".tar") for file in path.rglob("*.tar") if not is_sidecar(file))
    if not names:
        raise BadLabels(f"{path}: contains no .tar file; a dump has at least one image")
    for name in names:
        if re.search("[\n\ud800-\udfff]", name):
            raise BadLabels(f"{path}: an image is named {name!r}; names must be one line of UTF-8: rename its file")
    return names


def holds_only_fkd_files(path: Path) -> bool:
    """Whether a folder contains FKD's files and nothing else.

    Only the first file is opened; a tar archive is not such a file.
    """
    files = (entry for entry in path.rglob("*") if not entry.is_dir())
    first = next(files, None)
    return first is not None and all(file.suffix == ".tar" for file in (first, *files)) and list_length(first) == 3


def read_file(file: Path) -> FkdFile:
    """Read one file, whose arrays may be NumPy's, as FKD saves them, or tensors.

    Raises:
        BadLabels: it is malformed.
    """
    items = read_items(file, (3,), "FKD", "coords, flip, labels")
    dtype = str(getattr(items[2], "dtype", "")).removeprefix("torch.")
    form, ids, values = _split_labels(file, items[2].float() if dtype == "float64" else items[2])
    crop = array_item(file, 0, items[0], (len(values), 4), "float32", "float16")
    flip = array_item(file, 1, items[1], (len(values),), "bool")
    if crop is None or flip is None:
        raise BadLabels(f"{file}: has labels without coords or flip, so the views that they belong to are unknown; regenerate it")
    if ids is None:
        return FkdFile(crop, flip, form, None, values, dtype)
    if ids.dtype == np.float16 and ids.max() >= MIN_AMBIGUOUS_CLASS:
        raise BadLabels(
            f"{file}: contains class {ids.max():.0f} in fp16, which rounds classes from {MIN_AMBIGUOUS_CLASS} on; regenerate it in fp32"
        )
    return FkdFile(crop, flip, form, check_topk_probs(ids, values, str(file)), values, dtype)


def _split_labels(file: Path, item: Any) -> tuple[str, NDArray[Any] | None, NDArray[np.floating]]:
    """Item 2 -> its form, classes and probabilities."""
    dtype, shape = str(getattr(item, "dtype", None)).removeprefix("torch."), tuple(getattr(item, "shape", ()))
    if dtype == "int64" and len(shape) == 1 and shape[0]:
        return "hard", item.numpy()[:, None], np.ones((*shape, 1), np.float16)
    if dtype in ("float16", "float32") and len(shape) in (2, 3) and shape[0] and shape[1] >= 2 and shape[-1]:
        array = item.numpy()
        if len(shape) == 3 and shape[1] == 2:
            return f"ms-k{shape[2]}", array[:, 0], array[:, 1]
        if len(shape) == 2:
            return ("smoothing", array[:, :1], array[:, 1:]) if shape[1] == 2 else ("full", None, array)
    raise BadLabels(
        f"{file}: item 2 is {describe(item)}; it must be labels int64 [n], or fp16, fp32 or fp64 [n, 2], [n, 2, k] or [n, C], and not empty"
    )


class FkdWriter(LabelWriter):
    """The files, as tensors with classes and probabilities in fp32: FKD's own trainer fails on arrays and on fp16.

    The records of an image may be in any batch, so all wait in a temporary file beside the result until the last one is
    added; in memory is the image index of each. Coords have the type of the FKD dump that the labels come from, else
    fp32.

    Raises:
        UsageError: the records have no names of images, or the form is not valid (in the constructor); records have no
            crop or flip, or other augmentation (in `add`); two images would have one file, or a name is not a path
            within the folder (in `finish`).
    """

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        fkd_details = about.details if about.layout == "fkd" else {}
        self._form = form or str(fkd_details.get("form", "ms-k5"))
        self._k = form_k(self._form, about.classes)
        if about.order == "none" or about.names is None:
            raise UsageError(
                "fkd finds labels by the path of their image, but these images have no names; only fkd dumps have, and tinyvit dumps whose "
                "keys are paths: write .npy"
            )
        self._out, self._about, self._names = out, about, about.names
        self._coords = "float16" if fkd_details.get("coords") == "float16" else "float32"
        forms = {"hard": ("<i8", ()), "smoothing": ("<f4", (2,)), "full": ("<f4", (about.classes,))}
        label = forms.get(self._form, ("<f4", (2, self._k)))
        self._record = np.dtype([("crop", "<f4", (4,)), ("flip", "?"), ("label", *label)], align=True)
        self._images: list[NDArray[np.int64]] = []
        out.mkdir()
        self._spool = tempfile.TemporaryFile(dir=out)  # noqa: SIM115  (closed in close)

    def add(self, batch: LabelBatch) -> None:
        refuse_augmentation(batch, "fkd", ("crop", "flip"), "its labels are of one image each, which its trainer mixes itself")
        if batch.image is None or batch.crop is None or batch.flip is None:
            raise UsageError(
                "fkd stores the crop and the flip of every label, which these records do not have; write tinyvit or .npy"
            )
        rows = np.empty(len(batch), self._record)
        rows["crop"], rows["flip"], rows["label"] = batch.crop, batch.flip, self._to_form(batch.labels)
        self._spool.write(rows.tobytes())
        self._images.append(batch.image)

    def _to_form(self, labels: Labels) -> NDArray[Any]:
        """Labels [n, C] -> item 2 of the form."""
        probs = to_probabilities(labels, self._about)
        if self._form == "full":
            return as_dense(probs)
        ids, values = topk(probs, self._k, signed_zeros=True)
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
                raise UsageError(
                    f"fkd names a file by the part of the image's name before the first dot, and two images would have {file.name}: rename "
                    "one of them"
                )
            file.parent.mkdir(parents=True, exist_ok=True)
            items = [to_tensor(crops["crop"], self._coords), to_tensor(crops["flip"]), to_tensor(crops["label"])]
            write_items(self.counted(file), items)

    def close(self) -> None:
        self._spool.close()


def form_k(form: str, classes: int) -> int:
    """The number of probabilities per label of a form ("full": 1, which is not used).

    Raises:
        UsageError: the form is not one of FORMS, or its k is above C.
    """
    match = re.fullmatch(r"hard|smoothing|full|m[sr]-k([1-9]\d{0,6})", form)
    require(match, "layout", f"fkd:{form}", f"must have one of the forms {FORMS}")
    assert match is not None
    k = int(match[1] or 1)
    require(k <= classes, "layout", f"fkd:{form}", f"must have k at most {classes}, the number of classes")
    return k


def image_file(names: Sequence[str], image: int) -> Path:
    """The path of the file of an image: the image's path, with its name cut at the first dot.

    Raises:
        UsageError: the image has no name, or its name is not a path within the dump.
    """
    if image >= len(names):
        raise UsageError(
            f"fkd finds labels by the path of their image, but image {image} has no name: there are {len(names)} names"
        )
    *folders, name = names[image].split("/")
    stem = name.split(".")[0]
    if {"", ".", ".."} & {*folders, stem} or re.search(r"[\0\\]", names[image]):
        raise UsageError(f"image {image} is named {names[image]!r}, which is not a path within a folder; rename it")
    return Path(*folders, f"{stem}.tar")


def _detect(path: Path) -> str | None:
    return "fkd" if any(not is_sidecar(file) and not is_tar(file) for file in path.rglob("*.tar")) else None


LAYOUT = Layout(
    source=FkdSource,
    writer=FkdWriter,
    detect=_detect,
    step=ANY_TAR,
    holds_only=holds_only_fkd_files,
    options="topk",
)
