"""Images and a teacher -> labels: one dense batch at a time, the same bytes after interruptions, views from a seed."""

import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forge import Forge, flip_bit
from torch import nn
from torch.utils.data import BatchSampler, RandomSampler
from typer.testing import CliRunner

import vqlabel
from vqlabel.cli import app
from vqlabel.codecs.raw.codec import RawCodec
from vqlabel.codecs.raw.config import RawConfig
from vqlabel.codecs.topk.codec import TopkCodec
from vqlabel.codecs.topk.config import TopkConfig
from vqlabel.errors import BadContainer, BadLabels, TargetExists, UsageError, VqlabelError
from vqlabel.labels import LabelBatch, open_labels
from vqlabel.labels.pruning import Pruned
from vqlabel.storage.journal import HEADER_BYTES, Journal
from vqlabel.views.image_folder import ImageFolder
from vqlabel.views.recipe import Recipe
from vqlabel.views.render_pil import render
from vqlabel.vql.file import VqlFile
from vqlabel.vql.seeded import read_recipe, recipe_file
from vqlabel.vql.source import VqlSource
from vqlabel.workflows.relabel import relabel
from vqlabel.workflows.teacher_source import TeacherSource
from vqlabel.workflows.teachers import Teacher, load_teacher

IMAGES, EPOCHS, BATCH, VIEW, CLASSES = 13, 4, 5, 16, 7
TEACHER = """
import torch
def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 7))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise images of two sizes."""
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed (extra student): no view can be drawn")
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for at in range(IMAGES):
        (folder / f"class{at % 3}").mkdir(exist_ok=True)
        image.fromarray(rng.integers(0, 256, (20 + at % 2, 26, 3), dtype=np.uint8)).save(folder / f"class{at % 3}" / f"{at:02}.png")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a teacher module, which is the current folder during the test."""
    folder, before = tmp_path_factory.mktemp("work"), Path.cwd()
    (folder / "teachers_of_tests.py").write_text(TEACHER)
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture
def source(images: Path, work: Path) -> TeacherSource:
    return make_source(images)


def make_source(images: Path, mix: str = "cutmix", seed: int = 3) -> TeacherSource:
    recipe = Recipe(seed=seed, images=IMAGES, epochs=EPOCHS, batch=BATCH, view=VIEW, mix=mix)
    return TeacherSource(ImageFolder(images), load_teacher("teachers_of_tests:small", mean=(0.5,), deviation=(0.5,)), recipe)


def raw(images: Path, out: Path, **how: Any) -> Path:
    relabel(make_source(images, **how), out)
    return out


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
def test_labels_are_the_teachers_for_the_views_that_the_file_replays(mix: str, images: Path, work: Path, tmp_path: Path) -> None:
    path = raw(images, tmp_path / "a.vql", mix=mix)
    file, pictures = VqlFile(path), ImageFolder(images)
    teacher = load_teacher("teachers_of_tests:small", mean=(0.5,), deviation=(0.5,))
    labels = vqlabel.open(path)
    assert (len(labels), file.columns.order, file.container.requires) == (IMAGES * EPOCHS, "explicit", ["seeded_views"])
    for at, place in enumerate(file.columns.places):
        batch = file.columns.batch(at, np.empty((0, CLASSES), np.float32))
        seen = torch.from_numpy(render(pictures, batch, VIEW)).permute(0, 3, 1, 2)
        want = teacher(seen / 255 if seen.dtype == torch.uint8 else seen)
        assert torch.equal(labels.batch(*place).labels, want.half().float())


def with_patches(images: Path, patches: int = 2) -> TeacherSource:
    source = make_source(images)
    return TeacherSource(ImageFolder(images), source.teacher, replace(source.drawn.recipe, patches=patches))


def test_labels_of_shuffled_patches_are_the_teachers_and_views_show_rdeds_shuffle(images: Path, work: Path, tmp_path: Path) -> None:
    relabel(with_patches(images), tmp_path / "a.vql")
    views, pictures = vqlabel.VqlViews(tmp_path / "a.vql", images), ImageFolder(images)
    batch = views.labels.file.columns.batch(0, np.empty((0, CLASSES), np.float32))
    assert batch.patches is not None and batch.mix_index is not None and batch.image is not None
    shuffled = [rdeds_shuffle(pictures[image], order) for image, order in zip(batch.image.tolist(), batch.patches, strict=True)]
    plain = replace(batch, patches=None, image=np.arange(len(shuffled)))
    want = torch.from_numpy(render(shuffled, plain, VIEW)).permute(0, 3, 1, 2) / 255
    found = views[: len(shuffled)]
    assert torch.equal(found.views, want)
    teacher = load_teacher("teachers_of_tests:small", mean=(0.5,), deviation=(0.5,))
    assert torch.equal(found.labels, teacher(want).half().float())
    assert not torch.equal(want, vqlabel.VqlViews(raw(images, tmp_path / "b.vql"), images)[: len(shuffled)].views)


def rdeds_shuffle(image: Any, order: np.ndarray[Any, Any]) -> Any:
    """ShufflePatches of RDED (factor 2), with the given orders in place of random.shuffle: columns, then rows."""
    pixels = np.asarray(image)
    for axis, permutation in ((1, order[0]), (0, order[1])):
        half = pixels.shape[axis] // 2
        parts = np.split(pixels, [half], axis)
        pixels = np.concatenate([parts[strip] for strip in permutation], axis)
    return pytest.importorskip("PIL.Image").fromarray(pixels)


@pytest.mark.parametrize("layout", ["sre2l", "lpld", "lpqld", "gvbsm", "edc"])
def test_a_dump_of_shuffled_patches_is_refused(layout: str, images: Path, work: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="patches is 2; it must be 1 for a dump, because no script that reads one shuffles patches"
    ):
        relabel(with_patches(images), tmp_path / "dump", layout=layout)
    assert not list(tmp_path.iterdir())


def test_a_file_of_shuffled_patches_cannot_become_a_dump_that_loses_them(images: Path, work: Path, tmp_path: Path) -> None:
    relabel(with_patches(images), tmp_path / "a.vql")
    for layout, message in {"edc": "edc stores an order of patches but its script", "lpld": "lpld cannot store patches"}.items():
        with pytest.raises(UsageError, match=message):
            vqlabel.unpack(tmp_path / "a.vql", tmp_path / layout, layout=layout)


def test_labels_of_shuffled_patches_are_packed_as_a_seed_only_by_their_own_recipe(images: Path, work: Path, tmp_path: Path) -> None:
    relabel(with_patches(images), tmp_path / "a.vql")
    source, codec = VqlSource(tmp_path / "a.vql"), RawCodec(RawConfig(classes=CLASSES, domain="logits", dtype="F16"))
    vqlabel.pack(source, tmp_path / "b.vql", codec=codec, augmentation=with_patches(images).drawn)
    assert labels_of(tmp_path / "b.vql") == labels_of(tmp_path / "a.vql")
    for patches, message in {
        3: "patches of epoch 0, batch 0 is not what the recipe draws",
        1: "has patches, which recipes",
    }.items():
        with pytest.raises(BadLabels, match=message):
            vqlabel.pack(source, tmp_path / "c.vql", codec=codec, augmentation=with_patches(images, patches).drawn)


def test_a_reader_that_does_not_know_patches_refuses_the_file(images: Path, work: Path, tmp_path: Path) -> None:
    relabel(with_patches(images), tmp_path / "a.vql")
    forge = Forge(tmp_path / "a.vql")
    assert forge.metadata["vql.columns"]["recipe"]["patches"] == 2
    forge.metadata["vql.columns"]["recipe"]["blocks"] = forge.metadata["vql.columns"]["recipe"].pop("patches")
    forge.write(tmp_path / "b.vql")
    with pytest.raises(BadContainer, match=r"must have the fields .*; damaged, forged or from a newer version"):
        VqlFile(tmp_path / "b.vql")
    del forge.metadata["vql.columns"]["recipe"]["blocks"]
    forge.write(tmp_path / "c.vql")
    with pytest.raises(BadContainer, match="draws other views here than those that were labelled"):
        VqlFile(tmp_path / "c.vql")


def test_views_that_are_drawn_again_take_no_bits_per_label(images: Path, work: Path, tmp_path: Path) -> None:
    rows = vqlabel.stats(raw(images, tmp_path / "a.vql"))["rows"]
    assert {row["part"]: row["bytes"] for row in rows if row["group"] in ("augmentation", "order")} == {"image_size": 64 + 48}


def test_the_teacher_gets_one_batch_at_a_time_and_no_dense_label_is_kept(source: TeacherSource, tmp_path: Path) -> None:
    dense: list[weakref.ref[torch.Tensor]] = []
    sizes: list[int] = []

    def note(_teacher: nn.Module, _views: object, labels: torch.Tensor) -> None:
        assert sum(label() is not None for label in dense) <= 1, "labels of earlier batches are kept"
        dense.append(weakref.ref(labels))
        sizes.append(len(labels))

    codec = TopkCodec.build(TopkConfig(classes=CLASSES, domain="logits", k=2), {})
    with source.teacher.register_forward_hook(note):
        relabel(source, tmp_path / "a.vql", codec=codec)
    assert max(sizes) == BATCH and sum(sizes) == IMAGES * EPOCHS


class Stop(Exception):
    """A simulated crash of the machine."""


@pytest.mark.parametrize("after", [0, 1, 5, EPOCHS * 3 - 1])
def test_an_interrupted_run_continues_to_the_same_bytes(after: int, images: Path, work: Path, tmp_path: Path) -> None:
    want = raw(images, tmp_path / "whole.vql").read_bytes()

    def stop(_stage: str, done: int, _total: int, _figures: object) -> None:
        if done > after:
            raise Stop

    with pytest.raises(Stop):
        relabel(make_source(images), tmp_path / "a.vql", progress=stop)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("a.")] == ["a.vql.journal"]
    made: list[int] = []
    relabel(make_source(images), tmp_path / "a.vql", progress=lambda _s, done, _t, _f: made.append(done))
    assert (tmp_path / "a.vql").read_bytes() == want
    assert made == list(range(after + 2, 3 * EPOCHS + 1)), "what was labelled is not labelled again"
    assert not (tmp_path / "a.vql.journal").exists()


def test_a_killed_run_continues_to_the_same_bytes(images: Path, work: Path, tmp_path: Path) -> None:
    want = raw(images, tmp_path / "whole.vql").read_bytes()
    options = ["--mean", 0.5, "--std", 0.5, "--epochs", EPOCHS, "--batch", BATCH, "--seed", 3, "--threads", 1]
    words = relabel_words(images, tmp_path / "a.vql", "slow_teacher:slow", *options)
    slow = "import time\nfrom teachers_of_tests import small\nclass Slow(__import__('torch').nn.Sequential):\n"
    slow += "    def forward(self, x):\n        time.sleep(0.1)\n        return super().forward(x)\ndef slow():\n    return Slow(*small())\n"
    (work / "slow_teacher.py").write_text(slow)
    command = [sys.executable, "-m", "vqlabel", *words]
    with subprocess.Popen(command, cwd=work, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as run:
        journal = tmp_path / "a.vql.journal"
        while not journal.exists() or journal.stat().st_size < 4096 + 3 * (BATCH * CLASSES * 2):
            assert run.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    assert not (tmp_path / "a.vql").exists()
    assert CliRunner().invoke(app, words).exit_code == 0
    assert labels_of(tmp_path / "a.vql") == labels_of(tmp_path / "whole.vql") and len(want) > 4096
    first = (tmp_path / "a.vql").read_bytes()
    assert CliRunner().invoke(app, [*words, "--overwrite"]).exit_code == 0
    assert (tmp_path / "a.vql").read_bytes() == first, "uninterrupted"


def labels_of(path: Path) -> list[Any]:
    return vqlabel.open(path)[:].tolist()  # type: ignore[no-any-return]


def test_a_journal_of_other_settings_is_refused_and_a_damaged_batch_is_labelled_again(
    images: Path, work: Path, tmp_path: Path
) -> None:
    want = raw(images, tmp_path / "whole.vql").read_bytes()

    def stop(_stage: str, done: int, _total: int, _figures: object) -> None:
        if done == 6:
            raise Stop

    with pytest.raises(Stop):
        relabel(make_source(images), tmp_path / "a.vql", progress=stop)
    with pytest.raises(
        UsageError,
        match=r"a\.vql\.journal: is the journal of an interrupted run with other settings \(.*recipe .*, now .*\); repeat",
    ):
        relabel(make_source(images, seed=4), tmp_path / "a.vql")
    journal, third_batch = tmp_path / "a.vql.journal", HEADER_BYTES + 2 * (BATCH * CLASSES * 2 + 4)
    journal.write_bytes(flip_bit(journal.read_bytes(), third_batch + 3))
    made: list[int] = []
    relabel(make_source(images), tmp_path / "a.vql", progress=lambda _s, done, _t, _f: made.append(done))
    assert made[0] == 3 and (tmp_path / "a.vql").read_bytes() == want


def test_a_journal_returns_the_rows_of_every_batch(tmp_path: Path) -> None:
    rows = [np.arange(6, dtype=np.uint32).reshape(3, 2), np.array([[65535, 1]], np.uint32)]
    with Journal(tmp_path / "j", {"a": 1}, [3, 1], 2, "uint16") as journal:
        assert journal.done == 0
        for batch in rows:
            journal.append(batch)
    with Journal(tmp_path / "j", {"a": 1}, [3, 1], 2, "uint16") as journal:
        assert journal.done == 2
        assert all(np.array_equal(codes, expected) for codes, expected in zip(journal, rows, strict=True))


def test_a_journal_that_another_run_is_writing_is_not_changed(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    row = np.array([[7, 8]], np.uint16)
    with Journal(tmp_path / "j", {"a": 1}, [1, 1], 2, "uint16") as journal:
        journal.append(row)
        with pytest.raises(UsageError, match=r"j: another run is writing it; wait until it ends, or stop it"):
            Journal(tmp_path / "j", {"a": 1}, [1, 1], 2, "uint16")
        journal.append(row)
        assert all(np.array_equal(codes, row) for codes in journal)
    with Journal(tmp_path / "j", {"a": 1}, [1, 1], 2, "uint16") as journal:
        assert journal.done == 2


@pytest.mark.parametrize(
    ("batches", "done"), [((1, 2), 0), ((0, 0, 1, 2), 1), ((1, 0, 2), 0), ((0, 2), 1), ((0, 1, 2, 2), 3)], ids=str
)
def test_a_journal_with_lost_doubled_or_swapped_batches_counts_those_before(
    batches: tuple[int, ...], done: int, tmp_path: Path
) -> None:
    with Journal(tmp_path / "j", {"a": 1}, [2] * 4, 2, "uint16") as journal:
        for number in range(3):
            journal.append(np.full((2, 2), number, np.uint16))
    data, size = (tmp_path / "j").read_bytes(), 2 * 2 * 2 + 4
    head, stored = data[:HEADER_BYTES], [data[HEADER_BYTES + at * size :][:size] for at in range(3)]
    (tmp_path / "j").write_bytes(head + b"".join(stored[at] for at in batches))
    with Journal(tmp_path / "j", {"a": 1}, [2] * 4, 2, "uint16") as journal:
        assert journal.done == done


def test_a_batch_of_another_journal_does_not_count(tmp_path: Path) -> None:
    for name, key in (("j", 1), ("k", 2)):
        with Journal(tmp_path / name, {"a": key}, [2], 2, "uint16") as journal:
            journal.append(np.zeros((2, 2), np.uint16))
    mixed = (tmp_path / "j").read_bytes()[:HEADER_BYTES] + (tmp_path / "k").read_bytes()[HEADER_BYTES:]
    (tmp_path / "j").write_bytes(mixed)
    with Journal(tmp_path / "j", {"a": 1}, [2], 2, "uint16") as journal:
        assert journal.done == 0


def test_a_journal_is_never_written_through_a_link_and_a_full_disk_keeps_its_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "precious").touch()
    (tmp_path / "link").symlink_to("precious")
    with pytest.raises(VqlabelError, match="link: cannot be opened"):
        Journal(tmp_path / "link", {"a": 1}, [1, 1], 2, "uint16")
    assert (tmp_path / "precious").read_bytes() == b""
    with Journal(tmp_path / "j", {"a": 1}, [1, 1], 2, "uint16") as journal:
        journal.append(np.zeros((1, 2), np.uint16))
        monkeypatch.setattr(journal, "_file", Full(journal._file))
        with pytest.raises(VqlabelError, match=r"j: cannot be written \(No space left on device\); its 1 batches are kept"):
            journal.append(np.zeros((1, 2), np.uint16))
    full = Journal(tmp_path / "j", {"a": 1}, [1, 1], 2, "uint16")
    monkeypatch.setattr(full, "_file", Full(full._file, closes=False))
    with pytest.raises(VqlabelError, match="its 1 batches are kept"), full:
        full.append(np.zeros((1, 2), np.uint16))
    assert Journal(tmp_path / "j", {"a": 1}, [1, 1], 2, "uint16").done == 1


class Full:
    """A file on a full disk."""

    def __init__(self, file: Any, closes: bool = True) -> None:
        self._file, self._closes = file, closes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, _: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        """As a file does that has something left to write."""
        self._file.close()
        if not self._closes:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("layout", ["lpld", "lpqld", "gvbsm"])
def test_a_dump_has_the_labels_of_the_file_and_its_recipe_beside_it(layout: str, images: Path, work: Path, tmp_path: Path) -> None:
    path = raw(images, tmp_path / "a.vql")
    result = relabel(make_source(images), tmp_path / "dump", layout=layout)
    assert (result["records"], result["layout"]) == (IMAGES * EPOCHS, layout)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.vql", "dump", "dump.recipe.json"]
    labels = np.concatenate([batch.labels for batch in open_labels(tmp_path / "dump")])
    assert np.array_equal(labels, vqlabel.open(path)[:].numpy())


def test_a_tree_of_sre2l_has_the_images_in_the_order_of_its_script(images: Path, work: Path, tmp_path: Path) -> None:
    """The script draws batches by RandomSampler, seed 42, and reads the batch of labels with the same first image."""
    result = relabel(make_source(images), tmp_path / "dump", layout="sre2l")
    assert "notes" not in result
    assert sorted(path.name for path in (tmp_path / "dump").iterdir()) == [f"epoch_{epoch}" for epoch in range(EPOCHS)]
    sampler = RandomSampler(range(IMAGES), generator=torch.Generator().manual_seed(42))
    pictures, teacher, tree = ImageFolder(images), make_source(images).teacher, open_labels(tmp_path / "dump")
    for epoch in range(EPOCHS):
        for number, order in enumerate(BatchSampler(sampler, BATCH, drop_last=False)):
            stored = tree.read(3 * epoch + number)
            assert stored.place == (epoch, number)
            seen = torch.from_numpy(render(pictures, replace(stored, image=np.array(order)), VIEW)).permute(0, 3, 1, 2) / 255
            assert np.array_equal(teacher(seen).half().numpy(), stored.labels)
    with pytest.raises(
        UsageError, match=r"the order of SRe2L's script .*, which recipes cannot draw: pack with --augmentation keep"
    ):
        read_recipe(recipe_file(tmp_path / "dump"))


def test_views_in_sre2ls_order_are_those_of_the_recipe(images: Path, work: Path) -> None:
    """Only the order differs, and with it which views are mixed."""
    plain, shuffled = make_source(images, mix="none"), make_source(images, mix="none")
    shuffled.shuffle_as_sre2l()
    for epoch in range(EPOCHS):
        plain_batches, shuffled_batches = (
            [source.drawn.batch(3 * epoch + at, np.empty((0, 7))) for at in range(3)] for source in (plain, shuffled)
        )
        crops = [
            {int(i): tuple(c) for batch in batches for i, c in zip(batch.image, batch.crop, strict=True)}
            for batches in (plain_batches, shuffled_batches)
        ]
        assert crops[0] == crops[1] and len(crops[0]) == IMAGES


def seeded(images: Path, folder: Path, name: str = "b.vql", **how: Any) -> Path:
    """A dump, packed with a seed in place of its views."""
    dump = folder / "dump"
    if not dump.exists():
        relabel(make_source(images), dump, layout="lpld")
    source: Any = open_labels(dump)
    source = Pruned(source, **how) if how else source
    codec, _ = vqlabel.fit(source, vqlabel.FitConfig(codec="raw"))
    vqlabel.pack(source, folder / name, codec=codec, augmentation=read_recipe(recipe_file(dump)))
    return folder / name


def test_a_dump_packs_to_the_same_labels_and_views_with_kept_or_seeded_augmentation(
    images: Path, work: Path, tmp_path: Path
) -> None:
    path = seeded(images, tmp_path)
    codec, _ = vqlabel.fit(tmp_path / "dump", vqlabel.FitConfig(codec="raw"))
    result = vqlabel.pack(tmp_path / "dump", tmp_path / "kept.vql", codec=codec)
    seeded_file, kept_file = VqlFile(path), VqlFile(tmp_path / "kept.vql")
    assert seeded_file.columns.places == kept_file.columns.places
    some = np.array([40, 3, 3, 17])
    for at in range(len(seeded_file.columns.places)):
        empty = np.empty((0, CLASSES), np.float32)
        check_same(seeded_file.columns.batch(at, empty), kept_file.columns.batch(at, empty))
    for name in ("image", "partner", "mix", "crop", "flip", "partner_crop", "partner_flip", "box"):
        assert np.array_equal(getattr(seeded_file.columns.context(some), name), getattr(kept_file.columns.context(some), name)), (
            name
        )
    assert labels_of(path) == labels_of(tmp_path / "kept.vql")
    assert result["augmentation_bits"]["stored"] > 20 and path.stat().st_size < (tmp_path / "kept.vql").stat().st_size


def check_same(first: LabelBatch, second: LabelBatch) -> None:
    for name in ("image", "crop", "flip", "mix_index", "mix_lam", "mix_box"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


@pytest.mark.parametrize("by", ["epoch", "batch"])
def test_a_pruned_dump_draws_the_views_of_the_kept_batches(by: str, images: Path, work: Path, tmp_path: Path) -> None:
    path = seeded(images, tmp_path, keep=0.5, by=by, seed=1)
    kept = Pruned(open_labels(tmp_path / "dump"), 0.5, by, 1)
    file = VqlFile(path)
    assert list(file.columns.places) == list(kept.places) and len(kept.places) == 6
    for at, batch in enumerate(kept):
        check_same(file.columns.batch(at, batch.labels), batch)
    record = np.arange(file.records)[::-3]
    assert np.array_equal(
        file.columns.context(record).partner_crop, np.concatenate([b.context().partner_crop for b in kept])[record]
    )


def test_a_recipe_of_another_seed_is_refused(images: Path, work: Path, tmp_path: Path) -> None:
    seeded(images, tmp_path)
    recipe = json.loads(recipe_file(tmp_path / "dump").read_text())
    recipe["recipe"]["seed"] += 1
    recipe_file(tmp_path / "dump").write_text(json.dumps(recipe))
    with pytest.raises(
        BadLabels, match=r"image of epoch 0, batch 0 is not what the recipe draws; .* pack with --augmentation keep"
    ):
        seeded(images, tmp_path, "c.vql")
    recipe_file(tmp_path / "dump").write_text('{"recipe": {"seed": 1}, "sizes": [[1, 2]]}')
    with pytest.raises(BadLabels, match=r"not a recipe .*must have the fields"):
        seeded(images, tmp_path, "c.vql")
    recipe_file(tmp_path / "dump").unlink()
    with pytest.raises(UsageError, match="no such file; it would record how the views were drawn: `vqlabel relabel` writes it"):
        seeded(images, tmp_path, "c.vql")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digest": "0" * 64}, "its recipe draws other views here than those that were labelled"),
        ({"recipe": None}, "must have the fields"),
        ({"order": "explicit"}, "vql.requires is .*seeded_views.*; damaged or forged"),
    ],
)
def test_a_forged_recipe_is_refused(changes: dict[str, Any], message: str, images: Path, work: Path, tmp_path: Path) -> None:
    path = raw(images, tmp_path / "a.vql")
    forge = Forge(path)
    forge.metadata["vql.columns"].update(changes)
    forge.write(path)
    with pytest.raises(BadContainer, match=message):
        VqlFile(path)


def stopped(images: Path, out: Path) -> None:
    def stop(_stage: str, done: int, _total: int, _figures: object) -> None:
        if done == 6:
            raise Stop

    with pytest.raises(Stop):
        relabel(make_source(images), out, progress=stop)


@pytest.mark.parametrize("what", ["mean", "images", "dtype"])
def test_an_interrupted_run_does_not_continue_with_other_labels(what: str, images: Path, work: Path, tmp_path: Path) -> None:
    stopped(images, tmp_path / "a.vql")
    source = make_source(images)
    if what == "mean":
        source = TeacherSource(ImageFolder(images), load_teacher("teachers_of_tests:small", mean=(0.4,)), source.drawn.recipe)
    elif what == "dtype":
        source = TeacherSource(ImageFolder(images), source.teacher, source.drawn.recipe, dtype="F32")
    else:
        other = tmp_path / "other"
        shutil.copytree(images, other)
        (other / "class0" / "00.png").rename(other / "class0" / "000.png")
        source = TeacherSource(ImageFolder(other), source.teacher, source.drawn.recipe)
    changed = {"mean": "teacher_sha256", "images": "images 13 with the digest", "dtype": ".*dtype F16"}[what]
    with pytest.raises(
        UsageError, match=rf"is the journal of an interrupted run with other settings \({changed}.*, now .*\); repeat"
    ):
        relabel(source, tmp_path / "a.vql")


def test_invalid_targets_are_refused_before_anything_is_labelled(source: TeacherSource, tmp_path: Path) -> None:
    (tmp_path / "d.recipe.json").write_text("precious")
    for out, how, message in (
        (
            "a",
            {"layout": "pixie"},
            r"--layout pixie cannot represent .*; relabel writes -o labels\.vql, or a folder with --layout sre2l, lpld",
        ),
        ("a", {"layout": "tinyvit:3"}, "--layout tinyvit:3 cannot represent labels of mixed or cropped views; relabel writes"),
        ("a", {"layout": "fkd:ms-k5"}, "--layout fkd:ms-k5 cannot represent"),
        ("a.pt", {"layout": "tensor"}, "--layout tensor cannot represent"),
        ("a", {"layout": "arrays"}, "--layout arrays cannot represent"),
        ("a", {}, r"a is not a \.vql file; relabel writes -o labels\.vql, or a folder with --layout"),
        (
            "a.npy",
            {},
            r"a\.npy is not a \.vql file; .* `vqlabel unpack labels\.vql -o labels\.npy` writes the labels of a \.vql as an array",
        ),
        ("a.npy", {"layout": "lpld"}, r"layout is 'lpld'; it needs a folder as target"),
        ("a.vql", {"layout": "lpld"}, r"layout is 'lpld'; it is for a dump"),
    ):
        with pytest.raises(UsageError, match=message):
            relabel(source, tmp_path / out, **how)
    with pytest.raises(TargetExists, match=r"d\.recipe\.json exists"):
        relabel(source, tmp_path / "d", layout="lpld")
    assert [p.name for p in tmp_path.iterdir()] == ["d.recipe.json"]


def test_a_run_killed_after_its_file_appeared_is_not_continued_with_another_seed(images: Path, work: Path, tmp_path: Path) -> None:
    kept: list[bytes] = []
    journal = tmp_path / "a.vql.journal"

    def look(_stage: str, done: int, total: int, _figures: object) -> None:
        if done == total:
            kept.append(journal.read_bytes())

    result = relabel(make_source(images), tmp_path / "a.vql", progress=look)
    content = (tmp_path / "a.vql").read_bytes()
    relabel(make_source(images, seed=4), tmp_path / "a.vql", overwrite=True)
    journal.write_bytes(kept[0])
    with pytest.raises(TargetExists):
        relabel(make_source(images), tmp_path / "a.vql")
    assert relabel(make_source(images), tmp_path / "a.vql", overwrite=True) == result
    assert (tmp_path / "a.vql").read_bytes() == content and not journal.exists()


def test_a_run_stopped_while_its_dump_was_written_continues(images: Path, work: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, _total: int, _figures: object) -> None:
        if (stage, done) == ("writing", 3):
            raise Stop

    with pytest.raises(Stop):
        relabel(make_source(images), tmp_path / "d", layout="lpld", progress=stop)
    assert recipe_file(tmp_path / "d").exists() and not (tmp_path / "d").exists()
    stages: list[str] = []
    relabel(make_source(images), tmp_path / "d", layout="lpld", progress=lambda stage, *_: stages.append(stage))
    assert set(stages) == {"writing"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "d.recipe.json"]


def test_a_run_that_is_refused_at_its_first_batch_leaves_nothing(images: Path, work: Path, tmp_path: Path) -> None:
    (work / "large_teacher.py").write_text(
        "import torch\nfrom teachers_of_tests import small\nclass Times(torch.nn.Module):\n"
        "    def forward(self, x): return 1e6 * x\ndef large(): return torch.nn.Sequential(*small(), Times())\n"
    )
    recipe = make_source(images).drawn.recipe
    teacher = load_teacher("large_teacher:large")
    with pytest.raises(VqlabelError, match="try --dtype f32"):
        relabel(TeacherSource(ImageFolder(images), teacher, recipe), tmp_path / "a.vql")
    assert not list(tmp_path.iterdir())
    relabel(TeacherSource(ImageFolder(images), teacher, recipe, dtype="F32"), tmp_path / "a.vql")


def test_a_codec_of_fewer_images_is_refused_before_a_view_is_drawn(images: Path, work: Path, tmp_path: Path) -> None:
    recipe = Recipe(seed=3, images=IMAGES - 1, epochs=EPOCHS, batch=BATCH, view=VIEW, mix="cutmix")
    some = ImageFolder(images)
    some.files = some.files[:-1]
    relabel(TeacherSource(some, make_source(images).teacher, recipe), tmp_path / "dump", layout="lpld")
    config = vqlabel.FitConfig(bits=8, prior=True, epochs=1)
    codec, _ = vqlabel.fit(tmp_path / "dump", config)
    with pytest.raises(UsageError, match="13 images; the codec's prior has 12, those that it was fitted on"):
        relabel(make_source(images), tmp_path / "a.vql", codec=codec)


class Failing(nn.Module):
    """A network that raises an error on real views."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize(
    "error", [AssertionError("Input height (16) doesn't match"), ValueError("no"), KeyError(3), RuntimeError("shape\nx")]
)
def test_an_exception_of_a_teacher_is_reported_in_one_line(error: Exception, images: Path, work: Path) -> None:
    recipe = make_source(images).drawn.recipe
    with pytest.raises(
        UsageError, match=r"^teacher failing: fails on views \[1, 3, 16, 16\] \([^\n]+\); it must accept any number of views"
    ):
        TeacherSource(ImageFolder(images), Teacher(Failing(error), "failing", (0.5,), (0.5,)), recipe)


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_a_teacher_gets_contiguous_views(mix: str, images: Path, work: Path) -> None:
    """The ConvNet of dataset distillation flattens with `Tensor.view`."""
    source, shown = make_source(images, mix), list[bool]()
    source.teacher.network.register_forward_pre_hook(lambda _module, given: shown.append(given[0].is_contiguous()))
    source.read(0)
    assert shown == [True]


