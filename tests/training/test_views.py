"""`VqlViews`: views with their own labels, in any order and with any workers."""

import multiprocessing
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pretended_cuda import pretended_cuda
from torch.utils.data import DataLoader, Subset

import vqlabel
from vqlabel.codecs.raw.codec import RawCodec
from vqlabel.codecs.raw.config import RawConfig
from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels import LabelBatch, Place, open_labels
from vqlabel.labels.pruning import Pruned
from vqlabel.training import kl
from vqlabel.training.samplers import PooledBatches, StoredBatches
from vqlabel.training.views import VqlViews, render_slots
from vqlabel.views import DrawnColumns, ImageFolder, Recipe
from vqlabel.views.render_pil import render
from vqlabel.vql.source import VqlSource

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be checked", "ignore:.*any folder passes")

IMAGES, CLASSES, SIZE, EPOCHS = 12, 7, 16, 3
SLOTS = (5, 5, 2)  # labels per batch of an epoch
HEIGHT, WIDTH = 30, 40

Batches = list[LabelBatch]
Pack = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(draw_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of noise, in two classes."""
    return draw_images(tmp_path_factory.mktemp("images"), IMAGES, HEIGHT, WIDTH, lambda at: f"class_{at // 6}")


def draw(mix: str = "cutmix", epochs: int = EPOCHS) -> Batches:
    """Random labels of all images, in batches that are shuffled anew every epoch, as in SRe2L's dumps."""
    rng, batches = np.random.default_rng(1), []
    for epoch in range(epochs):
        for number, image in enumerate(np.split(rng.permutation(IMAGES), np.cumsum(SLOTS)[:-1])):
            n = len(image)
            height, width = rng.integers(8, HEIGHT + 1, n), rng.integers(8, WIDTH + 1, n)
            top, left = rng.integers(0, HEIGHT + 1 - height), rng.integers(0, WIDTH + 1 - width)
            row, column = rng.integers(0, 8, 2).tolist()
            batches.append(
                LabelBatch(
                    labels=rng.normal(size=(n, CLASSES)).astype(np.float16),
                    place=Place(epoch, number),
                    image=image.astype(np.int64),
                    crop=(np.stack([top, left, height, width], 1) / [HEIGHT, WIDTH, HEIGHT, WIDTH]).astype(np.float32),
                    flip=rng.random(n) < 0.5,
                    mix_index=None if mix == "none" else rng.permutation(n),
                    mix_lam=None if mix == "none" else float(rng.random()),
                    mix_box=(row, column, row + 7, column + 6) if mix == "cutmix" else None,
                )
            )
    return batches


@pytest.fixture(scope="module")
def pack(write_dump: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Pack batches losslessly into a `.vql`."""

    def pack(batches: Any, layout: str = "lpld", **how: Any) -> Path:
        folder = tmp_path_factory.mktemp("packed")
        source = open_labels(write_dump(folder / "dump", batches, layout)) if isinstance(batches, list) else batches
        codec = RawCodec(RawConfig(classes=CLASSES, domain="logits", dtype="F16"))
        vqlabel.pack(source, folder / "labels.vql", codec=codec, **how)
        return folder / "labels.vql"

    return pack


@pytest.fixture(scope="module")
def batches() -> Batches:
    return draw()


@pytest.fixture(scope="module")
def packed(batches: Batches, pack: Pack) -> Path:
    return pack(batches)


@pytest.fixture
def dataset(packed: Path, folder: Path) -> VqlViews:
    return VqlViews(packed, folder, SIZE)


def expected_views(batches: Batches, images: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, 3, 16, 16] views in 0..1 and [N, C] labels of all records, each batch rendered as a whole."""
    views = [torch.from_numpy(render(images, batch, SIZE)).permute(0, 3, 1, 2) for batch in batches]
    labels = torch.from_numpy(np.concatenate([batch.labels for batch in batches])).float()
    return torch.cat([part.float() / 255 if part.dtype == torch.uint8 else part for part in views]), labels


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_a_data_loader_returns_the_views_of_stored_batches_with_their_labels(mix: str, folder: Path, pack: Pack) -> None:
    batches = draw(mix)
    dataset, (views, labels) = VqlViews(pack(batches), folder, SIZE), expected_views(batches, ImageFolder(folder))
    sampler = StoredBatches(dataset)
    found = [batch for _ in range(EPOCHS) for batch in DataLoader(dataset, batch_sampler=sampler)]
    assert [len(batch.views) for batch in found] == [*SLOTS] * EPOCHS
    for batch, want in zip(found, batches, strict=True):
        assert torch.equal(batch.views, views[batch.record])
        assert torch.equal(batch.labels, labels[batch.record])
        assert batch.image.tolist() == want.image.tolist()
        assert batch.views.dtype == batch.labels.dtype == torch.float32
    assert torch.cat([batch.record for batch in found]).tolist() == list(range(IMAGES * EPOCHS))


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_records_in_any_order_have_the_views_of_their_batches(mix: str, folder: Path, pack: Pack) -> None:
    batches = draw(mix)
    dataset, (views, labels) = VqlViews(pack(batches), folder, SIZE), expected_views(batches, ImageFolder(folder))
    image = np.concatenate([batch.image for batch in batches])
    for record in ([17], [11, 0], [30, 2, 29, 2, 7, 3, 3], [-1, 0]):
        (batch,) = DataLoader(dataset, batch_sampler=[record])
        assert torch.equal(batch.views, views[record])
        assert torch.equal(batch.labels, labels[record])
        assert batch.image.tolist() == image[record].tolist()
        assert batch.record.tolist() == [i % len(dataset) for i in record]
    assert torch.equal(dataset[[3, 1, 4]].views, torch.stack([dataset[i].views for i in (3, 1, 4)]))
    assert torch.equal(dataset[4:1:-2].views, views[[4, 2]])
    shuffled = list(DataLoader(dataset, batch_size=8, shuffle=True))
    assert sorted(torch.cat([batch.record for batch in shuffled]).tolist()) == list(range(len(dataset)))
    assert all(torch.equal(batch.views, views[batch.record]) for batch in shuffled)


def test_patches_are_shuffled_in_partner_views_too(folder: Path, batches: Batches) -> None:
    order = np.random.default_rng(2).permuted(np.tile(np.arange(3), (5, 2, 1)), axis=2)
    batch, images = replace(batches[0], patches=order), ImageFolder(folder)
    views = render(images, batch, SIZE)
    assert not np.array_equal(views, render(images, replace(batch, patches=None), SIZE))
    assert all(np.array_equal(render_slots(images, batch, np.array([slot]), SIZE)[0], views[slot]) for slot in range(5))


def test_patch_orders_of_edc_are_ignored(folder: Path, pack: Pack, batches: Batches) -> None:
    order = np.random.default_rng(2).permuted(np.tile(np.arange(3), (5, 2, 1)), axis=2)
    dataset = VqlViews(pack([replace(batch, patches=order[: len(batch)]) for batch in batches], "edc"), folder, SIZE)
    plain, _ = expected_views(batches, ImageFolder(folder))
    assert torch.equal(torch.stack([dataset[i].views for i in range(12)]), plain[:12])


@pytest.mark.parametrize("by", ["epoch", "batch", "view"])
def test_pruning_does_not_change_the_remaining_views(by: str, folder: Path, pack: Pack, batches: Batches, packed: Path) -> None:
    views, labels = expected_views(batches, ImageFolder(folder))
    dataset = VqlViews(pack(Pruned(VqlSource(packed), 0.6, by)), folder, SIZE)
    assert 0 < len(dataset) < len(labels)
    for record in range(len(dataset)):
        view, label, *_ = dataset[record]
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


def test_only_requested_views_and_their_partners_are_rendered(packed: Path, folder: Path, batches: Batches) -> None:
    images = Counting(ImageFolder(folder))
    dataset = VqlViews(packed, images, SIZE)
    dataset.__getitems__(list(range(5)))
    assert images.accesses == Counter(batches[0].image.tolist())
    images.accesses.clear()
    slot = int((batches[0].mix_index != np.arange(5)).argmax())
    dataset.__getitems__([slot])
    assert images.accesses == Counter(batches[0].image[[slot, batches[0].mix_index[slot]]].tolist())


def test_an_integer_index_returns_one_view(dataset: VqlViews, batches: Batches) -> None:
    view, label, image, record = dataset[7]
    assert (view.shape, label.shape, int(image), int(record)) == ((3, SIZE, SIZE), (CLASSES,), batches[1].image[2], 7)
    assert len(dataset) == IMAGES * EPOCHS
    with pytest.raises(IndexError, match=r"record 36 is out of range; the file has records 0:36"):
        dataset[36]


def darker(views: torch.Tensor) -> torch.Tensor:
    assert views.shape == (5, 3, SIZE, SIZE)
    return views - 1


def test_the_transform_is_called_with_the_views_of_a_batch(packed: Path, folder: Path, dataset: VqlViews) -> None:
    (found,) = DataLoader(VqlViews(packed, folder, SIZE, transform=darker), batch_sampler=[range(5)])
    (plain,) = DataLoader(dataset, batch_sampler=[range(5)])
    assert torch.equal(found.views, plain.views - 1)
    assert torch.equal(found.labels, plain.labels)


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_return_the_same_batches_as_the_main_process(start: str, workers: int, packed: Path, folder: Path) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    dataset = VqlViews(packed, folder, SIZE)
    want = list(DataLoader(dataset, batch_sampler=StoredBatches(dataset)))  # the file is open before the workers start
    loader = DataLoader(dataset, batch_sampler=StoredBatches(dataset), num_workers=workers, multiprocessing_context=start)
    for found, wants in zip(loader, want, strict=True):
        assert all(torch.equal(*pair) for pair in zip(found, wants, strict=True))


def test_the_dataset_pickles_to_its_paths(dataset: VqlViews) -> None:
    data = pickle.dumps(dataset)
    assert len(data) < 700
    again = pickle.loads(data)
    assert torch.equal(again[9].views, dataset[9].views)


def test_a_subset_is_collated_like_the_dataset(dataset: VqlViews) -> None:
    (batch,) = DataLoader(Subset(dataset, [20, 3]), batch_size=2)
    assert batch.record.tolist() == [20, 3]


def test_labels_can_be_targets_of_a_loss(dataset: VqlViews) -> None:
    (batch,) = DataLoader(dataset, batch_sampler=[[3, 30]])
    student = torch.nn.Linear(3, CLASSES)
    (student(batch.views.mean((2, 3))) - batch.labels).square().sum().backward()
    assert student.weight.grad is not None


def test_codes_decoded_in_the_loop_equal_the_labels(dataset: VqlViews) -> None:
    (batch,) = DataLoader(dataset, batch_sampler=[[3, 30]])
    decoder = dataset.labels.decoder
    labels = decoder(dataset.labels.codes(batch.record), dataset.labels.context(batch.record))
    assert torch.equal(labels, batch.labels) and not labels.requires_grad


def test_workers_can_return_codes(packed: Path, folder: Path, dataset: VqlViews) -> None:
    coded = VqlViews(packed, folder, SIZE, decode=False)
    for batch, want in zip(DataLoader(coded, batch_size=7, num_workers=1), DataLoader(dataset, batch_size=7), strict=True):
        assert torch.equal(batch.views, want.views)
        assert torch.equal(batch.labels, coded.labels.codes(want.record))
        assert torch.equal(coded.labels.decoder(batch.labels, coded.labels.context(batch.record)), want.labels)
    assert not pickle.loads(pickle.dumps(coded)).decode


def test_codes_decode_on_cuda_to_the_same_labels(packed: Path, folder: Path, dataset: VqlViews) -> None:
    coded = VqlViews(packed, folder, SIZE, decode=False)
    want, batch = dataset[[3, 30]], coded[[3, 30]]
    with pretended_cuda():
        decoder, record = coded.labels.decoder.to("cuda"), batch.record.to("cuda")  # a loop moves whole batches
        with torch.autocast("cuda", enabled=False):
            labels = decoder(batch.labels.to("cuda"), coded.labels.context(record))
        kl(torch.nn.Linear(3, CLASSES).to("cuda")(batch.views.to("cuda").mean((2, 3))), labels).backward()
    assert torch.equal(labels.cpu(), want.labels)


def test_views_do_not_depend_on_the_default_dtype_or_device(dataset: VqlViews) -> None:
    want, before = dataset[[3, 30]], torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            found = dataset[[3, 30]]
    finally:
        torch.set_default_dtype(before)
    assert found.views.dtype == found.labels.dtype == torch.float32
    assert torch.equal(found.views, want.views) and torch.equal(found.labels, want.labels)


@pytest.fixture(scope="module")
def drawn() -> DrawnColumns:
    recipe = Recipe(seed=3, images=IMAGES, epochs=2, batch=5, view=SIZE, mix="cutmix")
    return DrawnColumns(recipe, np.array([[HEIGHT, WIDTH]]))


@pytest.fixture(scope="module")
def seeded(drawn: DrawnColumns, pack: Pack) -> tuple[Path, Batches]:
    rng = np.random.default_rng(4)
    lengths = np.diff(drawn.starts).tolist()
    batches = [drawn.batch(at, rng.normal(size=(n, CLASSES)).astype(np.float16)) for at, n in enumerate(lengths)]
    return pack(batches, augmentation=drawn), batches


def test_the_size_of_views_comes_from_the_recipe(seeded: tuple[Path, Batches], folder: Path) -> None:
    path, batches = seeded
    dataset, (views, labels) = VqlViews(path, folder), expected_views(batches, ImageFolder(folder))
    (batch,) = DataLoader(dataset, batch_sampler=[range(24)])
    assert torch.equal(batch.views, views)
    assert torch.equal(batch.labels, labels)
    with pytest.raises(UsageError, match=r"size is 32; it must be 16, the size in the file's recipe; resize in `transform`"):
        VqlViews(path, folder, 32)
    with pytest.raises(UsageError, match=r"the list of images has 11 images, but the labels belong to 12"):
        VqlViews(path, list(ImageFolder(folder))[1:])


def test_views_that_cannot_be_rendered_are_refused(packed: Path, folder: Path, pack: Pack, batches: Batches) -> None:
    with pytest.raises(UsageError, match=rf"{packed.name}: size is None; it must be given: the file does not record the size"):
        VqlViews(packed, folder)
    with pytest.raises(UsageError, match="views have 8 pixels; pass the size of the views that the teacher saw"):
        VqlViews(packed, folder, 8)
    with pytest.raises(UsageError, match="the list of images has 2 images, but the labels belong to 12"):
        VqlViews(packed, list(ImageFolder(folder))[:2], SIZE)
    source = VqlSource(packed)
    source.names = [f"n{at}" for at in range(IMAGES)]
    named = pack(source)
    with pytest.raises(UsageError, match="identifies its images by name, not by their index in a folder; pass a list of images"):
        VqlViews(named, folder, SIZE)
    assert len(VqlViews(named, list(ImageFolder(folder)), SIZE)) == IMAGES * EPOCHS
    with pytest.raises(BadLabels, match="the records have no image indices"):
        VqlViews(pack([replace(batch, image=None) for batch in batches], "sre2l"), folder, SIZE)


def numbers(sampler: StoredBatches) -> list[int]:
    """Numbers of the stored batches that one iteration yields; checks that each batch is complete."""
    starts = np.cumsum([0, *SLOTS * EPOCHS]).tolist()
    yielded = []
    for record in sampler:
        number = starts.index(record[0])
        assert record == list(range(starts[number], starts[number + 1]))
        yielded.append(number)
    return yielded


def test_the_first_epoch_follows_the_last(dataset: VqlViews) -> None:
    sampler = StoredBatches(dataset)
    assert [numbers(sampler) for _ in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 2]]
    sampler.set_epoch(1)
    assert numbers(sampler) == [3, 4, 5]
    sampler.set_epoch(1)
    assert numbers(sampler) == [3, 4, 5]
    sampler.set_epoch(5)
    assert numbers(sampler) == [6, 7, 8]
    assert len(sampler) == 3
    assert numbers(StoredBatches(dataset.labels)) == [0, 1, 2]
    with pytest.raises(UsageError, match="epoch is -1; it must be 0 or more"):
        sampler.set_epoch(-1)


def test_epochs_of_a_pruned_file_are_indexed_in_stored_order(pack: Pack, packed: Path) -> None:
    labels = vqlabel.open(pack(Pruned(VqlSource(packed), 0.67, "epoch", seed=1)))
    assert sorted({place.epoch for place in labels.places}) != [0, 1]
    sampler = StoredBatches(labels)
    assert [[record[0] for record in sampler] for _ in range(3)] == [[0, 5, 10], [12, 17, 22], [0, 5, 10]]


def test_persistent_workers_use_the_current_epoch(dataset: VqlViews) -> None:
    sampler = StoredBatches(dataset)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=2, persistent_workers=True)
    for epoch in (0, 2, 1):
        sampler.set_epoch(epoch)
        assert torch.cat([batch.record for batch in loader]).tolist() == list(range(12 * epoch, 12 * epoch + 12))


