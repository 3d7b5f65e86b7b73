"""A dump of documents -> a fitted codec and its report."""

import hashlib
from dataclasses import replace
from os import PathLike
from typing import Any, Unpack

import numpy as np
import torch

from vqlabel.codecs.documents import DocumentCodec
from vqlabel.codecs.file import save_codec
from vqlabel.codecs.sample import FitHooks
from vqlabel.codecs.sparse.codec import SparseCodec
from vqlabel.codecs.sparse.documents import SparseDocuments
from vqlabel.codecs.token_vqae.choose import Choices
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.codecs.token_vqae.fit.price import price_of, rate_at, rates
from vqlabel.codecs.token_vqae.fit.train import fit as fit_codec
from vqlabel.codecs.token_vqae.sample import TextSample
from vqlabel.config import DEFAULT_TEXT_BITS, TextFitConfig
from vqlabel.errors import UsageError
from vqlabel.labels.text.source import TextSource
from vqlabel.metrics.factored import chunk_rows
from vqlabel.metrics.references import TextReferences
from vqlabel.progress import Progress, noted, silent
from vqlabel.storage.formats import CODEC
from vqlabel.storage.targets import check_target
from vqlabel.type_checks import check_argument_types
from vqlabel.workflows.config_options import TextFitOptions, config_of
from vqlabel.workflows.run_state import RunState
from vqlabel.workflows.text.file_size import DumpSize
from vqlabel.workflows.text.fit_sparse import fit_sparse
from vqlabel.workflows.text.open import OpenedText, open_text_dump
from vqlabel.workflows.text.sample import read_text_sample

HEADER_BYTES = 1 << 14  # of a file, with its seal
BASELINE_LABELS, BASELINE_NUMBERS = 4096, 1 << 27  # held-out labels that baselines are measured on, and their numbers
OVERHEAD = 0.01  # of chunk tables, padding and the table of documents, relative to codes


@check_argument_types
def fit_text(
    dump: str | PathLike[str] | TextSource,
    config: TextFitConfig | None = None,
    *,
    head: str | PathLike[str] | None = None,
    layer: int | None = None,
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress = silent,
    **options: Unpack[TextFitOptions],
) -> tuple[DocumentCodec, dict[str, Any]]:
    """Fit a codec to the labels of documents; some documents are held out.

    It is `token_vqae` for hidden states and logits, and `sparse` for top-k labels.

    Args:
        dump: a path for `open_text_labels`, or a source.
        head: the teacher's output head, a path for `open_head`.
        layer: of hidden states of several layers, the one to read; None: the last.
        out: codec file to write; the state of an unfinished fit is kept beside it as `<out>.state`, and the same call
            continues from there. With the same number of threads on the same machine, the result equals that of an
            uninterrupted fit, byte for byte.
        restart: discards that state.

    Returns:
        The codec, and a report: the configuration; `rates`, price, bits and held-out KL of the rates that it can be
        packed at; `held_out`, the rate that was asked for; `baselines`, of hidden states and logits, see
        `with_baselines`.

    Raises:
        UsageError: the head is missing or of another size; or the state is of another dump or configuration.
        BadLabels: the dump has fewer than 2 documents, or is malformed.
        TargetExists: `out` exists and `overwrite` is false; or another file has the name of the state.
    """
    config = config_of(TextFitConfig, config, options)
    if out is not None:
        check_target(out, CODEC, overwrite=overwrite)
    state = RunState(out, restart=restart)
    opened = open_text_dump(dump, head, layer=layer)
    codec, report = fit_opened(opened, config, state, progress=progress)
    if out is not None:
        save_codec(codec, out, report, overwrite=overwrite)
    state.remove()
    return codec, report


def fit_opened(
    opened: OpenedText, config: TextFitConfig, state: RunState | None = None, *, progress: Progress = silent
) -> tuple[DocumentCodec, dict[str, Any]]:
    """As `fit_text`, for a dump that is open.

    Args:
        state: keeps the codec at the end; begun here by the labels of the sample unless the caller has begun it. The
            fit to top-k labels takes seconds, and has none.
    """
    state = state or RunState(None)
    if state.begun and (kept := kept_codec(state, opened)) is not None:
        return kept
    source = opened.source
    if opened.head is None:
        return fit_sparse(opened, config, progress=progress)
    if not config.embed_head and not opened.about["head"]:
        raise UsageError(f"--reference-head: must be left out: {source.path} holds logits, and their head is made by the fit")
    sample = read_text_sample(opened, config.labels, config.seed, progress)
    if not state.begun:
        state.begin(settings_of(opened, sample, config))
        if (kept := kept_codec(state, opened)) is not None:
            return kept
    codec, report = fit_sample(sample, config, size=DumpSize.of(source), state=state, progress=progress)
    report |= {"head": opened.about["head"], **noted(source.notes)}
    state.keep_codec(codec, report)
    return codec, report


