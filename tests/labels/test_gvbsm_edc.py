"""G-VBSM's and EDC's trees -> label batches and back: their seven and eight items, bit for bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vqlabel
from vqlabel import FitConfig
from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels import LabelBatch, LabelSource, Place, open_labels, writing
from vqlabel.labels.layouts.tree import ORDER_FILE

Draw = Callable[..., torch.Tensor]
Items = Callable[..., list[Any]]
Write = Callable[..., Path]

LENGTHS = (4, 4, 3)
LAYOUTS = {"gvbsm": 7, "edc": 8}


@pytest.fixture
def items(draw: Draw, sre2l_items: Items) -> Items:
    """The items of the generators: SRe2L's six, image indices and, for EDC, two orders of `factor` strips per view."""

    def make(
        layout: str, b: int = 4, seed: int = 0, dtype: torch.dtype = torch.float16, factor: int = 2, first: int = 0
    ) -> list[Any]:
        six = sre2l_items(draw(b, 7, dtype=dtype, seed=seed), seed=seed)
        rng = np.random.default_rng(seed)
        index = torch.from_numpy(first + rng.permutation(b))
        patches = torch.stack([torch.stack([torch.from_numpy(rng.permutation(factor)) for _ in range(2)]) for _ in range(b)])
        return [*six, index, patches][: LAYOUTS[layout]]

    return make


@pytest.fixture
def tree(tmp_path: Path, items: Items, write_sre2l: Write) -> Callable[..., tuple[Path, dict[Place, list[Any]]]]:
    """2 epochs of 11 images in batches of 4."""

    def write(layout: str, **how: Any) -> tuple[Path, dict[Place, list[Any]]]:
        found = {}
        for epoch in range(2):
            for batch, b in enumerate(LENGTHS):
                found[Place(epoch, batch)] = items(layout, b, 3 * epoch + batch, first=4 * batch, **how)
                write_sre2l(tmp_path / layout, found[Place(epoch, batch)], epoch, batch)
        return tmp_path / layout, found

    return write


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(torch.uint8).numpy().tobytes()


def check_file(file: Path, expected: list[Any]) -> None:
    """The file has these items, of the same types, and the box as plain integers, which default_collate accepts."""
    found = torch.load(file, weights_only=True)
    assert type(found) is list and len(found) == len(expected)
    for number, (item, expected_item) in enumerate(zip(found, expected, strict=True)):
        if number == 3:
            assert type(item) is float and item == float(expected_item)
        elif number == 4:
            assert [type(edge) for edge in item] == [int] * 4 and item == [int(edge) for edge in expected_item]
        else:
            assert bits(item) == bits(expected_item), number


def write_all(source: LabelSource, out: Path, layout: str) -> Path:
    with writing(out, source.about, layout) as writer:
        for batch in source:
            writer.add(batch)
    return out


# --- packing and unpacking


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_has_its_images_and_strips(layout: str, tree: Callable[..., Any]) -> None:
    folder, expected = tree(layout, factor=3)
    source = open_labels(folder)
    assert (source.layout, source.classes, source.dtype, source.order, source.domain) == (layout, 7, "F16", "explicit", "logits")
    assert source.about.temperature is None and source.support is None and list(source.places) == list(expected)
    for batch in source:
        six = expected[batch.place]
        assert bits(torch.from_numpy(batch.labels)) == bits(six[5]) and bits(torch.from_numpy(batch.crop)) == bits(six[0])
        assert batch.flip.tolist() == six[1].tolist() and batch.mix_index.tolist() == six[2].tolist()
        assert (batch.mix_lam, batch.mix_box) == (six[3], tuple(six[4]))
        assert batch.image.dtype == np.int64 and batch.image.tolist() == six[6].tolist()
        assert (batch.patches is None) == (layout == "gvbsm")
        assert batch.patches is None or bits(torch.from_numpy(batch.patches)) == bits(six[7])


def test_images_in_the_files_take_precedence_over_an_order_file(tree: Callable[..., Any]) -> None:
    folder, expected = tree("gvbsm")
    (folder / ORDER_FILE).write_text(json.dumps({"0": list(range(11)), "1": list(range(11))}))
    assert open_labels(folder).layout == "gvbsm"
    assert open_labels(folder).read(1).image.tolist() == expected[Place(0, 1)][6].tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_packed_dump_is_unpacked_to_identical_items(
    layout: str, dtype: torch.dtype, tree: Callable[..., Any], tmp_path: Path
) -> None:
    folder, expected = tree(layout, dtype=dtype)
    source = open_labels(folder)
    vqlabel.pack(source, tmp_path / "a.vql", codec=vqlabel.fit(source, FitConfig(codec="raw"))[0])
    vqlabel.unpack(tmp_path / "a.vql", tmp_path / "back")
    for place, items in expected.items():
        check_file(tmp_path / "back" / f"epoch_{place.epoch}" / f"batch_{place.batch}.tar", items)
    assert sorted(entry.name for entry in (tmp_path / "back").iterdir()) == ["epoch_0", "epoch_1"]  # the reader counts entries


