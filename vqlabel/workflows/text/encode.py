"""Documents and their labels -> fields, a group of documents at a time on every core; and fields -> a `.vql`."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.codecs.documents import DocumentCodec
from vqlabel.labels.text.documents import Documents
from vqlabel.labels.text.source import TextDocument
from vqlabel.vql.text.streams import Fields
from vqlabel.vql.text.writer import TextVqlWriter
from vqlabel.workflows.parallel import in_parallel
from vqlabel.workflows.text.open import OpenedText

GROUP_TOKENS = 2048  # of documents that are encoded together; a longer document is encoded alone


def group_sizes(lengths: Iterable[int]) -> Iterator[int]:
    """Numbers of successive documents that are encoded together, from the tokens of each document."""
    count = tokens = 0
    for length in lengths:
        count, tokens = count + 1, tokens + length
        if tokens >= GROUP_TOKENS:
            yield count
            count = tokens = 0
    if count:
        yield count


def encode_documents(
    opened: OpenedText, codec: DocumentCodec, *, first: int = 0, device: str = "cpu"
) -> Iterator[tuple[list[TextDocument], list[Fields]]]:
    """Yield groups of documents from `first` on, with the fields [n, f] of the labels of each document.

    Args:
        first: begins a group.
        device: where the labels are encoded.
    """
    source, on_device = opened.source, opened.to(device)
    documents = source.read_many(np.arange(len(source)), first)
    groups = (list(islice(documents, size)) for size in group_sizes(source.lengths[first:].tolist()))
    with _codec_on(codec, device):
        yield from in_parallel(groups, lambda group: _encode(on_device, codec, group, device), device)


@contextmanager
def _codec_on(codec: DocumentCodec, device: str) -> Iterator[None]:
    """Move the codec to `device` within a context."""
    home = next(chain(codec.parameters(), codec.buffers())).device
    codec.to(device)
    try:
        yield
    finally:
        codec.to(home)


def _encode(opened: OpenedText, codec: DocumentCodec, documents: list[TextDocument], device: str) -> list[Fields]:
    """Fields [n, f] of the labels of each document."""
    texts, labels = Documents.of([document.tokens for document in documents]), opened.labels(documents, device)
    fields = codec.encode(labels, texts).cpu().numpy().view(np.uint32)
    return np.split(fields, np.cumsum(texts.lengths - 1)[:-1])


def write_labels(
    labels: Iterable[tuple[bytes, NDArray[np.unsignedinteger]]],
    codec: DocumentCodec,
    out: str | PathLike[str],
    dtype: str,
    text: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write a `.vql`.

    Args:
        labels: of each document: the hash of its tokens, and the fields [n, f] of its labels.
        dtype: of the dump's rows.
        text: fields of `vql.text`: tokenizer, teacher and head.

    Returns:
        `bytes` of the file, its `documents` and `labels`.

    Raises:
        TargetExists: `out` exists and `overwrite` is false.
    """
    with TextVqlWriter(out, codec.config, overwrite=overwrite) as writer:
        for token_hash, fields in labels:
            writer.add(token_hash, fields)
        label = {"classes": codec.config.classes, "domain": codec.config.domain, "dtype": dtype}
        tensors = {name: tensor.numpy() for name, tensor in codec.decoder_tensors().items()}
        size = writer.finish(label, {**text, "shift": 1}, tensors)
    return {"bytes": size, "documents": writer.documents, "labels": writer.rows}
