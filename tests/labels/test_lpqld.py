"""LPQLD's flat files -> label batches and back: every item as its generator saves it, bit for bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

import vqlabel
from vqlabel import FitConfig
from vqlabel.errors import BadLabels, TargetExists, UsageError
from vqlabel.labels import About, LabelBatch, LabelSource, Place, Support, open_labels, writing
from vqlabel.labels.batch import NOWHERE
from vqlabel.labels.layouts.lpqld import LpqldSource, infer_places
from vqlabel.labels.sparse import SparseLabels, as_dense

Make = Callable[..., list[Any]]
Write = Callable[..., Path]

C, K, B = 9, 4, 6
ORDER = "sampler_indices_batch.json"
HALF, FULL = torch.float16, torch.float32
RECIPES: dict[str, dict[str, Any]] = {
    "MR-4": {},
    "MR-1": {"k": 1},
    "all classes": {"k": None},
    "RandAugment": {"ops": 2},
    "RandAugment, all classes": {"k": None, "ops": 1},
    "ImageNet-21K": {"mix": False, "cutout": True},
    "fp32 crops": {"coords": FULL},
    "fp32 logits": {"dtype": FULL},
    "fp32 logits, all classes": {"dtype": FULL, "k": None},
}


def draw_ops(rng: np.random.Generator, ops: int) -> list[tuple[int, float, float]]:
    """RandAugment's record of one image: -99 for an operation that was skipped or has no level."""
    return [(int(rng.integers(15)), float(rng.random()), float(rng.choice([-99, rng.normal()]))) for _ in range(ops)]


def halved(item: Any) -> Any:
    return [halved(part) for part in item] if isinstance(item, list) else item.half() if item.is_floating_point() else item


@pytest.fixture(scope="session")
def lpqld_items() -> Make:
    """The list that the generator saves for a batch whose logits are all different."""

    def make(
        seed: int = 0, b: int = B, *, k: int | None = K, ops: int = 0, mix: bool = True, cutout: bool = False,
        coords: torch.dtype = HALF, dtype: torch.dtype = HALF,
    ) -> list[Any]:  # fmt: skip
        rng = np.random.default_rng(seed)
        output = torch.from_numpy(rng.permuted(np.tile(np.arange(C) - 3.3, (b, 1)), axis=1)).float()
        output[0, :4] = torch.tensor([65504, 6e-8, -0.0, -9000])
        output[1, C - 1] = 11  # so that every file has the last class among its top k
        index = torch.from_numpy(rng.permutation(b)).to(torch.uint8) if mix else None
        box = [torch.tensor(edge, dtype=torch.uint8) for edge in sorted(rng.integers(0, 256, 4))] if mix else None
        second = torch.from_numpy(rng.random((b, 7), np.float32) * 200) if cutout else torch.from_numpy(rng.random(b) < 0.5)
        drawn = halved(default_collate([draw_ops(rng, ops) for _ in range(b)])) if ops else None
        values, classes = torch.topk(output, k or 1)
        labels = [output.to(dtype)] if k is None else [values.to(dtype), classes.short()]
        crop = torch.from_numpy((rng.integers(0, 500, (b, 4)) / 500).astype(np.float32)).to(coords)
        return [crop, second, *([drawn] if ops else []), index, float(rng.random()) if mix else None, box, *labels]

    return make


@pytest.fixture(scope="session")
def write_flat() -> Write:
    """Save lists of items as batch_0.tar, batch_1.tar, ..., and the images of every record."""

    def write(folder: Path, lists: dict[int, list[Any]], order: bool = True) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number, items in lists.items():
            torch.save(items, folder / f"batch_{number}.tar")
        if order:
            rng = np.random.default_rng(9)
            ids = {str(number): rng.permutation(100)[: len(items[0])].tolist() for number, items in lists.items()}
            (folder / ORDER).write_text(json.dumps(ids))
        return folder

    return write


