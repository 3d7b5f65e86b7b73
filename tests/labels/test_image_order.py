"""A dump without an order -> its images: two shuffles are distinguished, labels that fit neither are refused."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import DUMP
from torch.utils.data import BatchSampler, RandomSampler

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels import LabelBatch, Place, open_labels
from vqlabel.labels.image_order import OrderedSource, find_order, verify_order
from vqlabel.labels.layouts.sre2l import Sre2lSource
from vqlabel.labels.layouts.tree import ORDER_FILE, simulated_orders, write_order
from vqlabel.labels.order_evidence import Evidence, agreement, sample_agreement

Write = Callable[..., Path]
Items = Callable[..., list[Any]]
Truth = dict[Place, list[int]]
Relabel = Callable[..., Truth]

FILES = [4, 5, 6, 7, 8, 4, 5, 6, 7, 12]  # of every class
CLASS = np.repeat(np.arange(10), FILES)  # of every image, in ImageFolder's order
REAL = DUMP.parent


class OlderSampler(RandomSampler):
    """The sampler of PyTorch 1.10: one permutation per epoch."""

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(len(self.data_source), generator=self.generator).tolist()


SAMPLERS = {1: OlderSampler, 2: RandomSampler}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 empty image files of 10 classes: no image is decoded."""
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
    """Write SRe2L's tree, whose labels mostly follow their image or its partner; returns the images of every batch."""

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


def images_of(source: OrderedSource) -> Truth:
    return {batch.place: batch.image.tolist() for batch in source if batch.image is not None}


@pytest.mark.parametrize("draws", SAMPLERS)
@pytest.mark.parametrize(("n", "batch", "drop_last"), [(7, 2, True), (8, 2, True), (7, 3, False)])
def test_the_order_is_that_of_a_random_sampler(n: int, batch: int, drop_last: bool, draws: int) -> None:
    sampler = SAMPLERS[draws](range(n), generator=torch.Generator().manual_seed(42))
    batches = BatchSampler(sampler, batch, drop_last)
    for order in simulated_orders(n, 4, draws):
        walked = list(itertools.chain(*batches))
        assert order.dtype == np.int64 and order[: len(walked)].tolist() == walked


def test_both_shuffles_have_only_epoch_0_in_common() -> None:
    one, two = (list(simulated_orders(50, 5, draws)) for draws in (1, 2))
    assert [(a == b).all() for a, b in zip(one, two, strict=True)] == [True, False, False, False, False]
    assert (one[2] == two[1]).all() and (next(simulated_orders(50, 1, 2, seed=43)) != one[0]).any()


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
    assert isinstance(source, OrderedSource) and (source.order, source.layout, source.classes) == ("explicit", "sre2l", 10)
    assert images_of(source) == truth
    assert source.order_evidence.draws == draws and source.order_evidence.agreement > 0.6 > 0.4 > (source.order_evidence.other or 1)
    assert source.evidence == source.order_evidence.summary


def test_any_batch_can_be_read_at_any_time(relabel: Relabel, images: Path, tmp_path: Path) -> None:
    truth = relabel()
    source = open_labels(tmp_path / "dump", images=images)
    for at in np.random.default_rng(0).permutation(2 * len(source)).tolist():
        batch = source.read(at % len(source))
        assert batch.image is not None and batch.image.tolist() == truth[batch.place]
        context = batch.context()
        assert context.partner is not None and (context.partner == batch.image[batch.mix_index]).all()


@pytest.mark.parametrize("draws", SAMPLERS)
def test_a_dump_of_epoch_0_has_the_same_order_under_both_shuffles(
    draws: int, relabel: Relabel, images: Path, tmp_path: Path
) -> None:
    truth = relabel(draws, epochs=range(1))
    source = open_labels(tmp_path / "dump", images=images)
    assert isinstance(source, OrderedSource) and images_of(source) == truth
    assert (source.order_evidence.draws, source.order_evidence.other, source.order_evidence.labels) == (None, None, 64)
    assert source.evidence is not None and source.evidence.startswith("epoch 0, which all versions of PyTorch shuffle alike: ")


def test_the_summary_has_all_figures_in_one_sentence() -> None:
    found = Evidence(order="two per epoch", draws=2, labels=3000, agreement=0.8123, other=0.004, chance=0.0031)
    assert found.clear and found.summary == (
        "two per epoch: 81.2 % of 3,000 labels agree with the classes of their images, "
        "0.4 % with one permutation per epoch (PyTorch before 1.11), 0.3 % by chance"
    )


