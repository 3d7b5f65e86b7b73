"""SRe2L's tree -> label batches and back: bit for bit what torch.save wrote, with the right image for every record."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forge import change_pickle
from paths import DUMP

from vqlabel.errors import BadLabels
from vqlabel.labels import LabelBatch, Place, open_labels, writing
from vqlabel.labels.layouts.tree import ORDER_FILE, write_order

Write = Callable[..., Path]
Draw = Callable[..., torch.Tensor]
Items = Callable[..., list[Any]]

NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
LENGTHS = [4, 3, 4, 4, 2, 4, 4, 4, 1, 4, 4, 3]


def same(read: np.ndarray | None, written: torch.Tensor | None) -> bool:
    """Bit for bit; float32 represents bf16 exactly."""
    if read is None or written is None:
        return read is None and written is None
    expected = (written.float() if written.dtype == torch.bfloat16 else written).numpy()
    return read.dtype == expected.dtype and read.shape == expected.shape and read.tobytes() == expected.tobytes()


def holds(batch: LabelBatch, items: list[Any]) -> bool:
    """Whether a batch has these six items, with Python numbers."""
    crop, flip, index, lam, box, logits = items
    arrays = zip((batch.crop, batch.flip, batch.mix_index, batch.labels), (crop, flip, index, logits), strict=True)
    plain = lam is None or type(batch.mix_lam) is float
    plain = plain and (box is None or (type(batch.mix_box) is tuple and all(type(v) is int for v in batch.mix_box)))
    box = None if box is None else tuple(int(v) for v in box)
    return plain and all(same(*pair) for pair in arrays) and batch.mix_lam == lam and batch.mix_box == box


@pytest.fixture
def tree(
    tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write
) -> tuple[Path, dict[Place, list[Any]], dict[str, list[int]]]:
    """2 epochs of 12 batches of at most 4 images; the items, and the image of every record."""
    items, order = {}, {}
    for epoch in range(2):
        for batch in range(12):
            place = Place(epoch, batch)
            items[place] = sre2l_items(draw(LENGTHS[batch], 7, dtype=torch.float16, seed=12 * epoch + batch), seed=batch)
            write_sre2l(tmp_path, items[place], epoch, batch)
        order[str(epoch)] = np.random.default_rng(epoch).permutation(sum(LENGTHS)).tolist()
    (tmp_path / ORDER_FILE).write_text(json.dumps(order))
    return tmp_path, items, order


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("mix", ["cutmix", "mixup", None])
def test_a_batch_is_read_as_sre2l_wrote_it(
    mix: str | None, dtype: torch.dtype, tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write
) -> None:
    items = sre2l_items(draw(6, 5, dtype=dtype), mix)
    assert mix != "cutmix" or isinstance(items[4][0], np.int64)
    write_sre2l(tmp_path, items)
    source = open_labels(tmp_path)
    assert (source.layout, source.classes, source.domain, source.dtype, source.order) == (
        "sre2l",
        5,
        "logits",
        NAMES[dtype],
        "none",
    )
    (batch,) = source
    assert holds(batch, items) and batch.image is None and batch.place == Place(0, 0)


def test_batches_are_read_in_numeric_order_with_their_images(
    tree: tuple[Path, dict[Place, list[Any]], dict[str, list[int]]],
) -> None:
    folder, items, order = tree
    source = open_labels(folder)
    assert source.order == "explicit" and list(source.places) == sorted(items)
    batches = list(source)
    assert all(holds(batch, items[batch.place]) for batch in batches) and [len(b) for b in batches] == 2 * LENGTHS
    for epoch in range(2):
        images = [b.image for b in batches if b.place.epoch == epoch and b.image is not None]
        assert np.concatenate(images).tolist() == order[str(epoch)] and images[0].dtype == np.int64


def test_any_batch_read_first_has_its_images(tree: tuple[Path, dict[Place, list[Any]], dict[str, list[int]]]) -> None:
    folder, items, order = tree
    shuffled = open_labels(folder)
    for at in np.random.default_rng(0).permutation(len(items)).tolist():
        for batch in (shuffled.read(at), open_labels(folder).read(at)):
            start = sum(LENGTHS[: batch.place.batch])
            assert batch.image is not None and batch.image.tolist() == order[str(batch.place.epoch)][start : start + len(batch)]
            assert holds(batch, items[batch.place])


def test_the_last_of_many_batches_can_be_read_first(tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write) -> None:
    first, many = write_sre2l(tmp_path, sre2l_items(draw(1, 5))), 1200  # more than Python's recursion limit
    for batch in range(1, many):
        os.link(first, first.with_name(f"batch_{batch}.tar"))
    (tmp_path / ORDER_FILE).write_text(json.dumps({"0": list(range(many))}))
    image = open_labels(tmp_path).read(many - 1).image
    assert image is not None and image.tolist() == [many - 1]


def test_the_context_has_the_image_mixed_in(tree: tuple[Path, dict[Place, list[Any]], dict[str, list[int]]]) -> None:
    for batch in open_labels(tree[0]):
        context = batch.context()
        assert batch.image is not None and batch.mix_index is not None and context.partner is not None
        assert context.partner.tolist() == [batch.image[slot] for slot in batch.mix_index]
        assert context.box is not None and context.box.tolist() == [list(batch.mix_box or ())] * len(batch)
        assert context.mix is not None and set(context.mix.tolist()) == {float(np.float32(batch.mix_lam or 0))}


def test_other_files_and_folders_are_ignored(tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write) -> None:
    write_sre2l(tmp_path, sre2l_items(draw(4, 5)), epoch=3, batch=7)  # a part of a dump
    for stray in ("epoch_3/batch_8.tar.bak", "epoch_3/batch_x.tar", "epoch_3/notes.txt", "epoch_9", "batch_1.tar", "log.txt"):
        (tmp_path / stray).write_text("stray")
    for folder in ("epoch_", "epoch_x", "xepoch_1", "epoch_4"):
        (tmp_path / folder).mkdir()
    (tmp_path / "xepoch_1" / "batch_0.tar").write_text("stray")
    source = open_labels(tmp_path)
    assert list(source.places) == [Place(3, 7)] and len(list(source)) == 1


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("mix", ["cutmix", "mixup", None])
def test_written_batches_are_read_again_bit_for_bit(
    mix: str | None, dtype: torch.dtype, tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write
) -> None:
    items = [sre2l_items(draw(n, 5, dtype=dtype, seed=n), mix, seed=n) for n in (6, 4)]
    for number, six in enumerate(items):
        write_sre2l(tmp_path / "theirs", six, 0, number)
    write_order(tmp_path / "theirs" / ORDER_FILE, {0: list(range(10))})
    theirs = open_labels(tmp_path / "theirs")
    with writing(tmp_path / "ours", theirs.about, "lpld") as writer:
        for batch in theirs:
            writer.add(batch)
    again = open_labels(tmp_path / "ours")
    assert (again.dtype, again.order, list(again.places)) == (NAMES[dtype], "explicit", [Place(0, 0), Place(0, 1)])
    assert all(holds(batch, six) for batch, six in zip(again, items, strict=True))


def test_written_files_load_with_weights_only(tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write) -> None:
    items = sre2l_items(draw(6, 5, dtype=torch.float16))
    theirs = write_sre2l(tmp_path, items)
    with pytest.raises(Exception, match="weights_only"):  # SRe2L's own file is refused for its numpy.int64
        torch.load(theirs, weights_only=True)
    source = open_labels(tmp_path)
    with writing(tmp_path / "ours", source.about, "sre2l") as writer:
        writer.add(source.read(0))
    assert [entry.name for entry in (tmp_path / "ours").iterdir()] == ["epoch_0"]  # SRe2L's reader counts all entries
    ours = torch.load(tmp_path / "ours" / "epoch_0" / "batch_0.tar", weights_only=True)
    assert type(ours) is list and len(ours) == 6 and [type(v) for v in ours[4]] == [int] * 4 and type(ours[3]) is float
    assert [ours[4], ours[3]] == [[int(v) for v in items[4]], float(items[3])]
    for number in (0, 1, 2, 5):
        assert ours[number].dtype == items[number].dtype and torch.equal(ours[number], items[number])


def test_an_order_file_is_written_as_lpld_writes_it(tmp_path: Path) -> None:
    write_order(tmp_path / ORDER_FILE, {10: [3, 1], 2: [0]})
    assert (tmp_path / "sampler_indices_epoch.json").read_text() == '{"2": [0], "10": [3, 1]}'


def test_files_of_old_versions_of_numpy_and_torch_load(tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write) -> None:
    items = sre2l_items(draw(6, 5))
    new, old = b"numpy._core.multiarray\nscalar\n", b"numpy.core.multiarray\nscalar\n"

    def rename(pickled: bytes) -> bytes:
        assert new in pickled or old in pickled
        return pickled.replace(new, old)

    change_pickle(write_sre2l(tmp_path, items, batch=0), rename)
    change_pickle(write_sre2l(tmp_path, items, batch=1), lambda pickled: rename(pickled).replace(old, new))
    write_sre2l(tmp_path, items, batch=2, _use_new_zipfile_serialization=False)
    assert all(holds(batch, items) for batch in open_labels(tmp_path)) and len(open_labels(tmp_path)) == 3


def test_parameters_and_views_are_read_like_tensors(tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write) -> None:
    items = sre2l_items(draw(6, 5))
    wide = torch.cat([items[5], items[5]], 1)
    for batch, logits in enumerate(
        (items[5].clone().requires_grad_(), torch.nn.Parameter(items[5]), wide[:, 5:], torch._neg_view(-items[5]))
    ):
        write_sre2l(tmp_path, [*items[:5], logits], batch=batch)
    assert all(holds(batch, items) for batch in open_labels(tmp_path))


@pytest.mark.skipif(not DUMP.is_dir(), reason="the ImageNet dump is not in ../shared")
def test_a_real_dump_has_each_image_once_per_epoch() -> None:
    source = open_labels(DUMP)
    assert (source.layout, source.classes, source.order) == ("lpld", 1000, "explicit")
    epoch = [source.read(at) for at, place in enumerate(source.places) if place.epoch == source.places[-1].epoch]
    images = np.concatenate([batch.image for batch in epoch if batch.image is not None])
    assert sorted(images.tolist()) == list(range(len(images))) and all(batch.mix_box and batch.crop is not None for batch in epoch)
    unmixed = np.concatenate(
        [np.full(len(batch), (batch.mix_lam or 0) > 0.9) for batch in epoch]
    )  # one image per class, in the order of the classes
    top = np.concatenate([batch.labels.argmax(1) for batch in epoch])
    assert (top == images)[unmixed].mean() > 0.5


# --- variants of other writers


def test_numpy_arrays_are_read_like_tensors(tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write) -> None:
    items = sre2l_items(draw(6, 5, dtype=torch.float16))
    write_sre2l(tmp_path, [item.numpy() if isinstance(item, torch.Tensor) else item for item in items], pickle_protocol=4)
    source = open_labels(tmp_path)
    assert holds(source.read(0), items) and source.dtype == "F16" and source.notes == []


def test_float64_labels_are_narrowed_with_a_note(tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write) -> None:
    labels = draw(6, 5, dtype=torch.float64) + 1e-12
    for batch, item in enumerate((labels, labels.numpy(), labels.float())):
        write_sre2l(tmp_path, [*sre2l_items(labels)[:5], item], batch=batch)
    source = open_labels(tmp_path)
    assert source.dtype == "F32" and source.notes == [f"{tmp_path}: float64 is narrowed to float32"]
    assert same(source.read(0).labels, labels.float()) and same(source.read(1).labels, labels.float())
    with pytest.raises(BadLabels, match=r"batch_2\.tar: labels are F32, but those of the first batch are F64"):
        source.read(2)


def test_missing_batches_and_epochs_are_noted(tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write) -> None:
    for epoch, batches in ((0, 3), (1, 3), (3, 2)):
        for batch in range(batches):
            write_sre2l(tmp_path, sre2l_items(draw(6, 5)), epoch, batch)
    (tmp_path / "epoch_1" / "batch_1.tar").unlink()
    why = "if the dump was not pruned, it is incomplete: copy it again"
    assert open_labels(tmp_path).notes == [f"{tmp_path}: epoch 2, batch 1 of epoch 1, batch 2 of epoch 3 missing; {why}"]
    write_sre2l(tmp_path, sre2l_items(draw(6, 5)), 999_999_999, 999_999_999)
    (note,) = open_labels(tmp_path).notes
    assert note == f"{tmp_path}: epoch 2, epoch 4, epoch 5, epoch 6 and 4,999,999,984 more missing; {why}"


def test_a_complete_dump_has_no_notes(tree: tuple[Path, dict[Place, list[Any]], dict[str, list[int]]]) -> None:
    assert open_labels(tree[0]).notes == []
