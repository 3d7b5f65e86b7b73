"""`.vql` -> labels for a training loop: by index, by stored batch, or as codes with the decoder on the training device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from vqlabel.labels.source import OF_PARTNERS, OF_RECORDS
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.file import VqlFile
from vqlabel.workflows.unpack import as_tensor, check_batch_memory, decode, read_codec


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingBatch:
    """One stored batch: its labels, which images they belong to, and what was done to those. Fields that the dump lacks are None."""

    labels: Tensor  # [n, C] float32
    place: Place  # (epoch, batch)
    image: Tensor | None  # [n] int64, index in the sorted image list
    crop: Tensor | None  # [n, 4] float32: top/H, left/W, height/H, width/W
    flip: Tensor | None  # [n] bool
    mix_index: Tensor | None  # [n] int64, slot in this batch
    mix_lam: float | None
    mix_box: tuple[int, int, int, int] | None  # row0, col0, row1, col1 in pixels of the view
    partner_image: Tensor | None = None  # [n] int64: the view mixed in, where it is no record of the batch
    partner_crop: Tensor | None = None  # [n, 4] float32
    partner_flip: Tensor | None = None  # [n] bool
    cutout: Tensor | None = None  # [n, 7] float32: centre row/h, column/w, height/h, width/w, r, g, b
    patches: Tensor | None = None  # [n, 2, parts] int64: order of columns, then of rows
    ops: Tensor | None = None  # [n, ops, 3] float32: RandAugment's operation, decision, level
    seed: Tensor | None = None  # [n] int64: of the dump's own pipeline


class VqlDataset(Dataset[Tensor]):
    """The labels of a `.vql`, in record order.

    `ds[i]` is a label [C], `ds[[3, 1, 4]]` and `ds[10:20]` are labels [n, C], float32, decoded on `device`. Codes stay on the CPU, as
    small as they are stored; only what is asked for is decoded. Works under DataLoader workers of any start method: it pickles to its
    path, and refuses another file that has taken its place there.

    For training on a GPU let the workers hand over codes and decode there:

        ds = vqlabel.open("labels.vql")
        decoder = ds.decoder.to("cuda")
        logits = decoder(ds.codes(indices).to("cuda"), ds.context(indices))

    (`vqlabel.training.views.VqlViews(..., decode=False)` is a dataset that does.)
    """

    @check_argument_types
    def __init__(self, path: str | PathLike[str], device: str | torch.device = "cpu") -> None:
        self._open(path, device, None)

    def _open(self, path: str | PathLike[str], device: str | torch.device, seal: bytes | None) -> None:
        self.path, self.device = path, torch.device(device)
        self.file = VqlFile(path, seal)
        self._places: dict[Place, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "device": str(self.device), "seal": self.file.container.seal}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open(**state)

    def __len__(self) -> int:
        return self.file.records

    @property
    def shape(self) -> tuple[int, int]:
        """(records, classes)."""
        return self.file.records, self.file.classes

    @cached_property
    def decoder(self) -> LabelCodec:
        """A decoder module, codes [n, m] and context -> labels [n, C] in the dump's domain, on `device`; nothing in it asks for a gradient.

        It is the caller's, to be moved anywhere: the dataset, and workers forked from it, decode by one of their own.
        """
        return self._read_decoder()

    @cached_property
    def _own_decoder(self) -> LabelCodec:
        return self._read_decoder()

    def _read_decoder(self) -> LabelCodec:
        return read_codec(self.file).to(self.device).requires_grad_(False)

    @property
    def domain(self) -> str:
        """ "logits" or "probs"."""
        return str(self.file.label["domain"])

    def codes(self, index: Sequence[int] | np.ndarray[Any, Any] | Tensor) -> Tensor:
        """[n, m] codes of these records, on the CPU: uint8 where they fit, else int32 (unsigned bit patterns)."""
        return as_tensor(self.file.take_codes(self._index(index)))

    def context(self, index: Sequence[int] | np.ndarray[Any, Any] | Tensor) -> Context:
        """What the file says of these records besides their labels."""
        return self.file.columns.context(self._index(index))

    def _index(self, index: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
        at = np.atleast_1d(np.asarray(index.cpu() if isinstance(index, Tensor) else index))
        if at.dtype.kind not in "iu" and at.size:
            raise UsageError(f"indices are {at.dtype}; they must be integers")
        if at.ndim > 1:
            raise UsageError(f"indices have shape {list(at.shape)}; they must be one number or a list of them")
        at = at.astype(np.int64)
        bad = (at < -len(self)) | (at >= len(self))
        if bad.any():
            raise IndexError(f"record {int(at[bad][0])} leaves 0..{len(self) - 1}")
        return np.where(at < 0, at + len(self), at)

    @torch.no_grad()  # not inference_mode: a loss saves its targets for the backward pass, which inference tensors refuse
    def _decode(self, index: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
        codes = as_tensor(self.file.take_codes(index), self.device)
        return decode(self.file, self._own_decoder, codes, index)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray[Any, Any] | Tensor) -> Tensor: ...
    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, slice):
            return self._decode(np.arange(*index.indices(len(self))))
        labels = self._decode(self._index(index))
        return labels[0] if np.ndim(index) == 0 else labels

    def __getitems__(self, index: list[int]) -> list[Tensor]:
        """Labels of many records at one decode: the hook that DataLoader's fetcher looks for."""
        return list(self._decode(self._index(index)))

    @property
    def places(self) -> Sequence[Place]:
        """(epoch, batch) of every stored batch, in order."""
        return self.file.columns.places

    @check_argument_types
    def batch(self, epoch: int, batch: int) -> TrainingBatch:
        """The stored batch of this place.

        Raises:
            UsageError: the file has none.
        """
        if self._places is None:
            self._places = {place: at for at, place in enumerate(self.places)}
        at = self._places.get(Place(epoch, batch))
        if at is None:
            raise UsageError(f"{self.path}: no batch {batch} of epoch {epoch}; it has {len(self.places)} batches, see ds.places")
        return self._batch(at)

    @check_argument_types
    def batches(self, epoch: int | None = None) -> Iterator[TrainingBatch]:
        """The stored batches in order: of one epoch, or of all.

        Raises:
            UsageError: the file has no batch of that epoch, at once.
        """
        chosen = [at for at, place in enumerate(self.places) if epoch in (None, place.epoch)]
        if not chosen and epoch is not None:
            stored = sorted({place.epoch for place in self.places})
            some = ", ".join(map(str, stored[:8])) + ", ..." * (len(stored) > 8)
            raise UsageError(f"{self.path}: no batch of epoch {epoch}; it has {len(stored)} epochs: {some}")
        return map(self._batch, chosen)

    def _batch(self, at: int) -> TrainingBatch:
        columns = self.file.columns
        record = np.arange(int(columns.starts[at]), int(columns.starts[at + 1]))
        check_batch_memory(self.file, len(record))
        said = columns.batch(at, np.empty((len(record), 0), np.float32))

        def tensor(array: np.ndarray[Any, Any] | None) -> Tensor | None:
            return None if array is None else torch.from_numpy(np.ascontiguousarray(array))

        arrays = {name: tensor(getattr(said, name)) for name in (*OF_RECORDS, *OF_PARTNERS, "mix_index")}
        return TrainingBatch(labels=self._decode(record), place=said.place, mix_lam=said.mix_lam, mix_box=said.mix_box, **arrays)


@check_argument_types
def open(path: str | PathLike[str], device: str | torch.device = "cpu") -> VqlDataset:
    """Open a `.vql` for training; `device` is where labels are decoded.

    Raises:
        UsageError: no such file.
        BadContainer: the file is damaged, forged or from a newer version.
    """
    return VqlDataset(path, device)
