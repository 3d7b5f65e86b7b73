"""A dump of documents -> a `.vql`."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from os import PathLike
from typing import Any, Unpack

from vqlabel.codecs.documents import DocumentCodec
from vqlabel.codecs.file import load_stored_codec
from vqlabel.codecs.file import save_codec as write_codec
from vqlabel.codecs.hidden_labels import OutputHead
from vqlabel.codecs.sparse.codec import SparseCodec
from vqlabel.codecs.sparse.documents import SparseDocuments
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.codecs.token_vqae.fit.price import rate_between
from vqlabel.config import TextFitConfig
from vqlabel.errors import UsageError
from vqlabel.labels.text.documents import token_hash
from vqlabel.labels.text.source import TextDocument, TextSource
from vqlabel.progress import Progress, noted, silent
from vqlabel.storage.apart import check_apart
from vqlabel.storage.formats import VQL
from vqlabel.storage.targets import check_target
from vqlabel.type_checks import check_argument_types
from vqlabel.vql.text.file import TextVqlFile
from vqlabel.vql.text.streams import Fields
from vqlabel.workflows.config_options import TextFitOptions, config_of
from vqlabel.workflows.pack import check_saved_codec
from vqlabel.workflows.run_state import RunState
from vqlabel.workflows.text.encode import encode_documents, write_labels
from vqlabel.workflows.text.file_size import DumpSize
from vqlabel.workflows.text.fit import code_bits_of, fit_opened
from vqlabel.workflows.text.fit_sparse import check_sparse
from vqlabel.workflows.text.open import OpenedText, open_text_dump
from vqlabel.workflows.text.tune import TextGoal, tune_opened


@check_argument_types
def pack_text(
    dump: str | PathLike[str] | TextSource,
    out: str | PathLike[str],
    config: TextFitConfig | None = None,
    *,
    head: str | PathLike[str] | None = None,
    codec: DocumentCodec | str | PathLike[str] | None = None,
    kl: float | None = None,
    save_codec: str | PathLike[str] | None = None,
    tokenizer: str | PathLike[str] | None = None,
    layer: int | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress = silent,
    **options: Unpack[TextFitOptions],
) -> dict[str, Any]:
    """Encode the labels of documents into a `.vql`; fit a codec first unless one is given. This is `vqlabel pack`.

    The state of an unfinished fit, and then the fitted codec, are kept beside the output as `<out>.state`, and the same
    call continues from there: see `fit_text`.

    Args:
        dump: a path for `open_text_labels`, or a source.
        config: of the codec to fit, or the rate at which a fitted codec is used.
        head: the teacher's output head, a path for `open_head`.
        codec: a fitted codec or the path of its file; None: fit one.
        kl: fit the smallest codec with this held-out KL, as `tune_text` does.
        save_codec: file to write the fitted codec to.
        restart: discards the state of an interrupted run.
        tokenizer: the teacher's, a path for `tokenizer_identity`; its hash is recorded.
        layer: of hidden states of several layers, the one to read; None: the last.

    Returns:
        `labels`, `documents` and `bytes` of the file, `code_bits` per label, `repeated` documents that were left out;
        `fit`, the report of the codec's fit, whose `held_out` is the rate that was used, and which names the
        `codec_file` if one was given; `missed`, a sentence, if `kl` was not reached; `notes`.

    Raises:
        UsageError: the head is missing or another one than the codec's; or the state is of another run.
        BadLabels: the dump is malformed, or its rows belong to other tokens.
        TargetExists: `out` or `save_codec` exists and `overwrite` is false.
    """
    config = config_of(TextFitConfig, config, options)
    check_target(out, VQL, overwrite=overwrite)
    path = dump.path if isinstance(dump, TextSource) else dump
    check_apart(out, path, beside=(head, tokenizer, None if isinstance(codec, DocumentCodec) else codec))
    goal = _goal(config, codec, kl)
    if save_codec is not None:
        check_saved_codec(save_codec, out, codec is not None, (path, head, tokenizer), overwrite=overwrite)
    state = RunState(out if codec is None else None, restart=restart)
    opened = open_text_dump(dump, head, tokenizer=tokenizer, layer=layer)
    if codec is not None:
        fitted, report = fitted_codec(opened, codec, config)
    elif goal is not None:
        fitted, report = tune_opened(opened, goal, config, state, progress=progress)
    else:
        fitted, report = fit_opened(opened, config, state, progress=progress)
    encoded = encode_documents(opened, fitted, device=config.device)
    labels = _distinct(encoded, len(opened.source), progress)
    result = write_labels(labels, fitted, out, opened.source.about.dtype, opened.about, overwrite=overwrite)
    if save_codec is not None:
        write_codec(fitted, save_codec, report, overwrite=overwrite)
    state.remove()
    result["repeated"] = int((opened.source.lengths > 1).sum()) - result["documents"]
    missed = {"missed": report["missed"]} if goal is not None and "missed" in report else {}
    of_fit = report.get("notes", ()) if goal is not None else ()
    notes = noted(list(dict.fromkeys([*opened.source.notes, *of_fit, *_size_notes(result, opened)])))
    return {"path": str(out), **result, "code_bits": TextVqlFile(out).label_bits, "fit": report, **missed, **notes}


def _goal(config: TextFitConfig, codec: object, kl: float | None) -> TextGoal | None:
    """The goal of a search for a codec; None: none. Raises UsageError if `kl` contradicts other options."""
    if kl is None:
        return None
    if codec is not None:
        name = f"codec {codec.kind}" if isinstance(codec, DocumentCodec) else codec
        raise UsageError(f"--kl {kl:g}: {name} is already fitted; remove --kl, or leave out --codec")
    return TextGoal(kl=kl, bits=config.bits, bytes=config.bytes, ratio=config.ratio)


def _size_notes(result: dict[str, Any], opened: OpenedText) -> list[str]:
    """A note if the file is larger than the rows of the dump."""
    about = opened.source.about
    rows = result["labels"] * about.width * (4 if about.dtype == "F32" else 2)
    if about.domain == "topk" or result["bytes"] <= rows:
        return []
    why = "for so few labels the codec takes most; --no-prior, a lower --latent or --reference-head make it smaller"
    return [f"the file has {result['bytes']:,} bytes, the rows of the dump {rows:,}: {why}"]


def fitted_codec(
    opened: OpenedText, codec: DocumentCodec | str | PathLike[str], config: TextFitConfig
) -> tuple[DocumentCodec, dict[str, Any]]:
    """A codec, or that of a file, at the rate of `config` if it names one, with its head; and the report of its fit.

    Raises:
        UsageError: the codec is for other labels, or was fitted for another head; or it does not have this rate.
    """
    report: dict[str, Any] = {}
    if not isinstance(codec, DocumentCodec):
        path = codec
        codec, report = load_text_codec(path, opened.about["head"].get("sha256"))
        report["codec_file"] = str(path)
    if isinstance(codec, TokenVqae) and opened.head is not None:
        return _at_rate(opened, opened.head, codec, report, config)
    if isinstance(codec, SparseDocuments) and opened.head is None:
        check_sparse(opened, codec, config)
        return codec, report
    what = "top-k labels" if opened.head is None else "hidden states or logits"
    raise UsageError(f"codec {codec.kind} does not code the labels of {opened.source.path}, {what}: fit one to this dump")


def _at_rate(
    opened: OpenedText, head: OutputHead, codec: TokenVqae, report: dict[str, Any], config: TextFitConfig
) -> tuple[TokenVqae, dict[str, Any]]:
    """A codec with its head, at the rate of `config` if it names one."""
    codec.check_head(head)
    if codec.config.head == "referenced":
        codec.attach(head)
    if config.bits is not None or config.bytes is not None or config.ratio is not None:
        rate = rate_between(report.get("rates", []), code_bits_of(config, codec, DumpSize.of(opened.source)))
        codec, report = codec.with_config(replace(codec.config, price=rate.price)), {**report, "held_out": rate.to_dict()}
    return codec, report


def load_text_codec(path: str | PathLike[str], head_sha256: str | None) -> tuple[DocumentCodec, dict[str, Any]]:
    """Read a codec file. Returns the codec, and the report of its fit.

    Raises:
        UsageError: it is for labels of images, or was fitted for another head.
    """
    codec, report = load_stored_codec(path)
    if isinstance(codec, SparseCodec) and codec.config.domain == "probs":
        codec = SparseDocuments(codec)
    if not isinstance(codec, DocumentCodec):
        raise UsageError(f"{path}: its codec, {codec.kind}, is for labels of images; fit one to this dump")
    fitted_for = report.get("head", {}).get("sha256")
    if fitted_for is not None and head_sha256 not in (None, fitted_for):
        raise UsageError(f"{path}: was fitted for a head with sha256 {fitted_for}; the head that was passed has {head_sha256}")
    return codec, report


def _distinct(
    encoded: Iterable[tuple[list[TextDocument], list[Fields]]], total: int, progress: Progress
) -> Iterator[tuple[bytes, Fields]]:
    """The hash and the fields of each document that has labels; of documents with the same tokens, of the first."""
    seen, done = set[bytes](), 0
    for documents, fields in encoded:
        for document, own in zip(documents, fields, strict=True):
            key = token_hash(document.tokens)
            if len(own) and key not in seen:
                seen.add(key)
                yield key, own
        done += len(documents)
        progress("encoding", done, total, {})