def test_views_that_were_not_cut_are_written_with_the_identity_order(tree: Callable[..., Any], tmp_path: Path) -> None:
    folder, expected = tree("gvbsm")
    write_all(open_labels(folder), tmp_path / "ours", "edc")
    in_order = torch.tensor([[[0, 1], [0, 1]]])
    for place, items in expected.items():
        file = tmp_path / "ours" / f"epoch_{place.epoch}" / f"batch_{place.batch}.tar"
        check_file(file, [*items, in_order.expand(len(items[6]), 2, 2)])


def test_zeros_for_uncut_views_are_written_again(items: Items, write_sre2l: Write, tmp_path: Path) -> None:
    """EDC's own recipe cuts no views, and its generator saves int32 zeros."""
    for batch in range(2):
        uncut = [*items("gvbsm", 4, batch, first=4 * batch), torch.zeros(2, 2).int().expand(4, 2, 2).clone()]
        write_sre2l(tmp_path / "dump", uncut, 0, batch)
    source = open_labels(tmp_path / "dump")
    assert source.layout == "edc" and source.read(1).patches is None
    vqlabel.pack(source, tmp_path / "a.vql", codec=vqlabel.fit(source, FitConfig(codec="raw"))[0])
    vqlabel.unpack(tmp_path / "a.vql", tmp_path / "back")
    check_file(tmp_path / "back" / "epoch_0" / "batch_1.tar", uncut)
    write_all(source, tmp_path / "other", "gvbsm")
    check_file(tmp_path / "other" / "epoch_0" / "batch_1.tar", uncut[:7])
    write_sre2l(tmp_path / "dump", items("edc", 4, first=8), 0, 2)
    with pytest.raises(BadLabels, match=r"batch_2.tar: item 7 is torch.int64 \[4, 2, 2\], but in the first batch it is int32"):
        open_labels(tmp_path / "dump").read(2)


# --- refused


@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_without_an_image_index_are_refused(
    layout: str, draw: Draw, sre2l_items: Items, write_sre2l: Write, tmp_path: Path
) -> None:
    write_sre2l(tmp_path / "dump", sre2l_items(draw(4, 7)))
    source = open_labels(tmp_path / "dump")
    with pytest.raises(UsageError, match=f"{layout} stores the image index of every label, which these records do not have"):
        write_all(source, tmp_path / "ours", layout)


@pytest.mark.parametrize(
    ("places", "lengths", "message"),
    [
        ([(0, 0), (0, 2)], [4, 4], "finds the images of a batch by its number, but batch 1 of epoch 0 is missing"),
        (
            [(0, 0), (0, 1), (0, 2)],
            [4, 3, 4],
            "finds row i of an epoch in batch i // 4, but batch 2 of epoch 0 has 4 records after 7",
        ),
        ([(0, 0), (0, 1)], [3, 4], "finds row i of an epoch in batch i // 3, but batch 1 of epoch 0 has 4 records after 3"),
        ([(0, 0), (3, 1)], [4, 4], "finds the images of a batch by its number, but batch 0 of epoch 3 is missing"),
    ],
    ids=["a gap", "a short batch inside", "a longer batch", "an epoch that begins late"],
)
def test_batches_that_the_systems_reader_would_misread_are_refused(
    places: list[tuple[int, int]], lengths: list[int], message: str, items: Items, write_sre2l: Write, tmp_path: Path
) -> None:
    for place, b in zip(places, lengths, strict=True):
        write_sre2l(tmp_path / "dump", items("gvbsm", b), *place)
    with pytest.raises(UsageError, match=f"gvbsm {message}.*: write lpqld"):
        write_all(open_labels(tmp_path / "dump"), tmp_path / "ours", "gvbsm")
    assert not (tmp_path / "ours").exists()


def test_gvbsm_refuses_strips_probabilities_and_forms(tree: Callable[..., Any], tmp_path: Path) -> None:
    source = open_labels(tree("edc")[0])
    with pytest.raises(UsageError, match="gvbsm cannot store patches, which these records have"):
        write_all(source, tmp_path / "ours", "gvbsm")
    with pytest.raises(UsageError, match="edc has no forms; pass --layout edc"):
        write_all(source, tmp_path / "ours", "edc:8")
    source.about = replace(source.about, domain="probs")
    with pytest.raises(UsageError, match="gvbsm stores logits, but these labels are probabilities"):
        write_all(source, tmp_path / "ours", "gvbsm")


