"""Places and augmentations -> streams of small integers -> the same places and augmentations, bit for bit."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vqlabel.container import ContainerReader, ContainerWriter
from vqlabel.errors import BadContainer, BadLabels
from vqlabel.labels import LabelBatch, Place
from vqlabel.labels.schema import MAX_IMAGES
from vqlabel.vql.column_writer import ColumnWriter
from vqlabel.vql.columns import ColumnReader

FIELDS = ("image", "crop", "flip", "mix_index", "mix_box")
CROP = "columns.crop"
Sizes = NDArray[np.int64]  # [images, 2] height, width


def store(path: Path, batches: Sequence[LabelBatch], order: str = "explicit") -> tuple[ContainerReader, dict[str, str]]:
    with ContainerWriter(path / "a.vql", overwrite=True) as writer:
        columns = ColumnWriter(path, order)
        for batch in batches:
            columns.add(batch)
        header = columns.write(writer)
        writer.finish({})
    return ContainerReader(path / "a.vql"), header


def load(
    path: Path, batches: Sequence[LabelBatch], order: str = "explicit"
) -> tuple[ColumnReader, ContainerReader, dict[str, str]]:
    reader, header = store(path, batches, order)
    return ColumnReader(reader, header, sum(map(len, batches))), reader, header


def bits(value: Any) -> Any:
    """Type, shape and bytes of an array, or the eight bytes of a float, so that -0 and NaN are compared, too."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    return struct.pack("<d", value) if isinstance(value, float) else value


def assert_same(columns: ColumnReader, batches: Sequence[LabelBatch]) -> None:
    assert columns.places == [batch.place for batch in batches]
    for at, batch in enumerate(batches):
        read = columns.batch(at, batch.labels)
        for name in (*FIELDS, "mix_lam", "place"):
            assert bits(getattr(read, name)) == bits(getattr(batch, name)), (at, name)


def draw_crop(rng: np.random.Generator, sizes: Sizes, image: NDArray[np.int64]) -> NDArray[np.float32]:
    """Integer pixels as shares i/H, j/W, h/H, w/W, as RandomResizedCrop computes them: float64, rounded to float32."""
    side = sizes[image]
    extent = rng.integers(1, side + 1)
    start = rng.integers(0, side - extent + 1)
    return (np.concatenate([start, extent], 1) / np.tile(side, 2)).astype(np.float32)


def draw_batches(seed: int, sizes: Sizes, lengths: Sequence[Sequence[int]]) -> Iterator[LabelBatch]:
    """Random batches with every column; `lengths`: records of each batch of each epoch."""
    rng = np.random.default_rng(seed)
    for epoch, several in enumerate(lengths):
        for number, n in enumerate(several):
            image = rng.integers(0, len(sizes), n)
            yield LabelBatch(
                labels=np.zeros((n, 2), np.float16),
                place=Place(3 * epoch, number),
                image=image,
                crop=draw_crop(rng, sizes, image),
                flip=rng.random(n) < 0.5,
                mix_index=rng.integers(0, n, n),
                mix_lam=float(rng.random()),
                mix_box=tuple(rng.integers(0, 1 << int(rng.integers(1, 32)), 4).tolist()),
            )


LENGTHS = [[16, 16, 5], [1, 30, 6], [37]]


@pytest.mark.parametrize("seed", range(8))
def test_every_column_is_read_back_bit_for_bit(seed: int, tmp_path: Path) -> None:
    sizes = np.random.default_rng(seed).integers(1, 2001, (12, 2))
    batches = list(draw_batches(seed, sizes, LENGTHS))
    columns, _, header = load(tmp_path, batches)
    assert header == {"order": "explicit", "crop": "integers"} and columns.starts.tolist() == [0, 16, 32, 37, 38, 68, 74, 111]
    assert_same(columns, batches)


