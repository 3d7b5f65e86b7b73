"""A dump of top-k labels of documents -> a fitted sparse codec and its report."""

import dataclasses
from typing import Any

from torch import Tensor

from vqlabel.codecs.fit import fit_codec
from vqlabel.codecs.sample import FitHooks, LabelSample
from vqlabel.codecs.sparse.codec import SparseCodec
from vqlabel.codecs.sparse.documents import SparseDocuments
from vqlabel.config import FitConfig, TextFitConfig
from vqlabel.errors import UsageError, require
from vqlabel.labels import Support
from vqlabel.labels.sparse import SparseLabels
from vqlabel.metrics.token_distortion import sparse_kl
from vqlabel.progress import Progress, noted
from vqlabel.workflows.text.file_size import DumpSize
from vqlabel.workflows.text.open import OpenedText
from vqlabel.workflows.text.sample import read_sample

APPLICABLE = ("bits", "bytes", "ratio", "labels", "seed", "device")  # fields of `TextFitConfig`
MAX_IDS = 1 << 22  # of the labels that a fit reads, which bounds its memory


def fit_sparse(opened: OpenedText, config: TextFitConfig, *, progress: Progress) -> tuple[SparseDocuments, dict[str, Any]]:
    """As `fit_text`, for top-k labels. Without a rate or budget all k tokens of a label are kept.

    Raises:
        UsageError: an option does not apply to top-k labels, or the rate is too low for one token.
    """
    _check_options(opened, config)
    about = opened.source.about
    assert about.vocabulary is not None
    size, sampled = DumpSize.of(opened.source), min(config.labels, max(1, MAX_IDS // about.width))
    drawn = read_sample(opened.source, sampled, config.seed, progress)
    train, held_out = opened.labels(drawn.train), opened.labels(drawn.held_out)
    sample = LabelSample(
        train=train, held_out=held_out, train_context=None, held_out_context=None, domain="probs", dtype=about.dtype,
        support=support_of(opened), total=size.labels,
    )  # fmt: skip
    fit_config = FitConfig(
        bits=None if config.bits is None else int(config.bits),
        bytes=_bytes_for_labels(config, size, about.vocabulary),
        seed=config.seed,
    )
    codec = fit_codec(sample, fit_config, FitHooks(progress=progress))
    assert isinstance(codec, SparseCodec)
    assert isinstance(held_out, SparseLabels)
    figures = _figures(codec, held_out)
    report = {
        "codec": codec.kind,
        "config": codec.config.to_dict(),
        "fit": config.to_dict(),
        "labels": {"train": len(train), "held_out": len(held_out)},
        "held_out": figures,
        "rates": [figures],
        "head": {},
    }
    return SparseDocuments(codec), {**report, **noted(opened.source.notes)}


def _bytes_for_labels(config: TextFitConfig, size: DumpSize, vocabulary: int) -> int | None:
    """What a budget leaves beside the table of documents. Raises UsageError if that is nothing."""
    budget = size.budget(config.bytes, config.ratio, vocabulary)
    if budget is None:
        return None
    if budget <= size.table_bytes:
        raise UsageError(
            f"a budget of {budget:,} bytes for {size.labels:,} labels: the table of {size.documents:,} documents alone takes "
            f"{size.table_bytes:,}; allow more"
        )
    return budget - size.table_bytes


def support_of(opened: OpenedText) -> Support:
    """Which numbers of the labels of a dump are known."""
    about = opened.source.about
    return Support(k=about.width, rest=about.rest or "uniform")


def check_sparse(opened: OpenedText, codec: SparseDocuments, config: TextFitConfig) -> None:
    """Raises UsageError unless a fitted codec codes the labels of a dump, at its only rate."""
    for name in ("bits", "bytes", "ratio"):
        value = getattr(config, name)
        require(value is None, name, value, "must be left out: a fitted codec sparse has one rate; fit one with it")
    path, support, own = opened.source.path, support_of(opened), codec.config
    if own.classes != opened.source.about.vocabulary:
        raise UsageError(
            f"{path}: has a vocabulary of {opened.source.about.vocabulary}; the codec was fitted for {own.classes}: fit one"
        )
    if own.k > support.k or own.rest != support.rest:
        raise UsageError(
            f"{path}: its labels have {support.k} tokens and a {support.rest} tail; the codec keeps {own.k} and a {own.rest} tail: fit one"
        )


def _check_options(opened: OpenedText, config: TextFitConfig) -> None:
    default = TextFitConfig()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in APPLICABLE and value != getattr(default, field.name):
            raise UsageError(
                f"{field.name} is {value}; it must be left out: {opened.source.path} holds top-k labels, whose codec, sparse, has no such option"
            )
    require(config.bits is None or config.bits >= 1, "bits", config.bits, "must be 1 or more for top-k labels")


def _figures(codec: SparseCodec, labels: SparseLabels) -> dict[str, float]:
    """Code bits per label, and KL of stored from decoded labels in nats."""
    codes: Tensor = codec.encode(labels)
    kl = sparse_kl(labels, codec.decode_sparse(codes))
    return {"bits": codec.stored_bits(codes) / len(labels), "kl": float(kl.mean())}
