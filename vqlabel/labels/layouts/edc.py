"""EDC's tree <-> label batches: G-VBSM's items, and the order of the strips that every view was cut in.

epoch_E/batch_B.tar          torch.save list of 8: as in labels/gvbsm.py, then patches i64 [b, 2, parts]: of columns, then of rows;
                             where views were not cut, as in EDC's own recipe, i32 [b, 2, 2] of zeros
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vqlabel.errors import BadLabels
from vqlabel.labels.layouts.gvbsm import SEVEN, GvbsmSource, GvbsmWriter, parse_seven
from vqlabel.labels.layouts.torch_items import array_item, describe, read_items, to_tensor
from vqlabel.labels.schema import MAX_STRIPS
from vqlabel.labels.source import LabelBatch, Place

PARTS = 2  # strips along a side of EDC's views


class EdcSource(GvbsmSource):
    """The tree whose files say their images and strips."""

    layout = "edc"
    _parts = 0  # of the first file

    def parse(self, file: Path, place: Place) -> tuple[LabelBatch, str]:
        items = read_items(file, (8,), "EDC", f"{SEVEN}, patches")
        batch, dtype = parse_seven(file, place, items)
        if str(getattr(items[7], "dtype", None)) == "torch.int32":
            uncut = array_item(file, 7, items[7], (len(batch), 2, PARTS), "int32")
            if uncut is None or uncut.any() or self._parts:
                raise BadLabels(
                    f"{file}: item 7 is an order of strips in int32; orders are int64, and zeros in int32 say there are none"
                )
            self.details = {"strips": "none"}
            return batch, dtype
        if self.details:
            raise BadLabels(f"{file}: item 7 is {describe(items[7])}; the dump began with int32 [b, 2, 2]: regenerate one of them")
        shape = tuple(getattr(items[7], "shape", ()))
        parts = self._parts or (shape[2] if len(shape) == 3 else PARTS)
        patches = array_item(file, 7, items[7], (len(batch), 2, parts), "int64")
        if patches is None or not 1 <= parts <= MAX_STRIPS or (np.sort(patches) != np.arange(parts)).any():
            raise BadLabels(
                f"{file}: item 7 is {describe(items[7])}; it must be two orders of 1 to {MAX_STRIPS} strips for every record, from 0 on"
            )
        self._parts = parts
        return replace(batch, patches=patches), dtype


class EdcWriter(GvbsmWriter):
    """The tree; views that were not cut in strips have theirs in order, or zeros where EDC wrote those."""

    layout, extras = "edc", ("patches",)

    def items(self, batch: LabelBatch) -> list[Any]:
        patches = batch.patches
        if patches is None and self.about.layout == "edc" and self.about.details.get("strips") == "none":
            patches = np.zeros((len(batch), 2, PARTS), np.int32)
        elif patches is None:
            patches = np.tile(np.arange(PARTS), (len(batch), 2, 1))
        return [*super().items(batch), to_tensor(patches)]