def settings_of(opened: OpenedText, sample: TextSample, config: TextFitConfig) -> dict[str, Any]:
    """What a fit depends on: its configuration, the head, and the documents and labels of the training split."""
    digest, train = hashlib.sha256(), sample.train
    digest.update(np.ascontiguousarray(train.documents.tokens).data)
    digest.update(train.labels.hidden.contiguous().view(torch.uint8).numpy().data)
    sampled = f"{len(train.labels)} labels with sha256 {digest.hexdigest()[:16]}"
    total = int(opened.source.lengths.sum())
    return {**config.to_dict(), "head": opened.about["head"].get("sha256"), "dump": f"{total} tokens, of which {sampled}"}


def kept_codec(state: RunState, opened: OpenedText) -> tuple[DocumentCodec, dict[str, Any]] | None:
    """The codec of an interrupted run, with its head, and the report of its fit; None: the run has none."""
    if (kept := state.codec()) is None:
        return None
    codec, report = kept
    if isinstance(codec, SparseCodec):
        return SparseDocuments(codec), report
    if codec.config.head == "referenced" and opened.head is not None:
        codec.attach(opened.head)
    return codec, report


def fit_sample(
    sample: TextSample,
    config: TextFitConfig,
    *,
    size: DumpSize | None = None,
    state: RunState | None = None,
    progress: Progress = silent,
) -> tuple[TokenVqae, dict[str, Any]]:
    """As `fit_text`, for a sample that is in memory.

    Args:
        size: of the whole dump, over which a budget is divided; None: that of the sample.
        state: of the run that this fit belongs to.
    """
    codec, choices = fit_and_choose(sample, config, (state or RunState(None)).fit_hooks(progress))
    size = size or DumpSize(
        len(sample.train.labels) + len(sample.held_out.labels), len(sample.train.documents) + len(sample.held_out.documents)
    )
    price = price_of(choices, codec.config, code_bits_of(config, codec, size))
    codec, report = at_price(codec, choices, sample, config, price)
    return codec, with_baselines(report, codec, sample, size.labels)


def fit_and_choose(sample: TextSample, config: TextFitConfig, hooks: FitHooks) -> tuple[TokenVqae, Choices]:
    """Fit a codec on `config.device`. Returns it, and its choices for the held-out labels; both on the CPU."""
    sample = sample.to(config.device)
    codec = fit_codec(sample, config, hooks)
    choices = codec.choices(sample.held_out.labels, sample.held_out.documents)
    codec.to("cpu")
    return codec, Choices(*(tensor.cpu() for tensor in choices))


def at_price(
    codec: TokenVqae, choices: Choices, sample: TextSample, config: TextFitConfig, price: float
) -> tuple[TokenVqae, dict[str, Any]]:
    """A fitted codec at a price, and the report of its fit.

    Args:
        choices: of the held-out labels.
    """
    codec = codec.with_config(replace(codec.config, price=price))
    report = {
        "codec": codec.kind,
        "config": codec.config.to_dict(),
        "fit": config.to_dict(),
        "labels": {"train": len(sample.train.labels), "held_out": len(sample.held_out.labels)},
        "held_out": rate_at(choices, codec.config, price).to_dict(),
        "rates": [rate.to_dict() for rate in rates(choices, codec.config)],
    }
    return codec, report


def with_baselines(report: dict[str, Any], codec: TokenVqae, sample: TextSample, labels: int) -> dict[str, Any]:
    """The report of a fit, with the KL of one mean label and of top-k in as many bytes, and what that says.

    Args:
        labels: of the whole dump, over which the codec's bytes are divided.
    """
    held_out = sample.held_out.labels
    count = max(1, min(len(held_out), BASELINE_LABELS, BASELINE_NUMBERS // codec.config.classes))
    rows = torch.arange(count) * len(held_out) // count
    fixed = 8 * sum(tensor.nbytes for tensor in codec.decoder_tensors().values()) / max(1, labels)
    references = TextReferences(report["held_out"]["bits"] + fixed)
    for part in rows.split(chunk_rows(codec.config.classes)):
        references.add(held_out.logits(part))
    return {**report, "baselines": references.judged(report["held_out"]["kl"])}


def code_bits_of(config: TextFitConfig, codec: TokenVqae, size: DumpSize) -> float:
    """Code bits per label that `config` asks for, or that a budget leaves beside codec and table of documents.

    Raises:
        UsageError: these alone exceed the budget.
    """
    budget = size.budget(config.bytes, config.ratio, codec.config.classes)
    if budget is None:
        return DEFAULT_TEXT_BITS if config.bits is None else config.bits
    fixed = size.fixed_bytes(codec)
    if budget < fixed:
        raise UsageError(
            f"a budget of {budget:,} bytes for {size.labels:,} labels: codec and table of documents alone take {fixed:,}; allow more, name "
            "the head with --reference-head so that the file does not contain it, or lower --latent"
        )
    return size.bits_left(budget, fixed)
