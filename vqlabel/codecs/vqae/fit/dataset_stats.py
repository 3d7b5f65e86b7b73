"""Properties of a dump that determine the sizes of a codec."""

from dataclasses import dataclass

from vqlabel.codecs.sample import LabelSample
from vqlabel.codecs.vqae.prior import describe_context


@dataclass(frozen=True, kw_only=True)
class DatasetStats:
    """Properties of a dump that determine the sizes of a codec."""

    labels: int  # in the whole dump
    seen: int  # training labels
    classes: int
    domain: str
    images: int  # 0: the records have no image indices
    fields: tuple[str, ...]  # of the context that the prior can use
    view: int  # pixels along a view


def dataset_stats(sample: LabelSample) -> DatasetStats:
    """The properties of the dump that `sample` is drawn from."""
    fields, images, view = ((), 0, 1) if sample.seen_context is None else describe_context(sample.seen_context)
    if sample.held_context is not None:
        images = max(images, describe_context(sample.held_context)[1]) if images else 0
    total = sample.total or len(sample.seen) + len(sample.held)
    return DatasetStats(
        labels=total, seen=len(sample.seen), classes=sample.classes, domain=sample.domain, images=images, fields=fields, view=view
    )
