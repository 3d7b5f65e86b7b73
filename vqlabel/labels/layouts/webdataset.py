"""WebDataset's tar archives -> labels: from every sample the member with one suffix, such as KEY.logits.npy.

A member holds one label [C], or [views, C]. Its key is its path up to the first dot of its file name. Members .npy, .pt
and .pth hold arrays; others (.jpg, .cls, .json ...) are not read. Only the positions of the members are kept in memory.
"""

import math
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels.layouts.arrays import npy_header
from vqlabel.labels.layouts.rows import Rows
from vqlabel.labels.layouts.select_array import ArrayInfo, SelectedArray, Selection, select_array
from vqlabel.labels.layouts.tensor import to_array
from vqlabel.labels.layouts.unpickle import unpickle

BLOCK_BYTES = 512  # unit of a tar archive
ARRAY_SUFFIXES = ("npy", "pt", "pth")


class Member(NamedTuple):
    """A file in the archive: the key of its sample, and where its bytes lie."""

    key: str
    start: int
    size: int


class TarIndex(NamedTuple):
    """The members of an archive.

    Attributes:
        arrays: members that hold arrays, by suffix, in order.
        others: the suffixes of all other members.
        samples: number of samples; the members of a sample are consecutive.
    """

    arrays: dict[str, list[Member]]
    others: set[str]
    samples: int


class TarRows(Rows):
    """The labels of one archive; image i is its i-th sample, named by its key."""

    def __init__(
        self, path: Path, labels: SelectedArray, members: list[Member], first: NDArray[Any], axes: tuple[str, ...] | None
    ) -> None:
        axes = axes or (("images", "epochs", "classes") if first.ndim == 2 and len(first) > 1 else None)
        super().__init__(path, labels, (len(members), *first.shape), first.dtype, axes)
        self._members, self._shape = members, first.shape
        self.names = [member.key for member in members]

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        rows_per_member = self.layout.epochs if self.layout.images_first else 1
        samples = []
        with self.path.open("rb") as file:
            for member in self._members[start // rows_per_member : stop // rows_per_member]:
                array = read_member(file, self.path, member, self.array)
                if (array.shape, array.dtype) != (self._shape, self.type):
                    raise BadLabels(
                        f"{self.path}: {member.key}.{self.array} is {array.dtype} {list(array.shape)}; the first one is {self.type} "
                        f"{list(self._shape)}"
                    )
                samples.append(array)
        return np.stack(samples).reshape(-1, self.layout.classes)


def is_tar(path: Path) -> bool:
    """Whether this is a tar archive; torch.save files are often named .tar and are not."""
    try:
        return path.is_file() and tarfile.is_tarfile(path)
    except (OSError, EOFError):
        return False


def open_tar(path: Path, selection: Selection) -> Rows:
    """The labels in one archive.

    Raises:
        UsageError: no member has the suffix that `selection` names.
        BadLabels: members of no suffix hold labels, or of several may; or the archive is truncated.
    """
    index = _read_index(path)
    if not index.arrays:
        suffixes = ", ".join(sorted(index.others)[:8])
        raise BadLabels(f"{path}: a tar archive without labels: it has members {suffixes}, but none such as KEY.logits.npy")
    with path.open("rb") as file:
        first = {suffix: read_member(file, path, members[0], suffix) for suffix, members in index.arrays.items()}
    arrays = {suffix: ArrayInfo.of((len(index.arrays[suffix]), *array.shape), array.dtype) for suffix, array in first.items()}
    labels = select_array(arrays, selection.array, path)
    members = index.arrays[labels.name]
    rows = TarRows(path, labels, members, first[labels.name], selection.axes)
    if len(members) < index.samples:
        rows.notes["samples"] = (
            f"{path}: {len(members)} of {index.samples} samples have a member .{labels.name}; the others have no label"
        )
    return rows


def _read_index(path: Path) -> TarIndex:
    """The members of an archive; raises BadLabels if it is truncated."""
    arrays: dict[str, list[Member]] = {}
    others: set[str] = set()
    end, samples, last_key = 0, 0, ""
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
            end = info.offset_data + -(-info.size // BLOCK_BYTES) * BLOCK_BYTES if info.isreg() else max(end, info.offset_data)
            if not info.isreg() or info.issparse() or Path(info.name).name.startswith("."):
                continue
            folder, _, name = info.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            samples, last_key = samples + (key != last_key), key
            if suffix.rpartition(".")[2] in ARRAY_SUFFIXES and info.size:
                arrays.setdefault(suffix, []).append(Member(key, info.offset_data, info.size))
            else:
                others.add(f".{suffix}")
    _check_end(path, end)
    return TarIndex(arrays, others, samples)


def _check_end(path: Path, end: int) -> None:
    """Raises BadLabels if the zeros that end an archive are missing, which tarfile does not check."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(end)
        if end > size or file.read(BLOCK_BYTES) != bytes(BLOCK_BYTES):
            raise BadLabels(f"{path}: ends at byte {size} without the end mark of a tar archive; it is truncated: copy it again")


def read_member(file: Any, path: Path, member: Member, suffix: str) -> NDArray[Any]:
    """The array in a member.

    Raises:
        BadLabels: the array is damaged, or larger than the member.
    """
    file.seek(member.start)
    data, name = file.read(member.size), f"{path}: {member.key}.{suffix}"
    return _read_npy(data, name) if suffix.endswith("npy") else _read_pt(data, name)


def _read_npy(data: bytes, name: str) -> NDArray[Any]:
    try:
        shape, column_major, dtype, offset = npy_header(data)
    except Exception as error:  # NumPy's header parser raises nearly anything on damaged bytes
        raise BadLabels(f"{name} is not readable as .npy ({str(error)[:200]})") from None
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - offset or min(shape, default=1) < 0:
        raise BadLabels(f"{name}: {dtype} {list(shape)} in {len(data)} bytes; it is damaged")
    return np.frombuffer(data, dtype, offset=offset).reshape(shape, order="F" if column_major else "C")


def _read_pt(data: bytes, name: str) -> NDArray[Any]:
    with tempfile.NamedTemporaryFile(suffix=".pt") as copy:
        copy.write(data)
        copy.flush()
        try:
            return to_array(Path(copy.name), unpickle(Path(copy.name)))
        except BadLabels as error:
            raise BadLabels(str(error).replace(f"{copy.name}", name)) from None