@pytest.fixture
def dump(lpqld_items: Make, write_flat: Write, tmp_path: Path) -> Callable[..., tuple[Path, dict[int, list[Any]]]]:
    """12 batches of one recipe: batch_10 comes after batch_9."""

    def write(**recipe: Any) -> tuple[Path, dict[int, list[Any]]]:
        lists = {number: lpqld_items(number, b=B if number % 3 else B - 2, **recipe) for number in range(12)}
        return write_flat(tmp_path / "dump", lists), lists

    return write


def bits(value: Tensor | np.ndarray) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    tensor = torch.as_tensor(value)
    return tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes()


def check_same(item: Any, expected: Any) -> None:
    """Items are the same: tensors bit for bit, in lists with floats and None."""
    assert type(item) is type(expected)
    if isinstance(expected, list):
        assert len(item) == len(expected)
        for part, expected_item in zip(item, expected, strict=True):
            check_same(part, expected_item)
    elif isinstance(expected, Tensor):
        assert bits(item) == bits(expected)
    else:
        assert item == expected


def check_folder(folder: Path, lists: dict[int, list[Any]], order: str) -> None:
    """The folder contains exactly these files."""
    assert {entry.name for entry in folder.iterdir()} == {ORDER, *(f"batch_{number}.tar" for number in lists)}
    assert json.loads((folder / ORDER).read_text()) == json.loads(order)
    for number, items in lists.items():
        check_same(torch.load(folder / f"batch_{number}.tar", weights_only=True), items)


def write_all(source: LabelSource, out: Path, layout: str) -> Path:
    with writing(out, source.about, layout) as writer:
        for batch in source:
            writer.add(batch)
    return out


def write_one(out: Path, labels: Any, layout: str = "lpqld", about: dict[str, Any] | None = None, **columns: Any) -> list[Any]:
    """One batch of images 0, 1, ...: the items of its file."""
    labels = np.asarray(labels)
    defaults = {"layout": "arrays", "classes": labels.shape[1], "domain": "logits", "dtype": "F16", "order": "explicit"}
    with writing(out, About(**{**defaults, **(about or {})}), layout) as writer:
        writer.add(LabelBatch(labels=labels, place=Place(0, 0), image=np.arange(len(labels)), **columns))
    found: list[Any] = torch.load(out / "batch_0.tar", weights_only=True)
    return found


# --- reading


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_every_item_of_every_batch_is_read_exactly(recipe: dict[str, Any], dump: Callable[..., Any]) -> None:
    folder, lists = dump(**recipe)
    source = open_labels(folder)
    k, order = recipe.get("k", K), json.loads((folder / ORDER).read_text())
    assert (source.layout, source.classes, source.domain, source.order) == ("lpqld", C, "logits", "explicit")
    assert source.dtype == ("F32" if recipe.get("dtype") is FULL else "F16") and source.about.temperature is None
    assert source.support == (None if k is None else Support(k=k, rest="zero"))
    assert len(source.places) == 12 and list(source.places) == sorted(source.places)
    for flat, batch in enumerate(source):
        crop, second, *rest = lists[flat]
        ops = rest.pop(0) if "ops" in recipe else None
        index, lam, box, logits, *classes = rest
        dense = torch.full((len(crop), C), NOWHERE, dtype=logits.dtype).scatter(1, classes[0].long(), logits) if classes else logits
        assert bits(as_dense(batch.labels)) == bits(dense) and bits(batch.crop) == bits(crop.float())
        assert batch.image.tolist() == order[str(flat)] and batch.image.dtype == np.int64
        assert bits(batch.flip if batch.cutout is None else batch.cutout) == bits(second) and (batch.flip is None) is (
            "cutout" in recipe
        )
        assert (batch.mix_index is None) is (index is None)
        assert index is None or bits(batch.mix_index) == bits(index.long())
        assert (batch.mix_lam, batch.mix_box) == (lam, box and tuple(int(edge) for edge in box))
        assert (batch.ops is None) is (ops is None)
        assert ops is None or bits(batch.ops) == bits(torch.stack([torch.stack([v.float() for v in op], 1) for op in ops], 1))


