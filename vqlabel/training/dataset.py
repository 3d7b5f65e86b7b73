"""A `.vql` -> labels for a training loop: by index, by stored batch, or as codes and a decoder on the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from os import PathLike
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqlabel.codecs import LabelCodec
from vqlabel.errors import UsageError
from vqlabel.labels import Context, Place
from vqlabel.labels.schema import OWN_COLUMNS, PARTNER_COLUMNS
from vqlabel.training.losses import bce, kl
from vqlabel.training.reopened import Reopened, checked_device
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.decode import as_tensor, check_batch_memory, decode, read_codec
from vqlabel.vql.describe import file_info
from vqlabel.vql.file import VqlFile


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class TrainingBatch:
    """One stored batch: labels, indices of their images, augmentation of each view. Columns the dump lacks are None."""

    labels: Tensor  # [n, C] float32
    place: Place  # (epoch, batch)
    image: Tensor | None  # [n] int64, index in the sorted image list
    crop: Tensor | None  # [n, 4] float32: top/H, left/W, height/H, width/W, fractions of the image
    flip: Tensor | None  # [n] bool
    mix_index: Tensor | None  # [n] int64, slot in this batch
    mix_lam: float | None
    mix_box: tuple[int, int, int, int] | None  # row0, col0, row1, col1 in pixels of the view
    partner_image: Tensor | None = None  # [n] int64, image of the view mixed in, if that is not a record of the batch
    partner_crop: Tensor | None = None  # [n, 4] float32
    partner_flip: Tensor | None = None  # [n] bool
    cutout: Tensor | None = None  # [n, 7] float32: centre row/h, column/w, height/h, width/w, fill colour r, g, b
    patches: Tensor | None = None  # [n, 2, parts] int64, order of the columns and of the rows of patches
    ops: Tensor | None = None  # [n, ops, 3] float32: RandAugment's operation, decision and level
    seed: Tensor | None = None  # [n] int64, seed of the view in the dump's own pipeline

    def __repr__(self) -> str:
        shapes = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "place"}
        shown = [
            f"{name} {list(value.shape)}" if isinstance(value, Tensor) else f"{name} {value}"
            for name, value in shapes.items()
            if value is not None
        ]
        return f"TrainingBatch(epoch {self.place.epoch}, batch {self.place.batch}: {', '.join(shown)})"


class VqlDataset(Reopened, Dataset[Tensor]):
    """The labels of a `.vql`, in record order.

    `ds[i]` is a label [C]; `ds[[3, 1, 4]]` and `ds[10:20]` are labels [n, C]; all float32, decoded on `device`. Codes
    stay on the CPU in their stored width; only the requested records are decoded. The dataset works in DataLoader
    workers of any start method: it pickles to its path, and a worker refuses the file if it was replaced in the
    meantime.

    To train on a GPU, let the workers return codes and decode them on the GPU:

        ds = vqlabel.open("labels.vql")
        decoder = ds.decoder.to("cuda")
        logits = decoder(ds.codes(indices).to("cuda"), ds.context(indices))

    `VqlViews(..., decode=False)` returns codes in this way.

    Args:
        path: the `.vql`.
        device: where labels are decoded.

    Attributes:
        path: as given.
        device: as given.
        file: the open `VqlFile`.

    Raises:
        UsageError: the file does not exist.
        BadContainer: the file is damaged, forged or from a newer version.
    """

    @check_argument_types
    def __init__(self, path: str | PathLike[str], device: str | torch.device = "cpu") -> None:
        self._open(path, device, None)

    def _open(self, path: str | PathLike[str], device: str | torch.device, seal: bytes | None) -> None:
        self.path, self.device = path, checked_device(device)
        self.file = VqlFile(path, seal)
        self._batch_numbers: dict[Place, int] | None = None

    def _state(self) -> dict[str, Any]:
        return {"path": self.path, "device": str(self.device), "seal": self.file.container.seal}

    def _restore(self, state: dict[str, Any]) -> None:
        self._open(**state)

    def __repr__(self) -> str:
        return f"VqlDataset({self.file.summary})"

    def close(self) -> None:
        """Close the file; the next read opens it again. `with vqlabel.open(path) as labels:` closes it at the end."""
        self.file.container.close()

    def __len__(self) -> int:
        return self.file.records

    @property
    def shape(self) -> tuple[int, int]:
        """(records, classes)."""
        return self.file.records, self.file.classes

    @cached_property
    def decoder(self) -> LabelCodec:
        """A decoder module on `device`: codes [n, m] and context -> labels [n, C] in the dump's domain. Its parameters
        require no gradient.

        It may be moved to any device: the dataset, and workers forked from it, decode with a separate instance.
        """
        return self._read_decoder()

    @cached_property
    def _own_decoder(self) -> LabelCodec:
        return self._read_decoder()

    def _read_decoder(self) -> LabelCodec:
        return read_codec(self.file).to(self.device).requires_grad_(False)

    @property
    def domain(self) -> str:
        """The labels' domain: "logits", "probs" or "sigmoid"."""
        return str(self.file.label["domain"])

    @property
    def classes(self) -> int:
        """C."""
        return self.file.classes

    @property
    def epochs(self) -> int:
        """Number of stored epochs."""
        return self.file.epochs

    @property
    def codec(self) -> str:
        """Kind of the codec: "vqae", "sparse", "topk" or "raw"."""
        return str(self.file.codec["kind"])

    @property
    def info(self) -> dict[str, Any]:
        """The file's header, as `vqlabel.info` returns it."""
        return file_info(self.file)

    def loss(self, student_logits: Tensor, labels: Tensor, temperature: float | None = None, **options: Any) -> Tensor:
        """The loss of a student on labels of this file, in their domain: `kl`, or `bce` of a multi-label teacher.

        Args:
            temperature: None: 1 for probabilities, else the loss's default.
            options: of `kl` or `bce`, such as `squared=True`.
        """
        if temperature is None and self.domain == "probs":
            temperature = 1.0
        given = options if temperature is None else {"temperature": temperature, **options}
        return (
            bce(student_logits, labels, **given)
            if self.domain == "sigmoid"
            else kl(student_logits, labels, domain=self.domain, **given)
        )

    def codes(self, index: Sequence[int] | np.ndarray[Any, Any] | Tensor) -> Tensor:
        """[n, m] codes of these records on the CPU: uint8, or int32 (unsigned bit patterns) if a code exceeds 255."""
        return as_tensor(self.file.take_codes(record_indices(index, len(self))))

    def context(self, index: Sequence[int] | np.ndarray[Any, Any] | Tensor) -> Context:
        """Side information of these records, such as image and crop, which the decoder may need."""
        return self.file.columns.context(record_indices(index, len(self)))

    @torch.no_grad()  # not inference_mode: a loss saves its targets for the backward pass, and inference tensors cannot be saved
    def _decode(self, index: np.ndarray[Any, np.dtype[np.int64]], views: Tensor | None = None) -> Tensor:
        codes = as_tensor(self.file.take_codes(index), self.device)
        return decode(self.file, self._own_decoder, codes, index, views)

    def decode_views(self, index: Sequence[int] | np.ndarray[Any, Any] | Tensor, views: Tensor) -> Tensor:
        """[n, C] labels of these records, for codecs that may need their views.

        Args:
            index: record indices.
            views: [n, 3, h, w] float32 in 0..1, the views of these records.
        """
        return self._decode(record_indices(index, len(self)), views)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray[Any, Any] | Tensor) -> Tensor: ...
    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, slice):
            return self._decode(np.arange(*index.indices(len(self))))
        labels = self._decode(record_indices(index, len(self)))
        return labels[0] if np.ndim(index) == 0 else labels

    def __getitems__(self, index: list[int]) -> list[Tensor]:
        """Labels of several records, decoded together: the method that DataLoader's fetcher calls."""
        return list(self._decode(record_indices(index, len(self))))

    @property
    def places(self) -> Sequence[Place]:
        """(epoch, batch) of every stored batch, in stored order."""
        return self.file.columns.places

    @check_argument_types
    def batch(self, epoch: int, batch: int) -> TrainingBatch:
        """The stored batch of this epoch and batch number.

        Raises:
            UsageError: the file does not have this batch.
        """
        if self._batch_numbers is None:
            self._batch_numbers = {place: number for number, place in enumerate(self.places)}
        number = self._batch_numbers.get(Place(epoch, batch))
        if number is None:
            raise UsageError(f"{self.path}: no batch {batch} of epoch {epoch}; it has {len(self.places)} batches, see ds.places")
        return self.batch_at(number)

    @check_argument_types
    def batches(self, epoch: int | None = None) -> Iterator[TrainingBatch]:
        """The stored batches in stored order.

        Args:
            epoch: number of the epoch; None: all epochs.

        Raises:
            UsageError: the file has no batch of that epoch. Raised by this call, not by the first iteration.
        """
        numbers = [number for number, place in enumerate(self.places) if epoch in (None, place.epoch)]
        if not numbers and epoch is not None:
            stored = sorted({place.epoch for place in self.places})
            examples = ", ".join(map(str, stored[:8])) + ", ..." * (len(stored) > 8)
            raise UsageError(f"{self.path}: no batch of epoch {epoch}; it has {len(stored)} epochs: {examples}")
        return map(self.batch_at, numbers)

    @check_argument_types
    def batch_at(self, number: int) -> TrainingBatch:
        """The stored batch with this index in `places`.

        Raises:
            UsageError: the batch is too large to decode at once.
        """
        columns = self.file.columns
        record = np.arange(int(columns.starts[number]), int(columns.starts[number + 1]))
        check_batch_memory(self.file, len(record))
        batch = columns.batch(number, np.empty((len(record), 0), np.float32))

        def tensor(array: np.ndarray[Any, Any] | None) -> Tensor | None:
            return None if array is None else torch.from_numpy(np.ascontiguousarray(array))

        arrays = {name: tensor(getattr(batch, name)) for name in (*OWN_COLUMNS, *PARTNER_COLUMNS, "mix_index")}
        labels = self._decode(record)
        return TrainingBatch(labels=labels, place=batch.place, mix_lam=batch.mix_lam, mix_box=batch.mix_box, **arrays)


def record_indices(index: Any, records: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """An index, or a sequence, array or tensor of indices -> [n] int64 in 0..records-1; negative ones from the end.

    Raises:
        UsageError: indices are not integers, or have more than one axis.
        IndexError: an index is out of range.
    """
    indices = np.atleast_1d(np.asarray(index.cpu() if isinstance(index, Tensor) else index))
    if indices.dtype.kind not in "iu" and indices.size:
        raise UsageError(f"indices are {indices.dtype}; they must be integers")
    if indices.ndim > 1:
        raise UsageError(f"indices have shape {list(indices.shape)}; they must be one integer or a list of integers")
    indices = indices.astype(np.int64)
    outside = (indices < -records) | (indices >= records)
    if outside.any():
        raise IndexError(f"record {int(indices[outside][0])} is out of range; the file has records 0:{records}")
    return np.where(indices < 0, indices + records, indices)


@check_argument_types
def open(path: str | PathLike[str], device: str | torch.device = "cpu") -> VqlDataset:
    """Open a `.vql` for training.

    Args:
        path: the `.vql`.
        device: where labels are decoded.

    Raises:
        UsageError: the file does not exist.
        BadContainer: the file is damaged, forged or from a newer version.
    """
    return VqlDataset(path, device)
