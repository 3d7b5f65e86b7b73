"""Labels with crops, flips and mixing for a few small images, and the views that they belong to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqlabel.labels import LabelBatch, Place
from vqlabel.views.render_pil import render

IMAGES, CLASSES, SIZE, EPOCHS = 12, 7, 16, 3
SLOTS = (5, 5, 2)  # labels per batch of an epoch
HEIGHT, WIDTH = 30, 40

Batches = list[LabelBatch]
Pack = Callable[..., Path]


def draw_batches(mix: str = "cutmix", epochs: int = EPOCHS) -> Batches:
    """Random labels of all images, in batches that are shuffled anew every epoch, as in SRe2L's dumps."""
    rng, batches = np.random.default_rng(1), []
    for epoch in range(epochs):
        for number, image in enumerate(np.split(rng.permutation(IMAGES), np.cumsum(SLOTS)[:-1])):
            n = len(image)
            height, width = rng.integers(8, HEIGHT + 1, n), rng.integers(8, WIDTH + 1, n)
            top, left = rng.integers(0, HEIGHT + 1 - height), rng.integers(0, WIDTH + 1 - width)
            row, column = rng.integers(0, 8, 2).tolist()
            batches.append(
                LabelBatch(
                    labels=rng.normal(size=(n, CLASSES)).astype(np.float16),
                    place=Place(epoch, number),
                    image=image.astype(np.int64),
                    crop=(np.stack([top, left, height, width], 1) / [HEIGHT, WIDTH, HEIGHT, WIDTH]).astype(np.float32),
                    flip=rng.random(n) < 0.5,
                    mix_index=None if mix == "none" else rng.permutation(n),
                    mix_lam=None if mix == "none" else float(rng.random()),
                    mix_box=(row, column, row + 7, column + 6) if mix == "cutmix" else None,
                )
            )
    return batches


def expected_views(batches: Batches, images: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, 3, 16, 16] views in 0..1 and [N, C] labels of all records, each batch rendered as a whole."""
    views = [torch.from_numpy(render(images, batch, SIZE)).permute(0, 3, 1, 2) for batch in batches]
    labels = torch.from_numpy(np.concatenate([batch.labels for batch in batches])).float()
    return torch.cat([part.float() / 255 if part.dtype == torch.uint8 else part for part in views]), labels
