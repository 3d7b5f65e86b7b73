"""Documents and their labels -> fields, a group of documents at a time on every core; and fields -> a `.vql`."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqlabel.codecs.hidden_labels import HiddenLabels, OutputHead
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.labels.text.documents import Documents
from vqlabel.labels.text.source import TextDocument, TextSource
from vqlabel.vql.text.streams import Fields
from vqlabel.vql.text.writer import TextVqlWriter
from vqlabel.workflows.parallel import in_parallel

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
    source: TextSource, head: OutputHead, codec: TokenVqae, *, first: int = 0, device: str = "cpu"
) -> Iterator[tuple[list[TextDocument], list[Fields]]]:
    """Yield groups of documents from `first` on, with the fields [n, f] of the labels of each document.

    Args:
        first: begins a group.
        device: where the labels are encoded.
    """
    documents = source.read_many(np.arange(len(source)), first)
    groups = (list(islice(documents, size)) for size in group_sizes(source.lengths[first:].tolist()))
    with _codec_on(codec, device):
        on_device = head.to(device)
        yield from in_parallel(groups, lambda group: _encode(codec, on_device, group, device), device)


@contextmanager
def _codec_on(codec: TokenVqae, device: str) -> Iterator[None]:
    """Move the codec to `device` within a context."""
    home = codec.decoder.bias.device
    codec.to(device)
    try:
        yield
    finally:
        codec.to(home)


def _encode(codec: TokenVqae, head: OutputHead, documents: list[TextDocument], device: str) -> list[Fields]:
    """Fields [n, f] of the labels of each document."""
    rows = [np.asarray(document.rows) for document in documents]
    labels = HiddenLabels(hidden=torch.from_numpy(np.concatenate(rows)).to(device), head=head)
    fields = codec.encode(labels, Documents.of([document.tokens for document in documents])).cpu().numpy().view(np.uint32)
    return np.split(fields, np.cumsum([len(part) for part in rows])[:-1])


def write_labels(
    labels: Iterable[tuple[bytes, NDArray[np.unsignedinteger]]],
    codec: TokenVqae,
    out: str | PathLike[str],
    dtype: str,
    text: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write a `.vql`.

    Args:
        labels: of each document: the hash of its tokens, and the fields [n, f] of its labels.
        dtype: of the hidden states.
        text: fields of `vql.text`: tokenizer, teacher and head.

    Returns:
        `bytes` of the file, its `documents` and `labels`.

    Raises:
        TargetExists: `out` exists and `overwrite` is false.
    """
    with TextVqlWriter(out, codec.config, overwrite=overwrite) as writer:
        for token_hash, fields in labels:
            writer.add(token_hash, fields)
        label = {"classes": codec.config.classes, "domain": "hidden", "dtype": dtype}
        tensors = {name: tensor.numpy() for name, tensor in codec.decoder_tensors().items()}
        size = writer.finish(label, {**text, "shift": 1}, tensors)
    return {"bytes": size, "documents": writer.documents, "labels": writer.rows}
