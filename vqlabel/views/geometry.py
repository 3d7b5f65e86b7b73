"""The stored geometry of a view -> integer pixels of the image and of the view, or an error. NumPy only."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels import LabelBatch
from vqlabel.views.crops import to_pixels


def check_renderable(batch: LabelBatch, images: int, size: int) -> None:
    """Refuse a batch whose views cannot be rendered as the teacher saw them.

    Args:
        images: number of images at hand.
        size: pixels along a view.

    Raises:
        BadLabels: the records have no image indices, or lambda is outside 0..1.
        UsageError: there are fewer images than the records refer to, a mixing box exceeds views of `size` pixels, or
            the views were made by operations or from a seed that only the dump's own pipeline can replay.
    """
    if batch.image is None:
        raise BadLabels("the records have no image indices, so their views cannot be rendered; pack the dump with --images")
    for name, what in (("ops", "RandAugment operations"), ("seed", "a seed of the dump's own pipeline")):
        if getattr(batch, name) is not None:
            raise UsageError(f"the records have {what} ({name}), which only the code that made the dump can replay")
    for image in (batch.image, batch.partner_image):
        if image is not None and len(image) and not 0 <= image.min() <= image.max() < images:
            raise UsageError(
                f"{images} images, but the records refer to {int(image.max()) + 1} or more; name the images that the labels were made of"
            )
    require(1 <= size <= 1 << 16, "size", size, "must be 1..65536 pixels")
    if batch.mix_lam is not None and not 0 <= batch.mix_lam <= 1:
        raise BadLabels(f"lambda of the views is {batch.mix_lam}; it must be in 0..1: repair or remove this batch")
    if batch.mix_box is not None and not 0 <= min(batch.mix_box) <= max(batch.mix_box) <= size:
        raise UsageError(f"mix_box is {batch.mix_box}, views have {size} pixels; pass the size of the views that the teacher saw")


def partner_batch(batch: LabelBatch) -> LabelBatch | None:
    """The views mixed into those of `batch`; None if nothing is mixed, or if they are records of the batch itself."""
    if batch.partner_image is None:
        return None
    plain = LabelBatch(labels=batch.labels, place=batch.place)
    return replace(plain, image=batch.partner_image, crop=batch.partner_crop, flip=batch.partner_flip)


def crop_boxes(crop: NDArray[np.floating] | None, side: NDArray[np.int64]) -> NDArray[np.int64]:
    """Crops as fractions -> crops in pixels.

    Height and width are rounded, not bottom and right: so crops stored in float16 are exact, too, up to sides of 2048
    pixels.

    Args:
        crop: [n, 4] top, left, height, width as fractions of the image's sides; None: the whole images.
        side: [n, 2] height and width of the images in pixels.

    Returns:
        [n, 4] top, left, height, width in pixels, inside the images.

    Raises:
        BadLabels: a fraction is outside 0..1.
        UsageError: a crop contains no pixel.
    """
    if crop is None:
        return np.concatenate([np.zeros_like(side), side], 1)
    if not ((crop >= 0) & (crop <= 1)).all():
        raise BadLabels(
            f"a crop is {crop[~((crop >= 0) & (crop <= 1)).all(1)][0].tolist()}; it must be fractions of the image's sides, in 0..1"
        )
    box = to_pixels(crop.astype(np.float32), side).astype(np.int64)
    # For images of another size than the dump's, top + height may round to one pixel too many.
    box[:, 2:] = np.minimum(box[:, 2:], side - box[:, :2])
    if not (box[:, 2:] > 0).all():
        row = int((box[:, 2:] <= 0).any(1).argmax())
        raise UsageError(
            f"crop {crop[row].tolist()} of an image of {side[row].tolist()} pixels contains no pixel; name the images of the dump"
        )
    return box


def cutout_boxes(cutout: NDArray[np.floating], size: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Cutout rectangles as fractions -> rectangles in pixels of a view.

    A rectangle extends from centre - extent // 2 to centre + extent // 2, the last row and column included.

    Args:
        cutout: [n, 7] centre row, centre column, height, width as fractions of the view; red, green, blue in 0..255.
        size: pixels along a view.

    Returns:
        [n, 4] row0, col0, row1, col1, the last two excluded; [n, 3] colours.

    Raises:
        BadLabels: a number is not finite, a fraction is outside -2..2 or a colour outside 0..255.
    """
    fractions, colour = cutout[:, :4].astype(np.float64), cutout[:, 4:]
    if not (np.isfinite(cutout).all() and (abs(fractions) <= 2).all() and ((colour >= 0) & (colour <= 255)).all()):
        raise BadLabels("a cutout's centre or extent is not a fraction of the view's sides, or its colour is outside 0..255")
    center, half = np.rint(fractions[:, :2] * size).astype(np.int64), np.rint(fractions[:, 2:] * size).astype(np.int64) // 2
    return np.concatenate([center - half, center + half + 1], 1).clip(0, size), colour.astype(np.uint8)


def strip_sources(order: NDArray[np.int64], side: NDArray[np.int64]) -> NDArray[np.int64]:
    """The source column (or row) of each column (or row) of patch-shuffled images.

    Args:
        order: [n, parts] new order of the strips, each of side // parts pixels; the last strip has the remainder as
            well.
        side: [n] pixels along the images.

    Returns:
        [n, largest side] source index; the index itself beyond an image's own side.

    Raises:
        BadLabels: an order is not a permutation.
    """
    n, parts = order.shape
    if (np.sort(order, 1) != np.arange(parts)).any():
        raise BadLabels(
            f"patches are {order[(np.sort(order, 1) != np.arange(parts)).any(1)][0].tolist()}; they must be 0..{parts - 1}, each once"
        )
    step = side[:, None] // parts
    length = np.where(order == parts - 1, side[:, None] - (parts - 1) * step, step)
    end = length.cumsum(1)
    position = np.tile(np.arange(int(side.max(initial=0))), (n, 1))
    strip = np.minimum((position[:, :, None] >= end[:, None]).sum(2), parts - 1)
    shift = np.take_along_axis(order * step - (end - length), strip, 1)
    return np.where(position < side[:, None], position + shift, position)
