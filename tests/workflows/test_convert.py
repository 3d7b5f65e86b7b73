"""Dumps from one layout to another and back: the same records, or an error that names what would be lost."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vqlabel
from vqlabel.codecs import build_codec
from vqlabel.codecs.raw.config import RawConfig
from vqlabel.errors import TargetExists, UsageError
from vqlabel.labels import LAYOUTS, LabelBatch, open_labels
from vqlabel.labels.batch import Support
from vqlabel.labels.layouts.tree import simulated_orders
from vqlabel.labels.pruning import Pruned
from vqlabel.labels.sparse import as_dense
from vqlabel.workflows.convert import convert, open_any

WriteDump = Callable[..., Path]
COLUMNS = ("labels", "image", "crop", "flip", "mix_index", "mix_lam", "mix_box", "cutout", "patches", "ops", "seed")
OF_LOGITS = ("lpld", "lpqld", "gvbsm")
IMAGES, BATCH, CLASSES = 60, 16, 40  # of the batches


def as_records(path: Path) -> list[dict[str, Any]]:
    """The fields of every batch of a dump but its place, which LPQLD does not record."""
    return [{name: getattr(batch, name) for name in COLUMNS} | {"labels": as_dense(batch.labels)} for batch in open_any(path)]


def same(one: Path, other: Path) -> None:
    first, second = as_records(one), as_records(other)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        for name in COLUMNS:
            assert (a[name] is None) == (b[name] is None), name
            assert np.array_equal(np.asarray(a[name]), np.asarray(b[name])), name
        assert a["labels"].dtype == b["labels"].dtype


def halved(batches: list[LabelBatch]) -> list[LabelBatch]:
    """The batches with crops rounded to float16, as LPQLD stores them."""
    return [replace(batch, crop=batch.crop.astype(np.float16).astype(np.float32)) for batch in batches if batch.crop is not None]


def shuffled(batches: list[LabelBatch], draws: int, seed: int = 42) -> list[LabelBatch]:
    """The order in which SRe2L's script shows the images, if an epoch draws this number of permutations."""
    orders = list(simulated_orders(IMAGES, 6, draws, seed))
    split = {epoch: np.split(order, range(BATCH, IMAGES, BATCH)) for epoch, order in enumerate(orders)}
    return [replace(batch, image=split[batch.place.epoch][batch.place.batch]) for batch in batches]


@pytest.mark.parametrize("first", OF_LOGITS)
@pytest.mark.parametrize("second", [*OF_LOGITS, "edc"])
def test_layouts_with_the_same_columns_convert_back_to_the_same_dump(
    first: str, second: str, batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path
) -> None:
    start = write_dump(tmp_path / "start", halved(batches[:8]), first)
    convert(start, tmp_path / "there", layout=second)
    convert(tmp_path / "there", tmp_path / "back", layout=first)
    if second == "edc":  # its writer stores an order of patches, which leaves all in place
        patches = open_labels(tmp_path / "there").read(0).patches
        assert patches is not None and np.array_equal(patches, np.broadcast_to(np.arange(patches.shape[2]), patches.shape))
    else:
        same(start, tmp_path / "there")
    same(start, tmp_path / "back")


@pytest.mark.parametrize("layout", ["lpld", "gvbsm"])
def test_top_k_logits_pass_through_layouts_of_dense_labels(
    layout: str, batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path
) -> None:
    dense = write_dump(tmp_path / "dense", halved(batches))
    convert(dense, tmp_path / "start", layout="lpqld:3")
    assert open_labels(tmp_path / "start").support == Support(k=3, rest="zero")
    convert(tmp_path / "start", tmp_path / "there", layout=layout)
    convert(tmp_path / "there", tmp_path / "back", layout="lpqld:3")
    for file in sorted((tmp_path / "start").glob("*.tar")):
        one, other = (torch.load(folder / file.name, weights_only=True) for folder in (tmp_path / "start", tmp_path / "back"))
        assert all(torch.equal(one[at], other[at]) for at in (5, 6))


def pack_raw(dump: Path, out: Path) -> Path:
    """Pack a dump without loss."""
    vqlabel.pack(dump, out, codec=build_codec("raw", RawConfig(classes=CLASSES, domain="logits", dtype="F16").to_dict(), {}))
    return out


