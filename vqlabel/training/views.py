"""A `.vql` and its images -> the views that the teacher saw, with their labels, batch by batch through an ordinary DataLoader."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torch.utils.data._utils.collate import default_collate_fn_map

from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels import LabelBatch
from vqlabel.labels.image_set import ImageSet
from vqlabel.labels.schema import OWN_COLUMNS, PARTNER_COLUMNS
from vqlabel.philox import below, bits, shuffled
from vqlabel.training.dataset import VqlDataset
from vqlabel.type_checks import check_argument_types
from vqlabel.views.geometry import check_renderable
from vqlabel.views.image_folder import ImageFolder
from vqlabel.views.recipe import DrawnColumns
from vqlabel.views.render_pil import Images, render, rgb_image
from vqlabel.vql.file import VqlFile
from vqlabel.vql.seeded import Columns, DrawnPart

VIEWS_BYTES_MOST = 1 << 33  # float32 of the views of a batch: 14,000 of 224 pixels
SIDE_SHOWN_MOST = 4096  # pixels along a view: 0.2 GB each
POOL = 5  # purpose of random bits; recipes have 1 to 4
SHAPES = 256  # images whose aspect ratios are looked at


class ViewBatch(NamedTuple):
    """Views and their labels, row by row."""

    views: Tensor  # [n, 3, size, size] float32 in 0..1, contiguous; or what `transform` made of them
    labels: Tensor  # [n, C] float32, logits or probabilities as the file has them; undecoded, their codes [n, m]
    image: Tensor  # [n] int64, index of the image
    record: Tensor  # [n] int64, number of the label in the file


@dataclass(frozen=True, slots=True)
class Whole:
    """A batch that is one already: DataLoader's own collate takes it as it is."""

    batch: Any


# the way that PyTorch documents for types of one's own
default_collate_fn_map[Whole] = lambda found, *, collate_fn_map=None: found[0].batch


class VqlViews(Dataset[ViewBatch]):
    """The views that the labels of a `.vql` are of, cropped, flipped and mixed as recorded, with those labels: `ds[i]` is one record.

        ds = VqlViews("labels.vql", "images/train", 224, transform=Normalize(mean, std))
        loader = DataLoader(ds, batch_sampler=StoredBatches(ds), num_workers=4)
        for views, labels, image, record in loader: ...

    Any sampler of record numbers will do; stored batches are fastest, for all that is mixed into a view is in its batch. Works under
    workers of any start method: it pickles to its paths. Workers decode on the CPU, or hand over codes, which are far smaller, to be decoded
    in the loop:

        decoder = ds.labels.decoder.to("cuda")     # ds = VqlViews(..., decode=False)
        for views, codes, image, record in loader:
            labels = decoder(codes.to("cuda"), ds.labels.context(record))

    Args:
        images: folder whose sorted files are the images that were labelled, or the images themselves, RGB, by index.
        size: pixels along a view, the unit of CutMix boxes; None: as the file's recipe says.
        transform: called with the views [n, 3, size, size] of a batch; under spawned workers it must pickle.
        device: where labels are decoded.
        decode: give labels; False: their codes, and touch no decoder.
        channels_last: lay views out in memory as [n, size, size, 3], for networks that were brought into that format, too.

    Attributes:
        labels: the `VqlDataset`.

    Raises:
        BadLabels: the records have no image indices.
        UsageError: these are not the file's images, or its views cannot be made again.

    Warns:
        UserWarning: it cannot be told whether these are the file's images, for the file or the list does not have their names.
    """

    @check_argument_types
    def __init__(
        self,
        path: str | PathLike[str],
        images: str | PathLike[str] | Images,
        size: int | None = None,
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
        device: str | torch.device = "cpu",
        decode: bool = True,
        channels_last: bool = False,
    ) -> None:
        self._given: dict[str, Any] = {
            "path": path,
            "images": images,
            "size": size,
            "transform": transform,
            "device": str(device),
            "decode": decode,
            "channels_last": channels_last,
        }
        self._open(_refuse_others)

    def _open(self, check: Callable[[VqlFile, Images], None] = lambda *_: None) -> None:
        given = self._given
        self.labels, self.transform, self.decode = VqlDataset(given["path"], given["device"]), given["transform"], given["decode"]
        self._layout = torch.channels_last if given["channels_last"] else torch.contiguous_format
        images = given["images"]
        if isinstance(images, str | PathLike):
            _refuse_names(self.labels.file)
            images = ImageFolder(images)
        self.images: Images = images
        check(self.labels.file, images)
        try:
            self.size = _check(self.labels.file, images, given["size"])
        except (BadLabels, UsageError) as error:
            raise type(error)(f"{given['path']}: {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        return self._given

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._given = state
        self._open()  # the images were held against the file's when it was made

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, record: int | slice | Sequence[int]) -> ViewBatch:
        """One record, or a batch of them."""
        if isinstance(record, slice):
            record = range(len(self))[record]
        found = self._batch(np.atleast_1d(np.asarray(record)))
        return ViewBatch(*(part[0] for part in found)) if np.ndim(record) == 0 else found

    def __getitems__(self, records: list[int]) -> list[Whole]:
        """What DataLoader asks for: all records of a batch at one go."""
        return [Whole(self._batch(records))]

    def _batch(self, records: Sequence[int] | NDArray[Any]) -> ViewBatch:
        record, columns = self.labels._index(records), self.labels.file.columns
        _check_memory(len(record), self.size)
        shown = torch.empty(len(record), 3, self.size, self.size, dtype=torch.float32, device="cpu", memory_format=self._layout)
        image, of = np.empty(len(record), np.int64), columns.batch_of(record)
        for at in np.unique(of).tolist():
            rows = np.flatnonzero(of == at)
            batch, slots = said(self.labels.file, at), record[rows] - columns.starts[at]
            assert batch.image is not None  # `_check` saw to it
            image[rows] = batch.image[slots]
            shown[torch.from_numpy(rows)] = _to_floats(some_views(self.images, batch, slots, self.size))
        return ViewBatch(
            views=shown if self.transform is None else self.transform(shown),
            labels=self.labels.decode_views(record, shown) if self.decode else self.labels.codes(record),
            image=torch.from_numpy(image),
            record=torch.from_numpy(record),
        )


