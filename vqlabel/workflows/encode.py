"""Labels -> codes, on all cores or on a device; and checks that a codec fits the labels of a dump."""

import itertools
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vqlabel.codecs import LabelCodec
from vqlabel.codecs.fitted_on import FittedOn, digest_of
from vqlabel.errors import UsageError
from vqlabel.labels import Context, LabelBatch, LabelSource, SparseLabels
from vqlabel.labels.sparse import Labels, as_dense, concatenate
from vqlabel.vql.seeded import known_views
from vqlabel.workflows.parallel import in_parallel

ENCODE_RECORDS, ENCODE_BYTES = 2048, 32 << 20  # labels encoded together, at most: records, and bytes of float32
Codes = NDArray[np.unsignedinteger]  # [n, m]


@contextmanager
def codec_on(codec: LabelCodec, effort: str, device: str) -> Iterator[None]:
    """Move the codec to `device` and set its effort within a context; restore both at its end."""
    effort_before, weight = codec.effort, next(itertools.chain(codec.parameters(), codec.buffers()), None)
    home = "cpu" if weight is None else weight.device
    try:
        codec.set_effort(effort)
        codec.to(device)
        yield
    finally:
        codec.set_effort(effort_before)
        if weight is not None:
            codec.to(home)


def check_codec(codec: LabelCodec, source: LabelSource) -> None:
    """Raises UsageError unless `codec` fits the classes, the domain and, if it is exact, the dtype of `source`."""
    config = codec.config
    if config.classes != source.classes:
        raise UsageError(
            f"{source.path} has {source.classes} classes, the codec was fitted for {config.classes}; fit one on this dump"
        )
    if config.domain != source.domain:
        raise UsageError(f"{source.path} has {source.domain}, the codec was fitted for {config.domain}; fit one on this dump")
    dtype = config.exact_dtype
    if dtype not in (None, source.dtype):
        raise UsageError(
            f"{source.path} is {source.dtype}, the {codec.kind} codec was fitted for {dtype}; fit one on this dump (this codec trains nothing)"
        )


def describe_fit(source: LabelSource) -> FittedOn:
    """Images, view size and digest of a dump's labels; a codec keeps them to recognise labels it was not fitted to."""
    images, view = known_views(source)
    return FittedOn(images=images, view=view, first_sha256=digest_of(source.read(0)) if len(source) else None)


def check_fitted_on(codec: LabelCodec, labels: FittedOn, where: Path) -> list[str]:
    """Check that a codec's prior was fitted to the images and the view size of these labels.

    Args:
        where: path of the labels, for messages.

    Returns:
        Notes on properties that are unknown and so were not compared.

    Raises:
        UsageError: images or view size differ; the message has both.
    """
    prior = codec.config.image_prior
    return [] if prior is None else codec.fitted_on.refuse_others(labels, prior, where)


def spans_of(source: LabelSource) -> list[range]:
    """The spans of a dump's batches that are encoded together."""
    return source.spans(_max_records(source))


def encoded(
    source: LabelSource, codec: LabelCodec, device: str, spans: Sequence[range]
) -> Generator[tuple[range, list[LabelBatch], Codes], None, None]:
    """Yield (indices of batches, the batches, their codes) for the spans in the given order; a long span in parts."""
    groups = itertools.chain.from_iterable(_groups(source, span) for span in spans)
    for (indices, batches), codes in in_parallel(groups, lambda group: encode(codec, group[1], device), device):
        yield indices, batches, codes


def _max_records(source: LabelSource) -> int:
    """Records that are encoded together, at most: bounds memory."""
    return max(1, min(ENCODE_RECORDS, ENCODE_BYTES // (4 * source.classes)))


def _groups(source: LabelSource, span: range) -> Iterator[tuple[range, list[LabelBatch]]]:
    """The batches of a span; in several groups if they have many more records than the first batch told."""
    group: list[LabelBatch] = []
    for index in span:
        group.append(source.read(index))
        if sum(map(len, group)) >= _max_records(source) or index + 1 == span.stop:
            yield range(index + 1 - len(group), index + 1), group
            group = []


def encode(codec: LabelCodec, batches: list[LabelBatch], device: str, views: torch.Tensor | None = None) -> Codes:
    """Encode the records of some batches to [n, m] uint32 codes.

    Sparse labels become dense ones [n, C] only for codecs that take no others.

    Args:
        views: [n, 3, h, w] float32 in 0..1, the pixels that the teacher saw, for codecs that need them.

    Raises:
        UsageError: the codec needs the views, but `views` is None.
    """
    if "views" in codec.needs and views is None:
        raise UsageError(
            f"codec {codec.kind} needs the pixels of the views, which a dump does not have: label images with `vqlabel relabel`"
        )
    parts = [batch.labels if codec.takes_sparse else as_dense(batch.labels) for batch in batches]
    labels = to_tensors(concatenate(parts), device)
    side = replace(Context.join([batch.context() for batch in batches]), views=views) if codec.needs else None
    return codec.encode(labels, side).cpu().numpy().view(np.uint32)


def to_tensors(labels: Labels, device: str = "cpu") -> torch.Tensor | SparseLabels:
    """Labels of NumPy arrays -> the same of tensors on `device`."""
    if isinstance(labels, SparseLabels):
        return labels.map(lambda array: torch.from_numpy(array).to(device))
    return torch.from_numpy(labels).to(device)
