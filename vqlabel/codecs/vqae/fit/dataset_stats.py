"""Properties of a dump that determine the sizes of a codec."""

from dataclasses import dataclass

from vqlabel.codecs.sample import LabelSample
from vqlabel.codecs.vqae.prior import describe_context


@dataclass(frozen=True, kw_only=True)
class DatasetStats:
    """Properties of a dump that determine the sizes of a codec."""

    labels: int  # in the whole dump
    train_labels: int
    classes: int
    domain: str
    images: int  # 0: the records have no image indices
    fields: tuple[str, ...]  # of the context that the prior can use
    view: int  # pixels along a view


def dataset_stats(sample: LabelSample) -> DatasetStats:
    """The properties of the dump that `sample` is drawn from."""
    fields, images, view = ((), 0, 1) if sample.train_context is None else describe_context(sample.train_context)
    if sample.held_out_context is not None:
        images = max(images, describe_context(sample.held_out_context)[1]) if images else 0
    total = sample.total or len(sample.train) + len(sample.held_out)
    return DatasetStats(
        labels=total,
        train_labels=len(sample.train),
        classes=sample.classes,
        domain=sample.domain,
        images=images,
        fields=fields,
        view=view,
    )