def _refuse_names(file: VqlFile) -> None:
    if file.columns.has("names"):
        raise UsageError(
            f"{file.container.path}: finds its images by name, not by their place in a folder; pass a list of them, in the order of its names"
        )


def _refuse_others(file: VqlFile, images: Images) -> None:
    """Raises UsageError where these are not the images that the labels are of; see `held_against`."""
    if not file.columns.has("image"):
        return
    if isinstance(images, ImageFolder):
        held_against(file, images.folder, images.names, images.files, depth=4)
    else:
        held_against(file, "the list of images", count=len(images), depth=4)
    _refuse_other_shapes(file, images)


def _refuse_other_shapes(file: VqlFile, images: Images) -> None:
    """Raises UsageError where an image has another aspect ratio than the recipe's; smaller copies have the same but for rounding.

    Looks at some images, evenly spread.
    """
    sizes = file.columns.sizes if isinstance(file.columns, DrawnColumns | DrawnPart) else np.empty((0, 2), np.int64)
    for at in np.unique(np.linspace(0, len(images) - 1, SHAPES).astype(np.int64)).tolist() if len(sizes) else ():
        height, width = images.size(at) if isinstance(images, ImageFolder) else rgb_image(images, at).size[::-1]
        wanted = sizes[at if len(sizes) > 1 else 0].tolist()
        if abs(height * wanted[1] - width * wanted[0]) > sum(wanted):
            raise UsageError(
                f"{file.container.path}: image {at} has {height} x {width} pixels, the labels are of one of {wanted[0]} x {wanted[1]}: give the "
                "images that were labelled, in their order"
            )


def held_against(
    file: VqlFile,
    where: str | PathLike[str],
    names: Sequence[str] | None = None,
    files: Sequence[str | PathLike[str]] | None = None,
    *,
    count: int = 0,
    depth: int = 2,
) -> None:
    """Hold images against those that the labels of a file are of, and warn where it cannot be told whether they are the same.

    Args:
        where: what holds the images, for messages.
        names: theirs, see `image_names`; None: unknown, there are `count`.
        files: where they lie.
        depth: frames between here and the caller that a warning is for.

    Raises:
        UsageError: they are other images.
    """
    path, recorded = file.container.path, file.images
    try:
        found = ImageSet(count=count) if names is None else ImageSet.of(names)
        note: str | None = "neither the number nor the names of the images that it has labels of are recorded, so any folder passes"
        if recorded is not None:
            note = recorded.require_same(where, found, names, files)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if note is not None:
        remedy = "" if names is None else "; a file that is packed with --images, or made by relabel, records them"
        warnings.warn(f"{path}: {note}{remedy}", stacklevel=1 + depth)


