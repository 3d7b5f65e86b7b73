"""`StoredBatches` and `PooledBatches`: which stored batches an epoch yields, for every rank and after a resumption."""

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import vqlabel
from tests.training.view_dumps import EPOCHS, SIZE, SLOTS, Batches, Pack, expected_views
from vqlabel.errors import UsageError
from vqlabel.labels.pruning import Pruned
from vqlabel.training import PooledBatches, StoredBatches, VqlViews
from vqlabel.views import ImageFolder
from vqlabel.vql.source import VqlSource

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be checked", "ignore:.*any folder passes")


def numbers(sampler: StoredBatches) -> list[int]:
    """Numbers of the stored batches that one iteration yields; checks that each batch is complete."""
    starts = np.cumsum([0, *SLOTS * EPOCHS]).tolist()
    yielded = []
    for record in sampler:
        number = starts.index(record[0])
        assert record == list(range(starts[number], starts[number + 1]))
        yielded.append(number)
    return yielded


def test_the_first_epoch_follows_the_last(view_dataset: VqlViews) -> None:
    sampler = StoredBatches(view_dataset)
    assert [numbers(sampler) for _ in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 2]]
    sampler.set_epoch(1)
    assert numbers(sampler) == [3, 4, 5]
    sampler.set_epoch(1)
    assert numbers(sampler) == [3, 4, 5]
    sampler.set_epoch(5)
    assert numbers(sampler) == [6, 7, 8]
    assert len(sampler) == 3
    assert numbers(StoredBatches(view_dataset.labels)) == [0, 1, 2]
    with pytest.raises(UsageError, match="epoch is -1; it must be 0 or more"):
        sampler.set_epoch(-1)


def test_epochs_of_a_pruned_file_are_indexed_in_stored_order(pack_views: Pack, view_file: Path) -> None:
    labels = vqlabel.open(pack_views(Pruned(VqlSource(view_file), 0.67, "epoch", seed=1)))
    assert sorted({place.epoch for place in labels.places}) != [0, 1]
    sampler = StoredBatches(labels)
    assert [[record[0] for record in sampler] for _ in range(3)] == [[0, 5, 10], [12, 17, 22], [0, 5, 10]]


def test_persistent_workers_use_the_current_epoch(view_dataset: VqlViews) -> None:
    sampler = StoredBatches(view_dataset)
    loader = DataLoader(view_dataset, batch_sampler=sampler, num_workers=2, persistent_workers=True)
    for epoch in (0, 2, 1):
        sampler.set_epoch(epoch)
        assert torch.cat([batch.record for batch in loader]).tolist() == list(range(12 * epoch, 12 * epoch + 12))


def test_ranks_get_different_batches_and_equally_many(view_dataset: VqlViews) -> None:
    ranks = [StoredBatches(view_dataset, rank=rank, world=2) for rank in range(2)]
    assert [numbers(sampler) for sampler in ranks] == [[0, 2], [1, 0]]  # the first batch is repeated, so that both ranks get two
    assert [len(sampler) for sampler in ranks] == [2, 2]
    pools = [PooledBatches(view_dataset, 8, replacement=False, rank=rank, world=4) for rank in range(4)]
    found = [numbers(sampler) for sampler in pools]
    assert [len(batch) for batch in found] == [2] * 4
    assert len({at for part in found for at in part}) == 8
    assert [numbers(StoredBatches(view_dataset, rank=rank, world=5)) for rank in range(5)] == [[0], [1], [2], [0], [1]]


def test_rank_and_world_default_to_torch_distributed(view_dataset: VqlViews, tmp_path: Path) -> None:
    early = StoredBatches(view_dataset)
    assert (len(early), numbers(early)) == (3, [0, 1, 2])
    early.set_epoch(0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert len(StoredBatches(view_dataset)) == 3
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, "get_rank", lambda: 2)
            patch.setattr(torch.distributed, "get_world_size", lambda: 3)
            assert numbers(StoredBatches(view_dataset)) == numbers(early) == [2]
            assert len(early) == 1
    finally:
        torch.distributed.destroy_process_group()
    for rank, world in ((2, 2), (0, None), (None, 2), (-1, 2)):
        with pytest.raises(UsageError, match="pass both rank and world, or neither"):
            StoredBatches(view_dataset, rank=rank, world=world)


def test_a_sampler_resumes_in_the_middle_of_an_epoch(view_dataset: VqlViews) -> None:
    sampler = StoredBatches(view_dataset)
    sampler.set_epoch(1)
    loader = iter(DataLoader(view_dataset, batch_sampler=sampler, num_workers=1))  # its worker prefetches
    assert next(loader).record[0] == 12
    state = sampler.state_dict(done=1)
    again = StoredBatches(view_dataset)
    again.load_state_dict(pickle.loads(pickle.dumps(state)))
    again.set_epoch(state["epoch"])  # as a loop over epochs does
    rest = DataLoader(view_dataset, batch_sampler=again, num_workers=1)
    assert [int(batch.record[0]) for batch in rest] == [17, 22]
    assert numbers(again) == [6, 7, 8]
    again.load_state_dict(state)
    again.set_epoch(2)
    assert numbers(again) == [6, 7, 8]
    with pytest.raises(UsageError, match=r"done is 4; it must be 0\.\.3, batches of this epoch and rank"):
        again.load_state_dict({"epoch": 0, "done": 4})


