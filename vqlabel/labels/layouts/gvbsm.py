"""G-VBSM's tree <-> label batches: SRe2L's items, and the image that every label is of, so that no reader repeats a shuffle.

epoch_E/batch_B.tar          torch.save list of 7: as in labels/sre2l.py, then index i64 [b]

G-VBSM's reader loads an epoch as a whole and takes its row i for slot i % B of batch i // B.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.layouts.sre2l import ITEMS, TreeWriter, parse_six
from vqlabel.labels.layouts.torch_items import array_item, describe, read_items, to_tensor
from vqlabel.labels.layouts.tree import TreeSource
from vqlabel.labels.source import LabelBatch, Place

SEVEN = f"{ITEMS}, index"


class GvbsmSource(TreeSource):
    """The tree whose files say their images."""

    layout = "gvbsm"
    temperature: float | None = None  # its students learn the logits by their squares, or at any temperature

    def parse(self, file: Path, place: Place) -> tuple[LabelBatch, str]:
        return parse_seven(file, place, read_items(file, (7,), "G-VBSM", SEVEN))


class GvbsmWriter(TreeWriter):
    """The tree, of epochs that have as many records each: the reader asks each for a row for every image."""

    layout = "gvbsm"
    extras: tuple[str, ...] = ()

    def check_epochs(self) -> None:
        least, most = min(self.records.values()), max(self.records.values())
        if least != most:
            raise UsageError(
                f"{self.layout} asks every epoch for a row for each image, and these have {least} to {most} rows: write lpqld"
            )

    def items(self, batch: LabelBatch) -> list[Any]:
        return [*super().items(batch), to_tensor(batch.image)]


def parse_seven(file: Path, place: Place, items: list[Any]) -> tuple[LabelBatch, str]:
    """SRe2L's six items, and the images."""
    batch, dtype = parse_six(file, place, items)
    image = array_item(file, 6, items[6], (len(batch),), "int64")
    if image is None or image.min() < 0 or image.max() >= 1 << 31:
        raise BadLabels(f"{file}: item 6 is {describe(items[6])}; it must be image indices in 0..2^31-1, int64 [{len(batch)}]")
    return replace(batch, image=image), dtype
