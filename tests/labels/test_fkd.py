"""FKD's files -> label batches and back: every form, as arrays and as tensors."""

import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import vqlabel
from vqlabel import FitConfig
from vqlabel.errors import BadLabels, TargetExists, UsageError
from vqlabel.labels import About, LabelBatch, Place, Support, open_labels, writing
from vqlabel.labels.layouts.fkd import FkdSource
from vqlabel.labels.sparse import SparseLabels, as_dense

Write = Callable[..., Path]
Items = list[Any]

CLASSES, CROPS = 12, 6
NAMES = ["train/n01/n01_1", "train/n01/n01_10", "train/n01/n01_9", "train/n02/n02_3"]  # as paths sort
FORMS = ["hard", "smoothing", "ms-k5", "ms-k1", "full"]


def draw_probs(seed: int, crops: int = CROPS, classes: int = CLASSES, scale: float = 2.0) -> NDArray[np.float32]:
    logits = np.random.default_rng(seed).normal(size=(crops, classes)) * scale
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return (raised / raised.sum(1, keepdims=True)).astype(np.float32)


def items_of(probs: NDArray[np.float32], form: str, dtype: str = "float32", seed: int = 0) -> Items:
    """The three arrays of FKD's generate_soft_label.py for these probabilities."""
    rng, n = np.random.default_rng(seed), len(probs)
    coords, flip = rng.random((n, 4), np.float32).astype(dtype), rng.random(n) < 0.5
    if form == "full":
        return [coords, flip, probs.astype(dtype)]
    if form == "hard":
        return [coords, flip, probs.argmax(1)]
    k = 1 if form == "smoothing" else int(form[4:])
    ids = np.argsort(-probs, axis=1, kind="stable")[:, :k]
    pairs = np.stack([ids.astype(np.float32), np.take_along_axis(probs, ids, 1)], 1).astype(dtype)
    return [coords, flip, pairs[:, :, 0] if form == "smoothing" else pairs]


def as_tensors(items: Items) -> Items:
    return [torch.tensor(item) for item in items]


def recovered(labels: NDArray[Any], classes: int = CLASSES) -> NDArray[np.float64]:
    """Marginal smoothing, as in FKD's reader."""
    if labels.ndim == 1:
        return np.eye(classes)[labels]
    if labels.ndim == 2 and labels.shape[1] > 2:
        return labels.astype(np.float64)
    pairs = labels[:, :, None] if labels.ndim == 2 else labels
    ids, values = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.float64)
    full = np.repeat((1 - values.sum(1, keepdims=True)) / (classes - ids.shape[1]), classes, 1)
    np.put_along_axis(full, ids, values, 1)
    return full


def write_dump(folder: Path, dump: dict[str, Items]) -> Path:
    for name, items in dump.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(items, folder / f"{name}.tar")
    return folder


def dump_of(form: str, dtype: str = "float32") -> dict[str, Items]:
    return {name: items_of(draw_probs(i), form, dtype, seed=i) for i, name in enumerate(NAMES)}


def check_written(folder: Path, dump: dict[str, Items]) -> None:
    """The files have identical values, in tensors that load with weights_only; classes and probabilities are fp32."""
    found = {file.relative_to(folder).as_posix().removesuffix(".tar") for file in folder.rglob("*.tar")}
    assert found == set(dump) and all(entry.suffix == ".tar" for entry in folder.rglob("*") if entry.is_file())
    for name, (coords, flip, labels) in dump.items():
        ours = torch.load(folder / f"{name}.tar", weights_only=True)
        assert type(ours) is list and all(type(item) is torch.Tensor for item in ours)
        assert [item.numpy().dtype for item in ours] == [coords.dtype, bool, np.int64 if labels.ndim == 1 else np.float32]
        for theirs, item in zip((coords, flip, labels), ours, strict=True):
            assert item.shape == theirs.shape and item.numpy().tobytes() == theirs.astype(item.numpy().dtype).tobytes()


