"""Which images labels are of: their number, and digests of their names and bytes, by which another folder is told from theirs.

A label belongs to an image by its index, so one file too many in a folder moves all that follow it to other labels.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadContainer, UsageError, require

IMAGES_MOST = 1 << 24
PARTS = 64  # of the names, each with a mark: so near a difference can be located
MARK = 4  # hex digits
DIGESTS = ("names", "bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSet:
    """The images that labels are of, as far as they are known.

    Attributes:
        count: N; labels name images 0 .. N - 1.
        names_sha256: of their names in order, each with a line feed behind it; None: unknown. A name is the path below the folder, with
            slashes and without the suffix, so that the same images may be kept in another format.
        marks: the first digits that this digest has after each of min(N, 64) parts of the names; None where it is None.
        bytes_sha256: of the sha256 of every file, in order; None: not taken.

    Raises:
        UsageError: a field is of another type or form.
    """

    count: int
    names_sha256: str | None = None
    marks: str | None = None
    bytes_sha256: str | None = None

    def __post_init__(self) -> None:
        good = type(self.count) is int and 1 <= self.count <= IMAGES_MOST
        require(good, "number of images", self.count, f"must be 1..{IMAGES_MOST}")
        lengths = {"names_sha256": 64, "bytes_sha256": 64, "marks": MARK * min(self.count, PARTS)}
        for name, length in lengths.items():
            value = getattr(self, name)
            good = value is None or (isinstance(value, str) and bool(re.fullmatch(rf"[0-9a-f]{{{length}}}", value)))
            require(good, name, str(value)[:80], f"must be {length} hex digits")
        require((self.marks is None) == (self.names_sha256 is None), "marks", self.marks, "must stand beside names_sha256")

    @classmethod
    def of(cls, names: Sequence[str], files: Sequence[str | os.PathLike[str]] | None = None) -> Self:
        """Of these names, as `image_names` has them; and, where `files` are given, of their bytes.

        Raises:
            UsageError: there is no image, or a file cannot be read.
        """
        total, marks = _marks(names, len(names))
        return cls(
            count=len(names), names_sha256=total, marks="".join(marks), bytes_sha256=None if files is None else _bytes_sha256(files)
        )

    def to_dict(self) -> dict[str, Any]:
        """What is known, as JSON takes it; inverse of `from_dict`."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: object, where: str | os.PathLike[str]) -> Self:
        """Build from what a file holds; later versions may add keys.

        Raises:
            BadContainer: `values` are none of an image set; names `where`.
        """
        try:
            require(isinstance(values, dict) and "count" in values, "images", str(values)[:80], "must be an object with a count")
            assert isinstance(values, dict)
            return cls(**{one.name: values[one.name] for one in fields(cls) if one.name in values})
        except UsageError as error:
            raise BadContainer(f"{where}: {error}; damaged or forged") from None

    def refuse_others(
        self,
        where: str | os.PathLike[str],
        found: "ImageSet",
        names: Sequence[str] | None = None,
        files: Sequence[str | os.PathLike[str]] | None = None,
        *,
        of: str = "the labels",
        remedy: str = "name the images that were labelled",
    ) -> str | None:
        """Refuse images that are others than these.

        Args:
            where: what holds the other ones, for messages.
            found: what is known of them.
            names, files: theirs, where they are at hand: to locate a difference, and to take their bytes if these have a digest of bytes.
            of, remedy: what these images belong to, and what to do, for messages.

        Returns:
            None where names agree; else a sentence on why it cannot be told whether these are the images.

        Raises:
            UsageError: they are others; names both sides and, where it is known, the first difference.
        """
        first = self._first_difference(found, names)
        if found.count != self.count:
            raise UsageError(f"{where} has {found.count} images, {of} are of {self.count}{first}: {remedy}")
        if None not in (self.names_sha256, found.names_sha256) and self.names_sha256 != found.names_sha256:
            raise UsageError(
                f"{where} has other images, or in another order, than those that {of} are of{first}: their names have the sha256 "
                f"{str(found.names_sha256)[:12]}..., not {str(self.names_sha256)[:12]}...; {remedy}"
            )
        theirs = found.bytes_sha256 or (_bytes_sha256(files) if self.bytes_sha256 and files is not None else None)
        if None not in (self.bytes_sha256, theirs) and self.bytes_sha256 != theirs:
            raise UsageError(
                f"{where} has files of the same names as the images that {of} are of, with other bytes (sha256 {str(theirs)[:12]}..., not "
                f"{str(self.bytes_sha256)[:12]}...): {remedy}"
            )
        if None not in (self.names_sha256, found.names_sha256):
            return None
        unknown = "their names are not recorded" if self.names_sha256 is None else "these have no names"
        return (
            f"{where} has {self.count} images, which is the number that {of} are of; whether they are the same ones in the same order cannot be "
            f"told, for {unknown}"
        )

    def _first_difference(self, found: "ImageSet", names: Sequence[str] | None) -> str:
        """Where names begin to differ, for messages; "" where that is unknown."""
        if self.marks is None or (names is None and (found.marks is None or found.count != self.count)):
            return ""
        theirs = found.marks if names is None else "".join(_marks(names, self.count)[1])
        assert theirs is not None
        ends = _ends(self.count)
        same = next((at for at in range(len(ends)) if self.marks[MARK * at :][:MARK] != theirs[MARK * at :][:MARK]), len(ends))
        start, stop = ends[same - 1] if same else 0, ends[same] if same < len(ends) else self.count + 1
        where = f"at image {start}" if stop == start + 1 else f"at one of images {start} to {stop - 1}"
        here = "" if names is None or start >= len(names) else f" ({', '.join(map(repr, names[start : min(stop, start + 3)]))}"
        return f", and names differ first {where}" + (f"{here}{', ...' if stop > start + 3 else ''} there)" if here else "")


