"""Records and images -> the pixels that the transforms of the dump gave to the teacher."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import vqlabel
from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels import LabelBatch, Place
from vqlabel.views import DrawnColumns, Recipe
from vqlabel.views.crops import to_pixels
from vqlabel.views.geometry import crop_boxes, cutout_boxes, strip_sources
from vqlabel.views.render_pil import render, render_view
from vqlabel.vql.file import VqlFile

SIZE = 16
N = 40


def resized(part: Image.Image, size: int) -> Image.Image:
    """As Pillow before version 13, horizontal pass first; later versions change a few pixels of tall images by 1."""
    seen = part.resize((size, size), Image.Resampling.BILINEAR)
    if part.height <= max(part.width, size) or int(Image.__version__.split(".")[0]) < 13:
        return seen
    first = part.resize((size, part.height), Image.Resampling.BILINEAR).resize((size, size), Image.Resampling.BILINEAR)
    assert abs(np.asarray(first).astype(int) - np.asarray(seen)).max() <= 1
    return first


def recorded(image: Image.Image, rng: np.random.Generator, size: int = SIZE) -> tuple[Any, bool, NDArray[np.uint8]]:
    """Coordinates, flip and view of SRe2L's transforms RandomResizedCrop and RandomHorizontalFlip, on PIL."""
    h, w = int(rng.integers(1, image.height + 1)), int(rng.integers(1, image.width + 1))
    i, j = int(rng.integers(0, image.height - h + 1)), int(rng.integers(0, image.width - w + 1))
    coords = np.array([i / image.height, j / image.width, h / image.height, w / image.width]).astype(np.float32)
    seen, flip = resized(image.crop((j, i, j + w, i + h)), size), bool(rng.random() < 0.5)
    return coords, flip, np.asarray(seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else seen)