def write(out: Path, batches: list[LabelBatch], target: str = "fkd", overwrite: bool = False, **about: Any) -> None:
    defaults = {"layout": "sre2l", "classes": CLASSES, "domain": "probs", "dtype": "F32", "order": "explicit", "names": NAMES}
    with writing(out, About(**{**defaults, **about}), target, overwrite=overwrite) as writer:
        for batch in batches:
            writer.add(batch)


def batch_of(probs: NDArray[np.floating], image: list[int], number: int = 0, **columns: Any) -> LabelBatch:
    coords, flip, _ = items_of(probs, "full", seed=number)
    defaults = {"labels": probs, "place": Place(0, number), "image": np.array(image), "crop": coords, "flip": flip}
    return LabelBatch(**{**defaults, **columns})


# --- reading


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_read_as_fkd_wrote_it(form: str, dtype: str, kind: str, tmp_path: Path) -> None:
    dump = dump_of(form, dtype)
    write_dump(tmp_path, {name: as_tensors(items) if kind == "torch" else items for name, items in dump.items()})
    source = FkdSource(tmp_path, None, classes=CLASSES)
    width, k = np.dtype(np.float16 if form == "hard" else dtype), 5 if form == "ms-k5" else 1
    support = None if form == "full" else Support(k=k, rest="zero" if form == "hard" else "uniform")
    assert (source.layout, source.domain, source.order, source.classes) == ("fkd", "probs", "explicit", CLASSES)
    assert (source.dtype, source.support) == ("F16" if width == np.float16 else "F32", support)
    assert (
        source.about.names == NAMES and source.about.details == {"form": form, "coords": dtype} and source.about.temperature == 1.0
    )
    assert list(source.places) == [Place(0, i) for i in range(4)]
    for i, (batch, (coords, flip, labels)) in enumerate(zip(source, dump.values(), strict=True)):
        assert batch.image is not None and batch.crop is not None and batch.flip is not None and batch.mix_index is None
        assert batch.image.tolist() == [i] * CROPS and batch.place == source.places[i]
        assert batch.crop.dtype == np.float32 and (batch.crop == coords).all() and (batch.flip == flip).all()
        assert batch.labels.dtype == width
        dense = as_dense(batch.labels)
        np.testing.assert_allclose(dense, recovered(labels), rtol=1e-3 if dtype == "float16" else 1e-5, atol=1e-7)
        if labels.ndim == 3:
            stored = np.take_along_axis(dense, labels[:, 0].astype(np.int64), 1)
            assert (stored == labels[:, 1]).all()


def test_files_are_found_at_any_depth_and_classes_are_inferred(tmp_path: Path) -> None:
    for depth, folder in enumerate((tmp_path, tmp_path / "train")):
        write_dump(tmp_path / "b", dump_of("ms-k5"))
        source = open_labels(tmp_path / "b" if folder == tmp_path else tmp_path / "b" / "train")
        assert source.layout == "fkd" and source.about.names == [name.split("/", depth)[depth] for name in NAMES]
    ids = [items[2][:, 0].max() for items in dump_of("ms-k5").values()]
    assert source.classes == max(ids) + 1 and len(list(source)) == 4


def test_stored_classes_stay_the_largest_even_if_rounding_leaves_more_for_the_others(tmp_path: Path) -> None:
    pairs = np.array([[[3, 1, 2], [0.999, 1e-7, 6e-8]], [[0, 1, 2], [1.0, 0.0, 0.0]]], np.float32)  # 0.999: 0.99999 rounded to fp16
    coords, flip = np.zeros((2, 4), np.float32), np.zeros(2, bool)
    for dtype in (np.float16, np.float32):
        write_dump(tmp_path, {"a/x": [coords, flip, pairs.astype(dtype)]})
        (batch,) = FkdSource(tmp_path, None, classes=1000)
        labels = as_dense(batch.labels)
        assert (np.sort(labels[0])[::-1][:3] == pairs[0, 1].astype(dtype)).all() and labels[0].argmax() == 3
        assert labels[0, 1] > labels[0, 2] > labels[0, 4] >= 0 and labels[0, 4] == labels[0, 999]
        assert labels[1].tolist() == [1.0] + [0.0] * 999


