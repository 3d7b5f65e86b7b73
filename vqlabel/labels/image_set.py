"""The identity of the images that labels belong to: their number, and digests of their names and bytes.

A label belongs to an image by the image's index, so one additional file in a folder shifts all later images to the
wrong labels.
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

MAX_IMAGES = 1 << 24
CHUNKS = 64  # parts of the list of names with a checkpoint each: a difference is located to one 64th of the list
CHECKPOINT_DIGITS = 4  # hex digits per checkpoint; two different lists agree in one by chance once in 65,536 times
DIGESTS = ("names", "bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSet:
    """The images that labels belong to, as far as they are known.

    Attributes:
        count: N; labels belong to images 0..N-1.
        names_sha256: of the names in order, each followed by a line feed; None: unknown. A name is the path below the
            folder, with slashes and without the suffix, so that the same images may be stored in another format.
        marks: checkpoints: the first digits of this digest after each of min(N, 64) chunks of the names; None if
            `names_sha256` is None.
        bytes_sha256: of the concatenated sha256 of all files, in order; None: not computed.

    Raises:
        UsageError: a field has another type or form.
    """

    count: int
    names_sha256: str | None = None
    marks: str | None = None
    bytes_sha256: str | None = None

    def __post_init__(self) -> None:
        valid = type(self.count) is int and 1 <= self.count <= MAX_IMAGES
        require(valid, "number of images", self.count, f"must be 1..{MAX_IMAGES}")
        lengths = {"names_sha256": 64, "bytes_sha256": 64, "marks": CHECKPOINT_DIGITS * min(self.count, CHUNKS)}
        for name, length in lengths.items():
            value = getattr(self, name)
            valid = value is None or (isinstance(value, str) and bool(re.fullmatch(rf"[0-9a-f]{{{length}}}", value)))
            require(valid, name, str(value)[:80], f"must be {length} hex digits")
        require(
            (self.marks is None) == (self.names_sha256 is None), "marks", self.marks, "must be given together with names_sha256"
        )

    @classmethod
    def of(cls, names: Sequence[str], files: Sequence[str | os.PathLike[str]] | None = None) -> Self:
        """The image set of these names (see `image_names`) and, if `files` are given, of their bytes.

        Raises:
            UsageError: there is no image, or a file cannot be read.
        """
        digest, checkpoints = _names_digest(names, len(names))
        bytes_sha256 = None if files is None else _bytes_sha256(files)
        return cls(count=len(names), names_sha256=digest, marks="".join(checkpoints), bytes_sha256=bytes_sha256)

    def to_dict(self) -> dict[str, Any]:
        """The known fields as a JSON object; inverse of `from_dict`."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: object, where: str | os.PathLike[str]) -> Self:
        """Build from a JSON object in a file; keys of later versions are ignored.

        Raises:
            BadContainer: `values` is not an image set; names `where`.
        """
        try:
            require(isinstance(values, dict) and "count" in values, "images", str(values)[:80], "must be an object with a count")
            assert isinstance(values, dict)
            return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
        except UsageError as error:
            raise BadContainer(f"{where}: {error}; damaged or forged") from None

    def require_same(
        self,
        where: str | os.PathLike[str],
        found: "ImageSet",
        names: Sequence[str] | None = None,
        files: Sequence[str | os.PathLike[str]] | None = None,
        *,
        of: str = "the labels",
        remedy: str = "pass the images that were labelled",
    ) -> str | None:
        """Refuse images that differ from these.

        Args:
            where: the folder or list of the other images, for messages.
            found: their image set.
            names, files: of the other images, if available: to locate a difference, and to compute their digest of
                bytes if these have one.
            of, remedy: what these images belong to, and what to do, for messages.

        Returns:
            None if the names are the same; else a sentence on why the images cannot be compared.

        Raises:
            UsageError: the images differ; the message has both sides and, if it is known, the first difference.
        """
        difference = self._first_difference(found, names)
        if found.count != self.count:
            raise UsageError(f"{where} has {found.count} images, but {of} belong to {self.count}{difference}: {remedy}")
        if None not in (self.names_sha256, found.names_sha256) and self.names_sha256 != found.names_sha256:
            raise UsageError(
                f"{where}: these images differ from those of {of}, or are in another order{difference}: the sha256 of their names is "
                f"{str(found.names_sha256)[:12]}..., not {str(self.names_sha256)[:12]}...; {remedy}"
            )
        found_bytes = found.bytes_sha256 or (_bytes_sha256(files) if self.bytes_sha256 and files is not None else None)
        if None not in (self.bytes_sha256, found_bytes) and self.bytes_sha256 != found_bytes:
            raise UsageError(
                f"{where}: these files have the names of the images of {of}, but other bytes (sha256 {str(found_bytes)[:12]}..., not "
                f"{str(self.bytes_sha256)[:12]}...): {remedy}"
            )
        if None not in (self.names_sha256, found.names_sha256):
            return None
        unknown = "their names are not recorded" if self.names_sha256 is None else "the images given have no names"
        return (
            f"{where} has {self.count} images, as many as {of} belong to; whether they are the same images in the same order cannot be "
            f"checked, because {unknown}"
        )

    def _first_difference(self, found: "ImageSet", names: Sequence[str] | None) -> str:
        """Where the names first differ, for messages; "" if that is unknown."""
        if self.marks is None or (names is None and (found.marks is None or found.count != self.count)):
            return ""
        marks = found.marks if names is None else "".join(_names_digest(names, self.count)[1])
        assert marks is not None
        ends = _chunk_ends(self.count)
        ours, theirs = (
            [text[i : i + CHECKPOINT_DIGITS] for i in range(0, len(text), CHECKPOINT_DIGITS)] for text in (self.marks, marks)
        )
        chunk = next((i for i in range(len(ends)) if ours[i] != theirs[i]), len(ends))
        start, stop = ends[chunk - 1] if chunk else 0, ends[chunk] if chunk < len(ends) else self.count + 1
        position = f"image {start}" if stop == start + 1 else f"one of images {start} to {stop - 1}"
        found_names = "" if names is None else ", ".join(map(repr, names[start : min(stop, start + 3)]))
        more = ", ..." if stop > start + 3 else ""
        return f", and names first differ at {position}" + (f" (found {found_names}{more})" if found_names else "")


