"""Dumps from one layout to another and back: the same records, or a refusal that says what would be lost."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vqlabel
from vqlabel.converting import convert, open_any
from vqlabel.errors import TargetExists, UsageError
from vqlabel.labels import WRITERS, LabelBatch, open_labels
from vqlabel.labels.source import Support
from vqlabel.labels.tree import simulated
from vqlabel.pruning import Pruned

WriteDump = Callable[..., Path]
COLUMNS = ("labels", "image", "crop", "flip", "mix_index", "mix_lam", "mix_box", "cutout", "patches", "ops", "seed")
OF_LOGITS = ("lpld", "lpqld", "gvbsm")


def as_records(path: Path) -> list[dict[str, Any]]:
    """What every batch of a dump says, places apart: LPQLD has none of its own."""
    return [{name: getattr(batch, name) for name in COLUMNS} for batch in open_any(path)]


def same(one: Path, other: Path) -> None:
    first, second = as_records(one), as_records(other)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        for name in COLUMNS:
            assert (a[name] is None) == (b[name] is None), name
            assert np.array_equal(np.asarray(a[name]), np.asarray(b[name])), name
        assert a["labels"].dtype == b["labels"].dtype


def halved(batches: list[LabelBatch]) -> list[LabelBatch]:
    """Crops that fp16 holds, as LPQLD stores them."""
    return [replace(batch, crop=batch.crop.astype(np.float16).astype(np.float32)) for batch in batches if batch.crop is not None]


@pytest.mark.parametrize("first", OF_LOGITS)
@pytest.mark.parametrize("second", [*OF_LOGITS, "edc"])
def test_layouts_that_hold_the_same_things_lead_back_to_the_same_dump(
    first: str, second: str, batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path
) -> None:
    start = write_dump(tmp_path / "start", halved(batches), first)
    convert(start, tmp_path / "there", layout=second)
    convert(tmp_path / "there", tmp_path / "back", layout=first)
    if second == "edc":  # which says an order of patches where there was none
        said = open_labels(tmp_path / "there").read(0).patches
        assert said is not None and np.array_equal(said, np.broadcast_to(np.arange(said.shape[2]), said.shape))
    else:
        same(start, tmp_path / "there")
    same(start, tmp_path / "back")


@pytest.mark.parametrize("layout", ["lpld", "gvbsm"])
def test_the_k_largest_logits_pass_through_layouts_of_whole_labels(
    layout: str, batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path
) -> None:
    whole = write_dump(tmp_path / "whole", halved(batches))
    convert(whole, tmp_path / "start", layout="lpqld:3")
    assert open_labels(tmp_path / "start").support == Support(k=3, rest="zero")
    convert(tmp_path / "start", tmp_path / "there", layout=layout)
    convert(tmp_path / "there", tmp_path / "back", layout="lpqld:3")
    for file in sorted((tmp_path / "start").glob("*.tar")):
        one, other = (torch.load(folder / file.name, weights_only=True) for folder in (tmp_path / "start", tmp_path / "back"))
        assert all(torch.equal(one[at], other[at]) for at in (5, 6))


@pytest.mark.parametrize("layout", ["sre2l", "lpld", "lpqld", "lpqld:3", "gvbsm", "edc"])
def test_a_vql_converts_as_the_dump_it_was_packed_from(
    layout: str, batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path
) -> None:
    start = write_dump(tmp_path / "start", halved(batches))
    codec, _ = vqlabel.fit(start, vqlabel.FitConfig(codec="raw"))
    vqlabel.pack(start, tmp_path / "a.vql", codec=codec)
    for source, out in ((start, "one"), (tmp_path / "a.vql", "other")):
        convert(source, tmp_path / out, layout=layout)
    same(tmp_path / "one", tmp_path / "other")
    vqlabel.unpack(tmp_path / "a.vql", tmp_path / "third", layout=layout)
    same(tmp_path / "one", tmp_path / "third")


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors"])
def test_a_dump_becomes_an_array_of_its_labels(name: str, tree: Path, tmp_path: Path) -> None:
    found = convert(tree, tmp_path / name)
    labels = np.concatenate([batch.labels for batch in open_labels(tree)])
    assert np.array_equal(np.concatenate([batch.labels for batch in open_labels(tmp_path / name)]), labels)
    assert found == {"path": str(tmp_path / name), "layout": f"arrays:{name[2:]}", "records": 360, "classes": 40, "dtype": "f16"}


def test_every_layout_can_be_written() -> None:
    assert set(WRITERS) == {"arrays", "sre2l", "lpld", "lpqld", "gvbsm", "edc", "fkd", "tinyvit", "tensor"}


def change(batches: list[LabelBatch], **values: Any) -> list[LabelBatch]:
    return [replace(batch, **values) for batch in batches]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("fkd", "fkd"),
        ("tinyvit:3", "seed"),
        ("tensor", "image"),
        ("lpqld:41", "41"),
        ("sre2l:3", "--layout sre2l:3: sre2l has no forms; write --layout sre2l"),
        ("pixie", "layout is 'pixie'; it must be one of"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused_and_nothing_is_left(layout: str, message: str, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        convert(tree, tmp_path / "out", layout=layout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["sre2l", "lpld", "lpqld", "gvbsm", "edc"])
def test_probabilities_do_not_become_logits(layout: str, batches: list[LabelBatch], probs: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "probs.npy", probs)
    source = open_labels(tmp_path / "probs.npy", domain="probs")
    with pytest.raises(UsageError, match=f"{layout} holds logits, these are probabilities"):
        convert(source, tmp_path / "out", layout=layout)


def test_an_unknown_order_is_not_invented(batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path) -> None:
    start = write_dump(tmp_path / "start", batches, "sre2l", order="none")
    for layout in ("lpld", "lpqld", "gvbsm", "edc"):
        with pytest.raises(UsageError, match=r"which image|do not say"):
            convert(start, tmp_path / "out", layout=layout)


def test_columns_that_a_layout_lacks_are_not_dropped(batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path) -> None:
    patched = [replace(batch, patches=np.tile([1, 0], (len(batch), 2, 1))) for batch in batches]
    start = write_dump(tmp_path / "start", patched, "edc")
    for layout in ("sre2l", "lpld", "lpqld", "gvbsm"):
        with pytest.raises(UsageError, match=f"{layout} has no place for patches"):
            convert(start, tmp_path / "out", layout=layout)


def test_a_folder_with_other_things_in_it_is_not_replaced(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(TargetExists, match="is a folder with other things in it"):
        convert(tree, tmp_path / "out", layout="lpld", overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


def test_a_tree_of_sre2l_says_its_order_where_its_reader_would_repeat_another(
    batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path
) -> None:
    start = write_dump(tmp_path / "start", batches)
    convert(start, tmp_path / "there", layout="sre2l")
    same(start, tmp_path / "there")
    n = sum(len(batch) for batch in batches if batch.place.epoch == 0)
    for draws in (1, 2):
        orders = list(simulated(n, 6, draws))
        images = [
            np.split(order, range(16, n, 16))[batch.place.batch] for batch in batches for order in (orders[batch.place.epoch],)
        ]
        shuffled = [replace(batch, image=image) for batch, image in zip(batches, images, strict=True)]
        convert(write_dump(tmp_path / f"start{draws}", shuffled), tmp_path / f"there{draws}", layout="sre2l")
        assert sorted(p.name for p in (tmp_path / f"there{draws}").iterdir()) == [f"epoch_{epoch}" for epoch in range(6)]


@pytest.mark.parametrize("layout", ["sre2l", "lpld"])
@pytest.mark.parametrize(("by", "what"), [("batch", r"batch \d of epoch \d is missing"), ("epoch", "epoch 2 is missing")])
def test_a_tree_with_holes_is_not_written(
    layout: str, by: str, what: str, batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path
) -> None:
    """Their readers count batches and epochs, and fail on them after hours."""
    pruned = Pruned(open_labels(write_dump(tmp_path / "start", batches, "lpld")), 0.5, by, seed=2)
    with pytest.raises(UsageError, match=rf"{layout} .*, and {what}: write lpqld"):
        convert(pruned, tmp_path / "there", layout=layout)
    convert(pruned, tmp_path / "there", layout="lpqld")


def test_a_place_that_comes_twice_loses_no_label(batches: list[LabelBatch], write_dump: WriteDump, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch is 0; it stands twice in epoch 0"):
        write_dump(tmp_path / "start", [batches[0], batches[0]], "sre2l")


@pytest.mark.parametrize(("name", "layout"), [("a.npy", "arrays:safetensors"), ("a.txt", "arrays:npy")])
def test_an_array_is_not_written_under_another_ending(name: str, layout: str, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a target that ends in"):
        convert(tree, tmp_path / name, layout=layout)
