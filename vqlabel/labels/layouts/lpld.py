"""LPLD's tree <-> label batches: that of SRe2L, with the order of the images of every epoch.

epoch_E/batch_B.tar          as in layouts/sre2l.py
sampler_indices_epoch.json   {"0": [image index of every record of epoch 0, in order], ...}
"""

from dataclasses import replace
from pathlib import Path

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.batch import LabelBatch
from vqlabel.labels.image_set import ImageSet
from vqlabel.labels.layouts.layout import Layout
from vqlabel.labels.layouts.sre2l import Sre2lSource, TreeWriter
from vqlabel.labels.layouts.tree import ORDER_FILE, SEED, EpochOrder, find_batches, matching_draws, read_order, write_order


class LpldSource(Sre2lSource):
    """The tree with its order file. A pruned dump has only some of the batches, but the order of all."""

    layout, title = "lpld", "LPLD"

    def __init__(self, path: Path, domain: str | None) -> None:
        file = path / ORDER_FILE
        if not file.exists():
            raise BadLabels(f"{path}: contains no {ORDER_FILE}, which LPLD writes; for SRe2L's tree pass --layout sre2l")
        self._order = EpochOrder(file, find_batches(path), read_order(file))
        super().__init__(path, domain)
        count = self._order.images()  # of complete epochs, which the order file has even if the dump is pruned
        self.about = replace(self.about, order="explicit", images=None if count is None else ImageSet(count=count))

    def _load(self, index: int) -> tuple[LabelBatch, str]:
        batch, name = super()._load(index)
        return self._order.assign_images(batch, self), name


class LpldWriter(TreeWriter):
    """The tree, and at the end its order file."""

    layout = "lpld"

    def check_epochs(self) -> None:
        counts = [self.batches[epoch] for epoch in sorted(self.batches)]
        if max(counts) > counts[0] or min(counts[:-1], default=counts[0]) < counts[0]:
            raise UsageError(
                f"lpld numbers batches through all epochs, so only the last epoch may have fewer, but these have {min(counts)} to "
                f"{max(counts)} batches: write lpqld"
            )

    def finish(self) -> None:
        super().finish()
        order = self.order()
        write_order(self.counted(self.out / ORDER_FILE), order)
        if not matching_draws(order):
            self.notes.append(
                "lpld: train LPLD's script on these labels with --granularity batch and batch_to_epoch; with --granularity epoch it shuffles "
                f"the images itself (seed {SEED}), in another order than that of these labels, and stops"
            )


LAYOUT = Layout(source=LpldSource, writer=LpldWriter)