def image_names(files: Iterable[str | os.PathLike[str]], folder: str | os.PathLike[str]) -> list[str]:
    """The names of image files: their paths below `folder`, with slashes and without their suffixes."""
    return [os.path.splitext(os.path.relpath(file, folder))[0].replace(os.sep, "/") for file in files]


class WholeEpochs:
    """The number of images N, inferred from a dump's batches in order: a complete epoch shows each of 0..N-1 once."""

    def __init__(self) -> None:
        self._epoch, self._parts, self._max_image, self._count = -1, list[NDArray[np.int32]](), -1, 0

    def add(self, epoch: int, image: NDArray[np.int64]) -> None:
        """Add a batch: its epoch, and the image of each of its records."""
        if epoch != self._epoch:
            self._finish_epoch()
        self._epoch = epoch
        self._parts.append(image.astype(np.int32))
        self._max_image = max(self._max_image, int(image.max(initial=-1)))

    def images(self) -> int | None:
        """N; None if no epoch is complete, or a label belongs to an image above N - 1."""
        self._finish_epoch()
        return self._count if self._count > 0 and self._max_image < self._count else None

    def _finish_epoch(self) -> None:
        image = np.concatenate(self._parts) if self._parts else np.empty(0, np.int32)
        self._parts = []
        if len(image) and int(image.max()) == len(image) - 1 and np.bincount(image).all():
            self._count = max(self._count, len(image))


def _chunk_ends(count: int) -> list[int]:
    """The end of each chunk of `count` names."""
    chunks = min(count, CHUNKS)
    return [count * (i + 1) // chunks for i in range(chunks)]


def _names_digest(names: Sequence[str], count: int) -> tuple[str, list[str]]:
    """The digest of all names, and its checkpoints after each chunk of the first `count` names.

    The checkpoint of a chunk beyond the last name is dashes.
    """
    digest, checkpoints, start = hashlib.sha256(), list[str](), 0
    for end in _chunk_ends(count):
        _add_names(digest, names[start:end])
        checkpoints.append(digest.hexdigest()[:CHECKPOINT_DIGITS] if end <= len(names) else "-" * CHECKPOINT_DIGITS)
        start = end
    _add_names(digest, names[start:])
    return digest.hexdigest(), checkpoints


def _add_names(digest: Any, names: Sequence[str]) -> None:
    for name in names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\n")


def _bytes_sha256(files: Sequence[str | os.PathLike[str]]) -> str:
    return hashlib.sha256(b"".join(_file_digests(files))).hexdigest()


def _file_digests(files: Sequence[str | os.PathLike[str]]) -> Iterator[bytes]:
    for file in files:
        try:
            with open(file, "rb") as data:
                yield hashlib.file_digest(data, "sha256").digest()
        except OSError as error:
            raise UsageError(f"{file}: cannot be read ({error.strerror or error})") from None
