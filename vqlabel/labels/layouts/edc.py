"""EDC's tree <-> label batches: the items of G-VBSM, and the order of the strips into which every view was cut.

epoch_E/batch_B.tar          torch.save list of 8: as in layouts/gvbsm.py, then patches i64 [b, 2, parts], the order of
                             columns and of rows; if views were not cut, as in EDC's own recipe, i32 [b, 2, 2] of zeros
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.batch import LabelBatch, Place, in_order
from vqlabel.labels.layouts.gvbsm import SEVEN_ITEMS, GvbsmSource, GvbsmWriter, parse_seven
from vqlabel.labels.layouts.layout import Layout
from vqlabel.labels.layouts.torch_items import array_item, describe, read_items, to_tensor
from vqlabel.labels.schema import MAX_STRIPS

PARTS = 2  # strips along a side of EDC's views


class EdcSource(GvbsmSource):
    """The tree whose files record their images and strips."""

    layout, title = "edc", "EDC"
    _parts = 0  # strips of the first file; 0: not known yet, or views were not cut
    _uncut = False  # whether the views of the first file were not cut

    def __init__(self, path: Path, domain: str | None) -> None:
        super().__init__(path, domain)
        self.about = replace(self.about, details={"strips": "none"} if self._uncut else {})

    def parse(self, file: Path, place: Place) -> tuple[LabelBatch, str]:
        items = read_items(file, (8,), self.title, f"{SEVEN_ITEMS}, patches")
        batch, dtype = parse_seven(file, place, items)
        if str(getattr(items[7], "dtype", None)) == "torch.int32":
            self._check_uncut(file, items[7], len(batch))
            return batch, dtype
        return replace(batch, patches=self._parse_patches(file, items[7], len(batch))), dtype

    def _check_uncut(self, file: Path, item: Any, records: int) -> None:
        """Raises BadLabels unless the item is int32 zeros, and so are those of all earlier files."""
        patches = array_item(file, 7, item, (records, 2, PARTS), "int32")
        if patches is None or patches.any() or self._parts:
            raise BadLabels(
                f"{file}: item 7 is an int32 order of strips; an order must be int64, and int32 zeros mean that views were not cut"
            )
        self._uncut = True

    def _parse_patches(self, file: Path, item: Any, records: int) -> Any:
        """[records, 2, parts] the order of the strips; raises BadLabels for anything else."""
        if self._uncut:
            raise BadLabels(
                f"{file}: item 7 is {describe(item)}, but in the first batch it is int32 [b, 2, 2]: regenerate one of them"
            )
        shape = tuple(getattr(item, "shape", ()))
        parts = self._parts or (shape[2] if len(shape) == 3 else PARTS)
        patches = array_item(file, 7, item, (records, 2, parts), "int64")
        if patches is None or not 1 <= parts <= MAX_STRIPS or (np.sort(patches) != np.arange(parts)).any():
            raise BadLabels(
                f"{file}: item 7 is {describe(item)}; it must be two permutations of 0..parts-1 for every record, with 1 to {MAX_STRIPS} parts"
            )
        self._parts = parts
        return patches


class EdcWriter(GvbsmWriter):
    """The tree. Views that were not cut get the identity order, or zeros if the dump they come from has those."""

    layout, extras = "edc", ("patches",)

    def items(self, batch: LabelBatch) -> list[Any]:
        patches = batch.patches
        if patches is not None and not in_order(patches) and self.about.layout == "relabel":
            raise UsageError("edc stores an order of patches but its script does not shuffle them, so it cannot show these views")
        if patches is None and self.about.layout == "edc" and self.about.details.get("strips") == "none":
            patches = np.zeros((len(batch), 2, PARTS), np.int32)
        elif patches is None:
            patches = np.tile(np.arange(PARTS), (len(batch), 2, 1))
        return [*super().items(batch), to_tensor(patches)]


LAYOUT = Layout(source=EdcSource, writer=EdcWriter)
