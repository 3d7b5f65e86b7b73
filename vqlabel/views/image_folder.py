"""A folder of images -> images in a fixed order, decoded when they are asked for. Needs pillow (extra `student`)."""

import hashlib
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import MissingExtra, UsageError, require
from vqlabel.labels.image_set import DIGESTS, ImageSet, image_names
from vqlabel.labels.images import SUFFIXES, list_images

if TYPE_CHECKING:
    from PIL.Image import Image

Seen = TypeVar("Seen")


class Pictures:
    """The images of a folder and its subfolders in ImageFolder's order: index i is image i of a dump whose teacher read the same folder.

    Folders are sorted, then the files in each; symbolic links are followed. Files beside folders of images do not count.

    Args:
        cache: keep decoded images in memory.

    Attributes:
        files: [N] paths.
        classes: sorted names of the folders that images lie in.
        targets: [N] which of `classes` each image lies in.

    Raises:
        UsageError: there is no image in it; when one is asked for, it cannot be read.
        MissingExtra: pillow is not installed; when an image is asked for.
    """

    def __init__(self, folder: str | PathLike[str], *, cache: bool = False) -> None:
        self.folder = Path(folder)
        self.files = [image.path for image in list_images(folder)]
        if not self.files:
            raise UsageError(f"{folder}: no folder with images in it ({', '.join(SUFFIXES)})")
        names = [file.parent.name for file in self.files]
        self.classes = sorted(set(names))
        at = {name: number for number, name in enumerate(self.classes)}
        self.targets: NDArray[np.int64] = np.array([at[name] for name in names], np.int64)
        self._kept: dict[int, Image] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> "Iterator[Image]":
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, at: int) -> "Image":
        """RGB; not turned as EXIF says, which torchvision's loader does not do either."""
        if self._kept is None:
            return self._read(at)
        if at not in self._kept:
            self._kept[at] = self._read(at)
        return self._kept[at]

    def digest(self) -> str:
        """sha256 of the names and lengths of all files, by which another folder is known for another."""
        said = [f"{file.relative_to(self.folder).as_posix()} {file.stat().st_size}" for file in self.files]
        return hashlib.sha256("\n".join(said).encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def names(self) -> list[str]:
        """[N] paths below the folder, without suffix."""
        return image_names(self.files, self.folder)

    def image_set(self, digest: str = "names") -> ImageSet:
        """Which images these are: their number, and a digest of their "names"; of their "bytes" too where that is asked for.

        Raises:
            UsageError: another kind of digest; a file that cannot be read.
        """
        require(digest in DIGESTS, "image digest", digest, f"must be one of {', '.join(DIGESTS)}")
        return ImageSet.of(self.names, self.files if digest == "bytes" else None)

    def sizes(self) -> NDArray[np.int64]:
        """[N, 2] height and width, as the files' headers have them."""
        return np.array([self.size(at) for at in range(len(self))], np.int64)

    def size(self, at: int) -> tuple[int, int]:
        """Height and width of one image, likewise."""
        return self._open(self.files[at], lambda image: (image.height, image.width))

    def _read(self, at: int) -> "Image":
        return self._open(self.files[at], lambda image: image.convert("RGB"))

    @staticmethod
    def _open(file: Path, look: "Callable[[Image], Seen]") -> "Seen":
        image = pillow()
        try:
            with image.open(file) as found:
                return look(found)
        except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
            raise UsageError(f"{file}: no readable image ({error})") from None


def pillow() -> ModuleType:
    """PIL.Image.

    Raises:
        MissingExtra: pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("pillow", extra="student") from None
    return Image
