"""SRe2L's and CDA's tree, with LPLD's order file where it is there <-> label batches.

epoch_E/batch_B.tar          torch.save list of 6: coords f32 [b, 4], flip bool [b], mix_index i64 [b] or None,
                             mix_lam float or None, mix_bbox 4 ints or None, logits f16 or f32 [b, C]
sampler_indices_epoch.json   {"0": [image index of every record of epoch 0, in order], ...}
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from vqlabel.errors import BadLabels
from vqlabel.labels.source import LabelBatch, LabelSource, Place
from vqlabel.labels.unpickle import unpickle

ORDER_FILE = "sampler_indices_epoch.json"
_TYPES = {"torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32"}


class Sre2lSource(LabelSource):
    """The tree. Counts come from the files; epochs and batches are sorted as numbers; other entries are ignored."""

    layout = "sre2l"
    temperature = 20.0  # of SRe2L's and CDA's students

    def __init__(self, path: Path, domain: str | None) -> None:
        self.path, self.domain = path, domain or "logits"
        if not path.is_dir():
            raise BadLabels(f"{path}: is no folder; SRe2L's tree is one, with epoch_E/batch_B.tar in it")
        self._files = find_batches(path)
        if not self._files:
            raise BadLabels(f"{path}: no epoch_E/batch_B.tar in it; a dump has at least one batch")
        self.places = list(self._files)
        first = _read_items(self._files[self.places[0]])[5]
        self.classes, self.dtype = first.shape[1], _TYPES[str(first.dtype)]
        self._order = _read_order(path / ORDER_FILE)
        self.order = "none" if self._order is None else "explicit"
        self._starts: dict[Place, int] = {}

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        place = self.places[at]
        file = self._files[place]
        crop, flip, index, lam, box, logits = _read_items(file)
        labels = logits.float() if self.dtype == "BF16" else logits
        if _TYPES[str(logits.dtype)] != self.dtype:
            raise BadLabels(f"{file}: labels are {logits.dtype}; the dump began with {self.dtype}: regenerate one of them")
        return LabelBatch(
            labels=np.array(labels.numpy()),
            place=place,
            image=self._images(place, len(logits), file),
            crop=None if crop is None else np.array(crop.numpy()),
            flip=None if flip is None else np.array(flip.numpy()),
            mix_index=None if index is None else np.array(index.numpy()),
            mix_lam=lam,
            mix_box=box,
        ), str(file)

    def _images(self, place: Place, records: int, file: Path) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """This batch's part of its epoch's order; the records before it are those of the epoch's earlier batches."""
        if self._order is None:
            return None
        order = self._order.get(place.epoch)
        if order is None:
            raise BadLabels(f"{self.path / ORDER_FILE}: no order for epoch {place.epoch}, whose labels are there")
        start = self._start(place)
        if start + records > len(order):
            raise BadLabels(
                f"{file}: its records end at {start + records}, the order of epoch {place.epoch} has {len(order)} images"
            )
        self._starts[Place(place.epoch, place.batch + 1)] = start + records
        return order[start : start + records]

    def _start(self, place: Place) -> int:
        known = place.batch
        while known and Place(place.epoch, known) not in self._starts:
            known -= 1
            if Place(place.epoch, known) not in self._files:
                raise BadLabels(
                    f"{self._files[place]}: batch {known} of epoch {place.epoch} is missing, so the order cannot be placed"
                )
        start = self._starts[Place(place.epoch, known)] if known else 0
        for batch in range(known, place.batch):
            start += len(_read_items(self._files[Place(place.epoch, batch)])[5])
            self._starts[Place(place.epoch, batch + 1)] = start
        return start


def find_batches(path: Path) -> dict[Place, Path]:
    """Every epoch_E/batch_B.tar below `path`, in numeric order."""
    found: dict[Place, Path] = {}
    for folder in path.iterdir():
        epoch = re.fullmatch(r"epoch_(\d{1,9})", folder.name)
        for file in folder.iterdir() if epoch and folder.is_dir() else ():
            batch = re.fullmatch(r"batch_(\d{1,9})\.tar", file.name)
            if epoch and batch:
                place = Place(int(epoch[1]), int(batch[1]))
                if place in found:
                    raise BadLabels(f"{file}: is the same batch as {found[place]}; remove one of them")
                found[place] = file
    return dict(sorted(found.items()))


def is_tree(path: Path) -> bool:
    """Whether a folder holds nothing but such a tree, so that replacing it loses nothing else."""
    names = [entry.name for entry in path.iterdir()]
    return all(name == ORDER_FILE or re.fullmatch(r"epoch_\d{1,9}", name) for name in names)


