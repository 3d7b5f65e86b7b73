"""Images -> augmented views (crop, flip, CutMix), with records from which a student's views are rendered again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """The augmentation of a batch: n images -> n views."""

    coords: Tensor  # [n, 4] float32: top, left, height, width of the crop as shares of the image's side
    flip: Tensor  # [n] bool: mirrored left to right
    mix_index: Tensor  # [n] int64: index in the batch of the view that the patch is copied from
    mix_lam: float  # share of each view that shows its own image
    mix_bbox: tuple[int, int, int, int]  # the patch: row0, col0, row1, col1, pixels of the view


def draw_augmentation(rng: np.random.Generator, n: int, size: int, *, min_area: float = 0.5) -> Augmentation:
    """Draw random crops of whole pixels and one CutMix box for the batch; no flips: a mirrored letter is another
    letter.

    Args:
        rng: source of all random numbers.
        n: images in the batch.
        size: side of the square images, pixels.
        min_area: smallest crop as a share of the image's area; height and width are drawn independently.
    """
    sides = np.rint(size * rng.uniform(min_area**0.5, 1, (n, 2)))
    corners = np.floor(rng.random((n, 2)) * (size - sides + 1))
    lam = rng.random()
    centre, half = rng.integers(size, size=2), size * (1 - lam) ** 0.5 / 2
    row0, col0, row1, col1 = (int(edge) for edge in np.rint(np.hstack([centre - half, centre + half])).clip(0, size))
    return Augmentation(
        coords=torch.from_numpy(np.hstack([corners, sides]) / size).float(),
        flip=torch.zeros(n, dtype=torch.bool),
        mix_index=torch.from_numpy(rng.permutation(n)),
        mix_lam=1 - (row1 - row0) * (col1 - col0) / size**2,
        mix_bbox=(row0, col0, row1, col1),
    )


def apply_augmentation(images: Tensor, augmentation: Augmentation) -> Tensor:
    """[n, size, size] uint8 -> [n, 1, size, size] float32 views in [0, 1], deterministic to the bit."""
    n, size, _ = images.shape
    top, left, height, width = ((augmentation.coords * size).round() / size).unbind(1)
    affine = torch.zeros(n, 2, 3)  # position in the view -> position in the image, both in [-1, 1]
    affine[:, 0, 0] = torch.where(augmentation.flip, -width, width)
    affine[:, 0, 2] = 2 * left + width - 1
    affine[:, 1, 1] = height
    affine[:, 1, 2] = 2 * top + height - 1
    grid = F.affine_grid(affine, [n, 1, size, size], align_corners=False)
    views = F.grid_sample(images[:, None] / 255, grid, align_corners=False)
    row0, col0, row1, col1 = augmentation.mix_bbox
    views[:, :, row0:row1, col0:col1] = views[augmentation.mix_index, :, row0:row1, col0:col1]
    return views
