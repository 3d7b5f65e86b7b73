"""Stored batches -> the batch sampler of a DataLoader: every epoch in stored order, or batches drawn from a pool."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from vqlabel.errors import require
from vqlabel.philox import below, bits, shuffled
from vqlabel.training.dataset import VqlDataset
from vqlabel.training.views import VqlViews
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.seeded import Columns

POOL = 5  # purpose of random bits; recipes use 1 to 4


class StoredBatches(Sampler[list[int]]):
    """A batch sampler that yields stored batches in stored order: the record indices of each batch of one stored epoch.

    Each iteration yields the next stored epoch, or the one chosen by `set_epoch`; the first epoch follows the last. The
    sampler runs in the main process, so persistent workers never use an old epoch.

    With `batch_size`, the records of the epoch, in the same order, are cut into batches of that size instead. Stored
    batches are merged or split; every view and label stays the same.

    With several ranks, rank r gets every world-th batch. All ranks get equally many: the first batches of the epoch are
    repeated if the number of batches is not a multiple of `world`.

    Args:
        dataset: labels, or views with labels.
        epochs: indices of the stored epochs to yield, 0 the first; the others stay held out. None: all.
        batch_size: records of a batch; the last batch of an epoch may be smaller. None: the stored batches.
        rank: rank of this process, 0..world-1. None: torch.distributed's when an epoch begins, or 0 if it is not
            initialised.
        world: number of ranks. None: torch.distributed's when an epoch begins, or 1 if it is not initialised.

    Raises:
        UsageError: the file has no batch, an epoch is not stored, or rank and world contradict each other.
    """

    @check_argument_types
    def __init__(
        self,
        dataset: VqlDataset | VqlViews,
        *,
        epochs: Sequence[int] | None = None,
        batch_size: int | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        file = (dataset.labels if isinstance(dataset, VqlViews) else dataset).file
        require(file.columns.places, "number of batches", 0, "must be 1 or more: the file has no labels")
        self._starts, stored = file.columns.starts, stored_epochs(file.columns)
        if epochs is not None:
            are_stored = len(epochs) > 0 and all(0 <= epoch < len(stored) for epoch in epochs)
            require(are_stored, "epochs", list(epochs), f"must be indices in 0..{len(stored) - 1}, the stored epochs")
        self._epochs = stored if epochs is None else [stored[epoch] for epoch in epochs]
        require(batch_size is None or batch_size > 0, "batch_size", batch_size, "must be 1 or more")
        self.batch_size, self._ranks, self._path = batch_size, (rank, world), str(file.container.path)
        _rank_and_world(rank, world)
        self.epoch, self._started, self._skip = 0, False, 0
        self._yielded = 0  # batches of the current iteration so far

    @property
    def sampler(self) -> "StoredBatches":
        """Itself: Lightning and accelerate call `set_epoch` of the sampler of a batch sampler."""
        return self

    def __repr__(self) -> str:
        rank, world = _rank_and_world(*self._ranks)
        ranks = f", rank {rank} of {world}" if world > 1 else ""
        return f"{type(self).__name__}({self._path!r}: {len(self._epochs):,} stored epochs, {len(self):,} batches in epoch {self.epoch}{ranks})"

    @check_argument_types
    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; counted modulo the number of stored epochs.

        Raises:
            UsageError: `epoch` is negative.
        """
        require(epoch >= 0, "epoch", epoch, "must be 0 or more")
        if epoch != self.epoch or self._started:
            self._skip = 0  # the position from `load_state_dict` belongs to another epoch or is used up
        self.epoch, self._started, self._yielded = epoch, False, 0

    @check_argument_types
    def state_dict(self, done: int | None = None) -> dict[str, int]:
        """The position in training, for a checkpoint.

        Args:
            done: batches trained on since this iteration began. None: the number yielded so far, which is right for
                torchdata's StatefulDataLoader. A plain DataLoader's workers prefetch batches, so its loop must count.
        """
        size = {} if self.batch_size is None else {"batch_size": self.batch_size}
        return {"epoch": self.epoch, "done": self._skip + (self._yielded if done is None else done), **size}

    @check_argument_types
    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume: the next iteration yields the rest of that epoch, or the next epoch if nothing is left.

        Args:
            state: result of `state_dict`, from a sampler with the same number of ranks.

        Raises:
            UsageError: `state` lacks a key, its position is outside the epoch, or it counts batches of another size.
        """
        counts = state.get("epoch"), state.get("done")
        require(
            all(type(count) is int for count in counts), "state", state, "must be a result of `state_dict`, with epoch and done"
        )
        same_size = state.get("batch_size") == self.batch_size
        require(same_size, "batch_size", self.batch_size, f"must be {state.get('batch_size')}, in which the state counts batches")
        self.set_epoch(state["epoch"])
        require(0 <= state["done"] <= len(self), "done", state["done"], f"must be 0..{len(self)}, batches of this epoch and rank")
        if state["done"] == len(self):
            self.set_epoch(state["epoch"] + 1)
        else:
            self._skip = state["done"]

    def __len__(self) -> int:
        """Number of batches of a whole epoch for this rank."""
        batches = self._epoch_batches()
        count = len(batches)
        if self.batch_size is not None:
            count = -(-int((self._starts[batches + 1] - self._starts[batches]).sum()) // self.batch_size)
        return -(-count // _rank_and_world(*self._ranks)[1])

    def __iter__(self) -> Iterator[list[int]]:
        # A generator: DataLoader creates two iterators and draws from one, so the epoch advances at the first batch,
        # not at creation.
        if self._started:
            self.epoch, self._skip = self.epoch + 1, 0
        self._started, self._yielded = True, 0
        (rank, world), batches = _rank_and_world(*self._ranks), self._cut(self._epoch_batches())
        own_batches = np.resize(np.arange(len(batches)), -(-len(batches) // world) * world)[rank::world]
        for batch in own_batches[self._skip :].tolist():
            self._yielded += 1
            yield list(batches[batch])

    def _cut(self, batches: NDArray[np.int64]) -> Sequence[Sequence[int]]:
        """The record indices of these batches, merged or split to `batch_size`."""
        stored = [range(self._starts[batch], self._starts[batch + 1]) for batch in batches.tolist()]
        if self.batch_size is None:
            return stored
        records = np.concatenate([np.arange(batch.start, batch.stop) for batch in stored]).tolist()
        return [records[start : start + self.batch_size] for start in range(0, len(records), self.batch_size)]

    def _epoch_batches(self) -> NDArray[np.int64]:
        """Indices of the batches of the current epoch, for all ranks."""
        return self._epochs[self.epoch % len(self._epochs)]


class PooledBatches(StoredBatches):
    """A batch sampler that draws each epoch from a pool of all stored batches, as LPLD (with replacement) and LPQLD
    (without) train from pruned labels.

    Args:
        dataset: labels, or views with labels.
        per_epoch: batches per epoch, over all ranks.
        replacement: whether one epoch may repeat a batch.
        seed: 0..2^64-1; equal seeds draw the same batches in the same epochs, with every version of every library.
        epochs: indices of the stored epochs in the pool, 0 the first; the others stay held out. None: all.
        batch_size: see `StoredBatches`; `per_epoch` counts stored batches.
        rank: see `StoredBatches`.
        world: see `StoredBatches`.

    Raises:
        UsageError: see `StoredBatches`; or an epoch without replacement needs more batches than are stored.
    """

    @check_argument_types
    def __init__(
        self,
        dataset: VqlDataset | VqlViews,
        per_epoch: int,
        *,
        replacement: bool = True,
        seed: int = 0,
        epochs: Sequence[int] | None = None,
        batch_size: int | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__(dataset, epochs=epochs, batch_size=batch_size, rank=rank, world=world)
        self._pool = np.unique(np.concatenate(self._epochs))
        stored = len(self._pool)
        require(per_epoch > 0, "per_epoch", per_epoch, "must be 1 or more")
        require(0 <= seed < 1 << 64, "seed", seed, "must be 0..2^64-1")
        enough = replacement or per_epoch <= stored
        require(enough, "per_epoch", per_epoch, f"must be at most {stored}, the batches in the pool; or draw with replacement")
        self.per_epoch, self.replacement, self.seed = per_epoch, replacement, seed

    def _epoch_batches(self) -> NDArray[np.int64]:
        if not self.replacement:
            return self._pool[shuffled(self.seed, POOL, self.epoch, len(self._pool))[: self.per_epoch]]
        return self._pool[below(bits(self.seed, POOL, self.epoch, np.arange(self.per_epoch), 0)[0], len(self._pool))]


def stored_epochs(columns: Columns) -> list[NDArray[np.int64]]:
    """The batch indices of every stored epoch, in order of the epochs' numbers."""
    epoch = columns.places.epoch.astype(np.int64)
    order = np.argsort(epoch, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(epoch[order])) + 1)


def _rank_and_world(rank: int | None, world: int | None) -> tuple[int, int]:
    """The given rank and number of ranks, or torch.distributed's; (0, 1) in a single process."""
    if rank is None and world is None:
        group = torch.distributed
        is_ready = group.is_available() and group.is_initialized()
        return (group.get_rank(), group.get_world_size()) if is_ready else (0, 1)
    is_valid = rank is not None and world is not None and 0 <= rank < world
    require(is_valid, "rank", rank, f"must be in 0..world-1, and world is {world}; pass both rank and world, or neither")
    assert rank is not None and world is not None
    return rank, world
