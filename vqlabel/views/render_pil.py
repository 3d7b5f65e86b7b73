"""A record and its image -> the view that the teacher saw, exactly as torchvision renders it with PIL.

Needs pillow (extra `student`). docs/augmentation.md, "Rendering", defines the operations and their order.
"""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import UsageError
from vqlabel.labels import LabelBatch
from vqlabel.views.geometry import check_renderable, crop_boxes, cutout_boxes, partner_batch, strip_sources
from vqlabel.views.image_folder import pillow

if TYPE_CHECKING:
    from PIL.Image import Image

Views = NDArray[np.uint8] | NDArray[np.float32]


@runtime_checkable
class Images(Protocol):
    """PIL images in RGB by index: an `ImageFolder`, or a list."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> "Image": ...


def render_view(
    image: "Image", crop: NDArray[np.floating] | None, flip: bool, size: int, patches: NDArray[np.int64] | None = None
) -> NDArray[np.uint8]:
    """Crop, resize and flip one RGB image: the view of one record before cutout and mixing.

    Args:
        crop: [4] top, left, height, width as fractions of the image's sides; None: the whole image.
        flip: whether the view is mirrored left to right.
        size: pixels along the view.
        patches: [2, parts] new order of the image's columns and rows of patches, applied before the crop.

    Returns:
        [size, size, 3] uint8.

    Raises:
        BadLabels: a fraction is outside 0..1, or the patches are not permutations.
        UsageError: the crop contains no pixel.
    """
    if patches is not None:
        columns, rows = (strip_sources(order[None], np.array([side]))[0] for order, side in zip(patches, image.size, strict=True))
        image = pillow().fromarray(np.asarray(image)[rows[:, None], columns])
    side = np.array([[image.height, image.width]])
    top, left, height, width = crop_boxes(None if crop is None else crop[None], side)[0].tolist()
    part, bilinear = image.crop((left, top, left + width, top + height)), pillow().Resampling.BILINEAR
    # Horizontal pass first, as in Pillow before version 13; later versions resize tall images in the other order.
    pixels = np.asarray(part.resize((size, height), bilinear).resize((size, size), bilinear))
    return pixels[:, ::-1] if flip else pixels


def render(images: Images, batch: LabelBatch, size: int) -> Views:
    """Render the views that a teacher saw when it made the labels of a batch.

    Args:
        images: RGB images by index.
        batch: records with image indices and augmentation.
        size: pixels along a view, the unit of CutMix boxes.

    Returns:
        [n, size, size, 3] uint8 in 0..255; for a batch with mixup float32 in 0..1, not rounded.

    Raises:
        BadLabels: the records have no image indices, or impossible augmentation.
        UsageError: too few images, images that are not RGB or of another size than the dump's, or operations that
            cannot be replayed.

    Source: docs/augmentation.md, "Rendering".
    """
    check_renderable(batch, len(images), size)
    own = _unmixed(images, batch, size)
    if batch.mix_index is not None:
        return _mixed(own, own[batch.mix_index], batch)
    partners = partner_batch(batch)
    return own if partners is None else _mixed(own, _unmixed(images, partners, size), batch)


def _unmixed(images: Images, batch: LabelBatch, size: int) -> NDArray[np.uint8]:
    assert batch.image is not None
    views = np.empty((len(batch.image), size, size, 3), np.uint8)
    for row, image in enumerate(batch.image.tolist()):
        crop, patches = (None if column is None else column[row] for column in (batch.crop, batch.patches))
        views[row] = render_view(rgb_image(images, image), crop, batch.flip is not None and bool(batch.flip[row]), size, patches)
    if batch.cutout is not None:
        for row, ((row0, col0, row1, col1), colour) in enumerate(zip(*cutout_boxes(batch.cutout, size), strict=True)):
            views[row, row0:row1, col0:col1] = colour
    return views


def rgb_image(images: Images, index: int) -> "Image":
    """Image `index`.

    Raises:
        UsageError: it is not a PIL image in RGB.
    """
    image = images[index]
    image_type: type[Image] = pillow().Image
    if not isinstance(image, image_type) or image.mode != "RGB":
        kind = f"an image in mode {image.mode}" if hasattr(image, "mode") else f"of type {type(image).__name__}"
        raise UsageError(
            f"image {index} is {kind}; images must be PIL images in RGB: Image.open(path).convert('RGB'), or pass the path of their folder"
        )
    return image


def _mixed(own: NDArray[np.uint8], other: NDArray[np.uint8], batch: LabelBatch) -> Views:
    """CutMix if the batch has a box, mixup if it has lambda alone, else no mixing."""
    if batch.mix_box is not None:
        row0, col0, row1, col1 = batch.mix_box
        mixed = own.copy()
        mixed[:, row0:row1, col0:col1] = other[:, row0:row1, col0:col1]
        return mixed
    if batch.mix_lam is None:
        return own
    first, second = (pixels.astype(np.float32) / np.float32(255) for pixels in (own, other))
    return np.float32(batch.mix_lam) * first + np.float32(1 - batch.mix_lam) * second
