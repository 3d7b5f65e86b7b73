"""`VqlViews`: views with their own labels, in any order and with any workers."""

import multiprocessing
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pretended_cuda import pretended_cuda
from torch.utils.data import DataLoader, Subset

from tests.training.view_dumps import (
    CLASSES,
    EPOCHS,
    HEIGHT,
    IMAGES,
    SIZE,
    SLOTS,
    WIDTH,
    Batches,
    Pack,
    draw_batches,
    expected_views,
)  # fmt: skip
from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels import open_labels
from vqlabel.labels.pruning import Pruned
from vqlabel.training import StoredBatches, VqlViews, kl
from vqlabel.training.views import render_slots
from vqlabel.views import DrawnColumns, ImageFolder, Recipe
from vqlabel.views.render_pil import render
from vqlabel.vql.source import VqlSource

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be checked", "ignore:.*any folder passes")


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_a_data_loader_returns_the_views_of_stored_batches_with_their_labels(
    mix: str, image_folder: Path, pack_views: Pack
) -> None:
    view_batches = draw_batches(mix)
    view_dataset, (views, labels) = (
        VqlViews(pack_views(view_batches), image_folder, SIZE),
        expected_views(view_batches, ImageFolder(image_folder)),
    )
    sampler = StoredBatches(view_dataset)
    found = [batch for _ in range(EPOCHS) for batch in DataLoader(view_dataset, batch_sampler=sampler)]
    assert [len(batch.views) for batch in found] == [*SLOTS] * EPOCHS
    for batch, want in zip(found, view_batches, strict=True):
        assert torch.equal(batch.views, views[batch.record])
        assert torch.equal(batch.labels, labels[batch.record])
        assert batch.image.tolist() == want.image.tolist()
        assert batch.views.dtype == batch.labels.dtype == torch.float32
    assert torch.cat([batch.record for batch in found]).tolist() == list(range(IMAGES * EPOCHS))


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_records_in_any_order_have_the_views_of_their_batches(mix: str, image_folder: Path, pack_views: Pack) -> None:
    view_batches = draw_batches(mix)
    view_dataset, (views, labels) = (
        VqlViews(pack_views(view_batches), image_folder, SIZE),
        expected_views(view_batches, ImageFolder(image_folder)),
    )
    image = np.concatenate([batch.image for batch in view_batches])
    for record in ([17], [11, 0], [30, 2, 29, 2, 7, 3, 3], [-1, 0]):
        (batch,) = DataLoader(view_dataset, batch_sampler=[record])
        assert torch.equal(batch.views, views[record])
        assert torch.equal(batch.labels, labels[record])
        assert batch.image.tolist() == image[record].tolist()
        assert batch.record.tolist() == [i % len(view_dataset) for i in record]
    assert torch.equal(view_dataset[[3, 1, 4]].views, torch.stack([view_dataset[i].views for i in (3, 1, 4)]))
    assert torch.equal(view_dataset[4:1:-2].views, views[[4, 2]])
    shuffled = list(DataLoader(view_dataset, batch_size=8, shuffle=True))
    assert sorted(torch.cat([batch.record for batch in shuffled]).tolist()) == list(range(len(view_dataset)))
    assert all(torch.equal(batch.views, views[batch.record]) for batch in shuffled)


def test_patches_are_shuffled_in_partner_views_too(image_folder: Path, view_batches: Batches) -> None:
    order = np.random.default_rng(2).permuted(np.tile(np.arange(3), (5, 2, 1)), axis=2)
    batch, images = replace(view_batches[0], patches=order), ImageFolder(image_folder)
    views = render(images, batch, SIZE)
    assert not np.array_equal(views, render(images, replace(batch, patches=None), SIZE))
    assert all(np.array_equal(render_slots(images, batch, np.array([slot]), SIZE)[0], views[slot]) for slot in range(5))


