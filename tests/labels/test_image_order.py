"""A dump without an order -> its images: both ways of PyTorch to shuffle are told apart, and whatever fits neither is refused."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import DUMP
from torch.utils.data import BatchSampler, RandomSampler

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels import Place, open_labels
from vqlabel.labels.image_order import Evidence, Ordered, agreement, reconstruct, verify
from vqlabel.labels.layouts.sre2l import Sre2lSource
from vqlabel.labels.layouts.tree import ORDER_FILE, simulated, write_order

Write = Callable[..., Path]
Items = Callable[..., list[Any]]
Truth = dict[Place, list[int]]
Relabel = Callable[..., Truth]

FILES = [4, 5, 6, 7, 8, 4, 5, 6, 7, 12]  # of every class
CLASS = np.repeat(np.arange(10), FILES)  # of every image, in ImageFolder's order
REAL = DUMP.parent


class OlderSampler(RandomSampler):
    """As PyTorch 1.10 had it: one permutation an epoch."""

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(len(self.data_source), generator=self.generator).tolist()


SAMPLERS = {1: OlderSampler, 2: RandomSampler}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images of 10 classes; nobody looks into the files."""
    folder = tmp_path_factory.mktemp("images")
    for c, files in enumerate(FILES):
        (folder / f"class{c}" / "more").mkdir(parents=True)
        for number in range(files):
            (folder / f"class{c}" / ("more" if number == 2 else ".") / f"{number}.{'JPEG' if number % 2 else 'png'}").touch()
        (folder / f"class{c}" / "notes.txt").touch()
    (folder / "list.txt").touch()
    return folder


@pytest.fixture
def relabel(tmp_path: Path, sre2l_items: Items, write_sre2l: Write) -> Relabel:
    """Write a tree as SRe2L does, whose labels mostly follow their image or its partner; returns which images its batches are of."""

    def relabel(
        draws: int = 2,
        *,
        epochs: range = range(4),
        batch: int = 15,
        drop_last: bool = False,
        seed: int = 42,
        mix: str | None = "cutmix",
        right: float = 0.8,
        folder: Path = tmp_path / "dump",
    ) -> Truth:
        sampler = SAMPLERS[draws](range(len(CLASS)), generator=torch.Generator().manual_seed(seed))
        batches, rng, truth = BatchSampler(sampler, batch, drop_last), np.random.default_rng(7), {}
        for epoch in range(epochs.stop):
            for number, image in enumerate(batches):
                if epoch not in epochs:
                    continue
                items = sre2l_items(torch.from_numpy(rng.normal(size=(len(image), 10))).half(), mix, seed=number)
                partner = np.array(image)[np.arange(len(image)) if mix is None else items[2].numpy()]
                top = np.where(rng.random(len(image)) < 0.5, CLASS[image], CLASS[partner])
                top = np.where(rng.random(len(image)) < right, top, rng.integers(0, 10, len(image)))
                items[5][torch.arange(len(image)), torch.from_numpy(top)] += 9
                write_sre2l(folder, items, epoch, number)
                truth[Place(epoch, number)] = image
        return truth

    return relabel


def said_images(source: Ordered) -> Truth:
    return {batch.place: batch.image.tolist() for batch in source if batch.image is not None}


@pytest.mark.parametrize("draws", SAMPLERS)
@pytest.mark.parametrize(("n", "batch", "drop_last"), [(7, 2, True), (8, 2, True), (7, 3, False)])
def test_the_order_is_that_of_a_random_sampler(n: int, batch: int, drop_last: bool, draws: int) -> None:
    sampler = SAMPLERS[draws](range(n), generator=torch.Generator().manual_seed(42))
    batches = BatchSampler(sampler, batch, drop_last)
    for order in simulated(n, 4, draws):
        walked = list(itertools.chain(*batches))
        assert order.dtype == np.int64 and order[: len(walked)].tolist() == walked


def test_both_ways_to_shuffle_share_epoch_0_alone() -> None:
    one, two = (list(simulated(50, 5, draws)) for draws in (1, 2))
    assert [(a == b).all() for a, b in zip(one, two, strict=True)] == [True, False, False, False, False]
    assert (one[2] == two[1]).all() and (next(simulated(50, 1, 2, seed=43)) != one[0]).any()