def image_names(files: Iterable[str | os.PathLike[str]], folder: str | os.PathLike[str]) -> list[str]:
    """The paths of files below `folder`, with slashes and without their suffixes."""
    return [os.path.splitext(os.path.relpath(file, folder))[0].replace(os.sep, "/") for file in files]


class WholeEpochs:
    """Batches in the order of a dump -> the number of images that its whole epochs imply: such an epoch shows each of 0 .. N - 1 once."""

    def __init__(self) -> None:
        self._epoch, self._parts, self._most, self._count = -1, list[NDArray[np.int32]](), -1, 0

    def add(self, epoch: int, image: NDArray[np.int64]) -> None:
        """A batch: its epoch, and the images of its records."""
        if epoch != self._epoch:
            self._close()
        self._epoch = epoch
        self._parts.append(image.astype(np.int32))
        self._most = max(self._most, int(image.max(initial=-1)))

    def images(self) -> int | None:
        """N; None where no epoch is whole, or a label is of an image beyond."""
        self._close()
        return self._count if self._count > 0 and self._most < self._count else None

    def _close(self) -> None:
        image = np.concatenate(self._parts) if self._parts else np.empty(0, np.int32)
        self._parts = []
        if len(image) and int(image.max()) == len(image) - 1 and np.bincount(image).all():
            self._count = max(self._count, len(image))


def _ends(count: int) -> list[int]:
    """Where each of the parts of `count` names ends."""
    parts = min(count, PARTS)
    return [count * (at + 1) // parts for at in range(parts)]


def _marks(names: Sequence[str], count: int) -> tuple[str, list[str]]:
    """The digest of all names, and its first digits after each part of the first `count`; of fewer names the last ones are of all."""
    total, marks, start = hashlib.sha256(), list[str](), 0
    for end in _ends(count):
        for name in names[start:end]:
            total.update(name.encode("utf-8", "surrogateescape") + b"\n")
        marks.append(total.hexdigest()[:MARK] if end <= len(names) else "-" * MARK)
        start = end
    for name in names[start:]:
        total.update(name.encode("utf-8", "surrogateescape") + b"\n")
    return total.hexdigest(), marks


def _bytes_sha256(files: Sequence[str | os.PathLike[str]]) -> str:
    return hashlib.sha256(b"".join(_digests(files))).hexdigest()


def _digests(files: Sequence[str | os.PathLike[str]]) -> Iterator[bytes]:
    for file in files:
        try:
            with open(file, "rb") as data:
                yield hashlib.file_digest(data, "sha256").digest()
        except OSError as error:
            raise UsageError(f"{file}: cannot be read ({error.strerror or error})") from None