def test_a_run_resumed_many_times_yields_every_batch_once(view_dataset: VqlViews) -> None:
    state, found = StoredBatches(view_dataset).state_dict(done=0), []
    for _ in range(2 * len(SLOTS)):  # one batch per session; each loop counts from its own start
        sampler = StoredBatches(view_dataset)
        sampler.load_state_dict(state)
        sampler.set_epoch(sampler.epoch)
        assert sampler.state_dict(done=0) == state
        rest = numbers(sampler)
        found.append(rest[0])
        state = sampler.state_dict(done=1)
        if len(rest) == 1:
            state = {"epoch": state["epoch"] + 1, "done": 0}
    assert found == [0, 1, 2, 3, 4, 5]


def test_held_out_epochs_are_never_yielded(view_dataset: VqlViews) -> None:
    held, sampler = StoredBatches(view_dataset, epochs=[1]), StoredBatches(view_dataset, epochs=[0, 2])
    assert [numbers(held) for _ in range(2)] == [[3, 4, 5]] * 2
    assert [numbers(sampler) for _ in range(3)] == [[0, 1, 2], [6, 7, 8], [0, 1, 2]]
    pool = PooledBatches(view_dataset, 5, epochs=[2, 0])
    drawn = {at for _ in range(100) for at in numbers(pool)}
    assert drawn == {0, 1, 2, 6, 7, 8}
    assert sorted(numbers(PooledBatches(view_dataset, 6, replacement=False, epochs=[0, 2]))) == [0, 1, 2, 6, 7, 8]
    with pytest.raises(UsageError, match="per_epoch is 7; it must be at most 6, the batches in the pool"):
        PooledBatches(view_dataset, 7, replacement=False, epochs=[0, 2])
    for wrong in ([], [3], [-1]):
        with pytest.raises(UsageError, match=r"epochs is .*; it must be indices in 0\.\.2, the stored epochs"):
            StoredBatches(view_dataset, epochs=wrong)


def test_draws_from_a_pool_differ_between_epochs_and_depend_only_on_the_seed(view_dataset: VqlViews) -> None:
    sampler = PooledBatches(view_dataset, 4, replacement=False, seed=7)
    assert [numbers(sampler) for _ in range(3)] == [[7, 6, 4, 5], [1, 3, 0, 5], [5, 1, 3, 4]]
    repeated = PooledBatches(view_dataset, 12, seed=7)
    first, second = numbers(repeated), numbers(repeated)
    assert first != second
    assert len(repeated) == len(first) == 12
    assert len(set(first)) < 9  # 12 draws with replacement rarely contain all 9
    repeated.set_epoch(0)
    assert numbers(repeated) == first
    assert numbers(PooledBatches(view_dataset, 12, seed=8)) != first


def test_a_pool_draws_every_batch_equally_often(view_dataset: VqlViews) -> None:
    for replacement in (True, False):
        sampler = PooledBatches(view_dataset, 3, replacement=replacement)
        drawn = Counter(number for _ in range(600) for number in numbers(sampler))
        assert sorted(drawn) == list(range(9))
        assert all(abs(count - 200) < 5 * 200**0.5 for count in drawn.values())


def test_batches_with_the_same_first_image_keep_their_own_labels(
    image_folder: Path, pack_views: Pack, view_batches: Batches
) -> None:
    """LPLD's reader loads the same label file for such batches."""
    same = [replace(batch, image=np.roll(batch.image, -int((batch.image == batch.image.min()).argmax()))) for batch in view_batches]
    firsts = [int(batch.image[0]) for batch in same]
    assert len(set(firsts)) < len(firsts)
    view_dataset = VqlViews(pack_views(same), image_folder, SIZE)
    views, labels = expected_views(same, ImageFolder(image_folder))
    for batch in DataLoader(view_dataset, batch_sampler=PooledBatches(view_dataset, 9, replacement=False)):
        assert torch.equal(batch.views, views[batch.record])
        assert torch.equal(batch.labels, labels[batch.record])


def test_a_pool_that_is_too_small_is_refused(view_dataset: VqlViews) -> None:
    with pytest.raises(
        UsageError, match="per_epoch is 10; it must be at most 9, the batches in the pool; or draw with replacement"
    ):
        PooledBatches(view_dataset, 10, replacement=False)
    assert len(PooledBatches(view_dataset, 10)) == 10
    with pytest.raises(UsageError, match="per_epoch is 0; it must be 1 or more"):
        PooledBatches(view_dataset, 0)
    with pytest.raises(UsageError, match="seed is -1; it must be"):
        PooledBatches(view_dataset, 1, seed=-1)


def sampler_at(view_dataset: VqlViews, epoch: int) -> StoredBatches:
    sampler = StoredBatches(view_dataset)
    sampler.set_epoch(epoch)
    return sampler


def test_the_state_of_a_sampler_counts_the_batches_that_it_yielded(view_dataset: VqlViews) -> None:
    """torchdata's StatefulDataLoader calls `state_dict()` of a sampler and loads the result into a new one."""
    for make in (lambda: StoredBatches(view_dataset), lambda: PooledBatches(view_dataset, 5, seed=3)):
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
    sampler = StoredBatches(view_dataset)
    list(sampler)
    sampler.load_state_dict(sampler.state_dict())
    assert (sampler.epoch, list(sampler)) == (1, list(sampler_at(view_dataset, 1))), "a finished epoch has no batches left"
    sampler = StoredBatches(view_dataset)
    next(iter(sampler))
    sampler.set_epoch(2)
    assert sampler.state_dict() == {"epoch": 2, "done": 0}