@pytest.mark.parametrize("seed", range(4))
def test_crops_of_any_image_up_to_2000_pixels_are_integers(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    sizes = np.concatenate([rng.integers(1, 2001, (396, 2)), [(2000, 1999), (1999, 1997), (1, 2000), (2, 1)]])
    batches = list(draw_batches(seed, sizes, [[500] * 8]))
    columns, reader, header = load(tmp_path, batches)
    assert header["crop"] == "integers" and all(width <= 11 for width in reader.streams[CROP].bits)
    assert_same(columns, batches)


def test_a_share_divided_in_single_precision_is_the_same_share(tmp_path: Path) -> None:
    side = np.arange(1, 2001)
    first = np.random.default_rng(0).integers(0, side + 1)
    crop = np.stack([first.astype(np.float32) / side.astype(np.float32)] * 4, 1)
    batch = LabelBatch(labels=np.zeros((2000, 2)), place=Place(0, 0), image=side - 1, crop=crop)
    columns, _, header = load(tmp_path, [batch])
    assert header["crop"] == "integers"
    assert_same(columns, [batch])


def test_views_of_images_of_224_pixels_take_at_most_40_bits(tmp_path: Path) -> None:
    batches = list(draw_batches(0, np.full((50, 2), 224), [[100] * 10]))
    columns, reader, header = load(tmp_path, batches)
    assert header["crop"] == "integers" and sum(reader.streams[CROP].bits) <= 40
    assert reader.stored(CROP) * 8 <= 40 * 1000
    assert reader.rows("columns.image_size").tolist() == [[224, 224]]  # one row for all images
    assert_same(columns, batches)


def test_without_an_order_one_size_holds_for_all_images(tmp_path: Path) -> None:
    batches = [replace(batch, image=None) for batch in draw_batches(0, np.tile([[375, 500]], (9, 1)), [[400] * 3])]
    columns, reader, header = load(tmp_path, batches, "none")
    assert header == {"order": "none", "crop": "integers"} and reader.rows("columns.image_size").tolist() == [[375, 500]]
    assert_same(columns, batches)
    assert columns.image(np.arange(3)) is None and not columns.has("image")


def test_without_an_order_sizes_without_a_small_common_multiple_stay_floats(tmp_path: Path) -> None:
    sizes = np.random.default_rng(0).integers(300, 2001, (40, 2))
    batches = [replace(batch, image=None) for batch in draw_batches(0, sizes, [[100] * 3])]
    columns, reader, header = load(tmp_path, batches, "none")
    assert header["crop"] == "float32" and "columns.image_size" not in reader.streams
    assert_same(columns, batches)


@pytest.mark.parametrize("share", [np.e / 3, 1e-6, 1.25, -0.25, -0.0, np.nan, -np.inf, np.nextafter(np.float32(1), np.float32(0))])
@pytest.mark.parametrize("column", range(4))
def test_one_crop_that_is_not_a_fraction_makes_all_crops_floats(column: int, share: float, tmp_path: Path) -> None:
    batches = list(draw_batches(0, np.full((5, 2), 96), [[20, 20, 20]]))
    crop = batches[1].crop
    assert crop is not None
    crop[7, column] = share
    columns, reader, header = load(tmp_path, batches)
    assert header["crop"] == "float32" and "columns.image_size" not in reader.streams
    assert_same(columns, batches)


def test_random_floats_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    batches = [replace(b, crop=rng.random((len(b), 4), np.float32)) for b in draw_batches(0, np.full((5, 2), 96), LENGTHS)]
    columns, _, header = load(tmp_path, batches)
    assert header["crop"] == "float32"
    assert_same(columns, batches)


@pytest.mark.parametrize("lam", [0.0, -0.0, 1.0, 0.1 + 0.2, 1 / 3, 5e-324, 1e308, np.nextafter(0.5, 1), float("nan"), float("inf")])
def test_lambda_keeps_its_64_bits(lam: float, tmp_path: Path) -> None:
    batches = [replace(b, mix_lam=lam if i % 2 else 0.25) for i, b in enumerate(draw_batches(0, np.full((5, 2), 96), LENGTHS))]
    assert_same(load(tmp_path, batches)[0], batches)


@pytest.mark.parametrize("absent", ["image", "crop", "flip", "mix_index", "mix_lam", "mix_box"])
def test_an_absent_column_stays_absent(absent: str, tmp_path: Path) -> None:
    batches = [replace(batch, **{absent: None}) for batch in draw_batches(0, np.full((5, 2), 96), LENGTHS)]
    columns, reader, _ = load(tmp_path, batches, "none" if absent == "image" else "explicit")
    assert not columns.has(absent) and f"columns.{absent}" not in reader.streams
    assert all(columns.has(name) for name in {*FIELDS, "mix_lam"} - {absent})
    assert_same(columns, batches)


def test_row_i_of_every_epoch_is_image_i_and_takes_no_bits(tmp_path: Path) -> None:
    batches = [
        LabelBatch(labels=np.zeros((n, 2)), place=Place(epoch, number), image=np.arange(start, start + n))
        for epoch, lengths in enumerate(([7, 3], [4], [7, 7, 7]))
        for number, (n, start) in enumerate(zip(lengths, np.cumsum([0, *lengths[:-1]]), strict=True))
    ]
    columns, reader, header = load(tmp_path, batches, "rows")
    assert header == {"order": "rows"} and set(reader.streams) == {"columns.batch"} and columns.has("image")
    assert_same(columns, batches)


def test_any_records_have_the_context_of_their_batches(tmp_path: Path) -> None:
    batches = list(draw_batches(0, np.random.default_rng(0).integers(1, 2001, (12, 2)), LENGTHS))
    columns, _, _ = load(tmp_path, batches)
    contexts = [batch.context() for batch in batches]
    record = np.random.default_rng(1).permutation(111)[:60]
    read = columns.context(record)
    for name in ("image", "partner", "mix", "crop", "flip", "box"):
        assert bits(getattr(read, name)) == bits(np.concatenate([getattr(c, name) for c in contexts])[record]), name
    assert columns.batch_of(record).tolist() == np.repeat(np.arange(7), [len(b) for b in batches])[record].tolist()


def test_crops_keep_their_images_over_many_records(tmp_path: Path) -> None:
    sizes = np.random.default_rng(0).integers(1, 2001, (300, 2))
    batches = list(draw_batches(0, sizes, [[5000] * 14]))  # more than the writer has in memory at a time
    columns, _, header = load(tmp_path, batches)
    assert header["crop"] == "integers"
    assert_same(columns, batches)


@pytest.mark.parametrize("name", ["crop", "flip", "mix_index", "mix_lam", "mix_box"])
def test_a_batch_with_other_columns_than_the_first_is_refused(name: str, tmp_path: Path) -> None:
    batches = list(draw_batches(0, np.full((5, 2), 96), [[4, 4, 4]]))
    for have, more in (
        ("lacks", [batches[0], replace(batches[1], **{name: None})]),
        ("has", [replace(batches[0], **{name: None}), batches[1]]),
    ):
        with pytest.raises(
            BadLabels, match=rf"epoch 0, batch 1 {have} {name}, unlike the first batch: a dump must have one augmentation recipe"
        ):
            store(tmp_path, more)


def test_an_image_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    batch = LabelBatch(labels=np.zeros((2, 2)), place=Place(0, 0), image=np.array([0, MAX_IMAGES]))
    with pytest.raises(BadLabels, match=f"image index {MAX_IMAGES} is above {MAX_IMAGES - 1}; number the images from 0"):
        store(tmp_path, [batch])


def test_columns_of_wrong_length_are_refused(tmp_path: Path) -> None:
    reader, header = store(tmp_path, list(draw_batches(0, np.full((5, 2), 96), LENGTHS)))
    with pytest.raises(BadContainer, match="column 'image' has 111 rows of 1 fields; expected 112 rows of 1 fields"):
        ColumnReader(reader, header, 112)
    for forged in ({}, {"order": "random"}, {"order": "none", "crop": "halves"}):
        with pytest.raises(BadContainer, match=r"vql\.columns is .*; damaged or from a newer version"):
            ColumnReader(reader, forged, 111)


def test_a_slot_outside_its_batch_is_refused(tmp_path: Path) -> None:
    batches = list(draw_batches(0, np.full((5, 2), 96), [[4, 6]]))
    columns, _, _ = load(tmp_path, [replace(batches[0], mix_index=np.array([0, 1, 2, 4])), batches[1]])
    with pytest.raises(BadContainer, match="mix_index 4 in batch 0 is outside its 4 records"):
        columns.batch(0, batches[0].labels)
    with pytest.raises(BadContainer, match="a mix_index is outside its batch"):
        columns.context(np.arange(4))
    assert len(columns.batch(1, batches[1].labels)) == 6


def test_an_image_without_a_size_is_refused(tmp_path: Path) -> None:
    batches = list(draw_batches(0, np.array([[97, 89], [83, 79], [73, 71]]), [[40]]))
    reader, header = store(tmp_path, batches)
    assert reader.streams["columns.image_size"].rows == 3
    with ContainerWriter(tmp_path / "b.vql") as writer:
        for name, stream in reader.streams.items():
            rows = reader.rows(name)
            writer.begin(name, stream.bits)
            writer.append(rows[:2] if name == "columns.image_size" else rows)
            writer.end()
        writer.finish({})
    with pytest.raises(BadContainer, match="an image has no size; damaged or forged"):
        ColumnReader(ContainerReader(tmp_path / "b.vql"), header, 40).crop(np.arange(40))
