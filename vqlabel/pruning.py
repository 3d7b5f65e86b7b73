"""A dump -> a part of it: some epochs, batches or views, chosen by a seed, every one with its own place, image and augmentation."""

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import UsageError, require
from vqlabel.labels import LabelBatch, LabelSource, Place

UNITS = ("epoch", "batch", "view")


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
        require(by in UNITS, "by", by, f"must be one of {', '.join(UNITS)}")
        if by == "view" and source.order == "none":
            raise UsageError(
                f"{source.path}: records do not say which image they are of, so single views cannot be kept: use --by batch"
            )
        self.path, self._source, self._keep, self._by, self._seed = source.path, source, keep, by, seed
        for name in ("layout", "classes", "domain", "dtype", "order", "temperature", "support", "names"):
            setattr(self, name, getattr(source, name))
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
        return sorted(draw(self._seed, 0, count)[:many].tolist())

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        batch, name = self._source._load(self._at[at])
        return (self._some(batch) if self._by == "view" else batch), name

    def _some(self, batch: LabelBatch) -> LabelBatch:
        """The views that are kept of one batch, in their order; at least one, so that a batch stays one."""
        n, place = len(batch), batch.place
        many = max(1, round(self._keep * n))
        rows = np.sort(draw(self._seed, 1 + place.epoch * (1 << 32) + place.batch, n)[:many])
        of_partner = [name for name in ("cutout", "patches", "ops", "seed") if getattr(batch, name) is not None]
        if batch.mix_index is not None and of_partner:
            raise UsageError(
                f"{self.path}: has {of_partner[0]} of views that are mixed into others, which would be lost with them: use --by batch"
            )
        return batch.rows(rows)


def draw(seed: int, stream: int, count: int) -> NDArray[np.int64]:
    """[count] a permutation, the same with every NumPy: the raw bits of its counter-based generator never change."""
    keys = np.random.Philox(key=seed % (1 << 64) | stream % (1 << 64) << 64).random_raw(count)
    return np.argsort(keys, kind="stable")
