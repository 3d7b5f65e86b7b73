"""A record and its image -> the view that the teacher saw, to the pixel, as torchvision makes it with PIL. Needs pillow (extra `student`).

docs/augmentation.md, "Views", says what is done in which order.
"""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import UsageError
from vqlabel.labels import LabelBatch
from vqlabel.views.geometry import check_renderable, crop_boxes, cutout_boxes, partners_of, strip_sources
from vqlabel.views.image_folder import pillow

if TYPE_CHECKING:
    from PIL.Image import Image

Views = NDArray[np.uint8] | NDArray[np.float32]


@runtime_checkable
class Images(Protocol):
    """Images by index: `Pictures`, or a list."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: int, /) -> "Image": ...


def view(
    image: "Image", crop: NDArray[np.floating] | None, flip: bool, size: int, patches: NDArray[np.int64] | None = None
) -> NDArray[np.uint8]:
    """[size, size, 3]: what one record shows of its RGB image, before cutout and mixing.

    Args:
        crop: [4] shares top, left, height, width; None: the whole image.
        patches: [2, parts] order of the image's columns and rows of patches.

    Raises:
        BadLabels: a share outside 0..1, patches that are no permutations.
        UsageError: the crop has no pixel.
    """
    if patches is not None:
        columns, rows = (strip_sources(order[None], np.array([side]))[0] for order, side in zip(patches, image.size, strict=True))
        image = pillow().fromarray(np.asarray(image)[rows[:, None], columns])
    side = np.array([[image.height, image.width]])
    top, left, height, width = crop_boxes(None if crop is None else crop[None], side)[0].tolist()
    part, bilinear = image.crop((left, top, left + width, top + height)), pillow().Resampling.BILINEAR
    # Across first, as Pillow did by itself before 13; since then it takes tall images the other way round.
    seen = np.asarray(part.resize((size, height), bilinear).resize((size, size), bilinear))
    return seen[:, ::-1] if flip else seen


def views(images: Images, batch: LabelBatch, size: int) -> Views:
    """[n, size, size, 3]: the views that the labels of a batch are of.

    Args:
        images: RGB.
        size: pixels along a view, the unit of CutMix boxes.

    Returns:
        uint8 in 0..255; of a batch with mixup float32 in 0..1, not rounded.

    Raises:
        BadLabels: the records do not say their images, or what they say is impossible.
        UsageError: too few images, something else than RGB images, or another size than the dump's; operations that cannot be replayed.
    """
    check_renderable(batch, len(images), size)
    own = _unmixed(images, batch, size)
    if batch.mix_index is not None:
        return _mixed(own, own[batch.mix_index], batch)
    partners = partners_of(batch)
    return own if partners is None else _mixed(own, _unmixed(images, partners, size), batch)


def _unmixed(images: Images, batch: LabelBatch, size: int) -> NDArray[np.uint8]:
    assert batch.image is not None
    made = np.empty((len(batch.image), size, size, 3), np.uint8)
    for row, image in enumerate(batch.image.tolist()):
        crop, patches = (None if column is None else column[row] for column in (batch.crop, batch.patches))
        made[row] = view(rgb(images, image), crop, batch.flip is not None and bool(batch.flip[row]), size, patches)
    if batch.cutout is not None:
        for row, ((row0, col0, row1, col1), colour) in enumerate(zip(*cutout_boxes(batch.cutout, size), strict=True)):
            made[row, row0:row1, col0:col1] = colour
    return made


def rgb(images: Images, at: int) -> "Image":
    """One of the images.

    Raises:
        UsageError: it is something else than an RGB image.
    """
    image = images[at]
    picture: type[Image] = pillow().Image
    if not isinstance(image, picture) or image.mode != "RGB":
        kind = f"an image in mode {image.mode}" if hasattr(image, "mode") else f"of type {type(image).__name__}"
        raise UsageError(
            f"image {at} is {kind}; images must be PIL images in RGB: Image.open(path).convert('RGB'), or name their folder"
        )
    return image


def _mixed(own: NDArray[np.uint8], other: NDArray[np.uint8], batch: LabelBatch) -> Views:
    """CutMix where there is a box, mixup where there is only lambda."""
    if batch.mix_box is not None:
        row0, col0, row1, col1 = batch.mix_box
        mixed = own.copy()
        mixed[:, row0:row1, col0:col1] = other[:, row0:row1, col0:col1]
        return mixed
    if batch.mix_lam is None:
        return own
    first, second = (pixels.astype(np.float32) / np.float32(255) for pixels in (own, other))
    return np.float32(batch.mix_lam) * first + np.float32(1 - batch.mix_lam) * second
