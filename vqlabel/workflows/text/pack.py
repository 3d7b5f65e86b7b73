"""A dump of documents -> a `.vql`."""

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch

from vqlabel.codecs.hidden_labels import HiddenLabels, OutputHead
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.labels.text.documents import Documents, token_hash
from vqlabel.labels.text.source import TextDocument, TextSource
from vqlabel.progress import Progress, silent
from vqlabel.vql.text.streams import Fields
from vqlabel.vql.text.writer import TextVqlWriter
from vqlabel.workflows.parallel import in_parallel

GROUP_TOKENS = 2048  # of documents that are encoded together; a longer document is encoded alone


def write_documents(
    source: TextSource,
    head: OutputHead,
    codec: TokenVqae,
    out: str | PathLike[str],
    about: Mapping[str, Any],
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, int]:
    """Encode all documents of a dump into a file. A document that occurs again, with the same tokens, is stored once.

    Args:
        about: further fields of `vql.text`, such as the tokenizer.

    Returns:
        `bytes` of the file, its `documents` and `labels`; `repeated`, documents that were left out.

    Raises:
        TargetExists: `out` exists and `overwrite` is false.
        BadLabels: see `TextSource.read`.
    """
    seen: set[bytes] = set()
    with TextVqlWriter(out, codec.config, overwrite=overwrite) as writer:
        done = repeated = 0
        for documents, fields in in_parallel(_groups(source), lambda group: _encode(codec, head, group), "cpu"):
            for document, own in zip(documents, fields, strict=True):
                done += 1
                key = token_hash(document.tokens)
                repeated += key in seen
                if len(own) and key not in seen:
                    seen.add(key)
                    writer.add(key, own)
            progress("encoding", done, len(source), {})
        label = {"classes": codec.config.classes, "domain": "hidden", "dtype": source.about.dtype}
        text = {"tokenizer": dict(source.about.tokenizer), "teacher": dict(source.about.teacher), "head": {}, "shift": 1, **about}
        size = writer.finish(label, text, {name: tensor.numpy() for name, tensor in codec.decoder_tensors().items()})
    return {"bytes": size, "documents": writer.documents, "labels": writer.rows, "repeated": repeated}


def _groups(source: TextSource) -> Iterator[list[TextDocument]]:
    """Documents of about GROUP_TOKENS tokens at a time."""
    group: list[TextDocument] = []
    for document in source:
        group.append(document)
        if sum(len(one.tokens) for one in group) >= GROUP_TOKENS:
            yield group
            group = []
    if group:
        yield group


def _encode(codec: TokenVqae, head: OutputHead, documents: list[TextDocument]) -> list[Fields]:
    """Fields [n, f] of the labels of each document."""
    rows = [np.asarray(document.rows) for document in documents]
    labels = HiddenLabels(hidden=torch.from_numpy(np.concatenate(rows)), head=head)
    fields = codec.encode(labels, Documents.of([document.tokens for document in documents])).numpy().view(np.uint32)
    return np.split(fields, np.cumsum([len(one) for one in rows])[:-1])