def test_ranks_get_different_batches_and_equally_many(dataset: VqlViews) -> None:
    ranks = [StoredBatches(dataset, rank=rank, world=2) for rank in range(2)]
    assert [numbers(sampler) for sampler in ranks] == [[0, 2], [1, 0]]  # the first batch is repeated, so that both ranks get two
    assert [len(sampler) for sampler in ranks] == [2, 2]
    pools = [PooledBatches(dataset, 8, replacement=False, rank=rank, world=4) for rank in range(4)]
    found = [numbers(sampler) for sampler in pools]
    assert [len(batch) for batch in found] == [2] * 4
    assert len({at for part in found for at in part}) == 8
    assert [numbers(StoredBatches(dataset, rank=rank, world=5)) for rank in range(5)] == [[0], [1], [2], [0], [1]]


def test_rank_and_world_default_to_torch_distributed(dataset: VqlViews, tmp_path: Path) -> None:
    early = StoredBatches(dataset)
    assert (len(early), numbers(early)) == (3, [0, 1, 2])
    early.set_epoch(0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert len(StoredBatches(dataset)) == 3
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, "get_rank", lambda: 2)
            patch.setattr(torch.distributed, "get_world_size", lambda: 3)
            assert numbers(StoredBatches(dataset)) == numbers(early) == [2]
            assert len(early) == 1
    finally:
        torch.distributed.destroy_process_group()
    for rank, world in ((2, 2), (0, None), (None, 2), (-1, 2)):
        with pytest.raises(UsageError, match="pass both rank and world, or neither"):
            StoredBatches(dataset, rank=rank, world=world)