@pytest.mark.parametrize(
    ("labels", "agrees", "other", "chance"),
    [
        (3000, 0.008, 0.004, 0.004),  # hardly above chance
        (3000, 0.04, 0.016, 0.015),  # significant, but only 2.7 times chance
        (3000, 0.6, 0.5, 0.45),  # of few classes, where chance is large
        (3000, 0.8, 0.5, 0.003),  # the other order is nearly as good
        (9, 0.8, 0.2, 0.2),  # too few labels
    ],
)
def test_weak_evidence_is_not_clear(labels: int, agrees: float, other: float, chance: float) -> None:
    assert not Evidence(order="", draws=1, labels=labels, agreement=agrees, other=other, chance=chance).clear
    assert Evidence(order="", draws=1, labels=100, agreement=0.9, other=chance, chance=chance).clear


def test_five_percent_agreement_is_clear_if_chance_is_much_lower() -> None:
    assert Evidence(order="", draws=1, labels=3000, agreement=0.05, other=0.004, chance=0.003).clear  # a weak teacher, heavy mixing


def test_z_is_standard_normal_for_labels_that_agree_by_chance() -> None:
    flips = np.random.default_rng(0).binomial(400, 0.1, 20_000) / 400
    z = [Evidence(order="", draws=None, labels=400, agreement=share, other=None, chance=0.1).z for share in flips]
    assert abs(np.mean(z)) < 0.03 and abs(np.std(z) - 1) < 0.03


def test_chance_is_the_mean_agreement_over_all_pairs_of_labels_and_images() -> None:
    rng = np.random.default_rng(0)
    top, shown = rng.integers(0, 7, 40), rng.integers(0, 5, (40, 2))
    hits, chance = agreement(top, shown, 9)
    assert hits.tolist() == [t in pair for t, pair in zip(top, shown.tolist(), strict=True)]
    assert chance == pytest.approx(np.mean([t in pair for t in top for pair in shown.tolist()]))


def test_a_sample_of_labels_covers_all_epochs_of_a_large_dump(relabel: Relabel, images: Path, tmp_path: Path) -> None:
    truth = relabel(epochs=range(25), batch=22)
    source = Sre2lSource(tmp_path / "dump", None)

    def assign(batch: LabelBatch) -> LabelBatch:
        return replace(batch, image=np.array(truth[batch.place]))

    (sample,) = sample_agreement(source, range(len(source)), CLASS, [assign], max_labels=400, max_batches=25)
    assert np.unique(sample.epoch).tolist() == list(range(25)) and 300 < len(sample.hits) <= 400
    assert sample.agreement > 0.6 > 0.3 > sample.chance


@pytest.mark.parametrize("epochs", [range(1), range(4)])
def test_another_seed_is_refused_unless_it_is_passed(epochs: range, relabel: Relabel, images: Path, tmp_path: Path) -> None:
    truth = relabel(seed=7, epochs=epochs)
    with pytest.raises(
        BadLabels, match=r"with seed 42 is not its order \(.*: \d+\.\d % of \d+ labels .*by chance\).*made with another seed"
    ):
        open_labels(tmp_path / "dump", images=images)
    assert images_of(find_order(Sre2lSource(tmp_path / "dump", None), images, seed=7)) == truth


def test_folders_in_another_order_need_a_class_map(relabel: Relabel, images: Path, tmp_path: Path) -> None:
    truth = relabel()
    names = [f"{(3 * c + 4) % 10}th" for c in range(10)]
    for c, name in enumerate(names):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).symlink_to(images / f"class{c}")
    with pytest.raises(BadLabels, match="the classes are in another order"):
        open_labels(tmp_path / "dump", images=tmp_path / "other")
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({f"class{c}": (c + 3) % 10 for c in range(10)}))
    with pytest.raises(BadLabels, match="the classes are in another order"):
        open_labels(tmp_path / "dump", images=images, class_map=wrong)
    wrong.write_text(json.dumps({f"class{c}": c for c in range(10)}))
    assert images_of(open_labels(tmp_path / "dump", images=images, class_map=wrong)) == truth


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "map.json: not readable as JSON"),
        ("[" * 100_000, "map.json: not readable as JSON"),
        ("[1]", r"map.json: contains list; a class map is an object"),
        (json.dumps({f"class{c}": c + 1 for c in range(10)}), r"folder 'class9' has class 10; it must be an integer in 0\.\.9"),
        (json.dumps({f"class{c}": True for c in range(10)}), r"folder 'class0' has class True; it must be an integer in 0\.\.9"),
        (json.dumps({f"class{c}": 3 for c in range(10)}), "its 64 images are of one class at most"),
    ],
    ids=range(6),
)
def test_a_class_map_must_give_every_folder_a_class_of_the_teacher(
    text: str, message: str, relabel: Relabel, images: Path, tmp_path: Path
) -> None:
    relabel(epochs=range(1))
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        open_labels(tmp_path / "dump", images=images, class_map=tmp_path / "map.json")