def test_a_new_epoch_begins_where_an_image_repeats() -> None:
    rng = np.random.default_rng(0)
    images = [part for _ in range(3) for part in np.split(rng.permutation(10), [4, 8])]
    whole = [Place(epoch, batch) for epoch in range(3) for batch in range(3)]
    assert infer_places(list(range(9)), dict(enumerate(images))) == whole
    some = [0, 2, 4, 5, 8]
    assert infer_places(some, {n: images[n] for n in some})[:2] == [Place(0, 0), Place(0, 2)], "files may be missing"
    assert infer_places([0, 3], None) == [Place(0, 0), Place(0, 3)]


def test_without_an_order_file_the_images_are_unknown(lpqld_items: Make, write_flat: Write, tmp_path: Path) -> None:
    source = open_labels(write_flat(tmp_path / "dump", {0: lpqld_items()}, order=False))
    assert source.order == "none" and source.read(0).image is None
    with pytest.raises(UsageError, match="lpqld stores the image index of every label, which these records do not have"):
        write_all(source, tmp_path / "ours", "lpqld")


def test_files_that_are_not_batches_are_ignored(lpqld_items: Make, write_flat: Write, tmp_path: Path) -> None:
    folder = write_flat(tmp_path / "dump", {3: lpqld_items(3), 20: lpqld_items(20)})
    for stray in ("batch_1.tar.bak", "batch_x.tar", "batch_03.tar", "batch_07.tar", "notes.txt", "a.npy"):
        (folder / stray).write_text("stray")
    source = open_labels(folder)
    assert list(source.places) == [Place(0, 3), Place(0, 20)] and len(list(source)) == 2
    with pytest.raises(BadLabels, match=r"contains no batch_N.tar"):
        open_labels(tmp_path, layout="lpqld")
    with pytest.raises(BadLabels, match=r"contains no batch_N.tar"):
        open_labels(folder / "notes.txt", layout="lpqld")


def test_the_number_of_classes_is_inferred_or_passed(lpqld_items: Make, write_flat: Write, tmp_path: Path) -> None:
    first, last = lpqld_items(0), lpqld_items(1)
    last[6][2, 1] = 500
    folder = write_flat(tmp_path / "dump", {0: first, 1: last})
    assert open_labels(folder).classes == 501
    named = LpqldSource(folder, None, classes=1000)
    assert named.classes == 1000 and named.read(1).labels.shape == (B, 1000)
    short = LpqldSource(folder, None, classes=500)
    assert short.read(0).labels.shape == (B, 500)
    with pytest.raises(BadLabels, match=r"batch_1.tar: contains class 500, but the dump has 500 classes; pass --classes"):
        short.read(1)


# --- packing and unpacking


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_a_packed_dump_is_unpacked_to_identical_items(recipe: dict[str, Any], dump: Callable[..., Any], tmp_path: Path) -> None:
    folder, lists = dump(**recipe)
    source = open_labels(folder)
    vqlabel.pack(source, tmp_path / "a.vql", codec=vqlabel.fit(source, FitConfig(codec="raw"))[0])
    vqlabel.unpack(tmp_path / "a.vql", tmp_path / "back", layout="lpqld")
    check_folder(tmp_path / "back", lists, (folder / ORDER).read_text())


def test_integer_levels_are_written_as_fp16(lpqld_items: Make, write_flat: Write, tmp_path: Path) -> None:
    items = lpqld_items(ops=2)
    items[2][1][2] = torch.tensor([-99, 4, 256, -99, 0, 7])  # as default_collate converts integers
    source = open_labels(write_flat(tmp_path / "dump", {0: items}))
    assert source.read(0).ops[:, 1, 2].tolist() == [-99, 4, 256, -99, 0, 7]
    items[2][1][2] = items[2][1][2].half()
    check_folder(write_all(source, tmp_path / "ours", "lpqld"), {0: items}, (tmp_path / "dump" / ORDER).read_text())