def test_a_file_that_is_not_a_journal_is_not_overwritten(source: TeacherSource, tmp_path: Path) -> None:
    (tmp_path / "a.vql.journal").write_text("my lab journal")
    with pytest.raises(UsageError, match=r"is not a readable journal, .*; remove it, or name another output"):
        relabel(source, tmp_path / "a.vql")
    assert (tmp_path / "a.vql.journal").read_text() == "my lab journal"


def test_probabilities_are_not_stored_as_logits(images: Path, work: Path, tmp_path: Path) -> None:
    (work / "soft.py").write_text(
        "import torch\nfrom teachers_of_tests import small\ndef soft(): return torch.nn.Sequential(*small(), torch.nn.Softmax(1))\n"
    )
    source = TeacherSource(ImageFolder(images), load_teacher("soft:soft"), make_source(images).drawn.recipe)
    with pytest.raises(UsageError, match="returns probabilities; labels must be logits"):
        relabel(source, tmp_path / "a.vql")


def test_columns_that_recipes_cannot_draw_are_not_dropped(
    images: Path, work: Path, write_dump: Callable[..., Path], tmp_path: Path
) -> None:
    relabel(make_source(images), tmp_path / "dump", layout="edc")
    codec, _ = vqlabel.fit(tmp_path / "dump", vqlabel.FitConfig(codec="raw"))
    drawn = read_recipe(recipe_file(tmp_path / "dump"))
    vqlabel.pack(tmp_path / "dump", tmp_path / "idle.vql", codec=codec, augmentation=drawn)  # strips in their places need no column
    vqlabel.unpack(tmp_path / "idle.vql", tmp_path / "again", layout="edc")
    moved = [replace(batch, patches=batch.patches[:, :, ::-1]) for batch in open_labels(tmp_path / "again")]
    shutil.rmtree(tmp_path / "dump")
    write_dump(tmp_path / "dump", moved, "edc")
    with pytest.raises(BadLabels, match="has patches, which recipes cannot draw; pack with --augmentation keep"):
        vqlabel.pack(tmp_path / "dump", tmp_path / "a.vql", codec=codec, augmentation=drawn)


