"""A dump -> a fitted codec and its report."""

import dataclasses
import hashlib
from dataclasses import replace
from os import PathLike
from typing import Any, Unpack

import numpy as np
import torch

from vqlabel.codecs import LabelCodec, LabelSample, check_kind, fit_codec, save_codec
from vqlabel.codecs.fit import sample_for, with_codec
from vqlabel.codecs.precision import cpu_by_default
from vqlabel.codecs.registry import config_class
from vqlabel.config import FitConfig
from vqlabel.labels import LabelSource, SparseLabels, open_labels
from vqlabel.labels.memory import Dump
from vqlabel.labels.sparse import hash_labels
from vqlabel.progress import Progress, silent
from vqlabel.storage.apart import check_apart
from vqlabel.storage.formats import CODEC
from vqlabel.storage.targets import check_target
from vqlabel.threads import small_operations
from vqlabel.type_checks import check_argument_types
from vqlabel.workflows.config_options import FitOptions, config_of
from vqlabel.workflows.fallback import topk_if_better
from vqlabel.workflows.fit_report import describe_codec
from vqlabel.workflows.run_state import RunState
from vqlabel.workflows.sample import read_sample


@check_argument_types
def fit(
    dump: Dump,
    config: FitConfig | None = None,
    *,
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress = silent,
    **options: Unpack[FitOptions],
) -> tuple[LabelCodec, dict[str, Any]]:
    """Fit a codec to a dump; the last epochs, or the last tenth of the records, are held out.

    Args:
        dump: a path for `open_labels`, a source, or labels in memory (`open_labels`).
        config: options of the fit; or pass its fields: `fit(dump, bits=64)`.
        out: the codec file to write; the state of an unfinished fit is stored beside it as `<out>.state`, and the same
            call continues from there. With the same number of threads on the same machine, the result equals that of an
            uninterrupted fit, byte for byte.
        restart: discards that state.

    Returns:
        The codec, and a report: the resolved configuration; `temperature_auto`, whether `config` left it open; `split`,
        what was held out; distortion on the labels `train` and `held_out`. If labels are unbiased rather than
        calibrated: their `gain`, `bias_slope`, and `calibrated`, the held-out distortion at gain 1. `gain_limited` is
        true if labels are calibrated because unbiased ones need a gain above 2 or are no better than one label for all.
        `mean_label`: held-out KL of one mean label for all. The codec is `topk` where a budget stores more of
        probabilities as the largest classes of each label: `topk_if_better`.
        `rates`: code bits -> held-out distortion at each of the codec's lower rates.

    Raises:
        BadLabels: the dump is malformed, has fewer than 2 labels, or changed while it was read.
        TargetExists: `out` exists and `overwrite` is false; or another file has the name of the state.
        UsageError: the state is of another dump or configuration; or `out` is not a valid path of a codec file.
    """
    config = config_of(FitConfig, config, options)
    check_target(out, CODEC, overwrite=overwrite)
    if config.codec is not None:
        check_kind(config.codec)
    source = dump if isinstance(dump, LabelSource) else open_labels(dump)
    check_apart(out, *source.inputs)
    state = RunState(out, restart=restart)
    codec, report = fit_source(source, config, state, progress)
    if out is not None:
        save_codec(codec, out, report, overwrite=overwrite)
    state.remove()
    return codec, report


def fit_source(
    source: LabelSource, config: FitConfig, state: RunState, progress: Progress = silent
) -> tuple[LabelCodec, dict[str, Any]]:
    """As `fit`, without an output; `state` keeps the codec at the end."""
    sample, split = read_sample(source, progress, min_labels=1 if config_class(config.codec).lossless else 2)
    state.begin(settings_of(config, sample))
    if (kept := state.codec()) is not None:
        return kept
    codec, report = fit_sample(sample, split, config, state=state, progress=progress)
    state.keep_codec(codec, report)
    return codec, report


def settings_of(config: FitConfig, sample: LabelSample) -> dict[str, Any]:
    """What a fit depends on: its configuration, and the labels and contexts of the training split."""
    digest, train = hashlib.sha256(), sample.train
    hash_labels(digest, train.map(torch.Tensor.numpy) if isinstance(train, SparseLabels) else train.numpy())
    if sample.train_context is not None:
        for field in dataclasses.fields(sample.train_context):
            if (values := getattr(sample.train_context, field.name)) is not None:
                digest.update(field.name.encode())
                digest.update(np.ascontiguousarray(values).data)
    sampled = f"{len(train)} of {sample.total or len(train)} labels with sha256 {digest.hexdigest()[:16]}"
    return {**config.to_dict(), "dump": sampled}


@small_operations()
@cpu_by_default()
def fit_sample(
    sample: LabelSample, split: str, config: FitConfig, *, state: RunState | None = None, progress: Progress = silent
) -> tuple[LabelCodec, dict[str, Any]]:
    """As `fit`, for a sample that is already in memory.

    Args:
        split: what was held out, in words, for the report.
        state: of the run that this fit belongs to.
    """
    asked, config = config, with_codec(config, sample)
    check_kind(str(config.codec))
    sample = sample_for(str(config.codec), sample)
    codec = fit_codec(sample, config, (state or RunState(None)).fit_hooks(progress))
    if (better := topk_if_better(codec, sample, asked)) is not None:
        codec, config, reason = better
        sample = replace(sample, notes=(*sample.notes, reason))
    report: dict[str, Any] = {
        "codec": codec.kind, "config": codec.config.to_dict(), "fit": {**config.to_dict(), "temperature": config.temperatures},
        "temperature_auto": config.temperature is None,
    }  # fmt: skip
    report |= describe_codec(codec, sample, split, config.temperatures)
    return codec, report