def test_a_tree_is_written_as_flat_files_in_order(batches: list[LabelBatch], tree: Path, tmp_path: Path) -> None:
    out = write_all(open_labels(tree), tmp_path / "ours", "lpqld:5")
    order = {str(number): batch.image.tolist() for number, batch in enumerate(batches)}
    lists = {}
    for number, batch in enumerate(batches):
        labels = torch.from_numpy(batch.labels.copy())
        ranked = [sorted(range(labels.shape[1]), key=lambda c, row=row: (-float(row[c]), c))[:5] for row in labels]
        classes = torch.tensor(ranked)
        lists[number] = [
            torch.from_numpy(batch.crop).half(),
            torch.from_numpy(batch.flip),
            torch.from_numpy(batch.mix_index).to(torch.uint8),
            batch.mix_lam,
            [torch.tensor(edge, dtype=torch.uint8) for edge in batch.mix_box],
            labels.gather(1, classes),
            classes.short(),
        ]
    check_folder(out, lists, json.dumps(order))
    assert open_labels(out).support == Support(k=5, rest="zero")
    whole = write_all(open_labels(tree), tmp_path / "whole", "lpqld")
    check_folder(whole, {n: [*six[:5], torch.from_numpy(batches[n].labels.copy())] for n, six in lists.items()}, json.dumps(order))


def test_equal_logits_are_ordered_by_class(tmp_path: Path) -> None:
    labels = np.array([[1, 3, 2, 3, 3, 2], [0.0, -0.0, -1, -1, 0.0, -2]], np.float16)
    *_, values, classes = write_one(tmp_path / "ours", labels, "lpqld:5")
    assert classes.tolist() == [[1, 3, 4, 2, 5], [0, 1, 4, 2, 3]] and values.tolist()[0] == [3, 3, 3, 2, 2]
    assert torch.signbit(values[1]).tolist() == [False, True, False, True, True]
    crop, flip, index, lam, box = _
    assert [crop, flip, index, lam, box] == [None] * 5


def test_fp32_logits_are_ranked_before_they_are_rounded_to_fp16(tmp_path: Path) -> None:
    labels = np.array([[1.00001, 1.00003, 1.00002, 0.5]], np.float32)
    *_, values, classes = write_one(tmp_path / "ours", labels, "lpqld:3", {"dtype": "F32"})
    assert (values.dtype, values.tolist(), classes.tolist()) == (torch.float16, [[1, 1, 1]], [[1, 2, 0]])
    (*_, dense) = write_one(tmp_path / "dense", labels, about={"dtype": "F32"})
    assert (dense.dtype, dense.tolist()) == (torch.float16, [[1, 1, 1, 0.5]])


def test_k_can_be_smaller_than_that_of_the_dump_but_not_larger(dump: Callable[..., Any], tmp_path: Path) -> None:
    folder, lists = dump()
    source = open_labels(folder)
    fewer = {number: [*items[:5], items[5][:, :2].contiguous(), items[6][:, :2].contiguous()] for number, items in lists.items()}
    check_folder(write_all(source, tmp_path / "ours", "lpqld:2"), fewer, (folder / ORDER).read_text())
    for form in ("5", "9", "0", "-1", "04", "x", "4.0"):
        with pytest.raises(
            UsageError, match=f"lpqld:{form}: must be lpqld:1 to lpqld:4, the number of logits known of every label"
        ):
            write_all(source, tmp_path / "more", f"lpqld:{form}")
    assert not (tmp_path / "more").exists()


def test_overwriting_replaces_a_dump_but_no_other_folder(dump: Callable[..., Any], tmp_path: Path) -> None:
    folder, _ = dump()
    source = open_labels(shutil.copytree(folder, tmp_path / "other"))
    for stray in (None, "notes.txt"):
        if stray:
            (folder / stray).write_text("mine")
        with pytest.raises(TargetExists), writing(folder, source.about, "lpqld", overwrite=bool(stray)) as writer:
            writer.add(source.read(0))
    (folder / "notes.txt").unlink()
    with writing(folder, source.about, "lpqld", overwrite=True) as writer:
        writer.add(source.read(0))
    assert sorted(entry.name for entry in folder.iterdir()) == ["batch_0.tar", ORDER]


# --- refused when writing


