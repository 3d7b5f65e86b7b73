"""A dump of documents -> a fitted codec and its report."""

from dataclasses import replace
from os import PathLike
from typing import Any, Unpack

import numpy as np

from vqlabel.codecs.documents import DocumentCodec
from vqlabel.codecs.file import save_codec
from vqlabel.codecs.sample import FitHooks
from vqlabel.codecs.token_vqae.choose import Choices
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.codecs.token_vqae.fit.price import price_of, rate_at, rates
from vqlabel.codecs.token_vqae.fit.train import fit as fit_codec
from vqlabel.codecs.token_vqae.sample import TextSample
from vqlabel.config import DEFAULT_TEXT_BITS, TextFitConfig
from vqlabel.errors import UsageError
from vqlabel.labels.text.source import TextSource
from vqlabel.progress import Progress, noted, silent
from vqlabel.storage.formats import CODEC
from vqlabel.storage.targets import check_target
from vqlabel.type_checks import check_argument_types
from vqlabel.workflows.config_options import TextFitOptions, config_of
from vqlabel.workflows.text.fit_sparse import fit_sparse
from vqlabel.workflows.text.open import OpenedText, open_text_dump
from vqlabel.workflows.text.sample import read_text_sample

HEADER_BYTES = 1 << 14  # of a file, with its seal
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
    progress: Progress = silent,
    **options: Unpack[TextFitOptions],
) -> tuple[DocumentCodec, dict[str, Any]]:
    """Fit a codec to the labels of documents; some documents are held out.

    It is `token_vqae` for hidden states and logits, and `sparse` for top-k labels.

    Args:
        dump: a path for `open_text_labels`, or a source.
        head: the teacher's output head, a path for `open_head`.
        layer: of hidden states of several layers, the one to read; None: the last.
        out: codec file to write.

    Returns:
        The codec, and a report: the configuration; `rates`, price, bits and held-out KL of the rates that it can be
        packed at; `held_out`, the rate that was asked for.

    Raises:
        UsageError: the head is missing or of another size.
        BadLabels: the dump has fewer than 2 documents, or is malformed.
        TargetExists: `out` exists and `overwrite` is false.
    """
    config = config_of(TextFitConfig, config, options)
    if out is not None:
        check_target(out, CODEC, overwrite=overwrite)
    opened = open_text_dump(dump, head, layer=layer)
    codec, report = fit_opened(opened, config, progress=progress)
    if out is not None:
        save_codec(codec, out, report, overwrite=overwrite)
    return codec, report


def fit_opened(opened: OpenedText, config: TextFitConfig, *, progress: Progress = silent) -> tuple[DocumentCodec, dict[str, Any]]:
    """As `fit_text`, for a dump that is open."""
    source, total = opened.source, int(np.maximum(opened.source.lengths - 1, 0).sum())
    if opened.head is None:
        return fit_sparse(opened, config, labels=total, progress=progress)
    if not config.embed_head and not opened.about["head"]:
        raise UsageError(f"--reference-head: must be left out: {source.path} holds logits, and their head is made by the fit")
    sample = read_text_sample(opened, config.labels, config.seed, progress)
    codec, report = fit_sample(sample, config, labels=total, progress=progress)
    return codec, {**report, "head": opened.about["head"], **noted(source.notes)}


def fit_sample(
    sample: TextSample, config: TextFitConfig, *, labels: int | None = None, progress: Progress = silent
) -> tuple[TokenVqae, dict[str, Any]]:
    """As `fit_text`, for a sample that is in memory.

    Args:
        labels: of the whole dump, over which a budget is divided; None: those of the sample.
    """
    codec, choices = fit_and_choose(sample, config, progress)
    bits = code_bits_of(config, codec, labels or len(sample.train.labels) + len(sample.held_out.labels))
    return at_price(codec, choices, sample, config, price_of(choices, codec.config, bits))


def fit_and_choose(sample: TextSample, config: TextFitConfig, progress: Progress) -> tuple[TokenVqae, Choices]:
    """Fit a codec on `config.device`. Returns it, and its choices for the held-out labels; both on the CPU."""
    sample = sample.to(config.device)
    codec = fit_codec(sample, config, FitHooks(progress=progress))
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


def code_bits_of(config: TextFitConfig, codec: TokenVqae, labels: int) -> float:
    """Code bits per label that `config` asks for, or that a budget leaves beside the codec.

    Raises:
        UsageError: the codec alone exceeds the budget.
    """
    if config.bytes is None and config.ratio is None:
        return DEFAULT_TEXT_BITS if config.bits is None else config.bits
    budget = config.bytes if config.bytes is not None else int(2 * labels * codec.config.classes / (config.ratio or 1))
    fixed = HEADER_BYTES + sum(tensor.nbytes for tensor in codec.decoder_tensors().values())
    if budget < fixed:
        raise UsageError(
            f"a budget of {budget:,} bytes for {labels:,} labels: the codec alone takes {fixed:,}; allow more, name the head with "
            "--reference-head so that the file does not contain it, or lower --latent"
        )
    return 8 * (budget - fixed) / max(1, labels) / (1 + OVERHEAD)