# --- packing and unpacking


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("form", FORMS)
def test_a_packed_dump_is_unpacked_with_identical_values(form: str, dtype: str, tmp_path: Path) -> None:
    dump = dump_of(form, dtype)
    source = open_labels(write_dump(tmp_path / "dump", dump))
    vqlabel.pack(source, tmp_path / "a.vql", codec=vqlabel.fit(source, FitConfig(codec="raw"))[0])
    vqlabel.unpack(tmp_path / "a.vql", tmp_path / "back")
    check_written(tmp_path / "back", dump)
    again = open_labels(tmp_path / "back")
    assert again.about.names == source.about.names and again.about.details == source.about.details
    for ours, theirs in zip(again, source, strict=True):  # the shares of the other classes are rounded to the type
        np.testing.assert_allclose(as_dense(ours.labels), as_dense(theirs.labels), rtol=1e-3 if dtype == "float16" else 0)


@pytest.mark.parametrize("form", ["hard", "smoothing", "ms-k5", "mr-k5", "ms-k10", "ms-k12", "full"])
def test_the_records_of_an_image_are_collected_from_all_batches(form: str, tmp_path: Path) -> None:
    theirs = [draw_probs(i, 4) for i in range(3)]
    images = [[3, 0, 3, 1], [0, 3, 1, 1], [1, 0, 0, 3]]
    batches = [batch_of(probs, image, i) for i, (probs, image) in enumerate(zip(theirs, images, strict=True))]
    write(tmp_path / "out", batches, f"fkd:{form}")
    coords, flips = (np.concatenate([getattr(b, name) for b in batches]) for name in ("crop", "flip"))
    expected = {}
    for image in (0, 1, 3):
        rows = np.flatnonzero(np.concatenate(images) == image)
        labels = items_of(np.concatenate(theirs)[rows], form.replace("mr", "ms"))[2]
        expected[NAMES[image]] = [coords[rows], flips[rows], labels]
    check_written(tmp_path / "out", expected)


def test_logits_become_probabilities_at_temperature_1(tmp_path: Path) -> None:
    probs = draw_probs(0, 3)
    for dtype, kind in (("F32", np.float32), ("F16", np.float16)):
        logits = (np.log(probs) + 7).astype(kind)
        write(tmp_path / dtype, [batch_of(logits, [0, 0, 1])], "fkd:full", domain="logits", dtype=dtype)
        ours = torch.load(tmp_path / dtype / f"{NAMES[0]}.tar", weights_only=True)[2].numpy()
        np.testing.assert_allclose(ours, probs[:2], rtol=1e-6 if dtype == "F32" else 0.01, atol=1e-9)
        np.testing.assert_allclose(ours.sum(1), 1, rtol=1e-6)


def test_topk_probabilities_without_a_rest_are_normalised(tmp_path: Path) -> None:
    some = np.zeros((1, CLASSES), np.float32)
    some[0, [4, 7]] = 0.5, 0.25
    write(tmp_path / "out", [batch_of(some, [0])], "fkd:ms-k2", support=Support(k=2, rest="zero"))
    pairs = torch.load(tmp_path / "out" / f"{NAMES[0]}.tar", weights_only=True)[2]
    np.testing.assert_allclose(pairs.numpy(), [[[4, 7], [2 / 3, 1 / 3]]], rtol=1e-6)


