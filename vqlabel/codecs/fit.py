"""A sample of labels -> a fitted codec of the configured kind."""

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
    """Fit a codec of kind `config.codec` (None: see `with_codec`) to `sample.train`; `sample.held_out` is held out.

    Computes in float32, regardless of autocast, default dtype and default device of the caller.

    Raises:
        UsageError: the kind is unknown, or cannot code these labels at this rate.
    """
    config = with_codec(config, sample)
    kind = str(config.codec)
    check_kind(kind)
    device = torch.device(config.device)
    with small_operations(), torch.inference_mode(False), torch.enable_grad(), cpu_by_default(), float32_arithmetic(device):
        codec: LabelCodec = CODECS[kind].fit(sample_for(kind, sample), config, hooks or FitHooks())
    codec.fitted_on = sample.fitted_on
    return codec.eval()


def sample_for(kind: str, sample: LabelSample) -> LabelSample:
    """The sample in a form that codecs of this kind take: sparse labels become dense ones for most."""
    codec = CODECS[kind].codec
    return sample if issubclass(codec, LabelCodec) and codec.takes_sparse else sample.dense()


def with_codec(config: FitConfig, sample: LabelSample) -> FitConfig:
    """Set the default codec if `config.codec` is None: vqae for dense labels; sparse for labels with k known entries,
    in which case a budget in bytes becomes code bits per label.
    """
    if config.codec is not None:
        return config
    if sample.support is None:
        return replace(config, codec="vqae")
    labels = sample.total or len(sample.train) + len(sample.held_out)
    budget = budget_of(config, labels, sample.classes)
    bits = config.bits if budget is None else max(0, code_bits_within(budget, labels))
    return replace(config, codec="sparse", bits=bits, bytes=None, ratio=None)