@pytest.mark.parametrize(
    ("layout", "number", "item", "message"),
    [
        ("gvbsm", 6, None, "item 6 is NoneType; it must be image indices"),
        ("gvbsm", 6, torch.arange(4).int(), r"item 6 is torch.int32 \[4\]; it must be torch.int64 \[4\]"),
        ("gvbsm", 6, torch.arange(5), r"item 6 is torch.int64 \[5\]"),
        ("gvbsm", 6, torch.tensor([0, 1, 2, -1]), r"it must be image indices in 0..2\^31-1, int64 \[4\]"),
        ("gvbsm", 6, torch.tensor([0, 1, 2, 1 << 31]), "it must be image indices"),
        ("edc", 6, torch.tensor([0, 1, 2, -1]), "it must be image indices"),
        ("edc", 7, None, "item 7 is NoneType; it must be two permutations"),
        ("edc", 7, torch.arange(4), r"item 7 is torch.int64 \[4\]; it must be torch.int64 \[4, 2, 2\]"),
        ("edc", 7, torch.tensor(0), r"item 7 is torch.int64 \[\]"),
        ("edc", 7, torch.zeros(4, 2, 0, dtype=torch.int64), "it must be two permutations of .* with 1 to 256 parts"),
        ("edc", 7, torch.zeros(4, 2, 2, dtype=torch.int64), "it must be two permutations"),
        ("edc", 7, torch.arange(1, 3).expand(4, 2, 2).clone(), "it must be two permutations"),
        ("edc", 7, torch.arange(257).expand(4, 2, 257).clone(), "it must be two permutations of .* with 1 to 256 parts"),
        ("edc", 7, torch.tensor([1, 0]).expand(4, 2, 2).int(), "an int32 order of strips; an order must be int64"),
        ("edc", 7, torch.zeros(4, 2, 3).int(), r"item 7 is torch.int32 \[4, 2, 3\]; it must be torch.int32 \[4, 2, 2\]"),
        ("edc", 7, torch.arange(2.0).expand(4, 2, 2).clone(), r"item 7 is torch.float32 \[4, 2, 2\]; it must be torch.int64"),
    ],
)
def test_a_malformed_item_is_refused(
    layout: str, number: int, item: Any, message: str, items: Items, write_sre2l: Write, tmp_path: Path
) -> None:
    bad = items(layout)
    bad[number] = item
    write_sre2l(tmp_path, bad)
    with pytest.raises(BadLabels, match=f"batch_0.tar: .*{message}"):
        open_labels(tmp_path)


def test_another_number_of_strips_and_another_length_are_refused(items: Items, write_sre2l: Write, tmp_path: Path) -> None:
    write_sre2l(tmp_path, items("edc"))
    write_sre2l(tmp_path, items("edc", factor=3), batch=1)
    write_sre2l(tmp_path, items("gvbsm"), batch=2)
    source = open_labels(tmp_path)
    assert len(source.read(0)) == 4
    with pytest.raises(BadLabels, match=r"batch_1.tar: item 7 is torch.int64 \[4, 2, 3\]; it must be torch.int64 \[4, 2, 2\]"):
        source.read(1)
    with pytest.raises(BadLabels, match=r"batch_2.tar: contains a list of 7; a batch of EDC is a list of 8 .*, index, patches"):
        source.read(2)
    with pytest.raises(BadLabels, match=r"batch_0.tar: contains a list of 8; a batch of G-VBSM is a list of 7 .*, index"):
        open_labels(tmp_path, layout="gvbsm")


def test_the_context_has_images_and_partners(tree: Callable[..., Any]) -> None:
    batch: LabelBatch = open_labels(tree("edc")[0]).read(0)
    context = batch.context()
    assert context.image.tolist() == batch.image.tolist()
    assert context.partner.tolist() == batch.image[batch.mix_index].tolist()


@pytest.mark.parametrize(("layout", "title"), [("gvbsm", "G-VBSM"), ("edc", "EDC")])
def test_a_path_that_is_not_a_folder_is_refused_with_the_name_of_the_system(layout: str, title: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("1,2")
    with pytest.raises(
        BadLabels, match=rf"labels\.csv: not a folder; {title}'s dump is a folder that contains epoch_E/batch_B\.tar"
    ):
        open_labels(tmp_path / "labels.csv", layout)
