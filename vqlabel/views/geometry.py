"""What a record says of its view -> whole pixels of the image and of the view, or a refusal. NumPy only."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels import LabelBatch
from vqlabel.views.crops import to_pixels


def check_batch(batch: LabelBatch, images: int, size: int) -> None:
    """Refuse what cannot be rendered as it was.

    Raises:
        BadLabels: the records do not say which image they are of.
        UsageError: there are fewer images than records name, a box leaves views of `size` pixels, or the views were made by operations
            or a seed that only the dump's own pipeline knows.
    """
    if batch.image is None:
        raise BadLabels(
            "the records do not say which image they are of, so their views cannot be made again; pack the dump with --images"
        )
    for name, what in (("ops", "RandAugment's operations"), ("seed", "a seed of the dump's own pipeline")):
        if getattr(batch, name) is not None:
            raise UsageError(
                f"the records have {what}, which only the code that made the dump can replay; without {name} views differ"
            )
    for image in (batch.image, batch.partner_image):
        if image is not None and len(image) and not 0 <= image.min() <= image.max() < images:
            raise UsageError(
                f"{images} images; the labels are of {int(image.max()) + 1} or more: give the images they were made of"
            )
    require(1 <= size <= 1 << 16, "size", size, "must be 1..65536 pixels")
    if batch.mix_lam is not None and not 0 <= batch.mix_lam <= 1:
        raise BadLabels(f"lambda of the views is {batch.mix_lam}; it must be in 0..1: mend or drop this batch")
    if batch.mix_box is not None and not 0 <= min(batch.mix_box) <= max(batch.mix_box) <= size:
        raise UsageError(f"mix_box is {batch.mix_box}, views have {size} pixels; pass the size of the views that the teacher saw")


def partners_of(batch: LabelBatch) -> LabelBatch | None:
    """The views mixed in, where they are named and no records of the batch."""
    if batch.partner_image is None:
        return None
    plain = LabelBatch(labels=batch.labels, place=batch.place)
    return replace(plain, image=batch.partner_image, crop=batch.partner_crop, flip=batch.partner_flip)


def crop_boxes(crop: NDArray[np.floating] | None, side: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n, 4] top, left, height, width in pixels of images of [n, 2] height and width; None: all of them.

    Each share is rounded for itself, not bottom and right: so halves are exact too, up to sides of 2048 pixels.

    Raises:
        BadLabels: a share is outside 0..1.
        UsageError: a crop has no pixel.
    """
    if crop is None:
        return np.concatenate([np.zeros_like(side), side], 1)
    if not ((crop >= 0) & (crop <= 1)).all():
        raise BadLabels(
            f"a crop is {crop[~((crop >= 0) & (crop <= 1)).all(1)][0].tolist()}; it must be shares of an image's sides, in 0..1"
        )
    box = to_pixels(crop.astype(np.float32), side).astype(np.int64)
    box[:, 2:] = np.minimum(box[:, 2:], side - box[:, :2])  # of other sizes than the dump's, top + height may round to one more
    if not (box[:, 2:] > 0).all():
        row = int((box[:, 2:] <= 0).any(1).argmax())
        raise UsageError(
            f"crop {crop[row].tolist()} of an image of {side[row].tolist()} pixels is empty; give the images of the dump"
        )
    return box


def cutout_boxes(cutout: NDArray[np.floating], size: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """[n, 4] row0, col0, row1, col1 of the rectangle in a view, the last two excluded; [n, 3] its colour.

    It was drawn from centre - extent // 2 to centre + extent // 2, the last row and column included.

    Raises:
        BadLabels: a number is not finite, or a colour outside 0..255.
    """
    shares, colour = cutout[:, :4].astype(np.float64), cutout[:, 4:]
    if not (np.isfinite(cutout).all() and (abs(shares) <= 2).all() and ((colour >= 0) & (colour <= 255)).all()):
        raise BadLabels("a cutout's centre or extent is no share of a view's sides, or its colour leaves 0..255")
    center, half = np.rint(shares[:, :2] * size).astype(np.int64), np.rint(shares[:, 2:] * size).astype(np.int64) // 2
    return np.concatenate([center - half, center + half + 1], 1).clip(0, size), colour.astype(np.uint8)


def strip_sources(order: NDArray[np.int64], side: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each column (or row) of a patch-shuffled image comes from: [n, largest side], beyond an image's own side itself.

    Args:
        order: [n, parts] strips of side // parts pixels, the last one with the rest, in their new order.
        side: [n] pixels.

    Raises:
        BadLabels: an order is no permutation.
    """
    n, parts = order.shape
    if (np.sort(order, 1) != np.arange(parts)).any():
        raise BadLabels(
            f"patches are {order[(np.sort(order, 1) != np.arange(parts)).any(1)][0].tolist()}; they must be 0..{parts - 1}, each once"
        )
    step = side[:, None] // parts
    length = np.where(order == parts - 1, side[:, None] - (parts - 1) * step, step)
    end = length.cumsum(1)
    at = np.tile(np.arange(int(side.max(initial=0))), (n, 1))
    strip = np.minimum((at[:, :, None] >= end[:, None]).sum(2), parts - 1)
    shift = np.take_along_axis(order * step - (end - length), strip, 1)
    return np.where(at < side[:, None], at + shift, at)
