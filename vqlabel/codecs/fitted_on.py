"""The images and views that a codec was fitted on. Its prior predicts labels from both, and is wrong for others."""

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
from vqlabel.labels.sparse import hash_labels

MIN_EDGE_BATCHES = 64  # batches after which the largest box edge is the view's size: a box touches the far side in half of them
REMEDY = "fit a codec to labels of these, or with --no-prior"


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedOn:
    """Images and views of the labels of a fit, or of a dump, as far as they are known.

    Attributes:
        images: images of the labels; None: unknown.
        view: pixels along a view; None: unknown.
        first_sha256: hash of images and labels of the first batch, which identifies a dump; None: unknown.
    """

    images: ImageSet | None = None
    view: int | None = None
    first_sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The known attributes as JSON values; inverse of `from_dict`."""
        images = None if self.images is None else self.images.to_dict()
        values = {"images": images, "view": self.view, "first_sha256": self.first_sha256}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: object, where: str | PathLike[str]) -> Self:
        """Build from the values that a codec file stores.

        Raises:
            BadContainer: the values are invalid; the message names `where`.
        """
        stored: dict[str, Any] = values if isinstance(values, dict) else {"view": 0}  # 0 is invalid
        view, first = stored.get("view"), stored.get("first_sha256")
        valid = (view is None or (type(view) is int and 1 <= view <= MAX_VIEW)) and (
            first is None or (isinstance(first, str) and re.fullmatch(r"[0-9a-f]{64}", first))
        )
        if not valid:
            raise BadContainer(f"{where}: fitted_on is {str(values)[:120]}; damaged or forged")
        images = None if stored.get("images") is None else ImageSet.from_dict(stored["images"], where)
        return cls(images=images, view=view, first_sha256=first)

    def refuse_others(self, labels: "FittedOn", prior: ImagePrior, where: str | PathLike[str]) -> list[str]:
        """Refuse labels of other images, or of views of another size, than those of the fit.

        Args:
            labels: images and views of the labels to be coded.
            prior: of the fitted codec.
            where: path of the labels, for messages.

        Returns:
            Notes, in sentences, on what cannot be checked.

        Raises:
            UsageError: images or views differ; the message names both.
        """
        if self.first_sha256 is not None and self.first_sha256 == labels.first_sha256:
            return []
        notes = [self._refuse_images(labels, prior, where), self._refuse_view(labels, prior, where)]
        return [note for note in notes if note is not None]

    def refuse_edge(self, edge: int, batches: int, prior: ImagePrior, where: str | PathLike[str]) -> None:
        """Refuse boxes of views of another size, if the labels do not record the size.

        Args:
            edge: largest edge of the boxes of `batches` batches, in pixels.

        Raises:
            UsageError: the edge exceeds the fit's views, or is smaller after MIN_EDGE_BATCHES batches.
        """
        limit = self.view or (prior.view if "box" in prior.fields else None)
        if limit is not None and (edge > limit or (edge < limit and batches >= MIN_EDGE_BATCHES)):
            raise UsageError(
                f"{where}: boxes end at {edge} pixels of a view; the codec's prior was fitted on views of {limit}: {REMEDY}"
            )

    def _refuse_images(self, labels: "FittedOn", prior: ImagePrior, where: str | PathLike[str]) -> str | None:
        if labels.images is not None and labels.images.count != prior.images:
            raise UsageError(
                f"{where}: {labels.images.count} images; the codec's prior has {prior.images}, those that it was fitted on: {REMEDY}"
            )
        if self.images is not None and labels.images is not None:
            return self.images.require_same(where, labels.images, of="the labels that the codec was fitted to", remedy=REMEDY)
        return f"{where}: the codec's prior is for the {prior.images} images that it was fitted on, and whether these are the same cannot be checked"

    def _refuse_view(self, labels: "FittedOn", prior: ImagePrior, where: str | PathLike[str]) -> str | None:
        largest_edge = prior.view if "box" in prior.fields else 1  # of a box in the fit
        if labels.view is None:
            return None
        if labels.view < largest_edge or self.view not in (None, labels.view):
            raise UsageError(
                f"{where}: views of {labels.view} pixels; the codec's prior was fitted on views of {self.view or largest_edge}: {REMEDY}"
            )
        if self.view is None and labels.view > largest_edge > 1:
            return f"{where}: views of {labels.view} pixels; the codec's prior was fitted on boxes that end at {largest_edge}, so its views may have been smaller"
        return None


def digest_of(batch: LabelBatch) -> str:
    """sha256 of a batch's images and labels."""
    digest = hashlib.sha256(b"" if batch.image is None else np.ascontiguousarray(batch.image, "<i8").tobytes())
    hash_labels(digest, batch.labels)
    return digest.hexdigest()