def test_a_sampler_resumes_in_the_middle_of_an_epoch(dataset: VqlViews) -> None:
    sampler = StoredBatches(dataset)
    sampler.set_epoch(1)
    loader = iter(DataLoader(dataset, batch_sampler=sampler, num_workers=1))  # its worker prefetches
    assert next(loader).record[0] == 12
    state = sampler.state_dict(done=1)
    again = StoredBatches(dataset)
    again.load_state_dict(pickle.loads(pickle.dumps(state)))
    again.set_epoch(state["epoch"])  # as a loop over epochs does
    rest = DataLoader(dataset, batch_sampler=again, num_workers=1)
    assert [int(batch.record[0]) for batch in rest] == [17, 22]
    assert numbers(again) == [6, 7, 8]
    again.load_state_dict(state)
    again.set_epoch(2)
    assert numbers(again) == [6, 7, 8]
    with pytest.raises(UsageError, match=r"done is 4; it must be 0\.\.3, batches of this epoch and rank"):
        again.load_state_dict({"epoch": 0, "done": 4})


def test_a_run_resumed_many_times_yields_every_batch_once(dataset: VqlViews) -> None:
    state, found = StoredBatches(dataset).state_dict(done=0), []
    for _ in range(2 * len(SLOTS)):  # one batch per session; each loop counts from its own start
        sampler = StoredBatches(dataset)
        sampler.load_state_dict(state)
        sampler.set_epoch(sampler.epoch)
        assert sampler.state_dict(done=0) == state
        rest = numbers(sampler)
        found.append(rest[0])
        state = sampler.state_dict(done=1)
        if len(rest) == 1:
            state = {"epoch": state["epoch"] + 1, "done": 0}
    assert found == [0, 1, 2, 3, 4, 5]