def _read_items(file: Path) -> tuple[Any, Any, Any, float | None, tuple[int, int, int, int] | None, Any]:
    """The six items of one batch, checked against each other."""
    import torch

    items = unpickle(file)
    if not isinstance(items, list) or len(items) != 6:
        kind = f"a list of {len(items)}" if isinstance(items, list) else type(items).__name__
        raise BadLabels(f"{file}: holds {kind}; SRe2L's batch is a list of 6 (coords, flip, mix_index, mix_lam, mix_bbox, logits)")
    crop, flip, index, lam, box, logits = (_plain(file, number, item) for number, item in enumerate(items))
    if (
        not isinstance(logits, torch.Tensor)
        or str(logits.dtype) not in _TYPES
        or logits.dim() != 2
        or not len(logits)
        or logits.shape[1] < 2
    ):
        raise BadLabels(f"{file}: item 5 is {_describe(logits)}; it must be logits [b, C], fp16, bf16 or fp32")
    b = len(logits)
    for number, item, shape, dtype in (
        (0, crop, (b, 4), torch.float32),
        (1, flip, (b,), torch.bool),
        (2, index, (b,), torch.int64),
    ):
        if item is not None and not (isinstance(item, torch.Tensor) and tuple(item.shape) == shape and item.dtype == dtype):
            raise BadLabels(f"{file}: item {number} is {_describe(item)}; it must be {dtype} {list(shape)} or None")
    if index is not None and not bool(((index >= 0) & (index < b)).all()):
        raise BadLabels(f"{file}: mix_index leaves 0..{b - 1}, the slots of this batch")
    if lam is not None and not (isinstance(lam, int | float) and 0 <= lam <= 1):
        raise BadLabels(f"{file}: mix_lam is {_describe(lam)}; it must be a number in 0..1 or None")
    if box is not None:
        whole = isinstance(box, list | tuple) and len(box) == 4 and all(isinstance(v, int) and 0 <= v < 1 << 31 for v in box)
        if not whole:
            raise BadLabels(f"{file}: mix_bbox is {_describe(box)}; it must be 4 non-negative integers or None")
        box = tuple(int(v) for v in box)
    return crop, flip, index, None if lam is None else float(lam), box, logits


def _plain(file: Path, number: int, item: Any) -> Any:
    """A tensor that `.numpy()` takes, no larger than its file; anything but a tensor as it is."""
    import torch

    if not isinstance(item, torch.Tensor):
        return item
    if item.layout != torch.strided or item.is_nested or item.device.type != "cpu":
        raise BadLabels(
            f"{file}: item {number} is a {item.layout} tensor on {item.device}; it must be dense and stored in the file"
        )
    size = item.numel() * item.element_size()
    if size > file.stat().st_size:
        raise BadLabels(f"{file}: item {number} spans {size} bytes in a file of {file.stat().st_size}; save it with .contiguous()")
    return item.detach().resolve_neg()


def _describe(item: Any, depth: int = 1) -> str:
    """What it is, in a few words; never the repr of a foreign object, which may be of any size and depth."""
    if hasattr(item, "dtype") and hasattr(item, "shape"):
        return f"{item.dtype} {list(item.shape)}"
    if isinstance(item, list | tuple) and depth:
        return f"{type(item).__name__} [{', '.join(_describe(v, depth - 1) for v in item[:5])}]"
    return repr(item) if isinstance(item, float) or (isinstance(item, int) and abs(item) < 1 << 63) else type(item).__name__


def _read_order(file: Path) -> dict[int, np.ndarray[Any, np.dtype[np.int64]]] | None:
    """The image indices of every epoch, or None where no order file lies there."""
    if not file.exists():
        return None
    try:
        order = json.loads(file.read_text())
        return {int(epoch): _indices(ids) for epoch, ids in order.items()}
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError, OSError) as error:
        raise BadLabels(f"{file}: not an order file ({error}); it maps epochs to lists of image indices") from None


def _indices(ids: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    array = np.asarray(ids)
    if array.dtype.kind not in "iu" or array.ndim != 1 or (array.size and (array.min() < 0 or array.max() >= 1 << 31)):
        raise ValueError("image indices must be integers in 0..2^31-1")
    return array.astype(np.int64)


def write_batch(folder: Path, batch: LabelBatch, *, as_bf16: bool = False) -> None:
    """Write one batch into the tree: tensors, floats and plain ints only, so torch.load(weights_only=True) takes it."""
    import torch

    def tensor(array: np.ndarray[Any, Any] | None) -> torch.Tensor | None:
        return None if array is None else torch.from_numpy(np.ascontiguousarray(array))

    epoch = folder / f"epoch_{batch.place.epoch}"
    epoch.mkdir(parents=True, exist_ok=True)
    box = None if batch.mix_box is None else [int(v) for v in batch.mix_box]
    labels = torch.from_numpy(np.ascontiguousarray(batch.labels))
    labels = labels.bfloat16() if as_bf16 else labels
    items = [tensor(batch.crop), tensor(batch.flip), tensor(batch.mix_index), batch.mix_lam, box, labels]
    torch.save(items, epoch / f"batch_{batch.place.batch}.tar")


def write_order(folder: Path, order: dict[int, list[int]]) -> None:
    """Write LPLD's order file."""
    (folder / ORDER_FILE).write_text(json.dumps({str(epoch): ids for epoch, ids in sorted(order.items())}))
