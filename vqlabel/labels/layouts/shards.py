"""A file of labels alone, of any kind, or a folder of numbered shards of one dump -> label batches."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vqlabel.errors import BadLabels, VqlabelError
from vqlabel.labels.layouts import arrow, hdf5, tensor
from vqlabel.labels.layouts.arrays import open_npy, open_npz, open_safetensors
from vqlabel.labels.layouts.choose import Selection
from vqlabel.labels.layouts.rows import Rows, RowsSource
from vqlabel.labels.layouts.webdataset import is_tar, open_tar
from vqlabel.storage.filetypes import foreign_file_message, require_regular

READERS: dict[str, Callable[[Path, Selection], Rows]] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".safetensors": open_safetensors,
    **dict.fromkeys(arrow.SUFFIXES, arrow.open_column),
    **dict.fromkeys(hdf5.SUFFIXES, hdf5.open_dataset),
    **dict.fromkeys(tensor.SUFFIXES, tensor.open_tensor),
    ".tar": open_tar,
}
SUFFIXES = tuple(suffix for suffix in READERS if suffix != ".tar")  # which is also torch.save's in most systems' dumps
MADE_BY = {  # what a number in a name counts, where it is not a part of one dump
    "rank": "ranks: their samplers dealt the images out in turn, so that one after the other they are in the order of no epoch",
    "gpu": "ranks: their samplers dealt the images out in turn, so that one after the other they are in the order of no epoch",
    "teacher": "teachers: one dump has one",
    "model": "teachers: one dump has one",
    "seed": "teachers or runs: one dump has one",
    "run": "teachers or runs: one dump has one",
    "fold": "folds, of which each has a teacher of its own",
}
SHOWN = 4


class ArraySource(RowsSource):
    """One file, or a folder of them in numeric order; shards are consecutive records, epochs or, where they have names or stand first, images."""

    def __init__(self, path: Path, domain: str | None, how: Selection = Selection()) -> None:
        files = shards_of(path) if path.is_dir() else [path]
        if not files:
            raise BadLabels(f"{path}: holds none of {', '.join(SUFFIXES)}; a dump has at least one shard")
        gaps = _missing(path, files)
        super().__init__(path, [open_rows(file, how) for file in files], domain, axes_named=how.axes is not None)
        if len(files) > 1:
            self.notes.insert(0, f"{path}: {len(files)} files joined, {files[0].name} to {files[-1].name}{gaps}")


def open_rows(path: Path, how: Selection = Selection()) -> Rows:
    """One file's array.

    Raises:
        UsageError: `how` names an array that is not in it.
        BadLabels: the file is malformed, or has no array that can be labels, or more than one.
        MissingExtra: its reader is not installed.
    """
    require_regular(path)
    try:
        return READERS.get(path.suffix, open_npy)(path, how)
    except VqlabelError:
        raise
    except Exception as error:  # NumPy's header parser, zipfile and other libraries raise nearly anything on damaged bytes
        raise BadLabels(
            foreign_file_message(path, f"a {path.suffix} file")
            or f"{path}: no readable {path.suffix} file ({str(error)[:200]}); it may be truncated or of another format"
        ) from None


def shards_of(folder: Path) -> list[Path]:
    """The files in a folder that may be shards of a dump, in numeric order; hidden ones, such as macOS's ._ files, are none."""
    files = [file for file in folder.iterdir() if file.suffix in SUFFIXES and not file.name.startswith(".")]
    if not files:
        files = [file for file in folder.glob("*.tar") if not file.name.startswith(".")]
        files = files if files and is_tar(min(files)) else []
    return sorted(files, key=in_numeric_order)


def in_numeric_order(path: Path) -> list[tuple[int, int | str]]:
    """Sort key by which batch_10 comes after batch_9."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", path.name) if part]


def _missing(folder: Path, files: Sequence[Path]) -> str:
    """Of the shards' numbers those between the first and the last that are not there, in words.

    Raises:
        BadLabels: the files are not numbered parts of one dump, as far as their names tell.
    """
    if len(files) == 1:
        return ""
    stems = [file.name.removesuffix(file.suffix) for file in files]
    texts = {re.sub(r"\d+", "#", stem) for stem in stems}
    if len(texts) > 1:
        if "labels.pt" in (names := {file.name for file in files}):
            raise BadLabels(f"{folder}: the labels of a distilled set are one file of it: name {folder / 'labels.pt'}")
        if files[0].suffix in tensor.SUFFIXES:
            open_rows(files[0])  # which may hold no labels at all, but the map of one image: that is the better refusal
        raise BadLabels(_not_shards(folder, files, f"names that differ in more than a number ({', '.join(sorted(names)[:SHOWN])})"))
    (text,) = texts
    numbers = np.array([[int(number) for number in re.findall(r"\d+", stem)] for stem in stems], dtype=object)
    if len({tuple(row) for row in numbers.tolist()}) < len(files):
        raise BadLabels(_not_shards(folder, files, f"two files of one number ({', '.join(file.name for file in files[:SHOWN])})"))
    glued = re.findall(r"([A-Za-z]*)([^A-Za-z#]*)#", text)
    varying = [at for at in range(numbers.shape[1]) if len(set(numbers[:, at])) > 1]
    for at in varying:
        word, between = glued[at]
        made_by = MADE_BY.get(word.lower())
        if made_by:
            raise BadLabels(_not_shards(folder, files, f"{files[0].name} to {files[-1].name}, which are {made_by}"))
        seen = sorted(set(numbers[:, at]))
        if word and not between and seen[-1] - seen[0] >= len(seen):
            raise BadLabels(
                _not_shards(folder, files, f"{files[0].name} to {files[-1].name}, whose numbers do not follow each other")
            )
    if len(varying) != 1:
        return ""
    seen = sorted(set(numbers[:, varying[0]]))
    gone = seen[-1] - seen[0] + 1 - len(seen)
    return f"; {gone} numbers between them are missing" if gone else ""


def _not_shards(folder: Path, files: Sequence[Path], why: str) -> str:
    return (
        f"{folder}: holds {why}. Name the file to read, such as {files[0]}; parts of one dump, in order, are named part-0{files[0].suffix}, "
        f"part-1{files[0].suffix} ..."
    )
