"""Which labels a codec was fitted to: its prior predicts labels from images and views, and misleads for others than those."""

import hashlib
import re
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self

import numpy as np

from vqlabel.codecs.config import ImagePrior
from vqlabel.config import MAX_VIEW
from vqlabel.errors import BadContainer, UsageError
from vqlabel.labels import LabelBatch
from vqlabel.labels.image_set import ImageSet

EDGES = 64  # a box touches the far side of its view in half of all batches, so the largest edge of these is the view's size
REMEDY = "fit a codec to labels of these, or with --no-prior"


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedOn:
    """What is known of the labels of a fit, or of a dump.

    Attributes:
        images: the images that they are of; None: unknown.
        view: pixels along their views; None: unknown.
        first_sha256: of the images and labels of the first batch, by which the same dump is recognised; None: unknown.
    """

    images: ImageSet | None = None
    view: int | None = None
    first_sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """What is known, as JSON takes it; inverse of `from_dict`."""
        images = None if self.images is None else self.images.to_dict()
        found = {"images": images, "view": self.view, "first_sha256": self.first_sha256}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def from_dict(cls, values: object, where: str | PathLike[str]) -> Self:
        """Build from what a codec file holds.

        Raises:
            BadContainer: `values` are none of a fit; names `where`.
        """
        found: dict[str, Any] = values if isinstance(values, dict) else {"view": 0}
        view, first = found.get("view"), found.get("first_sha256")
        good = (view is None or (type(view) is int and 1 <= view <= MAX_VIEW)) and (
            first is None or (isinstance(first, str) and re.fullmatch(r"[0-9a-f]{64}", first))
        )
        if not good:
            raise BadContainer(f"{where}: its fit was on {str(values)[:120]}; damaged or forged")
        images = None if found.get("images") is None else ImageSet.from_dict(found["images"], where)
        return cls(images=images, view=view, first_sha256=first)

    def refuse_others(self, found: "FittedOn", prior: ImagePrior, where: str | PathLike[str]) -> list[str]:
        """Refuse labels of other images, or of views of another size, than those of the fit.

        Args:
            found: what is known of the labels.
            prior: of the codec that was fitted.
            where: of the labels, for messages.

        Returns:
            Sentences on what cannot be told.

        Raises:
            UsageError: they are others; names both sides.
        """
        if self.first_sha256 is not None and self.first_sha256 == found.first_sha256:
            return []
        notes = [self._refuse_images(found, prior, where), self._refuse_view(found, prior, where)]
        return [sentence for sentence in notes if sentence is not None]

    def refuse_edge(self, edge: int, batches: int, prior: ImagePrior, where: str | PathLike[str]) -> None:
        """Refuse boxes of views of another size, where only their largest edge tells.

        Args:
            edge: the largest of `batches` boxes, in pixels; of so many that it is the view's.
        """
        limit = self.view or (prior.view if "box" in prior.fields else None)
        if limit is not None and (edge > limit or (edge < limit and batches >= EDGES)):
            raise UsageError(
                f"{where}: boxes end at {edge} pixels of a view; the codec's prior was fitted on views of {limit}: {REMEDY}"
            )

    def _refuse_images(self, found: "FittedOn", prior: ImagePrior, where: str | PathLike[str]) -> str | None:
        if found.images is not None and found.images.count != prior.images:
            raise UsageError(
                f"{where}: {found.images.count} images; the codec's prior knows {prior.images}, those that it was fitted on: {REMEDY}"
            )
        if self.images is not None and found.images is not None:
            return self.images.require_same(where, found.images, of="the labels that the codec was fitted to", remedy=REMEDY)
        return f"{where}: the codec's prior is for the {prior.images} images that it was fitted on, and whether these are the same cannot be told"

    def _refuse_view(self, found: "FittedOn", prior: ImagePrior, where: str | PathLike[str]) -> str | None:
        at_least = prior.view if "box" in prior.fields else 1  # the largest edge of a box in the fit
        if found.view is None:
            return None
        if found.view < at_least or self.view not in (None, found.view):
            raise UsageError(
                f"{where}: views of {found.view} pixels; the codec's prior was fitted on views of {self.view or at_least}: {REMEDY}"
            )
        if self.view is None and found.view > at_least > 1:
            return f"{where}: views of {found.view} pixels; the codec's prior saw boxes that end at {at_least}, so its views may have been smaller"
        return None


def digest_of(batch: LabelBatch) -> str:
    """sha256 of a batch's images and labels."""
    total = hashlib.sha256(b"" if batch.image is None else np.ascontiguousarray(batch.image, "<i8").tobytes())
    total.update(batch.label_bytes())
    return total.hexdigest()