@pytest.mark.parametrize("draws", SAMPLERS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"drop_last": True},
        {"batch": 16},
        {"batch": 100},
        {"mix": None},
        {"mix": "mixup"},
        {"epochs": range(2, 5)},
        {"right": 0.6, "epochs": range(9), "batch": 32},
    ],
    ids=str,
)
def test_the_images_of_every_record_are_found(
    how: dict[str, Any], draws: int, relabel: Relabel, images: Path, tmp_path: Path
) -> None:
    truth = relabel(draws, **how)
    assert open_labels(tmp_path / "dump").order == "none" and open_labels(tmp_path / "dump").evidence is None
    source = open_labels(tmp_path / "dump", images=images)
    assert isinstance(source, Ordered) and (source.order, source.layout, source.classes) == ("explicit", "sre2l", 10)
    assert said_images(source) == truth
    assert source.found.draws == draws and source.found.agreement > 0.6 > 0.4 > (source.found.other or 1)
    assert source.evidence == source.found.said


def test_any_batch_can_be_read_at_any_time(relabel: Relabel, images: Path, tmp_path: Path) -> None:
    truth = relabel()
    source = open_labels(tmp_path / "dump", images=images)
    for at in np.random.default_rng(0).permutation(2 * len(source)).tolist():
        batch = source.read(at % len(source))
        assert batch.image is not None and batch.image.tolist() == truth[batch.place]
        context = batch.context()
        assert context.partner is not None and (context.partner == batch.image[batch.mix_index]).all()


@pytest.mark.parametrize("draws", SAMPLERS)
def test_epoch_0_alone_needs_no_choice(draws: int, relabel: Relabel, images: Path, tmp_path: Path) -> None:
    truth = relabel(draws, epochs=range(1))
    source = open_labels(tmp_path / "dump", images=images)
    assert isinstance(source, Ordered) and said_images(source) == truth
    assert (source.found.draws, source.found.other, source.found.labels) == (None, None, 64)
    assert source.evidence is not None and source.evidence.startswith("epoch 0, which every PyTorch shuffles alike: ")


def test_the_evidence_is_said_in_one_sentence() -> None:
    found = Evidence(order="two an epoch", draws=2, labels=3000, agreement=0.8123, other=0.004, chance=0.0031)
    assert found.clear and found.said == (
        "two an epoch: 81.2 % of 3,000 labels agree with the classes of their images, "
        "0.4 % with one permutation an epoch (PyTorch before 1.11), 0.3 % by chance"
    )


@pytest.mark.parametrize(
    ("labels", "agrees", "other", "chance"),
    [
        (3000, 0.008, 0.004, 0.004),  # hardly more than by luck
        (3000, 0.04, 0.016, 0.015),  # not by luck, but who knows by what
        (3000, 0.6, 0.5, 0.45),  # of few classes, where chance is large
        (3000, 0.8, 0.5, 0.003),  # the other order is nearly as good
        (9, 0.8, 0.2, 0.2),  # hardly any labels
    ],
)
def test_weak_evidence_decides_nothing(labels: int, agrees: float, other: float, chance: float) -> None:
    assert not Evidence(order="", draws=1, labels=labels, agreement=agrees, other=other, chance=chance).clear
    assert Evidence(order="", draws=1, labels=100, agreement=0.9, other=chance, chance=chance).clear


def test_labels_of_many_classes_need_not_agree_often() -> None:
    assert Evidence(order="", draws=1, labels=3000, agreement=0.05, other=0.004, chance=0.003).clear  # a weak teacher, heavy mixing


def test_z_counts_standard_deviations_of_coins() -> None:
    flips = np.random.default_rng(0).binomial(400, 0.1, 20_000) / 400
    z = [Evidence(order="", draws=None, labels=400, agreement=share, other=None, chance=0.1).z for share in flips]
    assert abs(np.mean(z)) < 0.03 and abs(np.std(z) - 1) < 0.03


def test_chance_is_the_agreement_of_all_pairings() -> None:
    rng = np.random.default_rng(0)
    top, shown = rng.integers(0, 7, 40), rng.integers(0, 5, (40, 2))
    hits, chance = agreement(top, shown, 9)
    assert hits.tolist() == [t in pair for t, pair in zip(top, shown.tolist(), strict=True)]
    assert chance == pytest.approx(np.mean([t in pair for t in top for pair in shown.tolist()]))


