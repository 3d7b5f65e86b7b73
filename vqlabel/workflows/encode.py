"""Labels -> codes, on every core or on a device, and whether a codec may code the labels of a dump."""

import itertools
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vqlabel.codecs import LabelCodec
from vqlabel.codecs.fitted_on import FittedOn, digest_of
from vqlabel.errors import UsageError
from vqlabel.labels import Context, LabelBatch, LabelSource
from vqlabel.threads import worker_count
from vqlabel.vql.seeded import known_views

ENCODE_RECORDS, ENCODE_BYTES = 2048, 32 << 20  # labels encoded together, at most: records, and bytes as float32
SWITCH_SECONDS = 1e-4  # unpickling holds the interpreter; at Python's 5 ms every operation of the encoders would wait for it
Codes = NDArray[np.unsignedinteger]  # [n, m]


@contextmanager
def codec_on(codec: LabelCodec, effort: str, device: str) -> Iterator[None]:
    """The codec on `device`, with `effort`, for the time of a context; afterwards it is as its owner left it."""
    before, weight = codec.effort, next(itertools.chain(codec.parameters(), codec.buffers()), None)
    home = "cpu" if weight is None else weight.device
    try:
        codec.set_effort(effort)
        codec.to(device)
        yield
    finally:
        codec.set_effort(before)
        if weight is not None:
            codec.to(home)


def check_codec(codec: LabelCodec, source: LabelSource) -> None:
    """Raises UsageError unless `codec` was fitted for labels such as `source` has."""
    config = codec.config
    if config.classes != source.classes:
        raise UsageError(
            f"{source.path} has {source.classes} classes, the codec was fitted for {config.classes}; fit one on this dump"
        )
    if config.domain != source.domain:
        raise UsageError(f"{source.path} holds {source.domain}, the codec was fitted for {config.domain}; fit one on this dump")
    dtype = config.exact_dtype
    if dtype not in (None, source.dtype):
        raise UsageError(
            f"{source.path} is {source.dtype}, the {codec.kind} codec {dtype}; fit one on this dump (it takes no time)"
        )


def describe_fit(source: LabelSource) -> FittedOn:
    """What is known of a dump's labels, by which other labels are told from them."""
    images, view = known_views(source)
    return FittedOn(images=images, view=view, first_sha256=digest_of(source.read(0)) if len(source) else None)


def check_fitted_on(codec: LabelCodec, labels: FittedOn, where: Path) -> list[str]:
    """Refuse a codec whose prior was fitted on other images, or views of another size, than the labels are of.

    Returns:
        Sentences on what cannot be told.

    Raises:
        UsageError: it was; names both sides.
    """
    prior = codec.config.image_prior
    return [] if prior is None else codec.fitted_on.refuse_others(labels, prior, where)


def encoded(source: LabelSource, codec: LabelCodec, device: str) -> Generator[tuple[int, list[LabelBatch], Codes], None, None]:
    """(batches read so far, the next batches of about ENCODE_RECORDS records, their codes), in order.

    On a CPU every worker encodes a group of its own with one thread: threads that share an operation wait for each other at its end,
    and for the reader too. So does the reader, whose second thread would spin on a worker's core.
    """
    workers = worker_count() if device == "cpu" else 1
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(SWITCH_SECONDS)
    torch.set_num_threads(1)
    waiting: deque[tuple[int, list[LabelBatch], Future[Codes]]] = deque()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for done, batches in _grouped(source):
                waiting.append((done, batches, pool.submit(encode, codec, batches, device)))
                while len(waiting) > workers + 1:
                    first, group, codes = waiting.popleft()
                    yield first, group, codes.result()
            while waiting:
                first, group, codes = waiting.popleft()
                yield first, group, codes.result()
        finally:
            sys.setswitchinterval(interval)
            torch.set_num_threads(threads)
            for _, _, unfinished in waiting:
                unfinished.cancel()


def _grouped(source: LabelSource) -> Iterator[tuple[int, list[LabelBatch]]]:
    most = max(1, min(ENCODE_RECORDS, ENCODE_BYTES // (4 * source.classes)))
    group: list[LabelBatch] = []
    for number, batch in enumerate(source):
        group.append(batch)
        if sum(map(len, group)) >= most or number + 1 == len(source):
            yield number + 1, group
            group = []


def encode(codec: LabelCodec, batches: list[LabelBatch], device: str, views: torch.Tensor | None = None) -> Codes:
    """[n, m] uint32 codes of the records of some batches.

    Args:
        views: [n, 3, h, w] float32 in 0..1, the pixels that the teacher saw, for codecs that need them.

    Raises:
        UsageError: the codec needs the views, and there are none.
    """
    if "views" in codec.needs and views is None:
        raise UsageError(
            f"codec {codec.kind} needs the pixels of the views, which a dump does not have: label images by `vqlabel relabel`"
        )
    labels = torch.from_numpy(np.concatenate([batch.labels for batch in batches])).to(device)
    side = replace(Context.join([batch.context() for batch in batches]), views=views) if codec.needs else None
    return codec.encode(labels, side).cpu().numpy().view(np.uint32)