def test_a_class_map_without_images_is_refused(relabel: Relabel, tmp_path: Path) -> None:
    relabel(epochs=range(1))
    with pytest.raises(UsageError, match=r"map.json'; it maps folders of images to classes: pass the images with --images"):
        open_labels(tmp_path / "dump", class_map=tmp_path / "map.json")


def test_a_folder_of_other_images_is_refused(relabel: Relabel, images: Path, tmp_path: Path) -> None:
    relabel()
    for name in ("none", "flat", "few/a", "few/b", "empty/a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "flat" / "a.png").touch()
    for name in ("none", "flat", "nowhere"):
        with pytest.raises(UsageError, match=f"{name}: contains no folders; pass the images"):
            open_labels(tmp_path / "dump", images=tmp_path / name)
    with pytest.raises(UsageError, match="few: 2 folders, but the labels have 10 classes; map folders to classes with --class-map"):
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
    with pytest.raises(UsageError, match=f"other: has {64 - missing} images, but .*dump has {labels} labels per epoch"):
        open_labels(tmp_path / "dump", images=tmp_path / "other")


def test_a_batch_of_another_size_is_refused(
    relabel: Relabel, images: Path, sre2l_items: Items, write_sre2l: Write, tmp_path: Path
) -> None:
    relabel()
    write_sre2l(tmp_path / "dump", sre2l_items(torch.randn(14, 10).half()), 2, 1)
    with pytest.raises(BadLabels, match="batch 1 of epoch 2 has 14 labels, but with 64 images in batches of 15 it must have 15"):
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


def test_a_forged_epoch_number_does_not_start_a_billion_shuffles(relabel: Relabel, images: Path, tmp_path: Path) -> None:
    relabel(epochs=range(2))
    (tmp_path / "dump" / "epoch_1").rename(tmp_path / "dump" / "epoch_999999999")
    with pytest.raises(BadLabels, match="has epoch 999999999; the order can be found for up to 10000 epochs"):
        open_labels(tmp_path / "dump", images=images)


def test_an_order_that_a_dump_records_is_checked_against_the_images(relabel: Relabel, images: Path, tmp_path: Path) -> None:
    truth = relabel(seed=7)
    order = {e: list(itertools.chain(*(image for place, image in truth.items() if place.epoch == e))) for e in range(4)}
    write_order(tmp_path / "dump" / ORDER_FILE, order)
    source = open_labels(tmp_path / "dump", images=images)
    assert not isinstance(source, OrderedSource) and source.order == "explicit" and open_labels(tmp_path / "dump").evidence is None
    assert source.evidence is not None and source.evidence.startswith("the order that the dump records: 8")
    with pytest.raises(UsageError, match="so there is no order to find"):
        find_order(source, images)
    write_order(tmp_path / "dump" / ORDER_FILE, {e: ids[::-1] for e, ids in order.items()})
    with pytest.raises(BadLabels, match=r"its labels do not belong to .*\(the order that the dump records: [12]"):
        open_labels(tmp_path / "dump", images=images)
    write_order(tmp_path / "dump" / ORDER_FILE, {e: [i + 1 for i in ids] for e, ids in order.items()})
    with pytest.raises(UsageError, match="has labels of image 64, but the folder has 64 images"):
        open_labels(tmp_path / "dump", images=images)


def test_an_order_of_images_with_names_is_not_checked(relabel: Relabel, images: Path, tmp_path: Path) -> None:
    truth = relabel(epochs=range(1))
    write_order(tmp_path / "dump" / ORDER_FILE, {0: list(itertools.chain(*truth.values()))})
    source = open_labels(tmp_path / "dump")
    source.about = replace(source.about, names=["a.png"] * 64)
    with pytest.raises(UsageError, match="identifies its images by name"):
        verify_order(source, images)


@pytest.mark.skipif(not REAL.is_dir(), reason="the ImageNet dump is not in ../shared")
def test_labels_of_real_images_agree_with_no_order_but_their_own(tmp_path: Path) -> None:
    for image in sorted((REAL / "images").iterdir()):
        folder = tmp_path / "images" / image.name.split("_")[0]
        folder.mkdir(parents=True)
        (folder / image.name).touch()
    (tmp_path / "dump").mkdir()
    for part in (ORDER_FILE, *(f"epoch_{epoch}" for epoch in range(6))):
        (tmp_path / "dump" / part).symlink_to((REAL / "dump" / part).resolve())
    found = verify_order(open_labels(tmp_path / "dump"), tmp_path / "images")
    assert found.clear and found.agreement > 0.4 and 0.001 < found.chance < 0.004 and 4900 < found.labels <= 5000
    with pytest.raises(BadLabels, match=r"with seed 42 is not its order .*: 0\.\d % of 5,000 labels .*, 0\.\d % with (one|two) "):
        find_order(Sre2lSource(tmp_path / "dump", None), tmp_path / "images")
