"""A dump of documents -> a `.vql`."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch

from vqlabel.codecs.file import load_stored_codec
from vqlabel.codecs.hidden_labels import HiddenLabels, OutputHead
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.codecs.token_vqae.fit.price import price_between
from vqlabel.config import TextFitConfig
from vqlabel.errors import UsageError
from vqlabel.labels.text.documents import Documents, token_hash
from vqlabel.labels.text.source import TextDocument, TextSource
from vqlabel.progress import Progress, noted, silent
from vqlabel.storage.apart import check_apart
from vqlabel.storage.formats import VQL
from vqlabel.storage.targets import check_target
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.text.file import TextVqlFile
from vqlabel.vql.text.streams import Fields
from vqlabel.vql.text.writer import TextVqlWriter
from vqlabel.workflows.parallel import in_parallel
from vqlabel.workflows.text.fit import code_bits_of, fit_opened
from vqlabel.workflows.text.open import OpenedText, open_text_dump

GROUP_TOKENS = 2048  # of documents that are encoded together; a longer document is encoded alone


@check_argument_types
def pack_text(
    dump: str | PathLike[str] | TextSource,
    out: str | PathLike[str],
    config: TextFitConfig | None = None,
    *,
    head: str | PathLike[str] | None = None,
    codec: TokenVqae | str | PathLike[str] | None = None,
    tokenizer: str | PathLike[str] | None = None,
    layer: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Encode the labels of documents into a `.vql`; fit a codec first unless one is given. This is `vqlabel pack`.

    Args:
        dump: a path for `open_text_labels`, or a source.
        config: of the codec to fit, or the rate at which a fitted codec is used.
        head: the teacher's output head, a path for `open_head`.
        codec: a fitted codec or the path of its file; None: fit one.
        tokenizer: the teacher's, a path for `tokenizer_identity`; its hash is recorded.
        layer: of hidden states of several layers, the one to read; None: the last.

    Returns:
        `labels`, `documents` and `bytes` of the file, `code_bits` per label, `repeated` documents that were left out;
        `fit`, the report of the codec's fit; `notes`.

    Raises:
        UsageError: the head is missing or another one than the codec's.
        BadLabels: the dump is malformed, or its rows belong to other tokens.
        TargetExists: `out` exists and `overwrite` is false.
    """
    check_target(out, VQL, overwrite=overwrite)
    check_apart(out, dump if not isinstance(dump, TextSource) else dump.path, beside=(head, tokenizer))
    opened = open_text_dump(dump, head, tokenizer=tokenizer, layer=layer)
    fitted, report = _codec_of(opened, codec, config or TextFitConfig(), progress)
    result = write_documents(opened.source, opened.head, fitted, out, opened.about, overwrite=overwrite, progress=progress)
    file = TextVqlFile(out)
    return {"path": str(out), **result, "code_bits": file.label_bits, "fit": report, **noted(opened.source.notes)}


def _codec_of(
    opened: OpenedText, codec: TokenVqae | str | PathLike[str] | None, config: TextFitConfig, progress: Progress
) -> tuple[TokenVqae, dict[str, Any]]:
    """The codec at the rate of `config`, with its head, and the report of its fit."""
    if codec is None:
        return fit_opened(opened, config, progress=progress)
    report: dict[str, Any] = {}
    if not isinstance(codec, TokenVqae):
        loaded, report = load_stored_codec(codec)
        if not isinstance(loaded, TokenVqae):
            raise UsageError(f"{codec}: its codec, {loaded.kind}, is for labels of images; fit one to this dump")
        codec = loaded
        fitted_for = report.get("head", {}).get("sha256")
        if fitted_for not in (None, opened.about["head"]["sha256"]):
            raise UsageError(
                f"{codec}: was fitted for a head with sha256 {fitted_for}; the head passed has {opened.about['head']['sha256']}"
            )
    codec.check_head(opened.head)
    if codec.config.head == "referenced":
        codec.attach(opened.head)
    if config.bits is not None or config.bytes is not None or config.ratio is not None:
        labels = int(np.maximum(opened.source.lengths - 1, 0).sum())
        price = price_between(report.get("rates", []), code_bits_of(config, codec, labels))
        codec = codec.with_config(replace(codec.config, price=price))
    return codec, report


def load_text_codec(path: str | PathLike[str], head_sha256: str | None) -> tuple[TokenVqae, dict[str, Any]]:
    """Read a codec file. Returns the codec, and the report of its fit.

    Raises:
        UsageError: it is for labels of images, or was fitted for another head.
    """
    codec, report = load_stored_codec(path)
    if not isinstance(codec, TokenVqae):
        raise UsageError(f"{path}: its codec, {codec.kind}, is for labels of images; fit one to this dump")
    fitted_for = report.get("head", {}).get("sha256")
    if head_sha256 != fitted_for:
        raise UsageError(f"{path}: was fitted for a head with sha256 {fitted_for}; the head that was passed has {head_sha256}")
    return codec, report


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