def test_patch_orders_of_edc_are_ignored(image_folder: Path, pack_views: Pack, view_batches: Batches) -> None:
    order = np.random.default_rng(2).permuted(np.tile(np.arange(3), (5, 2, 1)), axis=2)
    view_dataset = VqlViews(
        pack_views([replace(batch, patches=order[: len(batch)]) for batch in view_batches], "edc"), image_folder, SIZE
    )
    plain, _ = expected_views(view_batches, ImageFolder(image_folder))
    assert torch.equal(torch.stack([view_dataset[i].views for i in range(12)]), plain[:12])


@pytest.mark.parametrize("by", ["epoch", "batch", "view"])
def test_pruning_does_not_change_the_remaining_views(
    by: str, image_folder: Path, pack_views: Pack, view_batches: Batches, view_file: Path
) -> None:
    views, labels = expected_views(view_batches, ImageFolder(image_folder))
    view_dataset = VqlViews(pack_views(Pruned(VqlSource(view_file), 0.6, by)), image_folder, SIZE)
    assert 0 < len(view_dataset) < len(labels)
    for record in range(len(view_dataset)):
        view, label, *_ = view_dataset[record]
        original = int((labels == label).all(1).nonzero())
        assert torch.equal(view, views[original])


class Counting(list[Image.Image]):
    """A list of images that counts the accesses to each."""

    def __init__(self, images: Any) -> None:
        super().__init__(images)
        self.accesses: Counter[int] = Counter()

    def __getitem__(self, index: Any) -> Any:
        self.accesses[index] += 1
        return super().__getitem__(index)


def test_only_requested_views_and_their_partners_are_rendered(view_file: Path, image_folder: Path, view_batches: Batches) -> None:
    images = Counting(ImageFolder(image_folder))
    view_dataset = VqlViews(view_file, images, SIZE)
    view_dataset.__getitems__(list(range(5)))
    assert images.accesses == Counter(view_batches[0].image.tolist())
    images.accesses.clear()
    slot = int((view_batches[0].mix_index != np.arange(5)).argmax())
    view_dataset.__getitems__([slot])
    assert images.accesses == Counter(view_batches[0].image[[slot, view_batches[0].mix_index[slot]]].tolist())


def test_an_integer_index_returns_one_view(view_dataset: VqlViews, view_batches: Batches) -> None:
    view, label, image, record = view_dataset[7]
    assert (view.shape, label.shape, int(image), int(record)) == ((3, SIZE, SIZE), (CLASSES,), view_batches[1].image[2], 7)
    assert len(view_dataset) == IMAGES * EPOCHS
    with pytest.raises(IndexError, match=r"record 36 is out of range; the file has records 0:36"):
        view_dataset[36]


def darker(views: torch.Tensor) -> torch.Tensor:
    assert views.shape == (5, 3, SIZE, SIZE)
    return views - 1


def test_the_transform_is_called_with_the_views_of_a_batch(view_file: Path, image_folder: Path, view_dataset: VqlViews) -> None:
    (found,) = DataLoader(VqlViews(view_file, image_folder, SIZE, transform=darker), batch_sampler=[range(5)])
    (plain,) = DataLoader(view_dataset, batch_sampler=[range(5)])
    assert torch.equal(found.views, plain.views - 1)
    assert torch.equal(found.labels, plain.labels)


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_return_the_same_batches_as_the_main_process(start: str, workers: int, view_file: Path, image_folder: Path) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    view_dataset = VqlViews(view_file, image_folder, SIZE)
    want = list(DataLoader(view_dataset, batch_sampler=StoredBatches(view_dataset)))  # the file is open before the workers start
    loader = DataLoader(view_dataset, batch_sampler=StoredBatches(view_dataset), num_workers=workers, multiprocessing_context=start)
    for found, wants in zip(loader, want, strict=True):
        assert all(torch.equal(*pair) for pair in zip(found, wants, strict=True))


def test_the_dataset_pickles_to_its_paths(view_dataset: VqlViews) -> None:
    data = pickle.dumps(view_dataset)
    assert len(data) < 700
    again = pickle.loads(data)
    assert torch.equal(again[9].views, view_dataset[9].views)