def _check(file: VqlFile, images: Images, size: int | None) -> int:
    """Pixels along a view, where these are the images of the file as far as can be told at once."""
    side = file.recipe.view if file.recipe else size or 0
    require(side, "size", size, "must be named: the file does not say how large the teacher's views were")
    require(size in (None, side), "size", size, f"must be {side}, as the recipe in the file says; resize in `transform`")
    _check_memory(1, side)
    if file.columns.order == "none" and file.source.get("layout") == "arrays":
        raise BadLabels(
            "labels of an array [n, C], which does not record their images; save it as [epochs, n, C], where row i of every epoch is the label "
            "of image i, and pack it again"
        )
    if file.columns.places:
        check_renderable(said(file, 0), len(images), side)
    return side


def _check_memory(count: int, side: int) -> None:
    """Raises UsageError where so many views of `side` pixels are more than VIEWS_BYTES_MOST: a file names the side."""
    require(side <= SIDE_SHOWN_MOST, "side of a view", side, f"must be {SIDE_SHOWN_MOST} pixels at most")
    size = 12 * count * side**2
    want = f"at {side} pixels a side take {size / 1e9:.1f} GB; at most {VIEWS_BYTES_MOST / 1e9:.1f} GB are made at a time: ask for fewer records"
    require(size <= VIEWS_BYTES_MOST, "number of views", count, want)


def said(file: VqlFile, at: int) -> LabelBatch:
    """Batch number `at` without its labels. EDC stores an order of patches by which it shuffled nothing."""
    columns = file.columns
    batch = columns.batch(at, np.empty((int(columns.starts[at + 1] - columns.starts[at]), 0), np.float32))
    return replace(batch, patches=None) if file.source.get("layout") == "edc" else batch


def some_views(images: Images, batch: LabelBatch, slots: NDArray[np.int64], size: int) -> NDArray[Any]:
    """[n, size, size, 3] views of some slots of a batch; what is mixed into them is rendered too, and no more."""
    index = batch.mix_index
    shown = np.unique(slots if index is None else np.append(slots, index[slots]))
    columns = {name: getattr(batch, name) for name in (*OWN_COLUMNS, *PARTNER_COLUMNS)}
    chosen: dict[str, Any] = {name: None if column is None else column[shown] for name, column in columns.items()}
    part = replace(batch, labels=batch.labels[shown], **chosen)
    if index is not None:  # what is mixed into a view that is only there to be mixed in, nobody sees
        part = replace(part, mix_index=np.searchsorted(shown, index[shown]).clip(max=len(shown) - 1))
    return render(images, part, size)[np.searchsorted(shown, slots)]


def _to_floats(pixels: NDArray[Any]) -> Tensor:
    """[n, 3, size, size] float32 in 0..1."""
    found = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return found.float() / 255 if found.dtype == torch.uint8 else found


