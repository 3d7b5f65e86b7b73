"""LPLD's tree <-> label batches: SRe2L's, and which images every epoch's batches are of.

epoch_E/batch_B.tar          as in labels/sre2l.py
sampler_indices_epoch.json   {"0": [image index of every record of epoch 0, in order], ...}
"""

from pathlib import Path

from vqlabel.errors import BadLabels
from vqlabel.labels.image_set import ImageSet
from vqlabel.labels.source import About, LabelBatch
from vqlabel.labels.sre2l import Sre2lSource, Sre2lWriter, require_images
from vqlabel.labels.tree import ORDER_FILE, EpochOrder, Indices, find_batches, read_order


class LpldSource(Sre2lSource):
    """The tree with its order file. A pruned dump holds its first batches, and the order of all."""

    layout, title = "lpld", "LPLD"

    def __init__(self, path: Path, domain: str | None) -> None:
        file = path / ORDER_FILE
        if not file.exists():
            raise BadLabels(f"{path}: has no {ORDER_FILE}; LPLD's tree does, SRe2L's does not (--layout sre2l)")
        self._order = EpochOrder(file, find_batches(path), read_order(file))
        super().__init__(path, domain)
        self.order = "explicit"
        if (count := self._order.images()) is not None:  # the order file has whole epochs, also of a pruned dump
            self.images = ImageSet(count=count)

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        batch, name = super()._load(at)
        return self._order.of(batch, self), name


class LpldWriter(Sre2lWriter):
    """The tree, then its order file."""

    layout = "lpld"

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        require_images(self.layout, about)
        super().__init__(out, about, form)

    def repeated(self, order: dict[int, Indices]) -> bool:
        return False  # LPLD's reader wants the file