def test_of_a_large_dump_a_sample_of_all_epochs_is_looked_at(
    relabel: Relabel, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relabel(epochs=range(25), batch=22)
    monkeypatch.setattr("vqlabel.labels.image_order.LOOK_BATCHES", 24)  # one an epoch
    monkeypatch.setattr("vqlabel.labels.image_order.LOOK_LABELS", 400)
    source, read = Sre2lSource(tmp_path / "dump", None), list[Place]()
    parse = source.parse
    source.parse = lambda file, place: (read.append(place), parse(file, place))[1]  # type: ignore[method-assign]
    assert 300 < reconstruct(source, images).found.labels <= 400
    looked = read[2:]  # the first tells the size of a batch, and the last of an epoch how many images there are
    assert [place.epoch for place in looked] == list(range(1, 25))
    assert {place.batch for place in looked} == {0, 1, 2}


@pytest.mark.parametrize("epochs", [range(1), range(4)])
def test_another_seed_is_refused_and_can_be_named(epochs: range, relabel: Relabel, images: Path, tmp_path: Path) -> None:
    truth = relabel(seed=7, epochs=epochs)
    with pytest.raises(
        BadLabels, match=r"with seed 42 does not give its order \(.*: \d+\.\d % of \d+ labels .*by chance\).*another seed"
    ):
        open_labels(tmp_path / "dump", images=images)
    assert said_images(reconstruct(Sre2lSource(tmp_path / "dump", None), images, seed=7)) == truth


def test_folders_in_another_order_need_to_be_said(relabel: Relabel, images: Path, tmp_path: Path) -> None:
    truth = relabel()
    names = [f"{(3 * c + 4) % 10}th" for c in range(10)]
    for c, name in enumerate(names):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).symlink_to(images / f"class{c}")
    with pytest.raises(BadLabels, match="classes in another order"):
        open_labels(tmp_path / "dump", images=tmp_path / "other")
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({f"class{c}": (c + 3) % 10 for c in range(10)}))
    with pytest.raises(BadLabels, match="classes in another order"):
        open_labels(tmp_path / "dump", images=images, columns=wrong)
    wrong.write_text(json.dumps({f"class{c}": c for c in range(10)}))
    assert said_images(open_labels(tmp_path / "dump", images=images, columns=wrong)) == truth


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("{", "columns.json: no readable JSON"),
        ("[" * 100_000, "columns.json: no readable JSON"),
        ("[1]", r"folder 'class0' has no class in 0\.\.9"),
        (json.dumps({f"class{c}": c + 1 for c in range(10)}), r"folder 'class9' has no class in 0\.\.9"),
        (json.dumps({f"class{c}": True for c in range(10)}), r"folder 'class0' has no class in 0\.\.9"),
        (json.dumps({f"class{c}": 3 for c in range(10)}), "64 images, of one class at most"),
    ],
    ids=range(6),
)
def test_columns_say_a_class_of_every_folder(columns: str, message: str, relabel: Relabel, images: Path, tmp_path: Path) -> None:
    relabel(epochs=range(1))
    (tmp_path / "columns.json").write_text(columns)
    with pytest.raises(UsageError, match=message):
        open_labels(tmp_path / "dump", images=images, columns=tmp_path / "columns.json")


def test_columns_are_of_folders_of_images(relabel: Relabel, tmp_path: Path) -> None:
    relabel(epochs=range(1))
    with pytest.raises(UsageError, match=r"columns.json'; it says the classes of folders of images: name those with --images"):
        open_labels(tmp_path / "dump", columns=tmp_path / "columns.json")


