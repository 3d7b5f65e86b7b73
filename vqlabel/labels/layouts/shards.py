"""A file of labels alone, of any type, or a folder of numbered shards of one dump -> label batches."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vqlabel.errors import BadLabels, VqlabelError
from vqlabel.labels.layouts import arrow, hdf5, tensor
from vqlabel.labels.layouts.arrays import ArrayWriter, open_npy, open_npz, open_safetensors
from vqlabel.labels.layouts.layout import SHARED_NAMES, Layout
from vqlabel.labels.layouts.rows import Rows, RowsSource
from vqlabel.labels.layouts.select_array import Selection
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
SUFFIXES = tuple(suffix for suffix in READERS if suffix != ".tar")  # .tar may also be a torch.save file, as in SRe2L's dumps
_BY_RANK = "written by ranks: each rank gets every world_size-th image, so that their concatenation is in the order of no epoch"
NOT_PARTS = {  # words before a number that mark files which are not consecutive parts of one dump -> what they are
    "rank": _BY_RANK,
    "gpu": _BY_RANK,
    "teacher": "of different teachers: a dump has one",
    "model": "of different teachers: a dump has one",
    "seed": "of different teachers or runs: a dump has one",
    "run": "of different teachers or runs: a dump has one",
    "fold": "of different folds, each with a teacher of its own",
}
MAX_SHOWN = 4  # file names that a message lists


class ArraySource(RowsSource):
    """One file, or the shards in a folder in numeric order.

    Shards continue with further records, epochs or, if images have names or come first, images.

    Raises:
        BadLabels: see `open_rows`; or the folder has no shards, or files that are not numbered parts of one dump.
    """

    def __init__(self, path: Path, domain: str | None, selection: Selection = Selection()) -> None:
        files = shards_of(path) if path.is_dir() else [path]
        if not files:
            raise BadLabels(f"{path}: contains none of {', '.join(SUFFIXES)}; a dump has at least one shard")
        missing = _check_numbering(path, files)
        super().__init__(path, [open_rows(file, selection) for file in files], domain, axes_named=selection.axes is not None)
        if len(files) > 1:
            self.notes.insert(0, f"{path}: {len(files)} files concatenated, {files[0].name} to {files[-1].name}{missing}")


def open_rows(path: Path, selection: Selection = Selection()) -> Rows:
    """The array of labels in one file.

    Raises:
        UsageError: `selection` names an array that is not in it.
        BadLabels: the file is malformed, or has no array that may be labels, or several.
        MissingExtra: its reader is not installed.
    """
    require_regular(path)
    try:
        return READERS.get(path.suffix, open_npy)(path, selection)
    except VqlabelError:
        raise
    except Exception as error:  # NumPy's header parser, zipfile and other libraries raise nearly anything on damaged bytes
        raise BadLabels(
            foreign_file_message(path, f"a {path.suffix} file")
            or f"{path}: not readable as a {path.suffix} file ({str(error)[:200]}); it may be truncated or of another format"
        ) from None


def shards_of(folder: Path) -> list[Path]:
    """The files in a folder that may be shards of a dump, in numeric order; hidden files are left out."""
    files = [file for file in folder.iterdir() if file.suffix in SUFFIXES and not file.name.startswith(".")]
    if not files:
        files = [file for file in folder.glob("*.tar") if not file.name.startswith(".")]
        files = files if files and is_tar(min(files)) else []
    return sorted(files, key=in_numeric_order)


def in_numeric_order(path: Path) -> list[tuple[int, int | str]]:
    """Sort key that orders batch_10 after batch_9."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", path.name) if part]


def _check_numbering(folder: Path, files: Sequence[Path]) -> str:
    """A remark on missing numbers between the first and the last shard; "" if there are none.

    Raises:
        BadLabels: the names of the files are not those of numbered parts of one dump.
    """
    if len(files) == 1:
        return ""
    stems = [file.name.removesuffix(file.suffix) for file in files]
    texts = {re.sub(r"\d+", "#", stem) for stem in stems}
    if len(texts) > 1:
        raise BadLabels(_different_names(folder, files))
    (text,) = texts
    numbers = np.array([[int(number) for number in re.findall(r"\d+", stem)] for stem in stems], dtype=object)
    if len({tuple(row) for row in numbers.tolist()}) < len(files):
        names = ", ".join(file.name for file in files[:MAX_SHOWN])
        raise BadLabels(_not_shards(folder, files, f"two files of one number ({names})"))
    words = re.findall(
        r"([A-Za-z]*)([^A-Za-z#]*)#", text
    )  # in front of every number: a word, and what separates it from the number
    varying = [column for column in range(numbers.shape[1]) if len(set(numbers[:, column])) > 1]
    for column in varying:
        word, separator = words[column]
        _check_number(folder, files, word, separator, set(numbers[:, column]))
    if len(varying) != 1:
        return ""
    used = set(numbers[:, varying[0]])
    missing = max(used) - min(used) + 1 - len(used)
    return f"; {missing} numbers between them are missing" if missing else ""


def _check_number(folder: Path, files: Sequence[Path], word: str, separator: str, used: set[int]) -> None:
    """Raises BadLabels if a number in the names does not count parts, by the word before it or by gaps."""
    names = f"{files[0].name} to {files[-1].name}"
    if word.lower() in NOT_PARTS:
        raise BadLabels(_not_shards(folder, files, f"{names}, which are {NOT_PARTS[word.lower()]}"))
    if word and not separator and max(used) - min(used) >= len(used):
        raise BadLabels(_not_shards(folder, files, f"{names}, whose numbers are not consecutive"))


def _different_names(folder: Path, files: Sequence[Path]) -> str:
    """The message for files whose names differ in more than a number."""
    names = {file.name for file in files}
    if "labels.pt" in names:
        return f"{folder}: the labels of a distilled dataset are in one of its files: name {folder / 'labels.pt'}"
    if files[0].suffix in tensor.SUFFIXES:
        open_rows(files[0])  # it may contain no labels, such as one image's label map: that error is more helpful
    shown = ", ".join(sorted(names)[:MAX_SHOWN])
    return _not_shards(folder, files, f"files whose names differ in more than a number ({shown})")


def _not_shards(folder: Path, files: Sequence[Path], reason: str) -> str:
    return (
        f"{folder}: contains {reason}. Name the file to read, such as {files[0]}; the parts of one dump, in order, must be named "
        f"part-0{files[0].suffix}, part-1{files[0].suffix} ..."
    )


LAYOUT = Layout(
    source=ArraySource,
    writer=ArrayWriter,
    detect=lambda path: "arrays" if shards_of(path) else None,
    step=SHARED_NAMES,
    options="array",
)