class StoredBatches(Sampler[list[int]]):
    """A batch sampler over stored batches, in their order: the record numbers of each batch of one stored epoch.

    Every iteration goes on with the next epoch, or with the one that `set_epoch` named; after the last stored epoch comes the first again.
    It lives in the main process, so persistent workers never see a stale epoch.

    Of several ranks each gets every world-th batch. All get as many: where batches run out, those that an epoch began with are given
    again.

    Args:
        epochs: numbers of the stored epochs to give, 0 the first one stored; the others' labels are held out. None: all.
        rank, world: None: as torch.distributed says when an epoch begins, where it is initialised; else 0 of 1.

    Raises:
        UsageError: no stored batch, an epoch that is not stored, or rank and world that contradict each other.
    """

    @check_argument_types
    def __init__(
        self,
        dataset: VqlDataset | VqlViews,
        *,
        epochs: Sequence[int] | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        file = (dataset.labels if isinstance(dataset, VqlViews) else dataset).file
        require(file.columns.places, "number of batches", 0, "must be 1 or more: the file has no labels")
        self._starts, stored = file.columns.starts, stored_epochs(file.columns)
        if epochs is not None:
            good = len(epochs) > 0 and all(0 <= epoch < len(stored) for epoch in epochs)
            require(good, "epochs", list(epochs), f"must be some of 0..{len(stored) - 1}, the epochs that are stored")
        self._epochs = stored if epochs is None else [stored[epoch] for epoch in epochs]
        self._ranks = rank, world
        _place_among_ranks(rank, world)
        self.epoch, self._begun, self._skip = 0, False, 0
        self._given = 0  # batches of the current iteration so far

    @check_argument_types
    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next."""
        require(epoch >= 0, "epoch", epoch, "must be 0 or more")
        if epoch != self.epoch or self._begun:
            self._skip = 0  # left by `load_state_dict`
        self.epoch, self._begun, self._given = epoch, False, 0

    @check_argument_types
    def state_dict(self, done: int | None = None) -> dict[str, int]:
        """Where training stands: `done` batches after this iteration began.

        None: as many as it has drawn, which torchdata's StatefulDataLoader asks for when they are those trained on. Where workers of a plain
        DataLoader draw batches ahead, the loop must count.
        """
        return {"epoch": self.epoch, "done": self._skip + (self._given if done is None else done)}

    @check_argument_types
    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on there: the next iteration has what is left of that epoch, or, where nothing is, the next epoch. With the same number of ranks."""
        counts = state.get("epoch"), state.get("done")
        require(all(type(count) is int for count in counts), "state", state, "must be what `state_dict` gave: epoch and done")
        self.set_epoch(state["epoch"])
        require(0 <= state["done"] <= len(self), "done", state["done"], f"must be 0..{len(self)}, batches of this epoch and rank")
        if state["done"] == len(self):
            self.set_epoch(state["epoch"] + 1)
        else:
            self._skip = state["done"]

    def __len__(self) -> int:
        """Batches of a whole epoch, of this rank."""
        return -(-len(self._drawn()) // _place_among_ranks(*self._ranks)[1])

    def __iter__(self) -> Iterator[list[int]]:
        if self._begun:  # known when a batch is first drawn: DataLoader makes two iterators and draws from one
            self.epoch, self._skip = self.epoch + 1, 0
        self._begun, self._given = True, 0
        (rank, world), drawn = _place_among_ranks(*self._ranks), self._drawn()
        mine = np.resize(drawn, -(-len(drawn) // world) * world)[rank::world]
        for at in mine[self._skip :].tolist():
            self._given += 1
            yield list(range(self._starts[at], self._starts[at + 1]))

    def _drawn(self) -> NDArray[np.int64]:
        """Numbers of the batches of the current epoch, of all ranks."""
        return self._epochs[self.epoch % len(self._epochs)]


class PooledBatches(StoredBatches):
    """All stored batches as one pool: every epoch draws some of them anew. So LPLD (with replacement) and LPQLD (without) train from what
    pruning left.

    Args:
        per_epoch: batches drawn an epoch, of all ranks together.
        seed: the same batches in the same epochs, with every version of every library.

    Raises:
        UsageError: also where fewer batches are stored than an epoch draws without replacement.
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
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__(dataset, epochs=epochs, rank=rank, world=world)
        self._pool = np.unique(np.concatenate(self._epochs))
        stored = len(self._pool)
        require(per_epoch > 0, "per_epoch", per_epoch, "must be 1 or more")
        require(0 <= seed < 1 << 64, "seed", seed, "must be 0..2^64-1")
        enough = replacement or per_epoch <= stored
        require(enough, "per_epoch", per_epoch, f"must be at most {stored}, the batches of the pool; or draw with replacement")
        self.per_epoch, self.replacement, self.seed = per_epoch, replacement, seed

    def _drawn(self) -> NDArray[np.int64]:
        if not self.replacement:
            return self._pool[shuffled(self.seed, POOL, self.epoch, len(self._pool))[: self.per_epoch]]
        return self._pool[below(bits(self.seed, POOL, self.epoch, np.arange(self.per_epoch), 0)[0], len(self._pool))]


def stored_epochs(columns: Columns) -> list[NDArray[np.int64]]:
    """Numbers of the batches of every epoch that the file has, in order."""
    epoch = columns.places.epoch.astype(np.int64)
    order = np.argsort(epoch, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(epoch[order])) + 1)


def _place_among_ranks(rank: int | None, world: int | None) -> tuple[int, int]:
    if rank is None and world is None:
        group = torch.distributed
        ready = group.is_available() and group.is_initialized()
        return (group.get_rank(), group.get_world_size()) if ready else (0, 1)
    good = rank is not None and world is not None and 0 <= rank < world
    require(good, "rank", rank, f"must be one of the {world} ranks, 0 the first; name both rank and world, or neither")
    assert rank is not None and world is not None
    return rank, world