def test_crops_rounded_to_float16_by_lpqld_match_the_recipe(images: Path, work: Path, tmp_path: Path) -> None:
    relabel(make_source(images), tmp_path / "dump", layout="lpqld")
    codec, _ = vqlabel.fit(tmp_path / "dump", vqlabel.FitConfig(codec="raw"))
    vqlabel.pack(tmp_path / "dump", tmp_path / "a.vql", codec=codec, augmentation=read_recipe(recipe_file(tmp_path / "dump")))
    assert labels_of(tmp_path / "a.vql") == labels_of(raw(images, tmp_path / "b.vql"))


# --- teachers ---------------------------------------------------------------------------------------------------------


def scripted(folder: Path) -> str:
    torch.jit.script(nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, 7))).save(str(folder / "t.pt"))
    return str(folder / "t.pt")


def exported(folder: Path) -> str:
    network = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, 7)).eval()
    free = {0: torch.export.Dim("n")}
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, VIEW, VIEW),), dynamic_shapes=(free,)), str(folder / "t.pt2"))
    return str(folder / "t.pt2")


@pytest.mark.parametrize("make", [scripted, exported])
def test_a_network_in_a_file_is_a_teacher(make: Callable[[Path], str], tmp_path: Path) -> None:
    teacher = load_teacher(make(tmp_path))
    assert teacher(torch.rand(3, 3, VIEW, VIEW)).shape == (3, 7)
    assert torch.equal(teacher.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.pt", "no such file; name module:function, a TorchScript"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("teachers_of_tests:large", "has no attribute 'large'"),
        ("teachers_of_tests:torch", "must be or return a torch.nn.Module"),
        ("junk.pt", "junk.pt: neither TorchScript nor"),
        (":small", "Empty module name"),
        ("teachers_of_tests:torch.nn", "has no attribute 'torch.nn'"),
    ],
)
def test_an_invalid_teacher_is_refused(name: str, message: str, work: Path) -> None:
    (work / "junk.pt").write_bytes(b"junk")
    with pytest.raises(UsageError, match=message):
        load_teacher(name)


