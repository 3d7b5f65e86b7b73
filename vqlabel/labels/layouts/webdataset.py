"""WebDataset's tars -> labels: of every sample the member with one suffix, such as KEY.logits.npy, [C] or [views, C].

A member's key is its path up to the first dot of its name. Members .npy and .pt or .pth hold arrays; all others (.jpg, .cls, .json ...) are
not read. Only the places of the members are kept in memory.
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
from vqlabel.labels.layouts.choose import Selection, Stored, choose
from vqlabel.labels.layouts.rows import Rows
from vqlabel.labels.layouts.tensor import array_of
from vqlabel.labels.layouts.unpickle import unpickle

BLOCK = 512  # of a tar
ARRAYS = ("npy", "pt", "pth")


class Member(NamedTuple):
    key: str
    start: int
    size: int


class TarRows(Rows):
    """The labels of one tar; image i is its i-th sample, named by its key."""

    def __init__(
        self,
        path: Path,
        suffix: str,
        members: list[Member],
        first: NDArray[Any],
        domain: str | None,
        how: Selection,
        note: str | None,
    ) -> None:
        axes = how.axes or (("images", "epochs", "classes") if first.ndim == 2 and len(first) > 1 else None)
        super().__init__(str(path), (len(members), *first.shape), first.dtype, domain, axes, note)
        self._path, self._suffix, self._members, self._shape = path, suffix, members, first.shape
        self.names = [member.key for member in members]

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        each = self.layout.epochs if self.layout.images_first else 1
        samples = []
        with self._path.open("rb") as file:
            for member in self._members[start // each : stop // each]:
                array = read_member(file, self._path, member, self._suffix)
                if (array.shape, array.dtype) != (self._shape, self.type):
                    raise BadLabels(
                        f"{self._path}: {member.key}.{self._suffix} is {array.dtype} {list(array.shape)}; the first is {self.type} {list(self._shape)}"
                    )
                samples.append(array)
        return np.stack(samples).reshape(-1, self.layout.classes)


def is_tar(path: Path) -> bool:
    """Whether this is an archive; torch.save's files are often called .tar and are none."""
    try:
        return path.is_file() and tarfile.is_tarfile(path)
    except (OSError, EOFError):
        return False


def open_tar(path: Path, how: Selection) -> Rows:
    """The labels in one tar.

    Raises:
        UsageError: no member has the suffix that `how` names.
        BadLabels: no suffix holds labels, or several may; samples without a label; a truncated tar.
    """
    members, others, samples = _index(path)
    if not members:
        raise BadLabels(
            f"{path}: a tar without labels: of its members ({', '.join(sorted(others)[:8])}) none is KEY.logits.npy or alike"
        )
    with path.open("rb") as file:
        first = {suffix: read_member(file, path, found[0], suffix) for suffix, found in members.items()}
    found = {suffix: Stored.of((len(members[suffix]), *array.shape), array.dtype) for suffix, array in first.items()}
    chosen = choose(found, how.array, path)
    labels = members[chosen.name]
    rows = TarRows(path, chosen.name, labels, first[chosen.name], chosen.domain, how, chosen.note)
    if len(labels) < samples:
        rows.notes["samples"] = f"{path}: {len(labels)} of {samples} samples have a member .{chosen.name}; the others have no label"
    return rows


def _index(path: Path) -> tuple[dict[str, list[Member]], set[str], int]:
    """Members with arrays by suffix, in order; the other suffixes; the number of samples, whose members follow each other."""
    members: dict[str, list[Member]] = {}
    others: set[str] = set()
    end, size, samples, last = 0, path.stat().st_size, 0, ""
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # else all of them are kept
            end = info.offset_data + -(-info.size // BLOCK) * BLOCK if info.isreg() else max(end, info.offset_data)
            if not info.isreg() or info.issparse() or Path(info.name).name.startswith("."):
                continue
            folder, _, name = info.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            samples, last = samples + (key != last), key
            if suffix.rpartition(".")[2] in ARRAYS and info.size:
                members.setdefault(suffix, []).append(Member(key, info.offset_data, info.size))
            else:
                others.add(f".{suffix}")
    with path.open("rb") as file:
        file.seek(end)
        if end > size or file.read(BLOCK) != bytes(BLOCK):
            raise BadLabels(f"{path}: ends at byte {size} without the end mark of a tar; it is truncated: copy it again")
    return members, others, samples


def read_member(file: Any, path: Path, member: Member, suffix: str) -> NDArray[Any]:
    """The array in a member.

    Raises:
        BadLabels: it is damaged, or larger than the member.
    """
    file.seek(member.start)
    data, name = file.read(member.size), f"{path}: {member.key}.{suffix}"
    if not suffix.endswith("npy"):
        with tempfile.NamedTemporaryFile(suffix=".pt") as copy:
            copy.write(data)
            copy.flush()
            try:
                return array_of(Path(copy.name), unpickle(Path(copy.name)))
            except BadLabels as error:
                raise BadLabels(str(error).replace(f"{copy.name}", name)) from None
    try:
        shape, fortran, dtype, start = npy_header(data)
    except Exception as error:  # NumPy's header parser raises nearly anything on damaged bytes
        raise BadLabels(f"{name} is no readable .npy ({str(error)[:200]})") from None
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - start or min(shape, default=1) < 0:
        raise BadLabels(f"{name}: {dtype} {list(shape)} in {len(data)} bytes; it is damaged")
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")
