"""G-VBSM's tree <-> label batches: the items of SRe2L, and the image index of every label.

epoch_E/batch_B.tar          torch.save list of 7: as in layouts/sre2l.py, then index i64 [b]

So readers need not repeat a shuffle. G-VBSM's reader loads a whole epoch and uses its row i for slot i % B of batch i
// B.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.batch import LabelBatch, Place
from vqlabel.labels.layouts.layout import Layout
from vqlabel.labels.layouts.sre2l import ITEMS, TreeWriter, parse_six
from vqlabel.labels.layouts.torch_items import array_item, describe, read_items, to_tensor
from vqlabel.labels.layouts.tree import TreeSource

SEVEN_ITEMS = f"{ITEMS}, index"


class GvbsmSource(TreeSource):
    """The tree whose files record their images."""

    layout, title = "gvbsm", "G-VBSM"
    temperature: float | None = None  # its students learn the logits by squared error, or at any temperature

    def parse(self, file: Path, place: Place) -> tuple[LabelBatch, str]:
        return parse_seven(file, place, read_items(file, (7,), self.title, SEVEN_ITEMS))


class GvbsmWriter(TreeWriter):
    """The tree. All epochs must have equally many records, because the reader reads a row per image from each."""

    layout = "gvbsm"
    extras: tuple[str, ...] = ()

    def check_epochs(self) -> None:
        fewest, most = min(self.records.values()), max(self.records.values())
        if fewest != most:
            raise UsageError(
                f"{self.layout} needs a row for each image in every epoch, but these epochs have {fewest} to {most} rows: write lpqld"
            )

    def items(self, batch: LabelBatch) -> list[Any]:
        return [*super().items(batch), to_tensor(batch.image)]


def parse_seven(file: Path, place: Place, items: list[Any]) -> tuple[LabelBatch, str]:
    """A batch of SRe2L's six items and the image indices, and the stored type of its labels.

    Raises:
        BadLabels: an item is malformed.
    """
    batch, dtype = parse_six(file, place, items)
    image = array_item(file, 6, items[6], (len(batch),), "int64")
    if image is None or image.min() < 0 or image.max() >= 1 << 31:
        raise BadLabels(f"{file}: item 6 is {describe(items[6])}; it must be image indices in 0..2^31-1, int64 [{len(batch)}]")
    return replace(batch, image=image), dtype


LAYOUT = Layout(source=GvbsmSource, writer=GvbsmWriter)