def relabel_words(images: Path, out: Path, teacher: str, *more: object) -> list[str]:
    """The command that labels one view of each image."""
    words = ("relabel", images, "-o", out, "--teacher", teacher, "--epochs", 1, "--view", VIEW, *more)
    return [str(word) for word in words]


def test_stdout_is_one_json_object_whatever_a_teachers_children_print(images: Path, work: Path, tmp_path: Path) -> None:
    (work / "loud_of_tests.py").write_text(
        "import os, teachers_of_tests, torch\n"
        "class Loud(torch.nn.Module):\n"
        "  def __init__(self):\n    super().__init__(); self.inner = teachers_of_tests.small()\n"
        "  def forward(self, x):\n    os.system('echo child'); os.write(1, b'raw\\n'); return self.inner(x)\n"
    )
    words = relabel_words(images, tmp_path / "a.vql", "loud_of_tests:Loud", "--json")
    ran = subprocess.run([sys.executable, "-m", "vqlabel", *words], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout)["records"] == IMAGES
    assert ran.stderr.splitlines()[:2] == ["child", "raw"]


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("import sys; sys.exit(3)", r"teacher odd_of_tests:Odd: its forward ends the program \(SystemExit 3\)"),
        (
            "y = self.inner(x); y[:, 2] = -torch.inf; return y",
            r"view 0: the logit of class 2 is -inf; .* return -10000 for a masked class",
        ),
    ],
)
def test_a_teacher_that_ends_the_program_or_returns_infinity_is_reported(
    forward: str, message: str, images: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "odd_of_tests", raising=False)
    (work / "odd_of_tests.py").write_text(
        "import teachers_of_tests, torch\nclass Odd(torch.nn.Module):\n"
        "  def __init__(self):\n    super().__init__(); self.inner = teachers_of_tests.small()\n"
        f"  def forward(self, x):\n    {forward}\n"
    )
    importlib.invalidate_caches()
    with pytest.raises(VqlabelError, match=message):
        relabel(
            TeacherSource(
                ImageFolder(images),
                load_teacher("odd_of_tests:Odd"),
                Recipe(seed=3, images=IMAGES, epochs=1, batch=BATCH, view=VIEW),
            ),
            tmp_path / "a.vql",
        )


