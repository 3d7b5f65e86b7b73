"""Arrays on disk -> label batches: bit for bit, at the right place, with one batch in memory."""

import gc
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forge import flip_bit
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels import Place, open_labels
from vqlabel.labels.layouts.rows import BATCH_RECORDS
from vqlabel.labels.layouts.shards import in_numeric_order

Write = Callable[..., Path]
Draw = Callable[..., torch.Tensor]
ReadAll = Callable[..., NDArray[np.floating]]

NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
FILES = ("a.npy", "a.npz", "a.packed.npz", "a.safetensors")
CASES = [(file, dtype) for file in FILES for dtype in (torch.float16, torch.float32)] + [("a.safetensors", torch.bfloat16)]


def same_bits(read: NDArray[np.floating], written: torch.Tensor) -> bool:
    """float32 represents bf16 exactly."""
    expected = (written.float() if written.dtype == torch.bfloat16 else written).numpy()
    return read.dtype == expected.dtype and read.shape == expected.shape and read.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("file", "dtype"), CASES)
def test_records_in_order_come_back_bit_for_bit(
    file: str, dtype: torch.dtype, tmp_path: Path, draw: Draw, write_array: Write
) -> None:
    labels = draw(2 * BATCH_RECORDS + 7, 5, dtype=dtype)
    source = open_labels(write_array(tmp_path / file, labels))
    assert (source.layout, source.classes, source.dtype, source.order) == ("arrays", 5, NAMES[dtype], "none")
    assert list(source.places) == [Place(0, 0), Place(0, 1), Place(0, 2)]
    batches = list(source)
    assert [(b.place, len(b)) for b in batches] == list(zip(source.places, [BATCH_RECORDS, BATCH_RECORDS, 7], strict=True))
    assert all(b.image is None and b.crop is None and b.context().image is None for b in batches)
    assert same_bits(np.concatenate([b.labels for b in batches]), labels)


@pytest.mark.parametrize(("file", "dtype"), CASES)
def test_row_i_of_every_epoch_is_image_i(file: str, dtype: torch.dtype, tmp_path: Path, draw: Draw, write_array: Write) -> None:
    labels = draw(3, BATCH_RECORDS + 4, 5, dtype=dtype)
    source = open_labels(write_array(tmp_path / file, labels))
    assert (source.classes, source.dtype, source.order) == (5, NAMES[dtype], "rows")
    assert list(source.places) == [Place(epoch, batch) for epoch in range(3) for batch in range(2)]
    for place, batch in zip(source.places, source, strict=True):
        first = place.batch * BATCH_RECORDS
        assert batch.place == place and batch.image is not None
        assert batch.image.dtype == np.int64 and (batch.image == first + np.arange(len(batch))).all()
        assert same_bits(batch.labels, labels[place.epoch, first : first + BATCH_RECORDS])


@pytest.mark.parametrize("file", FILES)
def test_any_batch_can_be_read_at_any_time(file: str, tmp_path: Path, draw: Draw, write_array: Write) -> None:
    labels = draw(4 * BATCH_RECORDS, 3)
    source = open_labels(write_array(tmp_path / file, labels))
    for at in (2, 3, 0, 0, 3, 1, 2):  # forward, backward, again
        assert same_bits(source.read(at).labels, labels[at * BATCH_RECORDS : (at + 1) * BATCH_RECORDS])


def test_a_column_major_array_is_read_like_a_row_major_one(tmp_path: Path, draw: Draw, read_all: ReadAll) -> None:
    labels = draw(3, 6, 5)
    np.save(tmp_path / "a.npy", np.asfortranarray(labels.numpy()))
    assert same_bits(read_all(tmp_path / "a.npy"), labels.reshape(-1, 5))


def test_shards_are_read_in_numeric_order(tmp_path: Path, draw: Draw, write_array: Write, read_all: ReadAll) -> None:
    numbers = (100, 9, 10, 1)
    shards = {number: draw(number + 1, 4, seed=number) for number in numbers}
    for number, labels in shards.items():
        write_array(tmp_path / f"shard_{number}{('.npy', '.npz', '.safetensors')[number % 3]}", labels)
    (tmp_path / "README.txt").write_text("no shard")
    source = open_labels(tmp_path)
    assert list(source.places) == [Place(0, batch) for batch in range(4)]
    assert same_bits(read_all(tmp_path), torch.cat([shards[number] for number in sorted(numbers)]))


