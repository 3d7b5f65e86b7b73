"""G-VBSM's tree <-> label batches: SRe2L's items, and the image that every label is of, so that no reader repeats a shuffle.

epoch_E/batch_B.tar          torch.save list of 7: as in labels/sre2l.py, then index i64 [b]

G-VBSM's reader loads an epoch as a whole and takes its row i for slot i % B of batch i // B.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.items import array_item, describe, read_items, to_tensor
from vqlabel.labels.source import About, LabelBatch, Place
from vqlabel.labels.sre2l import ITEMS, Sre2lWriter, parse_six, require_images
from vqlabel.labels.tree import Indices, TreeSource

SEVEN = f"{ITEMS}, index"


class GvbsmSource(TreeSource):
    """The tree whose files say their images."""

    layout = "gvbsm"
    temperature: float | None = None  # its students learn the logits by their squares, or at any temperature

    def parse(self, file: Path, place: Place) -> tuple[LabelBatch, str]:
        return parse_seven(file, place, read_items(file, (7,), "G-VBSM", SEVEN))


class GvbsmWriter(Sre2lWriter):
    """The tree, of epochs whose batches have B records each, but for the last."""

    layout = "gvbsm"
    extras: tuple[str, ...] = ()

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        require_images(self.layout, about)
        super().__init__(out, about, form)
        self._each, self._rows = 0, dict[int, int]()  # B; records of every epoch so far

    def add(self, batch: LabelBatch) -> None:
        epoch, number = batch.place
        rows, self._each = self._rows.get(epoch, 0), self._each or len(batch)
        if rows != number * self._each or len(batch) > self._each:
            raise UsageError(
                f"{self.layout} finds row i of an epoch in batch i // {self._each}, and batch {number} of epoch {epoch} has {len(batch)} "
                f"records after {rows}: write lpqld, which holds batches of any size"
            )
        super().add(batch)
        self._rows[epoch] = rows + len(batch)

    def repeated(self, order: dict[int, Indices]) -> bool:
        return True  # the files say their images

    def items(self, batch: LabelBatch) -> list[Any]:
        return [*super().items(batch), to_tensor(batch.image)]


def parse_seven(file: Path, place: Place, items: list[Any]) -> tuple[LabelBatch, str]:
    """SRe2L's six items, and the images."""
    batch, dtype = parse_six(file, place, items)
    image = array_item(file, 6, items[6], (len(batch),), "int64")
    if image is None or image.min() < 0 or image.max() >= 1 << 31:
        raise BadLabels(f"{file}: item 6 is {describe(items[6])}; it must be image indices in 0..2^31-1, int64 [{len(batch)}]")
    return replace(batch, image=image), dtype