def plain_labels(b: int = 4, classes: int = 6) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(b, classes)).astype(np.float16)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"mix_index": np.arange(257)},
            "lpqld stores mix_index as uint8, but epoch 0, batch 0 has 257 records, more than 256: write lpld",
        ),
        (
            {"mix_box": (0, 0, 10, 256)},
            r"mix_bbox as uint8, but that of epoch 0, batch 0 is \[0, 0, 10, 256\], above 255: write lpld",
        ),
        ({"seed": np.arange(257)}, "lpqld cannot store seed"),
        ({"patches": np.zeros((257, 2, 2), np.int64)}, "lpqld cannot store patches"),
        (
            {"flip": np.zeros(257, bool), "cutout": np.zeros((257, 7), np.float32)},
            "a flip or a cutout, but these records have both",
        ),
    ],
    ids=["slots", "box", "seed", "patches", "cutout"],
)
def test_values_beyond_the_integer_types_are_refused(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        write_one(tmp_path / "ours", plain_labels(257), **columns)
    assert not (tmp_path / "ours").exists()


def test_the_largest_values_of_the_integer_types_are_written(tmp_path: Path) -> None:
    items = write_one(tmp_path / "a", plain_labels(256), mix_index=np.arange(255, -1, -1), mix_box=(0, 255, 255, 255))
    assert items[2].tolist() == list(range(255, -1, -1)) and [int(edge) for edge in items[4]] == [0, 255, 255, 255]
    assert len(write_one(tmp_path / "b", plain_labels(257))[5]) == 257


def test_logits_beyond_fp16_are_refused_if_they_would_be_written(tmp_path: Path) -> None:
    labels = np.array([[70000, 1, 2], [3, 2, 1]], np.float32)
    for layout in ("lpqld", "lpqld:1"):
        with pytest.raises(UsageError, match="epoch 0, batch 0 has a logit of 70000; lpqld stores fp16, up to 65504: write lpld"):
            write_one(tmp_path / "ours", labels, layout, {"dtype": "F32"})
    labels[0, 0] = -70000
    assert write_one(tmp_path / "ours", labels, "lpqld:2", {"dtype": "F32"})[6].tolist() == [[2, 1], [0, 1]]


def test_classes_beyond_int16_are_refused_if_they_would_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lpqld stores classes as int16, but there are 32769, more than 32768: write lpld"):
        write_one(tmp_path / "ours", plain_labels(1, 32769), "lpqld:2")
    assert write_one(tmp_path / "dense", plain_labels(1, 32769))[5].shape == (1, 32769)
    labels = plain_labels(1, 32768)
    labels[0, -1] = 99
    assert write_one(tmp_path / "top", labels, "lpqld:1")[6].tolist() == [[32767]]


def test_classes_without_a_logit_are_not_written(tmp_path: Path) -> None:
    labels = plain_labels()
    labels[2, 1:] = NOWHERE
    with pytest.raises(UsageError, match="batch 0 has labels with fewer than 2 logits above -10000: write a smaller k, lpqld:k"):
        write_one(tmp_path / "ours", labels, "lpqld:2")
    assert write_one(tmp_path / "ours", labels, "lpqld:1")[6][2].tolist() == [0]


def test_probabilities_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lpqld stores logits, but these labels are probabilities"):
        write_one(tmp_path / "ours", plain_labels(), about={"domain": "probs"})


def test_two_batches_with_the_same_first_images_are_refused(tmp_path: Path) -> None:
    about = About(layout="arrays", classes=6, domain="logits", dtype="F16", order="explicit")
    with writing(tmp_path / "ours", about, "lpqld") as writer:
        for last, images in enumerate(([7, 8, 9, 1], [7, 8, 1, 9])):
            writer.add(LabelBatch(labels=plain_labels(), place=Place(0, last), image=np.array(images)))
        twin = LabelBatch(labels=plain_labels(), place=Place(0, 2), image=np.array([7, 8, 9, 2]))
        with pytest.raises(
            UsageError, match=r"by its first three images, but batches 0 and 2 both begin with \[7, 8, 9\]: write gvbsm"
        ):
            writer.add(twin)


# --- refused when reading


def twice(items: list[Any]) -> None:
    items[6][3, 2] = items[6][3, 0]


def minus(items: list[Any]) -> None:
    items[6][0, 0] = -1


def low(items: list[Any]) -> None:
    items[5][0, -1] = NOWHERE


def shared(items: list[Any]) -> None:
    items[2] = [items[2][0]] * 65


@pytest.mark.parametrize(
    ("recipe", "number", "item", "message"),
    [
        (
            {},
            0,
            torch.zeros(B, 4, dtype=torch.float64),
            r"item 0 is torch.float64 \[6, 4\]; it must be torch.float16 or float32 \[6, 4\]",
        ),
        ({}, 0, torch.zeros(B, 3).half(), r"item 0 is torch.float16 \[6, 3\]"),
        ({}, 1, torch.zeros(B).byte(), r"item 1 is torch.uint8 \[6\]; it must be torch.bool \[6\]"),
        ({}, 1, torch.zeros(B, 6), r"item 1 is torch.float32 \[6, 6\]; it must be torch.float32 \[6, 7\]"),
        ({}, 2, torch.arange(B), r"item 2 is torch.int64 \[6\]; it must be torch.uint8 \[6\]"),
        ({}, 2, torch.arange(1, B + 1).byte(), r"mix_index has values outside 0..5"),
        ({"ops": 1}, 3, torch.arange(B), r"item 3 is torch.int64 \[6\]; it must be torch.uint8 \[6\]"),
        ({}, 3, 1.5, "mix_lam is 1.5; it must be a number in 0..1"),
        ({}, 4, [torch.tensor(0.5)] * 4, "mix_bbox is list .*; it must be 4 non-negative integers"),
        ({}, 5, None, "item 5 is NoneType; it must be logits"),
        ({}, 5, torch.zeros(B).half(), r"item 5 is torch.float16 \[6\]; it must be logits"),
        ({}, 5, torch.zeros(0, K).half(), "and not empty"),
        ({}, 5, torch.zeros(B, K).bfloat16(), r"item 5 is torch.bfloat16 \[6, 4\]; it must be torch.float16 or float32"),
        ({"ops": 1}, 6, 3, "item 6 is 3; it must be"),
        ({}, 6, None, "item 6 is NoneType; it must be non-negative classes"),
        ({}, 6, torch.arange(K).expand(B, K).clone(), r"item 6 is torch.int64 \[6, 4\]; it must be torch.int16 \[6, 4\]"),
        (
            {},
            6,
            torch.arange(K + 1).short().expand(B, K + 1).clone(),
            r"item 6 is torch.int16 \[6, 5\]; it must be torch.int16 \[6, 4\]",
        ),
        ({"ops": 1}, 7, None, "item 7 is NoneType; it must be non-negative classes"),
        ({}, minus, None, "it must be non-negative classes"),
        ({}, twice, None, "row 3: contains a class twice"),
        ({}, low, None, "a stored logit is -10000; it must be above -10000"),
        ({"ops": 1}, 2, [], r"item 2 is list \[\]; it must be 1 to 64 lists of operation, decision and level"),
        ({"ops": 1}, 2, [[torch.arange(B)]], "it must be 1 to 64 lists of operation"),
        ({"ops": 1}, 2, [3], "it must be 1 to 64 lists of operation"),
        ({"ops": 1}, shared, None, "it must be 1 to 64 lists of operation"),
        (
            {"ops": 1},
            2,
            [[torch.arange(B), torch.zeros(B), torch.zeros(B).half()]],
            r"item 2 is torch.float32 \[6\]; it must be torch.float16",
        ),
        ({"ops": 1}, 2, [[torch.arange(B), None, torch.zeros(B).half()]], "item 2, operation 0, is list"),
        (
            {"ops": 1},
            2,
            [[torch.full((B,), -1 << 63), *[torch.zeros(B).half()] * 2]],
            "its whole numbers must be in -2048..2048",
        ),
        ({"ops": 1}, 2, [[torch.arange(B) + 2044, *[torch.zeros(B).half()] * 2]], "its whole numbers must be in -2048..2048"),
        (
            {"ops": 1},
            2,
            [[torch.arange(B).to_sparse(), *[torch.zeros(B).half()] * 2]],
            "its pickle uses _rebuild_sparse_tensor",
        ),
        ({"ops": 1}, 2, torch.zeros(B).byte(), r"item 2 is torch.uint8 \[6\] in a list of 8; LPQLD's items are coords, flip"),
        ({"k": None}, 2, [[torch.arange(B)] * 3], r"item 2 is list .* in a list of 6; LPQLD's items are coords, flip"),
    ],
)
def test_a_malformed_item_is_refused(
    recipe: dict[str, Any], number: Any, item: Any, message: str, lpqld_items: Make, write_flat: Write, tmp_path: Path
) -> None:
    items = lpqld_items(**recipe)
    if callable(number):
        number(items)
    else:
        items[number] = item
    with pytest.raises(BadLabels, match=f"batch_0.tar.*{message}"):
        open_labels(write_flat(tmp_path / "dump", {0: items}))


@pytest.mark.parametrize("length", [0, 5, 9])
def test_a_list_of_another_length_is_refused(length: int, write_flat: Write, tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match=f"batch_0.tar: contains a list of {length}; a batch of LPQLD is a list of 7"):
        open_labels(write_flat(tmp_path / "dump", {0: [None] * length}, order=False), layout="lpqld")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"k": 3}, "k is 3, but 4 in the first batch"),
        ({"k": None}, "k is None, but 4 in the first batch"),
        ({"ops": 1}, "ops is 1, but 0 in the first batch"),
        ({"coords": FULL}, "coords is float32, but float16 in the first batch"),
        ({"dtype": FULL}, "labels is float32, but float16 in the first batch"),
    ],
)
def test_files_of_different_recipes_are_refused(
    recipe: dict[str, Any], message: str, lpqld_items: Make, write_flat: Write, tmp_path: Path
) -> None:
    folder = write_flat(tmp_path / "dump", {0: lpqld_items(), 1: lpqld_items(1, **recipe)})
    with pytest.raises(BadLabels, match=f"batch_1.tar: {message}: a dump must have one recipe"):
        open_labels(folder)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"0": list(range(B))}, "has no images for batch 1, whose file has 6 labels"),
        ({"0": list(range(B)), "1": list(range(B - 1))}, "has 5 images for batch 1, whose file has 6 labels"),
    ],
)
def test_an_order_that_does_not_fit_the_files_is_refused(
    order: dict[str, list[int]], message: str, lpqld_items: Make, write_flat: Write, tmp_path: Path
) -> None:
    folder = write_flat(tmp_path / "dump", {0: lpqld_items(), 1: lpqld_items(1)})
    (folder / ORDER).write_text(json.dumps(order))
    source = open_labels(folder)
    assert source.read(0).image.tolist() == list(range(B))
    with pytest.raises(BadLabels, match=f"{ORDER}: {message}"):
        source.read(1)
    (folder / ORDER).write_text("[]")
    with pytest.raises(BadLabels, match="not an order file"):
        open_labels(folder)


def test_a_forged_class_does_not_exhaust_the_memory(lpqld_items: Make, write_flat: Write, tmp_path: Path) -> None:
    items = lpqld_items(b=2049, k=1, mix=False)
    items[6][0, 0] = 32767
    source = open_labels(write_flat(tmp_path / "dump", {0: items}, order=False))
    labels = source.read(0).labels
    assert isinstance(labels, SparseLabels) and labels.shape == (2049, 32768) and labels.values.shape == (2049, 1)


def test_logits_that_are_not_finite_are_refused(lpqld_items: Make, write_flat: Write, tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        items = lpqld_items()
        items[5][2, 0] = value
        with pytest.raises(BadLabels, match=f"batch_0.tar, row 2: class .* is {value}; labels must be finite"):
            open_labels(write_flat(tmp_path / "dump", {0: items})).read(0)


def test_probabilities_among_the_files_are_refused(lpqld_items: Make, write_flat: Write, tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match="so these are not probabilities; pass --domain logits"):
        open_labels(write_flat(tmp_path / "dump", {0: lpqld_items()}), domain="probs").read(0)