def test_epochs_are_numbered_through_all_shards(tmp_path: Path, draw: Draw, write_array: Write) -> None:
    first, second = draw(2, 6, 4), draw(3, 6, 4, seed=1)
    write_array(tmp_path / "labels_2.npy", first)
    write_array(tmp_path / "labels_10.npy", second)
    source = open_labels(tmp_path)
    assert source.order == "rows"
    assert list(source.places) == [Place(epoch, 0) for epoch in range(5)]
    for labels, batch in zip(torch.cat([first, second]), source, strict=True):
        assert same_bits(batch.labels, labels) and batch.image is not None and (batch.image == np.arange(6)).all()


def test_file_names_are_ordered_by_their_decimal_numbers() -> None:
    names = ["1²3", "b_1", "b_9", "b_10", "b_10_2", "b_10_11"]  # a superscript is a digit, but not a decimal
    assert [p.name for p in sorted(map(Path, reversed(names)), key=in_numeric_order)] == names


@pytest.mark.parametrize(
    ("name", "metadata", "argument", "domain"),
    [
        ("labels", None, None, "logits"),
        ("probs", None, None, "probs"),
        ("probabilities", None, None, "probs"),
        ("anything", None, None, "logits"),
        ("anything", {"domain": "probs"}, None, "probs"),
        ("logits", {"domain": "probs"}, None, "probs"),
        ("anything", None, "probs", "probs"),
        ("logits", {"domain": "logits"}, "probs", "probs"),
        ("probs", {"domain": "probs"}, "logits", "logits"),
    ],
)
def test_the_domain_comes_from_the_argument_then_the_metadata_then_the_name(
    name: str, metadata: dict[str, str] | None, argument: str | None, domain: str, tmp_path: Path, draw: Draw, write_array: Write
) -> None:
    labels = draw(9, 4).softmax(1) if domain == "probs" else draw(9, 4)
    files = [tmp_path / "a.safetensors"] if metadata else [tmp_path / "a.safetensors", tmp_path / "a.npz"]
    for file in files:
        source = open_labels(write_array(file, labels, name, metadata), domain=argument)
        assert source.domain == domain and same_bits(source.read(0).labels, labels)


def test_labels_are_selected_among_other_arrays(tmp_path: Path, draw: Draw, read_all: ReadAll) -> None:
    np.savez(tmp_path / "a.npz", soft_labels=draw(5, 4).numpy(), targets=np.arange(5), images=np.zeros((5, 2, 2)))
    assert same_bits(read_all(tmp_path / "a.npz"), draw(5, 4))


@pytest.mark.parametrize("file", FILES)
def test_reading_holds_one_batch_in_memory(file: str, tmp_path: Path, draw: Draw, write_array: Write) -> None:
    path = write_array(tmp_path / file, draw(2, 5 * BATCH_RECORDS, 100, dtype=torch.float16))  # 8 MB, in batches of 0.8 MB
    open_labels(path).read(0)  # so that imports are not measured
    tracemalloc.start()
    source = open_labels(path)
    for at in (len(source) - 1, 0):
        source.read(at)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_column_major_array_is_not_copied_as_a_whole(tmp_path: Path, draw: Draw) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(draw(5, BATCH_RECORDS, 100).numpy()))  # 8 MB
    tracemalloc.start()
    open_labels(tmp_path / "a.npy").read(4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="open files cannot be counted here")
@pytest.mark.parametrize("file", FILES)
def test_a_dump_of_many_shards_opens_few_files(file: str, tmp_path: Path, draw: Draw, write_array: Write) -> None:
    for shard in range(20):
        write_array(tmp_path / f"{shard}{file}", draw(4, 3, seed=shard))
    gc.collect()  # else files that other tests left open may be closed in between
    before = len(os.listdir("/dev/fd"))
    source = open_labels(tmp_path)
    assert len(list(source)) == 20 and len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("file", ["a.npz", "a.packed.npz"])
def test_the_crc32_of_an_npz_is_checked(file: str, tmp_path: Path, draw: Draw, write_array: Write) -> None:
    path = write_array(tmp_path / file, draw(2 * BATCH_RECORDS, 5))
    data = path.read_bytes()
    path.write_bytes(flip_bit(data, data.index(b"PK\1\2") + 16))  # the crc32 in the directory at the end
    with pytest.raises(BadLabels, match=rf"{file}: cannot be read at row {BATCH_RECORDS} .*CRC"):
        open_labels(path).read(1)


def test_every_flipped_byte_of_an_npz_is_detected(tmp_path: Path, draw: Draw, write_array: Write, read_all: ReadAll) -> None:
    for file in ("a.npz", "a.packed.npz"):
        path = write_array(tmp_path / file, draw(6, 5))
        data = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            start = archive.infolist()[0].header_offset + 64
            stop = start + archive.infolist()[0].compress_size - 32
        for at in range(start, stop):
            path.write_bytes(flip_bit(data, at))
            with pytest.raises(BadLabels, match=r"damaged|not readable|truncated|finite"):
                read_all(path)
