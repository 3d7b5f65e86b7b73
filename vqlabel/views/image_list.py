"""Images in memory, as a tensor or a list -> PIL images by index, with what `relabel` asks of a folder."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import UsageError, require
from vqlabel.labels.image_set import ImageSet
from vqlabel.labels.memory import ArrayLike, as_arrays
from vqlabel.views.image_folder import pillow

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageList:
    """Images in memory by index.

    Args:
        images: a tensor or an array [N, 3, H, W], uint8 in 0..255 or floats in 0..1, which are rounded to 8 bits; or a
            list of PIL images in RGB.

    Attributes:
        folder: stands for the path of a folder in messages.

    Raises:
        UsageError: images of another shape, type or range.
    """

    def __init__(self, images: ArrayLike | Sequence[Any]) -> None:
        self.folder = Path("images in memory")
        self._images: NDArray[np.uint8] | Sequence[Any] = images if isinstance(images, Sequence) else _pixels(as_arrays(images))
        require(len(self) > 0, "number of images", 0, "must be 1 or more")
        for index, image in enumerate(images if isinstance(images, Sequence) else ()):
            if getattr(image, "mode", None) != "RGB":
                raise UsageError(f"image {index} is of type {type(image).__name__}; a list must hold PIL images in RGB")

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> "Iterator[Image]":
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> "Image":
        image: Any = self._images[index]
        return pillow().fromarray(image) if isinstance(image, np.ndarray) else image  # type: ignore[no-any-return]

    def sizes(self) -> NDArray[np.int64]:
        """[N, 2] height and width in pixels."""
        if isinstance(self._images, np.ndarray):
            return np.tile(np.array(self._images.shape[1:3], np.int64), (len(self), 1))
        return np.array([image.size[::-1] for image in self._images], np.int64)

    def digest(self) -> str:
        """sha256 of the pixels of all images."""
        digest = hashlib.sha256()
        for image in self:
            digest.update(f"{image.size}".encode() + image.tobytes())
        return digest.hexdigest()

    def image_set(self, digest: str = "names") -> ImageSet:
        """Their number: they have no names and no files.

        Raises:
            UsageError: `digest` is not "names".
        """
        require(digest == "names", "image digest", digest, "must be names: images in memory have no files")
        return ImageSet(count=len(self))


def _pixels(images: NDArray[Any]) -> NDArray[np.uint8]:
    """[N, 3, H, W] -> [N, H, W, 3] uint8."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise UsageError(f"images have shape {list(images.shape)}; they must be [N, 3, H, W]")
    if images.dtype.kind == "f":
        low, high = float(images.min(initial=0)), float(images.max(initial=0))
        if not (low >= 0 and high <= 1):
            raise UsageError(
                f"images range from {low:.4g} to {high:.4g}; floats must be in 0..1: undo the normalisation, images * std + mean, and pass mean and "
                "std, which the teacher's views are normalised with"
            )
        images = np.rint(images.astype(np.float32) * 255).astype(np.uint8)
    if images.dtype != np.uint8:
        raise UsageError(f"images are {images.dtype}; they must be uint8 in 0..255, or floats in 0..1")
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
