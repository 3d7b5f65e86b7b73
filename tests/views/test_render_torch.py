"""Views as tensors on any device equal those of PIL in every pixel."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels import LabelBatch
from vqlabel.views import DrawnColumns, Recipe, render_torch
from vqlabel.views import render_pil as exact

SEED = np.random.default_rng(0)
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {"mix_index": None, "mix_box": None},
    "cutmix": {},
    "mixup": {"mix_box": None},
    "no lambda": {"mix_box": None, "mix_lam": None},
    "no crop": {"crop": None},
    "no flip": {"flip": None},
    "partners": {"mix_index": None, "partner_image": SEED.integers(0, 4, 60), "partner_crop": np.float32([[0.25, 0.1, 0.5, 0.75]] * 60)},
    "cutout": {"cutout": np.column_stack([SEED.random((60, 4)), SEED.integers(0, 256, (60, 3))]).astype(np.float32)},
    "patches": {"patches": SEED.permuted(np.tile(np.arange(4), (60, 2, 1)), axis=2)},
}  # fmt: skip


@pytest.fixture(scope="module")
def images(pictures: list[Image.Image]) -> render_torch.ImageStack:
    return render_torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in pictures])


def drawn(pictures: list[Image.Image], size: int) -> LabelBatch:
    """60 views of a recipe, CutMix among them."""
    sizes = np.array([(image.height, image.width) for image in pictures])
    columns = DrawnColumns(Recipe(seed=8, images=6, epochs=10, batch=6, view=size, mix="cutmix"), sizes)
    record = np.arange(60)
    context = columns.context(record)
    return LabelBatch(
        labels=np.zeros((60, 2)), place=columns.places[0], image=context.image, crop=context.crop, flip=context.flip,
        mix_index=np.random.default_rng(1).permutation(60), mix_lam=0.7, mix_box=(size // 4, 0, size, size // 2),
    )  # fmt: skip


@pytest.mark.parametrize("size", [5, 16, 24, 100])
@pytest.mark.parametrize("change", CHANGES)
def test_views_equal_those_of_pil_in_every_pixel(
    change: str, size: int, pictures: list[Image.Image], images: render_torch.ImageStack
) -> None:
    batch = replace(drawn(pictures, size), **CHANGES[change])
    made, want = render_torch.render(images, batch, size), torch.from_numpy(exact.render(pictures, batch, size)).permute(0, 3, 1, 2)
    assert (made.shape, made.dtype) == (want.shape, want.dtype)
    assert len(want.unique()) > 30
    if change == "mixup":
        assert float((made - want).abs().max()) < 1e-6
    else:
        assert torch.equal(made, want)


@pytest.mark.parametrize("size", [1, 3, 32, 224])
def test_every_reduction_uses_the_weights_of_pil(size: int) -> None:
    """Random black and white pixels show every difference of weights."""
    rng = np.random.default_rng(size)
    rows = [Image.fromarray(rng.integers(0, 2, (1, side), np.uint8) * 255).convert("RGB") for side in (*range(1, 300), 500, 1999)]
    pixels, sides = render_torch.stack([torch.from_numpy(np.array(row)).permute(2, 0, 1) for row in rows])
    made = render_torch._resized(pixels, 3, render_torch.bilinear_taps(np.zeros_like(sides[:, 1]), sides[:, 1], size))[:, :, :1]
    want = np.array([np.asarray(row.resize((size, 1), Image.Resampling.BILINEAR)) for row in rows])
    assert np.array_equal(made.permute(0, 2, 3, 1).numpy(), want)


def test_images_are_padded_to_the_largest(pictures: list[Image.Image], images: render_torch.ImageStack) -> None:
    assert images.pixels.shape == (6, 3, 64, 70) and images.sizes.tolist() == [[p.height, p.width] for p in pictures]
    assert np.array_equal(images.pixels[1, :, :50, :33].permute(1, 2, 0).numpy(), np.asarray(pictures[1]))
    assert int(images.pixels[1, :, 50:].max()) == int(images.pixels[1, :, :, 33:].max()) == 0


def test_padding_does_not_affect_views(pictures: list[Image.Image], images: render_torch.ImageStack) -> None:
    white = images.pixels.clone()
    for pixels, (height, width) in zip(white, images.sizes.tolist(), strict=True):
        pixels[:, height:], pixels[:, :, width:] = 255, 255
    batch = replace(drawn(pictures, 16), patches=CHANGES["patches"]["patches"])
    assert torch.equal(
        render_torch.render(render_torch.ImageStack(white, images.sizes), batch, 16), render_torch.render(images, batch, 16)
    )


def test_an_empty_batch_has_no_views(pictures: list[Image.Image], images: render_torch.ImageStack) -> None:
    batch = drawn(pictures, 8)
    assert batch.image is not None and batch.crop is not None and batch.flip is not None
    empty = replace(batch, image=batch.image[:0], crop=batch.crop[:0], flip=batch.flip[:0], mix_index=None)
    assert render_torch.render(images, empty, 8).shape == (0, 3, 8, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("change", CHANGES)
def test_a_gpu_renders_the_same_views(change: str, pictures: list[Image.Image], images: render_torch.ImageStack) -> None:
    batch = replace(drawn(pictures, 100), **CHANGES[change])
    made = render_torch.render(render_torch.ImageStack(images.pixels.cuda(), images.sizes), batch, 100)
    assert made.is_cuda
    torch.testing.assert_close(made.cpu(), render_torch.render(images, batch, 100), atol=1e-6 if change == "mixup" else 0, rtol=0)


def test_a_batch_that_cannot_be_rendered_is_refused(pictures: list[Image.Image], images: render_torch.ImageStack) -> None:
    batch = drawn(pictures, 16)
    with pytest.raises(BadLabels, match="have no image indices"):
        render_torch.render(images, replace(batch, image=None), 16)
    with pytest.raises(UsageError, match="5 images, but the records refer to 6 or more"):
        render_torch.render(render_torch.ImageStack(images.pixels[:5], images.sizes[:5]), batch, 16)
    for odd in (torch.zeros(3, 4, 4), torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.uint8)):
        with pytest.raises(UsageError, match=r"it must be uint8 \[3, H, W\]"):
            render_torch.stack([odd])
