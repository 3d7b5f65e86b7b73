"""labels.pt, one label an image, as DD-Ranking passes them to students of fixed labels <-> label batches.

A torch.save'd tensor [N, C] of logits, fp16, bf16 or fp32: row i is the label of image i, for any view of it. Read and written whole: there is
one label an image, so such files are small.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.arrays import BATCH_RECORDS
from vqlabel.labels.items import label_item, narrowed, plain, to_tensor
from vqlabel.labels.source import About, LabelBatch, LabelSource, LabelWriter, Place
from vqlabel.labels.sre2l import refuse_form
from vqlabel.labels.unpickle import unpickle

SUFFIXES = (".pt", ".pth")


class TensorSource(LabelSource):
    """One tensor, or a dict in which one item is a tensor of two dimensions."""

    layout, order = "tensor", "rows"

    def __init__(self, path: Path, domain: str | None) -> None:
        self.path, self.domain = path, domain or "logits"
        item = plain(path, 0, _only(path, unpickle(path)))
        self._labels, stored = label_item(path, 0, item, "labels [N, C]")
        self.dtype = narrowed(self, stored)
        self.classes = self._labels.shape[1]
        self.places = [Place(0, batch) for batch in range(-(-len(self._labels) // BATCH_RECORDS))]

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        start = at * BATCH_RECORDS
        labels = self._labels[start : start + BATCH_RECORDS]
        image = np.arange(start, start + len(labels))
        name = f"{self.path}, rows from {start}" if start else str(self.path)
        return LabelBatch(labels=labels, place=self.places[at], image=image), name


class TensorWriter(LabelWriter):
    """Labels of images 0..N-1 in any order, one each; all are in memory until they are sorted and saved."""

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        refuse_form("tensor", form)
        if about.order == "none":
            raise UsageError(
                "tensor has row i for image i, and these records do not say which image they are of; write .npy, or pass --images"
            )
        self._out, self._about = out, about
        self._labels: list[NDArray[np.floating]] = []
        self._row: dict[int, int] = {}  # of every image

    def add(self, batch: LabelBatch) -> None:
        assert batch.image is not None
        refuse_augmentation(batch, "tensor", (), "its one label an image is for any view")
        for image in batch.image.tolist():
            if image in self._row:
                raise UsageError(f"tensor has one label an image, and image {image} has several; write .npy, or keep one epoch")
            self._row[image] = len(self._row)
        self._labels.append(batch.labels)

    def finish(self) -> None:
        import torch

        order = [self._row.get(image) for image in range(len(self._row))]
        if None in order:
            raise UsageError(f"tensor has a row for every image, and image {order.index(None)} has no label; write .npy")
        labels = np.concatenate(self._labels)[np.array(order)]
        torch.save(to_tensor(labels, "bfloat16" if self._about.dtype == "BF16" else None), self._out)


def refuse_augmentation(batch: LabelBatch, layout: str, held: tuple[str, ...], why: str) -> None:
    """Raises UsageError for anything that was done to the images and is not in `held`: a label is of its view, and nobody could know it."""
    for one in fields(batch):
        if one.name not in ("labels", "place", "image", *held) and getattr(batch, one.name) is not None:
            raise UsageError(f"{layout} has no place for {one.name}, which these records have: {why}; choose another layout")


def _only(path: Path, found: Any) -> Any:
    """The tensor of labels in what was saved."""
    if isinstance(found, dict):
        flat = [item for item in found.values() if getattr(item, "ndim", 0) == 2]
        if len(flat) != 1:
            raise BadLabels(f"{path}: holds a dict with {len(flat)} tensors of two dimensions; save the labels alone")
        return flat[0]
    return to_tensor(found) if isinstance(found, np.ndarray) else found
