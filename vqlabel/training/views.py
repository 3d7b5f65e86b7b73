"""A `.vql` and its images -> the views that the teacher saw, with their labels, through an ordinary DataLoader."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels import LabelBatch
from vqlabel.labels.class_map import teacher_classes
from vqlabel.labels.memory import ArrayLike
from vqlabel.labels.schema import OWN_COLUMNS, PARTNER_COLUMNS
from vqlabel.training.dataset import VqlDataset, record_indices
from vqlabel.training.image_checks import check_images, check_view_memory, require_folder_indices, view_side
from vqlabel.training.reopened import Reopened
from vqlabel.type_checks import check_argument_types
from vqlabel.views.geometry import check_renderable
from vqlabel.views.image_folder import ImageFolder
from vqlabel.views.image_list import ImageList
from vqlabel.views.render_pil import Images, render
from vqlabel.vql.columns import ColumnReader
from vqlabel.vql.file import VqlFile


class ViewBatch(NamedTuple):
    """Views and their labels, row by row."""

    views: Tensor  # [n, 3, size, size] float32 in 0..1, contiguous; or the result of `transform`
    labels: Tensor  # [n, C] float32 logits or probabilities, in the file's domain; with decode=False codes [n, m]
    image: Tensor  # [n] int64, index of the image
    record: Tensor  # [n] int64, index of the record in the file


class BatchRows(list[ViewBatch]):
    """The rows of a batch, for any collate function; DataLoader's default one returns the batch without a copy."""

    def __init__(self, batch: ViewBatch) -> None:
        super().__init__(map(ViewBatch, *batch))
        self.batch = batch


def _collate_rows(rows: list[ViewBatch], *, collate_fn_map: Any = None) -> ViewBatch:
    if isinstance(rows, BatchRows):
        return rows.batch
    return ViewBatch(*(collate(column, collate_fn_map=collate_fn_map) for column in zip(*rows, strict=True)))


default_collate_fn_map[ViewBatch] = _collate_rows  # PyTorch documents this table as the extension point for custom types


