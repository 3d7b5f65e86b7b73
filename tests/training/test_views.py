"""Training from a `.vql`: views beside their own labels in any order and under any workers; samplers that never mix batches up."""

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
from vqlabel.training.losses import kl
from vqlabel.training.views import PooledBatches, StoredBatches, VqlViews, some_views
from vqlabel.views import DrawnColumns, ImageFolder, Recipe
from vqlabel.views.render_pil import render
from vqlabel.vql.source import VqlSource

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be checked", "ignore:.*any folder passes")

IMAGES, CLASSES, SIZE, EPOCHS = 12, 7, 16, 3
SLOTS = (5, 5, 2)  # labels of the batches of an epoch
HEIGHT, WIDTH = 30, 40

Batches = list[LabelBatch]
Pack = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(draw_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of noise, in two classes."""
    return draw_images(tmp_path_factory.mktemp("images"), IMAGES, HEIGHT, WIDTH, lambda at: f"class_{at // 6}")


def draw(mix: str = "cutmix", epochs: int = EPOCHS) -> Batches:
    """SRe2L's batches of all images, shuffled anew every epoch."""
    rng, found = np.random.default_rng(1), []
    for epoch in range(epochs):
        for number, image in enumerate(np.split(rng.permutation(IMAGES), np.cumsum(SLOTS)[:-1])):
            n = len(image)
            height, width = rng.integers(8, HEIGHT + 1, n), rng.integers(8, WIDTH + 1, n)
            top, left = rng.integers(0, HEIGHT + 1 - height), rng.integers(0, WIDTH + 1 - width)
            row, column = rng.integers(0, 8, 2).tolist()
            found.append(
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
    return found


@pytest.fixture(scope="module")
def pack(write_dump: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Batches as a `.vql` whose labels are those of the dump, bit for bit."""

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
def seen(packed: Path, folder: Path) -> VqlViews:
    return VqlViews(packed, folder, SIZE)


def wanted(batches: Batches, images: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, 3, 16, 16] views in 0..1 and [N, C] labels of all records, each batch rendered as a whole."""
    shown = [torch.from_numpy(render(images, batch, SIZE)).permute(0, 3, 1, 2) for batch in batches]
    labels = torch.from_numpy(np.concatenate([batch.labels for batch in batches])).float()
    return torch.cat([part.float() / 255 if part.dtype == torch.uint8 else part for part in shown]), labels


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_a_data_loader_gives_the_views_of_stored_batches_beside_their_labels(mix: str, folder: Path, pack: Pack) -> None:
    batches = draw(mix)
    seen, (shown, labels) = VqlViews(pack(batches), folder, SIZE), wanted(batches, ImageFolder(folder))
    sampler = StoredBatches(seen)
    found = [batch for _ in range(EPOCHS) for batch in DataLoader(seen, batch_sampler=sampler)]
    assert [len(batch.views) for batch in found] == [*SLOTS] * EPOCHS
    for batch, want in zip(found, batches, strict=True):
        assert torch.equal(batch.views, shown[batch.record])
        assert torch.equal(batch.labels, labels[batch.record])
        assert batch.image.tolist() == want.image.tolist()
        assert batch.views.dtype == batch.labels.dtype == torch.float32
    assert torch.cat([batch.record for batch in found]).tolist() == list(range(IMAGES * EPOCHS))


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_any_records_in_any_order_have_the_views_of_their_batches(mix: str, folder: Path, pack: Pack) -> None:
    batches = draw(mix)
    seen, (shown, labels) = VqlViews(pack(batches), folder, SIZE), wanted(batches, ImageFolder(folder))
    image = np.concatenate([batch.image for batch in batches])
    for record in ([17], [11, 0], [30, 2, 29, 2, 7, 3, 3], [-1, 0]):
        (batch,) = DataLoader(seen, batch_sampler=[record])
        assert torch.equal(batch.views, shown[record])
        assert torch.equal(batch.labels, labels[record])
        assert batch.image.tolist() == image[record].tolist()
        assert batch.record.tolist() == [i % len(seen) for i in record]
    assert torch.equal(seen[[3, 1, 4]].views, torch.stack([seen[i].views for i in (3, 1, 4)]))
    assert torch.equal(seen[4:1:-2].views, shown[[4, 2]])
    shuffled = list(DataLoader(seen, batch_size=8, shuffle=True))
    assert sorted(torch.cat([batch.record for batch in shuffled]).tolist()) == list(range(len(seen)))
    assert all(torch.equal(batch.views, shown[batch.record]) for batch in shuffled)


def test_patches_are_shuffled_in_what_is_mixed_in_too(folder: Path, batches: Batches) -> None:
    order = np.random.default_rng(2).permuted(np.tile(np.arange(3), (5, 2, 1)), axis=2)
    batch, pictures = replace(batches[0], patches=order), ImageFolder(folder)
    shown = render(pictures, batch, SIZE)
    assert not np.array_equal(shown, render(pictures, replace(batch, patches=None), SIZE))
    assert all(np.array_equal(some_views(pictures, batch, np.array([at]), SIZE)[0], shown[at]) for at in range(5))


def test_the_patches_of_edc_were_never_shuffled(folder: Path, pack: Pack, batches: Batches) -> None:
    order = np.random.default_rng(2).permuted(np.tile(np.arange(3), (5, 2, 1)), axis=2)
    seen = VqlViews(pack([replace(batch, patches=order[: len(batch)]) for batch in batches], "edc"), folder, SIZE)
    plain, _ = wanted(batches, ImageFolder(folder))
    assert torch.equal(torch.stack([seen[i].views for i in range(12)]), plain[:12])


@pytest.mark.parametrize("by", ["epoch", "batch", "view"])
def test_what_is_left_of_a_pruned_dump_has_the_views_it_had(
    by: str, folder: Path, pack: Pack, batches: Batches, packed: Path
) -> None:
    shown, labels = wanted(batches, ImageFolder(folder))
    seen = VqlViews(pack(Pruned(VqlSource(packed), 0.6, by)), folder, SIZE)
    assert 0 < len(seen) < len(labels)
    for record in range(len(seen)):
        view, label, *_ = seen[record]
        at = int((labels == label).all(1).nonzero())
        assert torch.equal(view, shown[at])


class Counting(list[Image.Image]):
    """Images that count how often each is asked for."""

    def __init__(self, images: Any) -> None:
        super().__init__(images)
        self.asked: Counter[int] = Counter()

    def __getitem__(self, at: Any) -> Any:
        self.asked[at] += 1
        return super().__getitem__(at)


def test_no_view_is_rendered_that_is_not_seen(packed: Path, folder: Path, batches: Batches) -> None:
    images = Counting(ImageFolder(folder))
    seen = VqlViews(packed, images, SIZE)
    seen.__getitems__(list(range(5)))
    assert images.asked == Counter(batches[0].image.tolist())
    images.asked.clear()
    slot = int((batches[0].mix_index != np.arange(5)).argmax())
    seen.__getitems__([slot])
    assert images.asked == Counter(batches[0].image[[slot, batches[0].mix_index[slot]]].tolist())


def test_one_record_is_one_view(seen: VqlViews, batches: Batches) -> None:
    view, label, image, record = seen[7]
    assert (view.shape, label.shape, int(image), int(record)) == ((3, SIZE, SIZE), (CLASSES,), batches[1].image[2], 7)
    assert len(seen) == IMAGES * EPOCHS
    with pytest.raises(IndexError, match=r"record 36 leaves 0\.\.35"):
        seen[36]


def darker(views: torch.Tensor) -> torch.Tensor:
    assert views.shape == (5, 3, SIZE, SIZE)
    return views - 1


def test_a_transform_is_given_the_views_of_a_batch(packed: Path, folder: Path, seen: VqlViews) -> None:
    (found,) = DataLoader(VqlViews(packed, folder, SIZE, transform=darker), batch_sampler=[range(5)])
    (plain,) = DataLoader(seen, batch_sampler=[range(5)])
    assert torch.equal(found.views, plain.views - 1)
    assert torch.equal(found.labels, plain.labels)


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_give_what_the_main_process_does(start: str, workers: int, packed: Path, folder: Path) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    seen = VqlViews(packed, folder, SIZE)
    want = list(DataLoader(seen, batch_sampler=StoredBatches(seen)))  # the file is open when the workers start
    loader = DataLoader(seen, batch_sampler=StoredBatches(seen), num_workers=workers, multiprocessing_context=start)
    for found, wants in zip(loader, want, strict=True):
        assert all(torch.equal(*pair) for pair in zip(found, wants, strict=True))


def test_it_pickles_to_its_paths(seen: VqlViews) -> None:
    data = pickle.dumps(seen)
    assert len(data) < 700
    again = pickle.loads(data)
    assert torch.equal(again[9].views, seen[9].views)


def test_a_part_of_it_is_collated_alike(seen: VqlViews) -> None:
    (batch,) = DataLoader(Subset(seen, [20, 3]), batch_size=2)
    assert batch.record.tolist() == [20, 3]


def test_labels_are_fit_to_be_a_students_targets(seen: VqlViews) -> None:
    (batch,) = DataLoader(seen, batch_sampler=[[3, 30]])
    student = torch.nn.Linear(3, CLASSES)
    (student(batch.views.mean((2, 3))) - batch.labels).square().sum().backward()
    assert student.weight.grad is not None


def test_a_loop_that_decodes_for_itself_has_the_same_labels(seen: VqlViews) -> None:
    (batch,) = DataLoader(seen, batch_sampler=[[3, 30]])
    decoder = seen.labels.decoder
    labels = decoder(seen.labels.codes(batch.record), seen.labels.context(batch.record))
    assert torch.equal(labels, batch.labels) and not labels.requires_grad


def test_workers_can_hand_over_codes(packed: Path, folder: Path, seen: VqlViews) -> None:
    coded = VqlViews(packed, folder, SIZE, decode=False)
    for batch, want in zip(DataLoader(coded, batch_size=7, num_workers=1), DataLoader(seen, batch_size=7), strict=True):
        assert torch.equal(batch.views, want.views)
        assert torch.equal(batch.labels, coded.labels.codes(want.record))
        assert torch.equal(coded.labels.decoder(batch.labels, coded.labels.context(batch.record)), want.labels)
    assert not pickle.loads(pickle.dumps(coded)).decode


def test_codes_of_workers_are_decoded_on_cuda_as_here(packed: Path, folder: Path, seen: VqlViews) -> None:
    coded = VqlViews(packed, folder, SIZE, decode=False)
    want, batch = seen[[3, 30]], coded[[3, 30]]
    with pretended_cuda():
        decoder, record = coded.labels.decoder.to("cuda"), batch.record.to("cuda")  # a loop moves whole batches
        with torch.autocast("cuda", enabled=False):
            labels = decoder(batch.labels.to("cuda"), coded.labels.context(record))
        kl(torch.nn.Linear(3, CLASSES).to("cuda")(batch.views.to("cuda").mean((2, 3))), labels).backward()
    assert torch.equal(labels.cpu(), want.labels)


def test_views_depend_on_no_default_dtype_or_device(seen: VqlViews) -> None:
    want, before = seen[[3, 30]], torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            found = seen[[3, 30]]
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


def test_a_file_with_a_recipe_says_the_size_of_its_views(seeded: tuple[Path, Batches], folder: Path) -> None:
    path, batches = seeded
    seen, (shown, labels) = VqlViews(path, folder), wanted(batches, ImageFolder(folder))
    (batch,) = DataLoader(seen, batch_sampler=[range(24)])
    assert torch.equal(batch.views, shown)
    assert torch.equal(batch.labels, labels)
    with pytest.raises(UsageError, match=r"size is 32; it must be 16, as the recipe in the file says; resize in `transform`"):
        VqlViews(path, folder, 32)
    with pytest.raises(UsageError, match=r"the list of images has 11 images, but the labels belong to 12"):
        VqlViews(path, list(ImageFolder(folder))[1:])


def test_what_cannot_be_seen_again_is_refused(packed: Path, folder: Path, pack: Pack, batches: Batches) -> None:
    with pytest.raises(UsageError, match=rf"{packed.name}: size is None; it must be named: the file does not say how large"):
        VqlViews(packed, folder)
    with pytest.raises(UsageError, match="views have 8 pixels; pass the size of the views that the teacher saw"):
        VqlViews(packed, folder, 8)
    with pytest.raises(UsageError, match="the list of images has 2 images, but the labels belong to 12"):
        VqlViews(packed, list(ImageFolder(folder))[:2], SIZE)
    source = VqlSource(packed)
    source.names = [f"n{at}" for at in range(IMAGES)]
    named = pack(source)
    with pytest.raises(UsageError, match="finds its images by name, not by their place in a folder; pass a list of them"):
        VqlViews(named, folder, SIZE)
    assert len(VqlViews(named, list(ImageFolder(folder)), SIZE)) == IMAGES * EPOCHS
    with pytest.raises(BadLabels, match="the records have no image indices"):
        VqlViews(pack([replace(batch, image=None) for batch in batches], "sre2l"), folder, SIZE)


def numbers(sampler: StoredBatches) -> list[int]:
    """Numbers of the stored batches that one iteration gives, each checked to be whole."""
    starts = np.cumsum([0, *SLOTS * EPOCHS]).tolist()
    found = []
    for record in sampler:
        at = starts.index(record[0])
        assert record == list(range(starts[at], starts[at + 1]))
        found.append(at)
    return found


def test_epochs_follow_each_other_and_begin_again(seen: VqlViews) -> None:
    sampler = StoredBatches(seen)
    assert [numbers(sampler) for _ in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 2]]
    sampler.set_epoch(1)
    assert numbers(sampler) == [3, 4, 5]
    sampler.set_epoch(1)
    assert numbers(sampler) == [3, 4, 5]
    sampler.set_epoch(5)
    assert numbers(sampler) == [6, 7, 8]
    assert len(sampler) == 3
    assert numbers(StoredBatches(seen.labels)) == [0, 1, 2]
    with pytest.raises(UsageError, match="epoch is -1; it must be 0 or more"):
        sampler.set_epoch(-1)


def test_epochs_of_a_pruned_file_are_counted_as_they_are_stored(pack: Pack, packed: Path) -> None:
    labels = vqlabel.open(pack(Pruned(VqlSource(packed), 0.67, "epoch", seed=1)))
    assert sorted({place.epoch for place in labels.places}) != [0, 1]
    sampler = StoredBatches(labels)
    assert [[record[0] for record in sampler] for _ in range(3)] == [[0, 5, 10], [12, 17, 22], [0, 5, 10]]


def test_persistent_workers_never_see_a_stale_epoch(seen: VqlViews) -> None:
    sampler = StoredBatches(seen)
    loader = DataLoader(seen, batch_sampler=sampler, num_workers=2, persistent_workers=True)
    for epoch in (0, 2, 1):
        sampler.set_epoch(epoch)
        assert torch.cat([batch.record for batch in loader]).tolist() == list(range(12 * epoch, 12 * epoch + 12))


def test_ranks_have_different_batches_and_as_many_each(seen: VqlViews) -> None:
    ranks = [StoredBatches(seen, rank=rank, world=2) for rank in range(2)]
    assert [numbers(sampler) for sampler in ranks] == [[0, 2], [1, 0]]  # the first again, so that both have two
    assert [len(sampler) for sampler in ranks] == [2, 2]
    pools = [PooledBatches(seen, 8, replacement=False, rank=rank, world=4) for rank in range(4)]
    found = [numbers(sampler) for sampler in pools]
    assert [len(batch) for batch in found] == [2] * 4
    assert len({at for part in found for at in part}) == 8
    assert [numbers(StoredBatches(seen, rank=rank, world=5)) for rank in range(5)] == [[0], [1], [2], [0], [1]]


def test_ranks_are_those_of_torch_distributed(seen: VqlViews, tmp_path: Path) -> None:
    early = StoredBatches(seen)
    assert (len(early), numbers(early)) == (3, [0, 1, 2])
    early.set_epoch(0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert len(StoredBatches(seen)) == 3
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, "get_rank", lambda: 2)
            patch.setattr(torch.distributed, "get_world_size", lambda: 3)
            assert numbers(StoredBatches(seen)) == numbers(early) == [2]
            assert len(early) == 1
    finally:
        torch.distributed.destroy_process_group()
    for rank, world in ((2, 2), (0, None), (None, 2), (-1, 2)):
        with pytest.raises(UsageError, match="name both rank and world, or neither"):
            StoredBatches(seen, rank=rank, world=world)


def test_a_sampler_goes_on_in_the_middle_of_an_epoch(seen: VqlViews) -> None:
    sampler = StoredBatches(seen)
    sampler.set_epoch(1)
    loader = iter(DataLoader(seen, batch_sampler=sampler, num_workers=1))  # which draws ahead
    assert next(loader).record[0] == 12
    state = sampler.state_dict(done=1)
    again = StoredBatches(seen)
    again.load_state_dict(pickle.loads(pickle.dumps(state)))
    again.set_epoch(state["epoch"])  # as a loop over epochs does
    rest = DataLoader(seen, batch_sampler=again, num_workers=1)
    assert [int(batch.record[0]) for batch in rest] == [17, 22]
    assert numbers(again) == [6, 7, 8]
    again.load_state_dict(state)
    again.set_epoch(2)
    assert numbers(again) == [6, 7, 8]
    with pytest.raises(UsageError, match=r"done is 4; it must be 0\.\.3, batches of this epoch and rank"):
        again.load_state_dict({"epoch": 0, "done": 4})


def test_interrupted_twice_in_an_epoch_it_gives_every_batch_once(seen: VqlViews) -> None:
    state, found = StoredBatches(seen).state_dict(done=0), []
    for _ in range(2 * len(SLOTS)):  # sessions of a batch each, in loops that count from where they begin
        sampler = StoredBatches(seen)
        sampler.load_state_dict(state)
        sampler.set_epoch(sampler.epoch)
        assert sampler.state_dict(done=0) == state
        rest = numbers(sampler)
        found.append(rest[0])
        state = sampler.state_dict(done=1)
        if len(rest) == 1:
            state = {"epoch": state["epoch"] + 1, "done": 0}
    assert found == [0, 1, 2, 3, 4, 5]


def test_labels_of_epochs_that_are_held_out_are_never_given(seen: VqlViews) -> None:
    held, sampler = StoredBatches(seen, epochs=[1]), StoredBatches(seen, epochs=[0, 2])
    assert [numbers(held) for _ in range(2)] == [[3, 4, 5]] * 2
    assert [numbers(sampler) for _ in range(3)] == [[0, 1, 2], [6, 7, 8], [0, 1, 2]]
    pool = PooledBatches(seen, 5, epochs=[2, 0])
    drawn = {at for _ in range(100) for at in numbers(pool)}
    assert drawn == {0, 1, 2, 6, 7, 8}
    assert sorted(numbers(PooledBatches(seen, 6, replacement=False, epochs=[0, 2]))) == [0, 1, 2, 6, 7, 8]
    with pytest.raises(UsageError, match="per_epoch is 7; it must be at most 6, the batches of the pool"):
        PooledBatches(seen, 7, replacement=False, epochs=[0, 2])
    for wrong in ([], [3], [-1]):
        with pytest.raises(UsageError, match=r"epochs is .*; it must be some of 0\.\.2, the epochs that are stored"):
            StoredBatches(seen, epochs=wrong)


def test_a_pool_draws_each_epoch_anew_and_always_the_same(seen: VqlViews) -> None:
    sampler = PooledBatches(seen, 4, replacement=False, seed=7)
    assert [numbers(sampler) for _ in range(3)] == [[7, 6, 4, 5], [1, 3, 0, 5], [5, 1, 3, 4]]
    repeated = PooledBatches(seen, 12, seed=7)
    first, second = numbers(repeated), numbers(repeated)
    assert first != second
    assert len(repeated) == len(first) == 12
    assert len(set(first)) < 9  # as nobody draws 9 of 9 in 12 without luck
    repeated.set_epoch(0)
    assert numbers(repeated) == first
    assert numbers(PooledBatches(seen, 12, seed=8)) != first


def test_a_pool_without_replacement_is_fair(seen: VqlViews) -> None:
    for replacement in (True, False):
        sampler = PooledBatches(seen, 3, replacement=replacement)
        drawn = Counter(at for _ in range(600) for at in numbers(sampler))
        assert sorted(drawn) == list(range(9))
        assert all(abs(count - 200) < 5 * 200**0.5 for count in drawn.values())


def test_batches_that_begin_with_the_same_image_keep_their_own_labels(folder: Path, pack: Pack, batches: Batches) -> None:
    """LPLD's reader gives such batches one and the same label file."""
    same = [replace(batch, image=np.roll(batch.image, -int((batch.image == batch.image.min()).argmax()))) for batch in batches]
    firsts = [int(batch.image[0]) for batch in same]
    assert len(set(firsts)) < len(firsts)
    seen = VqlViews(pack(same), folder, SIZE)
    shown, labels = wanted(same, ImageFolder(folder))
    for batch in DataLoader(seen, batch_sampler=PooledBatches(seen, 9, replacement=False)):
        assert torch.equal(batch.views, shown[batch.record])
        assert torch.equal(batch.labels, labels[batch.record])


def test_a_pool_that_is_too_small_says_so(seen: VqlViews) -> None:
    with pytest.raises(
        UsageError, match="per_epoch is 10; it must be at most 9, the batches of the pool; or draw with replacement"
    ):
        PooledBatches(seen, 10, replacement=False)
    assert len(PooledBatches(seen, 10)) == 10
    with pytest.raises(UsageError, match="per_epoch is 0; it must be 1 or more"):
        PooledBatches(seen, 0)
    with pytest.raises(UsageError, match="seed is -1; it must be"):
        PooledBatches(seen, 1, seed=-1)


def test_views_are_contiguous_unless_channels_last_is_asked_for(packed: Path, folder: Path, seen: VqlViews) -> None:
    """ConvNets that flatten with `view` fail on anything else."""
    wide = VqlViews(packed, folder, SIZE, channels_last=True)
    for views in (seen[:5].views, seen[3].views, next(iter(DataLoader(seen, batch_size=4))).views):
        assert views.is_contiguous()
    assert wide[:5].views.is_contiguous(memory_format=torch.channels_last) and not wide[:5].views.is_contiguous()
    assert torch.equal(wide[:5].views, seen[:5].views)
    assert pickle.loads(pickle.dumps(wide))[:5].views.is_contiguous(memory_format=torch.channels_last)


def make_at(seen: VqlViews, epoch: int) -> StoredBatches:
    sampler = StoredBatches(seen)
    sampler.set_epoch(epoch)
    return sampler


def test_a_sampler_that_is_asked_for_its_state_knows_what_it_drew(seen: VqlViews) -> None:
    """torchdata's StatefulDataLoader calls `state_dict()` of any sampler that has one, and loads it into a fresh one."""
    for make in (lambda: StoredBatches(seen), lambda: PooledBatches(seen, 5, seed=3)):
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
    sampler = StoredBatches(seen)
    list(sampler)
    sampler.load_state_dict(sampler.state_dict())
    assert (sampler.epoch, list(sampler)) == (1, list(make_at(seen, 1))), "nothing is left of an epoch that is done"
    sampler = StoredBatches(seen)
    next(iter(sampler))
    sampler.set_epoch(2)
    assert sampler.state_dict() == {"epoch": 2, "done": 0}


@pytest.mark.parametrize(
    ("image", "kind"),
    [("a.png", "of type str"), (np.zeros((9, 9, 3), np.uint8), "of type ndarray"), (Image.new("L", (9, 9)), "an image in mode L")],
)
def test_images_of_another_type_are_refused_by_name(image: Any, kind: str, packed: Path) -> None:
    with pytest.raises(UsageError, match=rf"image \d+ is {kind}; images must be PIL images in RGB"):
        VqlViews(packed, [image] * IMAGES, SIZE)[0]


def test_labels_of_an_array_without_epochs_are_refused_with_the_remedy(pack: Pack, folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(IMAGES, CLASSES)).astype(np.float16))
    with pytest.raises(BadLabels, match=r"does not record their images; save it as \[epochs, n, C\]"):
        VqlViews(pack(open_labels(tmp_path / "a.npy")), folder, SIZE)
