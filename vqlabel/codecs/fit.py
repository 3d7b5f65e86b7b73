"""A sample -> a fitted codec of the kind that the configuration names."""

from dataclasses import replace

import torch

from vqlabel.codecs.base import LabelCodec
from vqlabel.codecs.budget import budget_of, code_bits_within
from vqlabel.codecs.precision import cpu_by_default, float32_arithmetic
from vqlabel.codecs.registry import CODECS, check_kind
from vqlabel.codecs.sample import FitHooks, LabelSample
from vqlabel.config import FitConfig
from vqlabel.threads import small_operations


def fit_codec(sample: LabelSample, config: FitConfig, hooks: FitHooks | None = None) -> LabelCodec:
    """Fit a codec of kind `config.codec` (None: see `with_codec`) to `sample.seen`, judged by `sample.held`; in float32, whatever is set around the call.

    Raises:
        UsageError: an unknown kind, or one that cannot code such labels at such a rate.
    """
    config = with_codec(config, sample)
    kind = str(config.codec)
    check_kind(kind)
    device = torch.device(config.device)
    with small_operations(), torch.inference_mode(False), torch.enable_grad(), cpu_by_default(), float32_arithmetic(device):
        codec: LabelCodec = CODECS[kind].fit(sample, config, hooks or FitHooks())
    codec.fitted_on = sample.fitted_on
    return codec.eval()


def with_codec(config: FitConfig, sample: LabelSample) -> FitConfig:
    """Where the user named no codec: vqae; of labels of which k numbers are known, sparse, with the code bits that a budget leaves."""
    if config.codec is not None:
        return config
    if sample.support is None:
        return replace(config, codec="vqae")
    labels = sample.total or len(sample.seen) + len(sample.held)
    budget = budget_of(config, labels, sample.classes)
    bits = config.bits if budget is None else max(0, code_bits_within(budget, labels))
    return replace(config, codec="sparse", bits=bits, bytes=None, ratio=None)