def test_relabel_with_a_codec_shows_the_quality_of_its_labels(images: Path, work: Path, tmp_path: Path) -> None:
    vqlabel.fit(make_source(images), vqlabel.FitConfig(codec="topk", slots=2), out=tmp_path / "c.codec")
    run = CliRunner().invoke(
        app, relabel_words(images, tmp_path / "a.vql", "teachers_of_tests:small", "--codec", tmp_path / "c.codec")
    )
    assert run.exit_code == 0, run.output
    assert "c.codec, on the dump that it was fitted to: held out (" in run.stdout


def test_stdout_is_one_json_object_whatever_a_teacher_prints(images: Path, work: Path, tmp_path: Path) -> None:
    (work / "chatty_of_tests.py").write_text(
        "import teachers_of_tests, torch\nprint('imported')\n"
        "class Chatty(torch.nn.Module):\n"
        "  def __init__(self):\n    super().__init__(); print('made'); self.inner = teachers_of_tests.small()\n"
        "  def forward(self, x):\n    print('asked'); return self.inner(x)\n"
    )
    words = relabel_words(images, tmp_path / "a.vql", "chatty_of_tests:Chatty", "--json")
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["records"] == IMAGES
    assert run.stderr.splitlines()[:3] == ["imported", "made", "asked"]


def test_the_command_line_labels_images_and_reports_the_result(images: Path, work: Path, tmp_path: Path) -> None:
    words = ["relabel", images, "-o", tmp_path / "a.vql", "--teacher", "teachers_of_tests:small", "--epochs", 2, "--batch", 5]
    words += ["--view", VIEW, "--mean", "0.5", "--std", "0.5", "--json"]
    run = CliRunner().invoke(app, [str(word) for word in words])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout) == {
        "path": str(tmp_path / "a.vql"), "records": 26, "classes": 7, "bytes": (tmp_path / "a.vql").stat().st_size, "code_bits": 112
    }  # fmt: skip
    again = CliRunner().invoke(app, [str(word) for word in words])
    assert again.exit_code == 4
    bad = CliRunner().invoke(app, [str(word) for word in [*words, "--overwrite", "--mean", "grey"]])
    assert (bad.exit_code, "--mean 'grey': must be one number, or three" in bad.stderr) == (2, True)
