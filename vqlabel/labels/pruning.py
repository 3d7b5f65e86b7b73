"""A dump -> a part of it: some epochs, batches or views, chosen by a seed, every one with its own place, image and augmentation."""

from pathlib import Path

import numpy as np

from vqlabel.errors import UsageError, require
from vqlabel.labels import LabelBatch, LabelSource, Place
from vqlabel.philox import shuffled

UNITS = ("epoch", "batch", "view")
WHOLE, VIEWS = 6, 7  # purposes of random bits, see augment/philox.py: epochs or batches; views of a batch


class Pruned(LabelSource):
    """What is kept of a dump. Batches keep their places, so that no batch is taken for another.

    Args:
        keep: share of the dump, 0 .. 1.
        by: what is kept or dropped as a whole: "epoch" or "batch", as LPLD and LPQLD prune, or "view". A view that is dropped and mixed into
            one that is kept leaves its image, crop and flip with the latter.

    Raises:
        UsageError: `keep` leaves nothing; or views are to be dropped and records do not say their images.
    """

    def __init__(self, source: LabelSource, keep: float, by: str = "epoch", seed: int = 0) -> None:
        require(0 < keep <= 1, "keep", keep, "must be above 0, at most 1: the share of the dump that is kept")
        require(0 <= seed < 1 << 64, "seed", seed, "must be 0..2^64-1")
        require(by in UNITS, "by", by, f"must be one of {', '.join(UNITS)}")
        if by == "view" and source.order == "none":
            raise UsageError(
                f"{source.path}: records do not say which image they are of, so single views cannot be kept: use --by batch"
            )
        self.path, self._source, self._keep, self._by, self._seed = source.path, source, keep, by, seed
        self.notes = source.notes
        self.describe_as(source.about)
        renumbered = by == "view" or (by == "batch" and source.order == "rows")  # rows of an epoch are counted from its first
        self.order = "explicit" if renumbered else source.order
        self.details = {**source.details, "pruned": {"keep": keep, "by": by, "seed": seed, "batches": len(source)}}
        places = source.places
        if by == "epoch":
            epochs = sorted({place.epoch for place in places})
            kept = {epochs[i] for i in self._chosen(len(epochs), "epochs")}
            self._at = [at for at, place in enumerate(places) if place.epoch in kept]
        else:
            self._at = self._chosen(len(places), "batches") if by == "batch" else list(range(len(places)))
        self.places: list[Place] = [places[at] for at in self._at]

    def _chosen(self, count: int, what: str) -> list[int]:
        """Some of `count`, in order."""
        many = round(self._keep * count)
        require(many > 0, "keep", self._keep, f"keeps none of {count} {what}; keep more, or prune by smaller parts")
        return sorted(shuffled(self._seed, WHOLE, 0, count)[:many].tolist())

    def files_of(self, at: int) -> tuple[Path, ...]:
        return self._source.files_of(self._at[at])

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        batch, name = self._source._load(self._at[at])
        return (self._some(batch) if self._by == "view" else batch), name

    def _some(self, batch: LabelBatch) -> LabelBatch:
        """The views that are kept of one batch, in their order; at least one, so that a batch stays one."""
        n, place = len(batch), batch.place
        many = max(1, round(self._keep * n))
        rows = np.sort(shuffled(self._seed, VIEWS, place.epoch, n, place.batch)[:many])
        of_partner = [name for name in ("cutout", "patches", "ops", "seed") if getattr(batch, name) is not None]
        if batch.mix_index is not None and of_partner:
            raise UsageError(
                f"{self.path}: has {of_partner[0]} of views that are mixed into others, which would be lost with them: use --by batch"
            )
        return batch.rows(rows)