def test_a_folder_of_other_images_is_refused(relabel: Relabel, images: Path, tmp_path: Path) -> None:
    relabel()
    for name in ("none", "flat", "few/a", "few/b", "empty/a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "flat" / "a.png").touch()
    for name in ("none", "flat", "nowhere"):
        with pytest.raises(UsageError, match=f"{name}: no folders in it; name the images"):
            open_labels(tmp_path / "dump", images=tmp_path / name)
    with pytest.raises(UsageError, match="few: 2 folders, the labels have 10 classes; say which class each folder is"):
        open_labels(tmp_path / "dump", images=tmp_path / "few")


@pytest.mark.parametrize(("drop_last", "missing", "labels"), [(False, 1, 64), (False, -5, 64), (True, 5, 60), (True, -11, 60)])
def test_another_number_of_images_is_refused(
    drop_last: bool, missing: int, labels: int, relabel: Relabel, images: Path, tmp_path: Path
) -> None:
    relabel(drop_last=drop_last)
    for c in range(10):
        (tmp_path / "other" / f"class{c}").mkdir(parents=True)
        for number in range(FILES[c] - missing * (c == 9)):
            (tmp_path / "other" / f"class{c}" / f"{number}.jpg").touch()
    with pytest.raises(UsageError, match=f"other: {64 - missing} images; .*dump has {labels} labels an epoch"):
        open_labels(tmp_path / "dump", images=tmp_path / "other")


def test_a_batch_of_another_size_is_refused(
    relabel: Relabel, images: Path, sre2l_items: Items, write_sre2l: Write, tmp_path: Path
) -> None:
    relabel()
    write_sre2l(tmp_path / "dump", sre2l_items(torch.randn(14, 10).half()), 2, 1)
    with pytest.raises(BadLabels, match="batch 1 of epoch 2 has 14 labels; 64 images in batches of 15 leave it 15"):
        list(open_labels(tmp_path / "dump", images=images))


def test_a_run_that_was_resumed_is_refused(relabel: Relabel, images: Path, tmp_path: Path) -> None:
    relabel(epochs=range(20), batch=32)
    relabel(epochs=range(5), batch=32, folder=tmp_path / "again")
    for epoch in range(5):
        for file in (tmp_path / "again" / f"epoch_{epoch}").iterdir():
            file.rename(tmp_path / "dump" / f"epoch_{15 + epoch}" / file.name)
    with pytest.raises(
        BadLabels, match=r"\d+\.\d % of the labels of epochs 1[456] to 1\d agree .* another order \(a resumed run\?\)"
    ):
        open_labels(tmp_path / "dump", images=images)


def test_a_folder_name_cannot_ask_for_a_billion_shuffles(relabel: Relabel, images: Path, tmp_path: Path) -> None:
    relabel(epochs=range(2))
    (tmp_path / "dump" / "epoch_1").rename(tmp_path / "dump" / "epoch_999999999")
    with pytest.raises(BadLabels, match="epoch 999999999 is there; the order of 10000 epochs can be found"):
        open_labels(tmp_path / "dump", images=images)


def test_an_order_that_a_dump_says_is_held_against_the_images(relabel: Relabel, images: Path, tmp_path: Path) -> None:
    truth = relabel(seed=7)
    order = {e: list(itertools.chain(*(image for place, image in truth.items() if place.epoch == e))) for e in range(4)}
    write_order(tmp_path / "dump" / ORDER_FILE, order)
    source = open_labels(tmp_path / "dump", images=images)
    assert not isinstance(source, Ordered) and source.order == "explicit" and open_labels(tmp_path / "dump").evidence is None
    assert source.evidence is not None and source.evidence.startswith("the order that the dump says: 8")
    with pytest.raises(UsageError, match="so there is no order to find"):
        reconstruct(source, images)
    write_order(tmp_path / "dump" / ORDER_FILE, {e: ids[::-1] for e, ids in order.items()})
    with pytest.raises(BadLabels, match=r"its labels are not of .*\(the order that the dump says: [12]"):
        open_labels(tmp_path / "dump", images=images)
    write_order(tmp_path / "dump" / ORDER_FILE, {e: [i + 1 for i in ids] for e, ids in order.items()})
    with pytest.raises(UsageError, match="has labels of image 64, the folder has 64 images"):
        open_labels(tmp_path / "dump", images=images)


def test_images_known_by_name_need_no_order(relabel: Relabel, images: Path, tmp_path: Path) -> None:
    truth = relabel(epochs=range(1))
    write_order(tmp_path / "dump" / ORDER_FILE, {0: list(itertools.chain(*truth.values()))})
    source = open_labels(tmp_path / "dump")
    source.names = ["a.png"] * 64
    with pytest.raises(UsageError, match="finds its images by name"):
        verify(source, images)


@pytest.mark.skipif(not REAL.is_dir(), reason="the ImageNet dump does not lie in ../shared")
def test_labels_of_real_images_agree_with_their_own_order_alone(tmp_path: Path) -> None:
    for image in sorted((REAL / "images").iterdir()):
        folder = tmp_path / "images" / image.name.split("_")[0]
        folder.mkdir(parents=True)
        (folder / image.name).touch()
    (tmp_path / "dump").mkdir()
    for part in (ORDER_FILE, *(f"epoch_{epoch}" for epoch in range(6))):
        (tmp_path / "dump" / part).symlink_to((REAL / "dump" / part).resolve())
    found = verify(open_labels(tmp_path / "dump"), tmp_path / "images")
    assert found.clear and found.agreement > 0.4 and 0.001 < found.chance < 0.004 and 4900 < found.labels <= 5000
    with pytest.raises(
        BadLabels, match=r"with seed 42 does not give its order .*: 0\.\d % of 5,000 labels .*, 0\.\d % with (one|two) "
    ):
        reconstruct(Sre2lSource(tmp_path / "dump", None), tmp_path / "images")