def test_held_out_epochs_are_never_yielded(dataset: VqlViews) -> None:
    held, sampler = StoredBatches(dataset, epochs=[1]), StoredBatches(dataset, epochs=[0, 2])
    assert [numbers(held) for _ in range(2)] == [[3, 4, 5]] * 2
    assert [numbers(sampler) for _ in range(3)] == [[0, 1, 2], [6, 7, 8], [0, 1, 2]]
    pool = PooledBatches(dataset, 5, epochs=[2, 0])
    drawn = {at for _ in range(100) for at in numbers(pool)}
    assert drawn == {0, 1, 2, 6, 7, 8}
    assert sorted(numbers(PooledBatches(dataset, 6, replacement=False, epochs=[0, 2]))) == [0, 1, 2, 6, 7, 8]
    with pytest.raises(UsageError, match="per_epoch is 7; it must be at most 6, the batches in the pool"):
        PooledBatches(dataset, 7, replacement=False, epochs=[0, 2])
    for wrong in ([], [3], [-1]):
        with pytest.raises(UsageError, match=r"epochs is .*; it must be indices in 0\.\.2, the stored epochs"):
            StoredBatches(dataset, epochs=wrong)


def test_draws_from_a_pool_differ_between_epochs_and_depend_only_on_the_seed(dataset: VqlViews) -> None:
    sampler = PooledBatches(dataset, 4, replacement=False, seed=7)
    assert [numbers(sampler) for _ in range(3)] == [[7, 6, 4, 5], [1, 3, 0, 5], [5, 1, 3, 4]]
    repeated = PooledBatches(dataset, 12, seed=7)
    first, second = numbers(repeated), numbers(repeated)
    assert first != second
    assert len(repeated) == len(first) == 12
    assert len(set(first)) < 9  # 12 draws with replacement rarely contain all 9
    repeated.set_epoch(0)
    assert numbers(repeated) == first
    assert numbers(PooledBatches(dataset, 12, seed=8)) != first