@pytest.fixture
def batch(pictures: list[Image.Image]) -> tuple[LabelBatch, NDArray[np.uint8]]:
    """40 recorded views, and what the teacher saw."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, len(pictures), N)
    crops, flips, seen = zip(*(recorded(pictures[i], rng) for i in image), strict=True)
    made = LabelBatch(
        labels=np.zeros((N, 2), np.float16), place=Place(0, 0), image=image, crop=np.array(crops), flip=np.array(flips)
    )
    return made, np.array(seen)


Recorded = tuple[LabelBatch, NDArray[np.uint8]]


def test_views_equal_those_of_the_recording_transforms(batch: Recorded, pictures: list[Image.Image]) -> None:
    made = render(pictures, batch[0], SIZE)
    assert made.dtype == np.uint8 and np.array_equal(made, batch[1])
    assert not np.array_equal(render(pictures, replace(batch[0], flip=None), SIZE), batch[1])


def test_crops_stored_in_float16_give_the_same_views(batch: Recorded, pictures: list[Image.Image]) -> None:
    assert batch[0].crop is not None
    halves = batch[0].crop.astype(np.float16).astype(np.float32)
    assert (halves != batch[0].crop).any()
    assert np.array_equal(render(pictures, replace(batch[0], crop=halves), SIZE), batch[1])


@pytest.mark.parametrize("side", [7, 224, 500, 1023, 1999, 2047, 2048])
def test_float16_crops_are_exact_for_sides_up_to_2048_pixels(side: int) -> None:
    pixel = np.arange(1, side + 1)
    for start, extent in ((np.zeros_like(pixel), pixel), (side - pixel, pixel), (pixel // 2, np.maximum(1, pixel // 3))):
        want = np.stack([start, start, extent, extent], 1)
        shares = (want / side).astype(np.float32)
        for crop in (shares, shares.astype(np.float16)):
            assert np.array_equal(crop_boxes(crop, np.full((side, 2), side)), want)


def test_views_are_the_same_from_a_vql_with_integer_crops(
    batch: Recorded, pictures: list[Image.Image], write_dump: Callable[..., Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(2)
    mixed = replace(
        batch[0],
        labels=rng.normal(size=(N, 3)).astype(np.float16),
        mix_index=rng.permutation(N),
        mix_lam=0.5,
        mix_box=(2, 3, 9, 16),
    )
    dump = write_dump(tmp_path / "dump", [mixed])
    vqlabel.pack(dump, tmp_path / "a.vql", codec=vqlabel.fit(dump, vqlabel.FitConfig(codec="raw"))[0])
    columns = VqlFile(tmp_path / "a.vql").columns
    assert columns.has("image_size") or "columns.image_size" in VqlFile(tmp_path / "a.vql").container.streams
    read = columns.batch(0, mixed.labels)
    assert np.array_equal(render(pictures, replace(read, mix_index=None), SIZE), batch[1])
    want = batch[1].copy()
    want[:, 2:9, 3:16] = batch[1][mixed.mix_index][:, 2:9, 3:16]
    assert np.array_equal(render(pictures, read, SIZE), want)


def test_views_of_a_recipe_show_the_pixels_it_drew(pictures: list[Image.Image]) -> None:
    sizes = np.array([(image.height, image.width) for image in pictures])
    columns = DrawnColumns(Recipe(seed=5, images=6, epochs=2, batch=4, view=SIZE, scale=(0.3, 1)), sizes)
    drawn = columns.batch(0, np.empty((0, 0), np.float32))
    assert drawn.image is not None and drawn.crop is not None and drawn.flip is not None
    for made, image, (top, left, height, width), flip in zip(
        render(pictures, drawn, SIZE), drawn.image, to_pixels(drawn.crop, sizes[drawn.image]).tolist(), drawn.flip, strict=True
    ):
        part = np.asarray(pictures[image])[top : top + height, left : left + width]
        seen = np.asarray(resized(Image.fromarray(part), SIZE))
        assert np.array_equal(made, seen[:, ::-1] if flip else seen)


def test_without_a_crop_the_view_shows_the_whole_image(pictures: list[Image.Image]) -> None:
    want = np.asarray(pictures[0].resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    assert np.array_equal(render_view(pictures[0], None, False, SIZE), want)
    assert np.array_equal(render_view(pictures[0], np.array([0, 0, 1, 1]), True, SIZE), want[:, ::-1])
    assert np.array_equal(render_view(pictures[2], None, False, 24), np.asarray(pictures[2]))


def test_crops_stay_inside_images_of_another_size() -> None:
    crop = np.array([[0.375, 0.3, 0.625, 0.7], [0.5, 0.5, 0.5, 0.5]])
    assert crop_boxes(crop, np.array([[4, 5], [3, 3]])).tolist() == [[2, 2, 2, 3], [2, 2, 1, 1]]


@pytest.mark.parametrize("size", [16, 19, 224])
def test_a_cutout_is_the_rectangle_that_was_drawn(size: int) -> None:
    rng = np.random.default_rng(3)
    image, n = Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)), 60
    center, half = rng.integers(0, size, (n, 2)), rng.integers(0, size, n) // 2
    colour = rng.integers(0, 256, (n, 3))
    want = []
    for (y, x), reach, fill in zip(center.tolist(), half.tolist(), colour.tolist(), strict=True):
        drawn = image.copy()
        edges = np.clip([x - reach, y - reach, x + reach, y + reach], 0, size).tolist()
        ImageDraw.Draw(drawn).rectangle(edges, fill=tuple(fill))
        want.append(np.asarray(drawn))
    extent = np.stack([2 * half, 2 * half + 1], 1)  # odd ones lose a pixel
    cutout = np.concatenate([center / size, extent / size, colour], 1).astype(np.float32)
    batch = LabelBatch(labels=np.zeros((n, 2)), place=Place(0, 0), image=np.zeros(n, np.int64), cutout=cutout)
    assert np.array_equal(render([image], batch, size), np.array(want))


def cut(pixels: NDArray[np.uint8], columns: Sequence[int], rows: Sequence[int]) -> NDArray[np.uint8]:
    """Strips of equal width, the last with the rest, in their new order; columns, then rows."""
    for order, axis in ((columns, 1), (rows, 0)):
        step = pixels.shape[axis] // len(order)
        strips = np.split(pixels, [step * i for i in range(1, len(order))], axis)
        pixels = np.concatenate([strips[i] for i in order], axis)
    return pixels


def test_patches_are_shuffled_in_the_image_columns_first(batch: Recorded, pictures: list[Image.Image]) -> None:
    rng = np.random.default_rng(4)
    patches = np.array([[rng.permutation(3), rng.permutation(3)] for _ in range(N)])
    made = render(pictures, replace(batch[0], patches=patches), SIZE)
    assert batch[0].image is not None and batch[0].crop is not None and batch[0].flip is not None
    for row, image in enumerate(batch[0].image):
        shuffled = Image.fromarray(cut(np.asarray(pictures[image]), *patches[row].tolist()))
        assert np.array_equal(made[row], render_view(shuffled, batch[0].crop[row], bool(batch[0].flip[row]), SIZE))
    in_order = np.tile(np.arange(3), (N, 2, 1))
    assert np.array_equal(render(pictures, replace(batch[0], patches=in_order), SIZE), batch[1])


def test_strips_of_several_sides_at_once_equal_those_of_each_side() -> None:
    rng, sides = np.random.default_rng(5), np.array([1, 2, 3, 4, 7, 12, 50])
    order = np.array([rng.permutation(4) for _ in sides])
    together = strip_sources(order, sides)
    for source, one, side in zip(together, order, sides, strict=True):
        pixels = np.tile(np.arange(side, dtype=np.uint8), (1, 1))
        assert np.array_equal(source[:side], cut(pixels, one.tolist(), [0])[0]) and (source[side:] == np.arange(side, 50)).all()


def test_cutmix_pastes_the_partners_box_by_rows_and_columns(batch: Recorded, pictures: list[Image.Image]) -> None:
    index = np.random.default_rng(6).integers(0, N, N)
    made = render(pictures, replace(batch[0], mix_index=index, mix_lam=0.3, mix_box=(1, 4, 5, 16)), SIZE)
    assert made.dtype == np.uint8
    for row in range(N):
        for y in range(SIZE):
            for x in range(SIZE):
                of = index[row] if 1 <= y < 5 and 4 <= x < 16 else row
                assert (made[row, y, x] == batch[1][of, y, x]).all()


def test_mixup_is_a_weighted_mean_in_float32(batch: Recorded, pictures: list[Image.Image]) -> None:
    index = np.random.default_rng(6).integers(0, N, N)
    made = render(pictures, replace(batch[0], mix_index=index, mix_lam=0.3), SIZE)
    want = 0.3 * (batch[1] / 255) + 0.7 * (batch[1][index] / 255)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, want, atol=1e-6)


@pytest.mark.parametrize("box", [(1, 4, 5, 16), None])
def test_partners_outside_the_batch_are_rendered(
    box: tuple[int, int, int, int] | None, batch: Recorded, pictures: list[Image.Image]
) -> None:
    index = np.random.default_rng(6).integers(0, N, N)
    within = replace(batch[0], mix_index=index, mix_lam=0.3, mix_box=box)
    assert batch[0].image is not None and batch[0].crop is not None and batch[0].flip is not None
    named = replace(
        within,
        mix_index=None,
        partner_image=batch[0].image[index],
        partner_crop=batch[0].crop[index],
        partner_flip=batch[0].flip[index],
    )
    assert np.array_equal(render(pictures, named, SIZE), render(pictures, within, SIZE))


def test_without_lambda_and_box_nothing_is_mixed(batch: Recorded, pictures: list[Image.Image]) -> None:
    assert np.array_equal(render(pictures, replace(batch[0], mix_index=np.arange(N)[::-1]), SIZE), batch[1])


def test_an_empty_batch_has_no_views(pictures: list[Image.Image]) -> None:
    empty = LabelBatch(labels=np.zeros((0, 2)), place=Place(0, 0), image=np.zeros(0, np.int64), crop=np.zeros((0, 4), np.float32))
    assert render(pictures, empty, SIZE).shape == (0, SIZE, SIZE, 3)


ONE = LabelBatch(labels=np.zeros((2, 2)), place=Place(0, 0), image=np.array([0, 1]))


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (BadLabels, "have no image indices", {"image": None}),
        (UsageError, "6 images, but the records refer to 8 or more; name the images", {"image": np.array([7, 0])}),
        (UsageError, "6 images, but the records refer to 7 or more", {"partner_image": np.array([6, 0])}),
        (UsageError, "have RandAugment operations", {"ops": np.zeros((2, 1, 3))}),
        (UsageError, "have a seed of the dump's own pipeline", {"seed": np.zeros(2, np.int64)}),
        (UsageError, r"mix_box is \(0, 0, 17, 4\), views have 16 pixels; pass the size", {"mix_box": (0, 0, 17, 4)}),
        (
            BadLabels,
            r"a crop is \[0\.0, 0\.0, 1\.5, 1\.0\]; it must be fractions",
            {"crop": np.array([[0, 0, 1, 1], [0, 0, 1.5, 1]])},
        ),
        (BadLabels, "a crop is", {"crop": np.array([[0, 0, np.nan, 1]] * 2)}),
        (UsageError, r"of an image of \[50, 33\] pixels contains no pixel", {"crop": np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.01]])}),
        (BadLabels, "patches are", {"patches": np.array([[[0, 1], [1, 0]], [[0, 1], [1, 1]]])}),
        (BadLabels, "a cutout's centre or extent", {"cutout": np.full((2, 7), np.nan)}),
        (BadLabels, r"its colour is outside 0\.\.255", {"cutout": np.array([[0, 0, 0.5, 0.5, 256, 0, 0]] * 2)}),
    ],
)
def test_a_batch_that_cannot_be_rendered_is_refused(
    error: type[Exception], message: str, change: dict[str, Any], pictures: list[Image.Image]
) -> None:
    with pytest.raises(error, match=message):
        render(pictures, replace(ONE, **change), SIZE)
    with pytest.raises(UsageError, match="size is 0"):
        render(pictures, ONE, 0)


def test_a_cutout_beyond_the_view_ends_at_its_edge() -> None:
    box, colour = cutout_boxes(np.array([[0, 15 / 16, 0.5, 0.5, 255, 0, 7.0]], np.float32), 16)
    assert (box.tolist(), colour.tolist()) == ([[0, 11, 5, 16]], [[255, 0, 7]])
