"""A folder of images -> images in a fixed order, decoded on demand. Needs pillow (extra `student`)."""

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

Result = TypeVar("Result")


class ImageFolder:
    """The images of a folder and its subfolders, in the order of torchvision's ImageFolder.

    So index i is image i of a dump whose teacher read the same folder.

    Folders are sorted, then the files in each; symbolic links are followed. Files beside folders of images are ignored.

    Args:
        cache: keep decoded images in memory.

    Attributes:
        files: [N] paths.
        classes: sorted names of the folders that contain images.
        targets: [N] int64 index in `classes` of each image's folder.

    Raises:
        UsageError: the folder contains no image; on access, an image cannot be read.
        MissingExtra: on access, pillow is not installed.
    """

    def __init__(self, folder: str | PathLike[str], *, cache: bool = False) -> None:
        self.folder = Path(folder)
        self.files = [image.path for image in list_images(folder)]
        if not self.files:
            raise UsageError(f"{folder}: not a folder with images ({', '.join(SUFFIXES)})")
        names = [file.parent.name for file in self.files]
        self.classes = sorted(set(names))
        index = {name: number for number, name in enumerate(self.classes)}
        self.targets: NDArray[np.int64] = np.array([index[name] for name in names], np.int64)
        self._cache: dict[int, Image] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> "Iterator[Image]":
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> "Image":
        """Image `index` in RGB. Its EXIF orientation is ignored, as torchvision's loader ignores it."""
        if self._cache is None:
            return self._read(index)
        if index not in self._cache:
            self._cache[index] = self._read(index)
        return self._cache[index]

    def digest(self) -> str:
        """sha256 of the names and lengths in bytes of all files, to tell this folder from another one."""
        lines = [f"{file.relative_to(self.folder).as_posix()} {file.stat().st_size}" for file in self.files]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def names(self) -> list[str]:
        """[N] paths relative to the folder, without suffix."""
        return image_names(self.files, self.folder)

    def image_set(self, digest: str = "names") -> ImageSet:
        """The identity of the images: their number and a digest of their names.

        Args:
            digest: "names"; or "bytes" for a digest of the files' contents as well.

        Raises:
            UsageError: `digest` is another word, or a file cannot be read.
        """
        require(digest in DIGESTS, "image digest", digest, f"must be one of {', '.join(DIGESTS)}")
        return ImageSet.of(self.names, self.files if digest == "bytes" else None)

    def sizes(self) -> NDArray[np.int64]:
        """[N, 2] height and width in pixels, from the files' headers."""
        return np.array([self.size(index) for index in range(len(self))], np.int64)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels of one image, from its file's header."""
        return self._open(self.files[index], lambda image: (image.height, image.width))

    def _read(self, index: int) -> "Image":
        return self._open(self.files[index], lambda image: image.convert("RGB"))

    @staticmethod
    def _open(file: Path, use: "Callable[[Image], Result]") -> "Result":
        module = pillow()
        try:
            with module.open(file) as image:
                return use(image)
        except (OSError, ValueError, SyntaxError, module.DecompressionBombError) as error:
            raise UsageError(f"{file}: not a readable image ({error})") from None


def pillow() -> ModuleType:
    """The module PIL.Image.

    Raises:
        MissingExtra: pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("pillow", extra="student") from None
    return Image