@pytest.fixture(scope="module")
def start(batches: list[LabelBatch], write_dump: WriteDump, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump that every layout of trees can represent."""
    return write_dump(tmp_path_factory.mktemp("start") / "dump", halved(shuffled(batches, 2)))


@pytest.fixture(scope="module")
def start_vql(start: Path) -> Path:
    return pack_raw(start, start.with_name("a.vql"))


@pytest.mark.parametrize("layout", ["sre2l", "lpld", "lpqld", "lpqld:3", "gvbsm", "edc"])
def test_a_vql_converts_like_the_dump_it_was_packed_from(layout: str, start: Path, start_vql: Path, tmp_path: Path) -> None:
    for source, out in ((start, "one"), (start_vql, "other")):
        convert(source, tmp_path / out, layout=layout)
    same(tmp_path / "one", tmp_path / "other")
    vqlabel.unpack(start_vql, tmp_path / "third", layout=layout)
    same(tmp_path / "one", tmp_path / "third")


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors"])
def test_a_dump_converts_to_an_array_of_its_labels(name: str, tree: Path, tmp_path: Path) -> None:
    result = convert(tree, tmp_path / name)
    labels = np.concatenate([batch.labels for batch in open_labels(tree)])
    assert np.array_equal(np.concatenate([batch.labels for batch in open_labels(tmp_path / name)]), labels)
    assert result == {"path": str(tmp_path / name), "layout": f"arrays:{name[2:]}", "records": 360, "classes": 40, "dtype": "f16"}


def test_every_layout_can_be_written() -> None:
    assert set(LAYOUTS) == {"arrays", "sre2l", "lpld", "lpqld", "gvbsm", "edc", "hald", "fkd", "tinyvit", "tensor"}


def change(batches: list[LabelBatch], **values: Any) -> list[LabelBatch]:
    return [replace(batch, **values) for batch in batches]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("fkd", "fkd"),
        ("tinyvit:3", "seed"),
        ("tensor", "image"),
        ("lpqld:41", "41"),
        ("sre2l:3", "--layout sre2l:3: sre2l has no forms; pass --layout sre2l"),
        ("pixie", "layout is 'pixie'; it must be one of"),
    ],
)
def test_a_dump_that_a_layout_cannot_represent_is_refused_and_nothing_is_written(
    layout: str, message: str, tree: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        convert(tree, tmp_path / "out", layout=layout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["sre2l", "lpld", "lpqld", "gvbsm", "edc"])
def test_probabilities_are_not_written_as_logits(layout: str, batches: list[LabelBatch], probs: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "probs.npy", probs)
    source = open_labels(tmp_path / "probs.npy", domain="probs")
    with pytest.raises(UsageError, match=f"{layout} stores logits, but these labels are probabilities"):
        convert(source, tmp_path / "out", layout=layout)


def test_a_dump_of_unknown_order_is_not_written_in_a_layout_that_needs_one(
    batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path
) -> None:
    start = write_dump(tmp_path / "start", batches, "sre2l", order="none")
    for layout in ("lpld", "lpqld", "gvbsm", "edc"):
        with pytest.raises(UsageError, match=r"image index"):
            convert(start, tmp_path / "out", layout=layout)


def test_columns_that_a_layout_lacks_are_not_dropped(batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path) -> None:
    patched = [replace(batch, patches=np.tile([1, 0], (len(batch), 2, 1))) for batch in batches]
    start = write_dump(tmp_path / "start", patched, "edc")
    for layout in ("sre2l", "lpld", "lpqld", "gvbsm"):
        with pytest.raises(UsageError, match=f"{layout} cannot store patches"):
            convert(start, tmp_path / "out", layout=layout)


def test_a_folder_with_unrelated_files_is_not_replaced(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(TargetExists, match="is a folder that contains more than a dump"):
        convert(tree, tmp_path / "out", layout="lpld", overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("from_vql", [False, True])
def test_sre2ls_tree_is_written_only_in_the_order_that_its_script_shuffles(
    from_vql: bool, batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path
) -> None:
    """Its script shuffles images by itself, and raises no error if the labels have another order."""

    def written(batches: list[LabelBatch], name: str) -> list[str]:
        start = write_dump(tmp_path / f"start {name}", batches)
        if from_vql:
            result = vqlabel.unpack(pack_raw(start, tmp_path / f"{name}.vql"), tmp_path / name, layout="sre2l")
        else:
            result = convert(start, tmp_path / name, layout="sre2l")
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == [f"epoch_{epoch}" for epoch in range(6)]
        return result.get("notes", [])  # type: ignore[no-any-return]

    other_from_epoch_1 = [batch if batch.place.epoch else new for batch, new in zip(batches, shuffled(batches, 2), strict=True)]
    for wrong in (batches, shuffled(batches, 2, seed=43), other_from_epoch_1):
        with pytest.raises(
            UsageError, match=r"shuffles the images itself \(seed 42\), .* in another order.* Write lpld, .* or train .* \.vql"
        ):
            written(wrong, "wrong")
        assert not (tmp_path / "wrong").exists()
        for path in tmp_path.glob("*wrong*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert written(shuffled(batches, 2), "new") == []
    (note,) = written(shuffled(batches, 1), "old")
    assert "the order of PyTorch before 1.11, which draws one permutation per epoch; newer versions draw 2" in note


def test_labels_of_unknown_images_become_an_sre2l_tree_only_if_they_came_from_one(
    logits: Any, batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path
) -> None:
    start = write_dump(tmp_path / "start", batches, "sre2l", order="none")
    convert(start, tmp_path / "there", layout="sre2l")
    same(start, tmp_path / "there")
    np.save(tmp_path / "a.npy", logits[0])
    with pytest.raises(
        UsageError, match="these records have no image index, so it is unknown whether labels would get their own images"
    ):
        convert(tmp_path / "a.npy", tmp_path / "b", layout="sre2l")


def test_a_tree_that_lplds_script_reads_in_some_settings_only_gives_a_note(
    batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path
) -> None:
    (note,) = convert(write_dump(tmp_path / "start", batches), tmp_path / "there", layout="lpld")["notes"]
    assert "--granularity batch and batch_to_epoch; with --granularity epoch it shuffles the images itself (seed 42)" in note
    assert "notes" not in convert(write_dump(tmp_path / "fits", shuffled(batches, 2)), tmp_path / "fits too", layout="lpld")


@pytest.mark.parametrize("layout", ["lpld", "gvbsm", "edc"])
def test_epochs_that_a_script_would_count_wrongly_are_not_written(
    layout: str, batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path
) -> None:
    """LPLD's script reads batch i as batch i % B of epoch i // B; G-VBSM's and EDC's need a row per image and epoch."""
    first_short = [batch for batch in batches if batch.place != (0, 3)]
    last_short = [batch for batch in batches if batch.place != (5, 3)]
    with pytest.raises(UsageError, match=rf"{layout} .*, but these (epochs )?have .*: write lpqld"):
        write_dump(tmp_path / "a", first_short, layout)
    if layout == "lpld":
        write_dump(tmp_path / "b", last_short, layout)
    else:
        with pytest.raises(
            UsageError, match=rf"{layout} needs a row for each image in every epoch, but these epochs have 48 to 60 rows"
        ):
            write_dump(tmp_path / "b", last_short, layout)


@pytest.mark.parametrize("layout", ["sre2l", "lpld", "gvbsm", "edc"])
def test_batches_that_a_script_would_split_differently_are_not_written(
    layout: str, batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path
) -> None:
    """A script with a fixed batch size computes the first record of a batch as a multiple of it."""
    cut = [replace(batches[0].rows(np.arange(9)), partner_image=None, partner_crop=None, partner_flip=None), *batches[1:]]
    with pytest.raises(
        UsageError, match=rf"{layout} finds row i of an epoch in batch i // 9, but batch 1 of epoch 0 has 16 records after 9"
    ):
        write_dump(tmp_path / "a", [replace(batch, mix_index=None, mix_lam=None, mix_box=None) for batch in cut], layout)


@pytest.mark.parametrize("layout", ["sre2l", "lpld"])
@pytest.mark.parametrize(("by", "what"), [("batch", r"batch \d of epoch \d is missing"), ("epoch", "epoch 2 is missing")])
def test_a_tree_with_missing_batches_is_not_written(
    layout: str, by: str, what: str, batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path
) -> None:
    """The scripts count batches and epochs, and would fail at a missing one after hours."""
    pruned = Pruned(open_labels(write_dump(tmp_path / "start", shuffled(batches, 2), "lpld")), 0.5, by, seed=2)
    with pytest.raises(UsageError, match=rf"{layout} .*, but {what}: write lpqld"):
        convert(pruned, tmp_path / "there", layout=layout)
    convert(pruned, tmp_path / "there", layout="lpqld")


def test_a_duplicate_place_is_refused(batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch is 0; it occurs twice in epoch 0"):
        write_dump(tmp_path / "start", [batches[0], batches[0]], "sre2l")


@pytest.mark.parametrize(("name", "layout"), [("a.npy", "arrays:safetensors"), ("a.txt", "arrays:npy")])
def test_an_array_is_not_written_with_another_suffix(name: str, layout: str, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a target that ends in"):
        convert(tree, tmp_path / name, layout=layout)