class VqlViews(Reopened, Dataset[ViewBatch]):
    """The views that the labels of a `.vql` belong to, cropped, flipped and mixed as recorded, with those labels;
    `ds[i]` is one record.

        ds = VqlViews("labels.vql", "images/train", 224, transform=Normalize(mean, std))
        loader = DataLoader(ds, batch_sampler=StoredBatches(ds), num_workers=4)
        for views, labels, image, record in loader: ...

    Any sampler of record indices works. Stored batches are fastest, because views are mixed with views of the same
    batch. The dataset works in DataLoader workers of any start method: it pickles to its paths. Workers decode labels
    on the CPU, or return codes, which are far smaller, for the loop to decode:

        decoder = ds.labels.decoder.to("cuda")     # ds = VqlViews(..., decode=False)
        for views, codes, image, record in loader:
            labels = decoder(codes.to("cuda"), ds.labels.context(record))

    Args:
        path: the `.vql`.
        images: folder whose sorted files are the labelled images, or the images themselves by index: PIL images in RGB,
            or a tensor [N, 3, H, W], uint8 or floats in 0..1.
        size: side of a view in pixels, the unit of CutMix boxes. None: the size in the file's recipe.
        transform: called with the views [n, 3, size, size] of a batch; must be picklable for spawned workers.
        device: where labels are decoded.
        decode: whether to return labels; False: codes, and the decoder is not loaded.
        channels_last: store views in memory as [n, size, size, 3], for networks in the channels_last memory format.
        as_dict: return dictionaries with the names of `ViewBatch`, as collate functions of Hugging Face expect.

    Attributes:
        labels: the `VqlDataset`.

    Raises:
        BadLabels: the records have no image indices.
        UsageError: these are not the file's images, or its views cannot be rendered.

    Warns:
        UserWarning: the file or the list of images has no names, so the images cannot be checked.
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
        as_dict: bool = False,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "path": path,
            "images": images,
            "size": size,
            "transform": transform,
            "device": str(device),
            "decode": decode,
            "channels_last": channels_last,
            "as_dict": as_dict,
        }
        self._open(check_images)

    def _open(self, check: Callable[[VqlFile, Images], None] | None = None) -> None:
        arguments = self._arguments
        self.labels, self.transform = VqlDataset(arguments["path"], arguments["device"]), arguments["transform"]
        self.decode, self.as_dict = arguments["decode"], arguments["as_dict"]
        self._memory_format = torch.channels_last if arguments["channels_last"] else torch.contiguous_format
        file, images = self.labels.file, arguments["images"]
        if isinstance(images, str | PathLike):
            require_folder_indices(file)
            images = ImageFolder(images)
        elif isinstance(images, ArrayLike):
            images = ImageList(images)
        self.images: Images = images
        if check is not None:
            check(file, images)
        try:
            self.size = view_side(file, arguments["size"])
            if file.columns.places:
                check_renderable(stored_batch(file, 0), len(images), self.size)
        except (BadLabels, UsageError) as error:
            raise type(error)(f"{arguments['path']}: {error}") from None

    def __repr__(self) -> str:
        return f"VqlViews({self.labels.file.summary}; views of {self.size} pixels of {len(self.images):,} images)"

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        self.labels.close()

    def _state(self) -> dict[str, Any]:
        return self._arguments

    def _restore(self, state: dict[str, Any]) -> None:
        self._arguments = state
        self._open()  # without `check_images`, which the constructor called

    def __len__(self) -> int:
        return len(self.labels)

    def targets(self, class_map: str | PathLike[str] | None = None) -> Tensor:
        """[N] int64: the teacher's class of each image, from its folder; `targets[image]` are those of a batch.

        Args:
            class_map: JSON, folder -> class of the teacher; None: class i is the i-th folder.

        Raises:
            UsageError: the images are not a folder's; or, without a class map, there are not C folders.
        """
        if not isinstance(self.images, ImageFolder):
            raise UsageError("a list of images has no class folders; index your own classes by `image`")
        images, classes = self.images, self.labels.file.classes
        return torch.from_numpy(teacher_classes(images.folder, images.classes, class_map, classes, "class_map")[images.targets])

    def __getitem__(self, record: int | slice | Sequence[int]) -> Any:
        """One record, or a batch of records: a `ViewBatch`, or a dictionary if `as_dict` is set."""
        if isinstance(record, slice):
            record = range(len(self))[record]
        batch = self._batch(np.atleast_1d(np.asarray(record)))
        found = ViewBatch(*(rows[0] for rows in batch)) if np.ndim(record) == 0 else batch
        return found._asdict() if self.as_dict else found

    def __getitems__(self, records: list[int]) -> list[Any]:
        """The rows of one batch: the method that DataLoader's fetcher calls."""
        rows = BatchRows(self._batch(records))
        return [row._asdict() for row in rows] if self.as_dict else rows

    def _batch(self, records: Sequence[int] | NDArray[Any]) -> ViewBatch:
        record, columns = record_indices(records, len(self)), self.labels.file.columns
        check_view_memory(len(record), self.size)
        shape = len(record), 3, self.size, self.size
        views = torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=self._memory_format)
        image, batch_of = np.empty(len(record), np.int64), columns.batch_of(record)
        for number in np.unique(batch_of).tolist():
            rows = np.flatnonzero(batch_of == number)
            batch, slots = stored_batch(self.labels.file, number), record[rows] - columns.starts[number]
            assert batch.image is not None  # `check_renderable` refuses such files
            image[rows] = batch.image[slots]
            views[torch.from_numpy(rows)] = _to_floats(render_slots(self.images, batch, slots, self.size))
        return ViewBatch(
            views=views if self.transform is None else self.transform(views),
            labels=self.labels.decode_views(record, views) if self.decode else self.labels.codes(record),
            image=torch.from_numpy(image),
            record=torch.from_numpy(record),
        )


def stored_batch(file: VqlFile, number: int) -> LabelBatch:
    """The columns of batch `number`, with empty labels [n, 0].

    Patch orders that EDC's dumps store are dropped: EDC never shuffled the patches of its views. A recipe's are kept.
    """
    columns = file.columns
    batch = columns.batch(number, np.empty((int(columns.starts[number + 1] - columns.starts[number]), 0), np.float32))
    is_edc = file.source.get("layout") == "edc" and isinstance(columns, ColumnReader)
    return replace(batch, patches=None) if is_edc else batch


def render_slots(images: Images, batch: LabelBatch, slots: NDArray[np.int64], size: int) -> NDArray[Any]:
    """[n, size, size, 3] views of some slots of a batch; renders only these and the views mixed into them."""
    partner = batch.mix_index
    rendered = np.unique(slots if partner is None else np.append(slots, partner[slots]))
    columns = {name: getattr(batch, name) for name in (*OWN_COLUMNS, *PARTNER_COLUMNS)}
    rows: dict[str, Any] = {name: None if column is None else column[rendered] for name, column in columns.items()}
    subset = replace(batch, labels=batch.labels[rendered], **rows)
    if partner is not None:  # clipped: the partner of a partner may be absent, and its mixed view is discarded
        subset = replace(subset, mix_index=np.searchsorted(rendered, partner[rendered]).clip(max=len(rendered) - 1))
    return render(images, subset, size)[np.searchsorted(rendered, slots)]


def _to_floats(pixels: NDArray[Any]) -> Tensor:
    """[n, size, size, 3] pixels -> [n, 3, size, size] float32 in 0..1."""
    views = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return views.float() / 255 if views.dtype == torch.uint8 else views
