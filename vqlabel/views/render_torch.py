"""A batch of records and their images -> the views of render_pil.py as tensors, pixel for pixel, on any device.

PIL resizes in two passes. An output pixel of a pass is a weighted sum of a few input pixels, with weights that are
multiples of 2^-22, rounded to 8 bits. So integer arithmetic gives exactly the same pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.errors import require
from vqlabel.labels import LabelBatch
from vqlabel.views.geometry import check_renderable, crop_boxes, cutout_boxes, partner_batch, strip_sources

WEIGHT_BITS = 22  # of PIL's fixed-point weights


class ImageStack(NamedTuple):
    """Images of any sizes in one tensor, each in its upper left corner."""

    pixels: Tensor  # [N, 3, H, W] uint8
    sizes: NDArray[np.int64]  # [N, 2] height and width


class FilterTaps(NamedTuple):
    """For each pixel along a side of the view, the image pixels that it is a weighted sum of, and their weights."""

    source: NDArray[np.int64]  # [n, size, taps]
    weight: NDArray[np.int32]  # [n, size, taps]; the weights of a pixel add up to about 2^22


def stack(images: Sequence[Tensor], device: str | torch.device = "cpu") -> ImageStack:
    """Pad images to a common size and stack them.

    Args:
        images: uint8 [3, H, W] each.

    Raises:
        UsageError: an image is of another type or shape.
    """
    for image in images:
        is_valid = image.dtype == torch.uint8 and image.dim() == 3 and len(image) == 3
        require(is_valid, "image", f"{image.dtype} {list(image.shape)}", "must be uint8 [3, H, W]")
    sizes = np.array([image.shape[1:] for image in images], np.int64).reshape(-1, 2)
    height, width = sizes.max(0, initial=1).tolist()
    pixels = torch.zeros(len(images), 3, height, width, dtype=torch.uint8, device="cpu")
    for row, image in zip(pixels, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return ImageStack(pixels.to(device), sizes)


def render(images: ImageStack, batch: LabelBatch, size: int) -> Tensor:
    """Render the views that a teacher saw when it made the labels of a batch, on the device of the images.

    The peak of temporary memory is about 12 bytes for each of n * 3 * H * size pixels.

    Args:
        batch: records with image indices and augmentation.
        size: pixels along a view, the unit of CutMix boxes.

    Returns:
        [n, 3, size, size] uint8 in 0..255; for a batch with mixup float32 in 0..1, not rounded.

    Raises:
        BadLabels, UsageError: see `vqlabel.views.render_pil.render`.
    """
    check_renderable(batch, len(images.pixels), size)
    own = _unmixed(images, batch, size)
    if batch.mix_index is not None:
        return _mixed(own, own[_to(own.device, batch.mix_index)], batch)
    partners = partner_batch(batch)
    return own if partners is None else _mixed(own, _unmixed(images, partners, size), batch)


def _unmixed(images: ImageStack, batch: LabelBatch, size: int) -> Tensor:
    side, device = images.sizes[batch.image], images.pixels.device
    box = crop_boxes(batch.crop, side)
    down, across = (bilinear_taps(box[:, axis], box[:, 2 + axis], size) for axis in (0, 1))
    if batch.flip is not None:
        across = FilterTaps(*(np.where(batch.flip[:, None, None], values[:, ::-1], values) for values in across))
    if batch.patches is not None:
        across = _from_strips(across, strip_sources(batch.patches[:, 0], side[:, 1]))
        down = _from_strips(down, strip_sources(batch.patches[:, 1], side[:, 0]))
    assert batch.image is not None
    views = _resized(_resized(images.pixels[_to(device, batch.image)], 3, across), 2, down)
    return views if batch.cutout is None else _cut_out(views, *cutout_boxes(batch.cutout, size))


def bilinear_taps(start: NDArray[np.int64], length: NDArray[np.int64], size: int) -> FilterTaps:
    """PIL's bilinear filter, a triangle that widens when it reduces.

    Args:
        start, length: [n] first pixel and number of pixels of the crop along a side of the image.
        size: pixels along the view.
    """
    scale = length[:, None] / size
    reach = np.maximum(scale, 1)
    center = (np.arange(size) + 0.5) * scale  # [n, size]
    first = np.floor(center - reach + 0.5).astype(np.int64).clip(0)
    stop = np.minimum(np.floor(center + reach + 0.5).astype(np.int64), length[:, None])
    position = first[:, :, None] + np.arange(int((stop - first).max(initial=1)))
    distance = (position - center[:, :, None] + 0.5) * (1 / reach)[:, :, None]
    weight = np.where(position < stop[:, :, None], 1 - abs(distance), 0).clip(0)
    weight /= weight.cumsum(2)[:, :, -1:]  # added one after the other, as PIL does
    index = start[:, None, None] + np.minimum(position, length[:, None, None] - 1)
    return FilterTaps(index, np.floor(0.5 + weight * (1 << WEIGHT_BITS)).astype(np.int32))


def _from_strips(taps: FilterTaps, source: NDArray[np.int64]) -> FilterTaps:
    """FilterTaps in a patch-shuffled image -> taps in the original image; `source` as from `strip_sources`."""
    rows = np.arange(len(source))[:, None, None]
    return FilterTaps(source[rows, taps.source], taps.weight)


def _resized(pixels: Tensor, axis: int, taps: FilterTaps) -> Tensor:
    """One pass over [n, 3, H, W] uint8, along axis 2 or 3."""
    n, size, count = taps.source.shape
    shape = list(pixels.shape)
    shape[axis] = size
    along = [n, 1, 1, 1]
    along[axis] = size
    index, weight = _to(pixels.device, taps.source), _to(pixels.device, taps.weight)
    total = torch.full(shape, 1 << (WEIGHT_BITS - 1), dtype=torch.int32, device=pixels.device)
    for tap in range(count):
        total += weight[:, :, tap].view(along) * pixels.gather(axis, index[:, :, tap].view(along).expand(shape))
    return (total >> WEIGHT_BITS).clamp_(0, 255).to(torch.uint8)


def _cut_out(views: Tensor, box: NDArray[np.int64], colour: NDArray[np.uint8]) -> Tensor:
    position = torch.arange(views.shape[2], device=views.device)
    row0, col0, row1, col1 = _to(views.device, box)[:, :, None].unbind(1)  # [n, 1]
    inside = ((position >= row0) & (position < row1))[:, :, None] & ((position >= col0) & (position < col1))[:, None]
    return torch.where(inside[:, None], _to(views.device, colour)[:, :, None, None], views)


def _mixed(own: Tensor, other: Tensor, batch: LabelBatch) -> Tensor:
    """CutMix if the batch has a box, mixup if it has lambda alone, else no mixing."""
    if batch.mix_box is not None:
        row0, col0, row1, col1 = batch.mix_box
        mixed = own.clone()
        mixed[:, :, row0:row1, col0:col1] = other[:, :, row0:row1, col0:col1]
        return mixed
    if batch.mix_lam is None:
        return own
    return batch.mix_lam * (own / 255) + (1 - batch.mix_lam) * (other / 255)


def _to(device: torch.device, values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)