def test_a_pool_draws_every_batch_equally_often(dataset: VqlViews) -> None:
    for replacement in (True, False):
        sampler = PooledBatches(dataset, 3, replacement=replacement)
        drawn = Counter(number for _ in range(600) for number in numbers(sampler))
        assert sorted(drawn) == list(range(9))
        assert all(abs(count - 200) < 5 * 200**0.5 for count in drawn.values())


def test_batches_with_the_same_first_image_keep_their_own_labels(folder: Path, pack: Pack, batches: Batches) -> None:
    """LPLD's reader loads the same label file for such batches."""
    same = [replace(batch, image=np.roll(batch.image, -int((batch.image == batch.image.min()).argmax()))) for batch in batches]
    firsts = [int(batch.image[0]) for batch in same]
    assert len(set(firsts)) < len(firsts)
    dataset = VqlViews(pack(same), folder, SIZE)
    views, labels = expected_views(same, ImageFolder(folder))
    for batch in DataLoader(dataset, batch_sampler=PooledBatches(dataset, 9, replacement=False)):
        assert torch.equal(batch.views, views[batch.record])
        assert torch.equal(batch.labels, labels[batch.record])


def test_a_pool_that_is_too_small_is_refused(dataset: VqlViews) -> None:
    with pytest.raises(
        UsageError, match="per_epoch is 10; it must be at most 9, the batches in the pool; or draw with replacement"
    ):
        PooledBatches(dataset, 10, replacement=False)
    assert len(PooledBatches(dataset, 10)) == 10
    with pytest.raises(UsageError, match="per_epoch is 0; it must be 1 or more"):
        PooledBatches(dataset, 0)
    with pytest.raises(UsageError, match="seed is -1; it must be"):
        PooledBatches(dataset, 1, seed=-1)