def test_five_probabilities_are_stored_by_default(tmp_path: Path) -> None:
    write(tmp_path / "out", [batch_of(draw_probs(0), [0] * CROPS)])
    assert torch.load(tmp_path / "out" / f"{NAMES[0]}.tar", weights_only=True)[2].shape == (CROPS, 2, 5)
    write(tmp_path / "other", [batch_of(draw_probs(0), [0] * CROPS)], details={"form": "hard"})  # of another layout
    assert torch.load(tmp_path / "other" / f"{NAMES[0]}.tar", weights_only=True)[2].shape == (CROPS, 2, 5)


def test_equal_probabilities_are_ordered_by_class(tmp_path: Path) -> None:
    probs = np.full((2, CLASSES), 1 / CLASSES, np.float32)
    write(tmp_path / "out", [batch_of(probs, [0, 0])], "fkd:ms-k3")
    assert torch.load(tmp_path / "out" / f"{NAMES[0]}.tar", weights_only=True)[2][:, 0].tolist() == [[0.0, 1.0, 2.0]] * 2


def test_file_names_end_at_the_first_dot_of_the_image_name(tmp_path: Path) -> None:
    write(tmp_path / "out", [batch_of(draw_probs(0, 2), [0, 1])], names=["n01.d/a.b.JPEG", "c.JPEG"])
    assert {f.relative_to(tmp_path / "out").as_posix() for f in (tmp_path / "out").rglob("*.tar")} == {"n01.d/a.tar", "c.tar"}
    with pytest.raises(
        UsageError,
        match=r"fkd names a file by the part of the image's name before the first dot, and two images would have a\.tar: rename one of them",
    ):
        write(tmp_path / "two", [batch_of(draw_probs(0, 2), [0, 1])], names=["n01/a.b.JPEG", "n01/a.JPEG"])
    assert not (tmp_path / "two").exists()


def test_a_dump_is_overwritten_and_a_folder_of_archives_is_not(tmp_path: Path) -> None:
    batches = [batch_of(draw_probs(0, 1), [0])]
    write(tmp_path / "out", [batch_of(draw_probs(0, 1), [1])])
    write(tmp_path / "out", batches, overwrite=True)
    assert [f.name for f in (tmp_path / "out").rglob("*.tar")] == ["n01_1.tar"]
    write(tmp_path / "out", [batch_of(draw_probs(0, 4), [0, 1, 2, 3])], overwrite=True)
    notes = [tmp_path / "out/train" / name / "notes.txt" for name in ("n01", "n02")]  # whichever is listed first
    archive = tmp_path / "archives/n01/a.tar"
    archive.parent.mkdir(parents=True)
    for stray in (*notes, archive):
        with tarfile.open(stray, "w"):
            pass
        with pytest.raises(TargetExists, match="is a folder that contains more than a dump"):
            write(tmp_path / ("archives" if stray == archive else "out"), batches, overwrite=True)
        assert stray.exists()
        stray.unlink()


# --- refused when writing


