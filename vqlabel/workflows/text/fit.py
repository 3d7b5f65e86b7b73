"""A dump of documents -> a fitted codec and its report."""

from dataclasses import replace
from typing import Any

from vqlabel.codecs.hidden_labels import OutputHead
from vqlabel.codecs.sample import FitHooks
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.codecs.token_vqae.fit.price import price_of, rate_at, rates
from vqlabel.codecs.token_vqae.fit.train import fit as fit_codec
from vqlabel.codecs.token_vqae.sample import TextSample
from vqlabel.config import TextFitConfig
from vqlabel.labels.text.source import TextSource
from vqlabel.progress import Progress, silent
from vqlabel.workflows.text.sample import read_sample


def fit_text(
    source: TextSource, head: OutputHead, config: TextFitConfig | None = None, *, progress: Progress = silent
) -> tuple[TokenVqae, dict[str, Any]]:
    """Fit a codec to the labels of documents; some documents are held out.

    Returns:
        The codec, and a report: the configuration; `rates`, price, bits and held-out KL of the rates that it can be
        packed at; `held_out`, the rate that was asked for.

    Raises:
        BadLabels: the dump has fewer than 2 documents, or is malformed.
    """
    config = config or TextFitConfig()
    sample = read_sample(source, head, config.labels, config.seed, progress)
    return fit_sample(sample, config, progress=progress)


def fit_sample(sample: TextSample, config: TextFitConfig, *, progress: Progress = silent) -> tuple[TokenVqae, dict[str, Any]]:
    """As `fit_text`, for a sample that is already in memory."""
    codec = fit_codec(sample, config, FitHooks(progress=progress))
    held_out = sample.held_out
    choices = codec.choices(held_out.labels, held_out.documents)
    price = price_of(choices, codec.config, config.bits)
    codec = codec.with_config(replace(codec.config, price=price))
    report = {
        "codec": codec.kind,
        "config": codec.config.to_dict(),
        "fit": config.to_dict(),
        "labels": {"train": len(sample.train.labels), "held_out": len(held_out.labels)},
        "held_out": rate_at(choices, codec.config, price).to_dict(),
        "rates": [rate.to_dict() for rate in rates(choices, codec.config)],
    }
    return codec, report