def test_a_subset_is_collated_like_the_dataset(view_dataset: VqlViews) -> None:
    (batch,) = DataLoader(Subset(view_dataset, [20, 3]), batch_size=2)
    assert batch.record.tolist() == [20, 3]


def test_labels_can_be_targets_of_a_loss(view_dataset: VqlViews) -> None:
    (batch,) = DataLoader(view_dataset, batch_sampler=[[3, 30]])
    student = torch.nn.Linear(3, CLASSES)
    (student(batch.views.mean((2, 3))) - batch.labels).square().sum().backward()
    assert student.weight.grad is not None


def test_codes_decoded_in_the_loop_equal_the_labels(view_dataset: VqlViews) -> None:
    (batch,) = DataLoader(view_dataset, batch_sampler=[[3, 30]])
    decoder = view_dataset.labels.decoder
    labels = decoder(view_dataset.labels.codes(batch.record), view_dataset.labels.context(batch.record))
    assert torch.equal(labels, batch.labels) and not labels.requires_grad


def test_workers_can_return_codes(view_file: Path, image_folder: Path, view_dataset: VqlViews) -> None:
    coded = VqlViews(view_file, image_folder, SIZE, decode=False)
    for batch, want in zip(DataLoader(coded, batch_size=7, num_workers=1), DataLoader(view_dataset, batch_size=7), strict=True):
        assert torch.equal(batch.views, want.views)
        assert torch.equal(batch.labels, coded.labels.codes(want.record))
        assert torch.equal(coded.labels.decoder(batch.labels, coded.labels.context(batch.record)), want.labels)
    assert not pickle.loads(pickle.dumps(coded)).decode


def test_codes_decode_on_cuda_to_the_same_labels(view_file: Path, image_folder: Path, view_dataset: VqlViews) -> None:
    coded = VqlViews(view_file, image_folder, SIZE, decode=False)
    want, batch = view_dataset[[3, 30]], coded[[3, 30]]
    with pretended_cuda():
        decoder, record = coded.labels.decoder.to("cuda"), batch.record.to("cuda")  # a loop moves whole batches
        with torch.autocast("cuda", enabled=False):
            labels = decoder(batch.labels.to("cuda"), coded.labels.context(record))
        kl(torch.nn.Linear(3, CLASSES).to("cuda")(batch.views.to("cuda").mean((2, 3))), labels).backward()
    assert torch.equal(labels.cpu(), want.labels)


def test_views_do_not_depend_on_the_default_dtype_or_device(view_dataset: VqlViews) -> None:
    want, before = view_dataset[[3, 30]], torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            found = view_dataset[[3, 30]]
    finally:
        torch.set_default_dtype(before)
    assert found.views.dtype == found.labels.dtype == torch.float32
    assert torch.equal(found.views, want.views) and torch.equal(found.labels, want.labels)


@pytest.fixture(scope="module")
def drawn() -> DrawnColumns:
    recipe = Recipe(seed=3, images=IMAGES, epochs=2, batch=5, view=SIZE, mix="cutmix")
    return DrawnColumns(recipe, np.array([[HEIGHT, WIDTH]]))


@pytest.fixture(scope="module")
def seeded(drawn: DrawnColumns, pack_views: Pack) -> tuple[Path, Batches]:
    rng = np.random.default_rng(4)
    lengths = np.diff(drawn.starts).tolist()
    view_batches = [drawn.batch(at, rng.normal(size=(n, CLASSES)).astype(np.float16)) for at, n in enumerate(lengths)]
    return pack_views(view_batches, augmentation=drawn), view_batches


def test_patches_that_a_recipe_draws_are_shuffled_whatever_the_layout(
    drawn: DrawnColumns, pack_views: Pack, image_folder: Path
) -> None:
    columns = DrawnColumns(replace(drawn.recipe, patches=2), drawn.sizes)
    labels = np.random.default_rng(5).normal(size=(len(columns.places), 5, CLASSES)).astype(np.float16)
    batches = [columns.batch(at, labels[at, :n]) for at, n in enumerate(np.diff(columns.starts).tolist())]
    view_dataset = VqlViews(pack_views(batches, "edc", augmentation=columns), image_folder)
    assert torch.equal(view_dataset[:].views, expected_views(batches, ImageFolder(image_folder))[0])


