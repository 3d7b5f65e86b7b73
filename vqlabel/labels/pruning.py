"""A dump -> a random part of it: some epochs, batches or views, with their own places, images and augmentation."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from vqlabel.errors import UsageError, require
from vqlabel.labels import LabelBatch, LabelSource, Place
from vqlabel.philox import shuffled

UNITS = ("epoch", "batch", "view")
WHOLE, VIEWS = 6, 7  # philox purposes (vqlabel/philox.py): the choice of epochs or batches; the choice of views within a batch


class Pruned(LabelSource):
    """The part of a dump that pruning keeps. A batch keeps its (epoch, batch), which identifies it.

    Args:
        keep: share of the dump to keep, above 0 and at most 1.
        by: unit that is kept or dropped as a whole: "epoch" or "batch", as LPLD and LPQLD prune, or "view". If a
            dropped view is mixed into a kept one, the kept one records its image, crop and flip.
        seed: 0..2^64-1, of the random choice.

    Raises:
        UsageError: nothing would be left; or `by` is "view" and the dump does not record the image of each label.
    """

    def __init__(self, source: LabelSource, keep: float, by: str = "epoch", seed: int = 0) -> None:
        require(0 < keep <= 1, "keep", keep, "must be above 0 and at most 1: the share of the dump to keep")
        require(0 <= seed < 1 << 64, "seed", seed, "must be 0..2^64-1")
        require(by in UNITS, "by", by, f"must be one of {', '.join(UNITS)}")
        if by == "view" and source.order == "none":
            raise UsageError(
                f"{source.path}: the dump does not record the image of each label, so it cannot be pruned by view: use --by batch"
            )
        self.path, self._source, self._keep, self._by, self._seed = source.path, source, keep, by, seed
        self.notes = source.notes
        renumbered = by == "view" or (by == "batch" and source.order == "rows")  # "rows" counts an epoch's records from its start
        details = {**source.about.details, "pruned": {"keep": keep, "by": by, "seed": seed, "batches": len(source)}}
        self.about = replace(source.about, order="explicit" if renumbered else source.order, details=details)
        self._kept = self._kept_batches()
        self.places: list[Place] = [source.places[index] for index in self._kept]

    def _kept_batches(self) -> list[int]:
        """Indices of the batches that are kept, whole or in part."""
        places = self._source.places
        if self._by == "view":
            return list(range(len(places)))
        if self._by == "batch":
            return self._choose(len(places), "batches")
        epochs = sorted({place.epoch for place in places})
        kept = {epochs[i] for i in self._choose(len(epochs), "epochs")}
        return [index for index, place in enumerate(places) if place.epoch in kept]

    def _choose(self, total: int, unit: str) -> list[int]:
        """A random share of 0..total-1, sorted."""
        count = round(self._keep * total)
        require(count > 0, "keep", self._keep, f"keeps none of {total} {unit}; keep more, or prune by a smaller unit")
        return sorted(shuffled(self._seed, WHOLE, 0, total)[:count].tolist())

    def files_of(self, index: int) -> tuple[Path, ...]:
        return self._source.files_of(self._kept[index])

    def _load(self, index: int) -> tuple[LabelBatch, str]:
        batch, name = self._source.load(self._kept[index])
        return (self._kept_views(batch) if self._by == "view" else batch), name

    def _kept_views(self, batch: LabelBatch) -> LabelBatch:
        """The kept views of a batch, in their order; at least one, since a batch is never empty."""
        n, place = len(batch), batch.place
        count = max(1, round(self._keep * n))
        rows = np.sort(shuffled(self._seed, VIEWS, place.epoch, n, place.batch)[:count])
        of_partner = [name for name in ("cutout", "patches", "ops", "seed") if getattr(batch, name) is not None]
        if batch.mix_index is not None and of_partner:
            raise UsageError(
                f"{self.path}: pruning by view would lose the {of_partner[0]} of dropped views that are mixed into kept ones: use --by batch"
            )
        return batch.rows(rows)