@pytest.mark.parametrize(
    ("layout", "about", "message"),
    [
        ("fkd:ms", {}, r"layout is 'fkd:ms'; it must have one of the forms hard, smoothing, ms-k5 \(or any other k\), mr-k5, full"),
        ("fkd:ms-k0", {}, "layout is 'fkd:ms-k0'; it must have one of the forms"),
        ("fkd:ms-k13", {}, "layout is 'fkd:ms-k13'; it must have k at most 12, the number of classes"),
        ("fkd", {"layout": "fkd", "details": {"form": ["x"]}}, r"layout is \"fkd:\['x'\]\"; it must have one of the forms"),
        (
            "fkd",
            {"names": None},
            "fkd finds labels by the path of their image, but these images have no names; only fkd dumps have, and tinyvit dumps whose keys are paths: write .npy",
        ),
        (
            "fkd",
            {"order": "none"},
            "fkd finds labels by the path of their image, but these images have no names; only fkd dumps have, and tinyvit dumps whose keys are paths: write .npy",
        ),
        ("fkd", {"names": NAMES[:1]}, "image 1 has no name: there are 1 names"),
        *(
            (
                "fkd",
                {"names": [NAMES[0], name]},
                rf"image 1 is named {re.escape(repr(name))}, which is not a path within a folder; rename it",
            )
            for name in ("", "/etc/x", "../x", "a/../../x", "a//x", "./x", "..", "a/.x", "a\\..\\x", "a\0x", "a/")
        ),
    ],
    ids=str,
)
def test_labels_that_the_layout_cannot_store_are_refused(layout: str, about: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        write(tmp_path / "out", [batch_of(draw_probs(0, 2), [0, 1])], layout, **about)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"mix_index": np.array([1, 0])}, "fkd cannot store mix_index, .*of one image each, which its trainer mixes itself"),
        ({"mix_lam": 0.5}, "fkd cannot store mix_lam"),
        ({"mix_box": (0, 0, 1, 1)}, "fkd cannot store mix_box"),
        ({"partner_image": np.array([1, 0])}, "fkd cannot store partner_image"),
        ({"seed": np.array([1, 0])}, "fkd cannot store seed"),
        ({"cutout": np.zeros((2, 7), np.float32)}, "fkd cannot store cutout"),
        ({"crop": None}, "fkd stores the crop and the flip of every label, which these records do not have; write tinyvit or"),
        ({"flip": None}, "fkd stores the crop and the flip of every label, which these records do not have"),
    ],
    ids=str,
)
def test_a_batch_that_the_layout_cannot_store_is_refused(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        write(tmp_path / "out", [batch_of(draw_probs(0, 2), [0, 1], **columns)])
    assert not list(tmp_path.iterdir())


# --- refused when reading


COORDS, FLIP, PAIRS = items_of(draw_probs(0), "ms-k5")


def changed(array: NDArray[Any], at: Any, value: float) -> NDArray[Any]:
    array = array.copy()
    array[at] = value
    return array


BAD_ITEMS: list[tuple[Items, str]] = [
    ([COORDS, FLIP], "contains a list of 2; a batch of FKD is a list of 3 \\(coords, flip, labels\\)"),
    ([COORDS[:5], FLIP, PAIRS], r"item 0 is torch\.float32 \[5, 4\]; it must be torch\.float32 or float16 \[6, 4\]"),
    ([COORDS.astype("f8"), FLIP, PAIRS], r"item 0 is torch\.float64 \[6, 4\]"),
    ([COORDS, FLIP.astype("u1"), PAIRS], r"item 1 is torch\.uint8 \[6\]; it must be torch\.bool \[6\]"),
    ([None, FLIP, PAIRS], "has labels without coords or flip, so the views that they belong to are unknown"),
    ([COORDS, None, PAIRS], "has labels without coords or flip, so the views that they belong to are unknown"),
    *(
        ([COORDS, FLIP, labels], r"item 2 is .*; it must be labels int64 \[n\], or fp16, fp32 or fp64 \[n, 2\], \[n, 2, k\] or \[n, C\]")
        for labels in (None, 1, [1] * 6, PAIRS.astype("u1"), PAIRS.astype("i8"), PAIRS[:, :1], PAIRS[:, 0, :1], PAIRS[0, 0], PAIRS[None])
    ),
    ([COORDS, FLIP, np.zeros(6, "i4")], r"item 2 is torch\.int32 \[6\]; it must be labels int64"),
    ([COORDS, FLIP, torch.zeros(0, 2, 5)], r"item 2 is torch\.float32 \[0, 2, 5\]; .*and not empty"),
    ([COORDS, FLIP, torch.zeros(6, 2, 0)], r"item 2 is torch\.float32 \[6, 2, 0\]; .*and not empty"),
    ([COORDS, FLIP, torch.zeros(1, 2, 1).expand(1 << 40, 2, 5)], "item 2 spans 43980465111040 bytes in a file of"),
    ([COORDS, FLIP, changed(PAIRS, (3, 0, 1), 0.5)], r"row 3: class 0\.5 with probability .*; classes must be integers in 0\.\.1048575"),
    ([COORDS, FLIP, changed(PAIRS, (3, 0, 1), -1)], "row 3: class -1.0 with probability"),
    ([COORDS, FLIP, changed(PAIRS, (3, 0, 1), np.nan)], "row 3: class nan with probability"),
    ([COORDS, FLIP, changed(PAIRS, (3, 0, 1), 1 << 20)], "row 3: class 1048576.0 with probability"),
    ([COORDS, FLIP, changed(PAIRS, (3, 1, 1), np.nan)], "row 3: class .* with probability nan"),
    ([COORDS, FLIP, changed(PAIRS, (3, 1, 1), -0.1)], "row 3: class .* with probability -0.1"),
    ([COORDS, FLIP, changed(PAIRS, (3, 1, 1), 2)], "row 3: class .* with probability 2"),
    ([COORDS, FLIP, changed(PAIRS, (3, 1), 0.9)], r"row 3: its probabilities sum to 4\.5, more than 1"),
    ([COORDS, FLIP, changed(PAIRS, (3, 0), 7)], "row 3: contains a class twice; the top k classes must be k different ones"),
    ([COORDS, FLIP, changed(PAIRS, (3, 1), 0.0)], r"row 3: its 5 probabilities leave 1 for \d+ other classes, none of which can have more than 0"),
    ([COORDS, FLIP, np.array([0, 1, 2, -3, 1, 0])], "row 3: class -3 with probability 1"),
    ([COORDS, FLIP, changed(draw_probs(0), 3, 0.5)], r"row 3: sums to 6 with smallest value 0\.5, so it is not a distribution"),
    ([COORDS, FLIP, changed(draw_probs(0), (3, 2), np.nan)], "row 3: class 2 is nan; labels must be finite"),
    ([COORDS, FLIP, changed(PAIRS, (3, 0, 4), 2048).astype("f2")], "contains class 2048 in fp16, which rounds classes from 2048 on"),
]  # fmt: skip


@pytest.mark.parametrize(("items", "message"), BAD_ITEMS, ids=range(len(BAD_ITEMS)))
def test_a_malformed_file_is_refused(items: Items, message: str, tmp_path: Path) -> None:
    write_dump(tmp_path, {"n01/a": items})
    with pytest.raises(BadLabels, match=rf"a\.tar(: |, ){message}"):
        list(open_labels(tmp_path))


def test_files_of_different_forms_are_refused(tmp_path: Path) -> None:
    for other, kind in (
        (items_of(draw_probs(1), "ms-k1"), "ms-k1, float32, coords float32"),
        (items_of(draw_probs(1), "hard"), "hard, int64, coords float32"),
        (items_of(draw_probs(1), "ms-k5", "float16"), "ms-k5, float16, coords float16"),
    ):
        write_dump(tmp_path, {"n01/a": [COORDS, FLIP, PAIRS], "n01/b": other})
        with pytest.raises(BadLabels, match=rf"b\.tar: labels are {kind}, but ms-k5, float32, coords float32 in the first file"):
            open_labels(tmp_path)
    write_dump(tmp_path, {"n01/a": items_of(draw_probs(0), "full"), "n01/b": items_of(draw_probs(1, classes=9), "full")})
    with pytest.raises(BadLabels, match=r"b\.tar: 9 classes; the first batch has 12"):
        list(open_labels(tmp_path))


def test_a_class_above_the_number_of_classes_is_refused(tmp_path: Path) -> None:
    probs = np.full((2, 1000), 1 / 1000, np.float32)
    write_dump(tmp_path, {"n01/a": items_of(probs, "ms-k5")})
    source = open_labels(tmp_path)
    assert source.classes == 5
    with pytest.raises(
        BadLabels, match=r"a\.tar, row 0: its 5 probabilities leave 0\.995 for 5 other classes, none of which .* 0\.001; "
    ):
        list(FkdSource(tmp_path, None, classes=10))
    with pytest.raises(BadLabels, match=r"a\.tar: contains class 4, but the dump has 4 classes; pass --classes"):
        list(FkdSource(tmp_path, None, classes=4))
    np.testing.assert_allclose(as_dense(open_labels(tmp_path, classes=1000).read(0).labels), probs, rtol=1e-5)
    write_dump(tmp_path, {"n01/a": items_of(probs, "full")})
    with pytest.raises(UsageError, match="classes is 999; it must be 1000, as in the files, or left out"):
        open_labels(tmp_path, classes=999)


def test_a_forged_class_does_not_exhaust_the_memory(tmp_path: Path) -> None:
    ids = np.zeros(5000, np.int64)
    ids[-1] = (1 << 20) - 1
    write_dump(tmp_path, {"n01/a": [np.zeros((5000, 4), np.float32), np.zeros(5000, bool), ids]})
    labels = open_labels(tmp_path).read(0).labels
    assert isinstance(labels, SparseLabels) and labels.values.shape == (5000, 1)
    with pytest.raises(
        BadLabels, match="5000 top-k labels of 1048576 classes have 5242880000 numbers as dense labels; the limit is"
    ):
        labels.as_dense()


def test_other_folders_files_and_domains_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(BadLabels, match="not a folder; FKD's dump is a folder"):
        open_labels(tmp_path / "a.csv", layout="fkd")
    with pytest.raises(BadLabels, match=r"contains no \.tar file; a dump has at least one image"):
        open_labels(tmp_path, layout="fkd")
    write_dump(tmp_path, {"n01/a": [COORDS, FLIP, PAIRS]})
    with pytest.raises(UsageError, match="domain is 'logits'; it must be probs, which is what fkd stores"):
        open_labels(tmp_path, domain="logits")
    os.link(tmp_path / "n01/a.tar", tmp_path / "n01/b\nc.tar")
    with pytest.raises(BadLabels, match=r"an image is named 'n01/b\\nc'; names must be one line of UTF-8"):
        open_labels(tmp_path)


class Exploit:
    """Unpickling it calls os.system."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def test_a_file_that_runs_commands_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    write_dump(tmp_path / "dump", {"n01/a": [COORDS, FLIP, Exploit(tmp_path / "ran")]})
    with pytest.raises(BadLabels, match=r"its pickle calls posix\.system, which is code"):
        open_labels(tmp_path / "dump")
    assert not (tmp_path / "ran").exists()


def test_every_truncated_file_is_refused(tmp_path: Path) -> None:
    file = write_dump(tmp_path, {"n01/a": [COORDS, FLIP, PAIRS]}) / "n01" / "a.tar"
    data = file.read_bytes()
    for size in range(0, len(data), 37):
        file.write_bytes(data[:size])
        with pytest.raises(BadLabels, match=r"a\.tar: (is an empty file|damaged torch\.save file)"):
            open_labels(tmp_path)


def test_macos_sidecar_files_are_ignored(tmp_path: Path) -> None:
    file = write_dump(tmp_path, {"n01/a": [COORDS, FLIP, PAIRS]}) / "n01" / "a.tar"
    file.with_name("._a.tar").write_bytes(b"\0\5\x16\7\0\2\0\0" + bytes(100))
    assert open_labels(tmp_path).about.names == ["n01/a"]
    file.unlink()
    with pytest.raises(BadLabels, match="nor files of another layout"):
        open_labels(tmp_path)


def test_float64_probabilities_are_narrowed_with_a_note(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).dirichlet(np.ones(7), len(FLIP))
    write_dump(tmp_path, {"n01/a": [COORDS, FLIP, labels]})
    source = open_labels(tmp_path)
    assert source.dtype == "F32" and source.notes == [f"{tmp_path}: float64 is narrowed to float32"]
    assert (source.read(0).labels == labels.astype(np.float32)).all()
