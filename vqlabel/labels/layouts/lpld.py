"""LPLD's tree <-> label batches: SRe2L's, and which images every epoch's batches are of.

epoch_E/batch_B.tar          as in labels/sre2l.py
sampler_indices_epoch.json   {"0": [image index of every record of epoch 0, in order], ...}
"""

from pathlib import Path

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.image_set import ImageSet
from vqlabel.labels.layouts.sre2l import Sre2lSource, TreeWriter
from vqlabel.labels.layouts.tree import ORDER_FILE, SEED, EpochOrder, find_batches, fitting_draws, read_order, write_order
from vqlabel.labels.source import LabelBatch


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


class LpldWriter(TreeWriter):
    """The tree, then its order file."""

    layout = "lpld"

    def check_epochs(self) -> None:
        counts = [self.batches[epoch] for epoch in sorted(self.batches)]
        if max(counts) > counts[0] or min(counts[:-1], default=counts[0]) < counts[0]:
            raise UsageError(
                f"lpld counts batches through all epochs, and these have {min(counts)} to {max(counts)}, where only the last may have fewer: "
                "write lpqld"
            )

    def finish(self) -> None:
        super().finish()
        order = self.order()
        write_order(self.counted(self.out / ORDER_FILE), order)
        if not fitting_draws(order):
            self.notes.append(
                "lpld: LPLD's script trains on these labels with --granularity batch and batch_to_epoch; with epoch it shuffles images by itself "
                f"(seed {SEED}), in another order than these, and stops"
            )