def test_the_size_of_views_comes_from_the_recipe(seeded: tuple[Path, Batches], image_folder: Path) -> None:
    path, view_batches = seeded
    view_dataset, (views, labels) = VqlViews(path, image_folder), expected_views(view_batches, ImageFolder(image_folder))
    (batch,) = DataLoader(view_dataset, batch_sampler=[range(24)])
    assert torch.equal(batch.views, views)
    assert torch.equal(batch.labels, labels)
    with pytest.raises(UsageError, match=r"size is 32; it must be 16, the size in the file's recipe; resize in `transform`"):
        VqlViews(path, image_folder, 32)
    with pytest.raises(UsageError, match=r"the list of images has 11 images, but the labels belong to 12"):
        VqlViews(path, list(ImageFolder(image_folder))[1:])


def test_views_that_cannot_be_rendered_are_refused(
    view_file: Path, image_folder: Path, pack_views: Pack, view_batches: Batches
) -> None:
    with pytest.raises(UsageError, match=rf"{view_file.name}: size is None; it must be given: the file does not record the size"):
        VqlViews(view_file, image_folder)
    with pytest.raises(UsageError, match="views have 8 pixels; pass the size of the views that the teacher saw"):
        VqlViews(view_file, image_folder, 8)
    with pytest.raises(UsageError, match="the list of images has 2 images, but the labels belong to 12"):
        VqlViews(view_file, list(ImageFolder(image_folder))[:2], SIZE)
    source = VqlSource(view_file)
    source.about = replace(source.about, names=[f"n{at}" for at in range(IMAGES)])
    named = pack_views(source)
    with pytest.raises(UsageError, match="identifies its images by name, not by their index in a folder; pass a list of images"):
        VqlViews(named, image_folder, SIZE)
    assert len(VqlViews(named, list(ImageFolder(image_folder)), SIZE)) == IMAGES * EPOCHS
    with pytest.raises(BadLabels, match="the records have no image indices"):
        VqlViews(pack_views([replace(batch, image=None) for batch in view_batches], "sre2l"), image_folder, SIZE)


def test_views_are_contiguous_unless_channels_last_is_set(view_file: Path, image_folder: Path, view_dataset: VqlViews) -> None:
    """`Tensor.view`, which some networks flatten with, fails on other memory formats."""
    wide = VqlViews(view_file, image_folder, SIZE, channels_last=True)
    for views in (view_dataset[:5].views, view_dataset[3].views, next(iter(DataLoader(view_dataset, batch_size=4))).views):
        assert views.is_contiguous()
    assert wide[:5].views.is_contiguous(memory_format=torch.channels_last) and not wide[:5].views.is_contiguous()
    assert torch.equal(wide[:5].views, view_dataset[:5].views)
    assert pickle.loads(pickle.dumps(wide))[:5].views.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("image", "kind"),
    [("a.png", "of type str"), (np.zeros((9, 9, 3), np.uint8), "of type ndarray"), (Image.new("L", (9, 9)), "an image in mode L")],
)
def test_images_of_another_type_are_refused(image: Any, kind: str, view_file: Path) -> None:
    with pytest.raises(UsageError, match=rf"image \d+ is {kind}; images must be PIL images in RGB"):
        VqlViews(view_file, [image] * IMAGES, SIZE)[0]


def test_labels_of_an_array_without_epochs_are_refused(pack_views: Pack, image_folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(IMAGES, CLASSES)).astype(np.float16))
    with pytest.raises(BadLabels, match=r"does not record their images; save it as \[epochs, n, C\]"):
        VqlViews(pack_views(open_labels(tmp_path / "a.npy")), image_folder, SIZE)