def test_views_are_contiguous_unless_channels_last_is_set(packed: Path, folder: Path, dataset: VqlViews) -> None:
    """`Tensor.view`, which some networks flatten with, fails on other memory formats."""
    wide = VqlViews(packed, folder, SIZE, channels_last=True)
    for views in (dataset[:5].views, dataset[3].views, next(iter(DataLoader(dataset, batch_size=4))).views):
        assert views.is_contiguous()
    assert wide[:5].views.is_contiguous(memory_format=torch.channels_last) and not wide[:5].views.is_contiguous()
    assert torch.equal(wide[:5].views, dataset[:5].views)
    assert pickle.loads(pickle.dumps(wide))[:5].views.is_contiguous(memory_format=torch.channels_last)


def sampler_at(dataset: VqlViews, epoch: int) -> StoredBatches:
    sampler = StoredBatches(dataset)
    sampler.set_epoch(epoch)
    return sampler


def test_the_state_of_a_sampler_counts_the_batches_that_it_yielded(dataset: VqlViews) -> None:
    """torchdata's StatefulDataLoader calls `state_dict()` of a sampler and loads the result into a new one."""
    for make in (lambda: StoredBatches(dataset), lambda: PooledBatches(dataset, 5, seed=3)):
        whole = make()
        want = [record for _ in range(3) for record in whole]
        for stop in range(len(want)):
            sampler, found = make(), []
            while len(found) < stop:
                for records in sampler:
                    found.append(records)
                    if len(found) == stop:
                        break
            again = make()
            again.load_state_dict(sampler.state_dict())
            while len(found) < len(want):
                found += list(again)
            assert found == want
    sampler = StoredBatches(dataset)
    list(sampler)
    sampler.load_state_dict(sampler.state_dict())
    assert (sampler.epoch, list(sampler)) == (1, list(sampler_at(dataset, 1))), "a finished epoch has no batches left"
    sampler = StoredBatches(dataset)
    next(iter(sampler))
    sampler.set_epoch(2)
    assert sampler.state_dict() == {"epoch": 2, "done": 0}


@pytest.mark.parametrize(
    ("image", "kind"),
    [("a.png", "of type str"), (np.zeros((9, 9, 3), np.uint8), "of type ndarray"), (Image.new("L", (9, 9)), "an image in mode L")],
)
def test_images_of_another_type_are_refused(image: Any, kind: str, packed: Path) -> None:
    with pytest.raises(UsageError, match=rf"image \d+ is {kind}; images must be PIL images in RGB"):
        VqlViews(packed, [image] * IMAGES, SIZE)[0]


def test_labels_of_an_array_without_epochs_are_refused(pack: Pack, folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(IMAGES, CLASSES)).astype(np.float16))
    with pytest.raises(BadLabels, match=r"does not record their images; save it as \[epochs, n, C\]"):
        VqlViews(pack(open_labels(tmp_path / "a.npy")), folder, SIZE)
