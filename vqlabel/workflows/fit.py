"""A dump -> a fitted codec: what is kept out, what is seen, and the distortion on both."""

import hashlib
import io
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqlabel.bitstream import ANS
from vqlabel.bitstream.ragged import COUNT_ROWS
from vqlabel.codecs import CODECS, FitHooks, LabelCodec, LabelSample, save_codec
from vqlabel.codecs.precision import cpu_by_default
from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.codecs.vqae.fit.split import VARIES_MOST, level_spread
from vqlabel.codecs.vqae.sizing import budget_of, code_bits_within
from vqlabel.config import MIX, FitConfig
from vqlabel.errors import BadLabels, TargetExists, UsageError, VqlabelError, VqlabelWarning
from vqlabel.labels import LabelBatch, LabelSource, open_labels
from vqlabel.labels.domain import FlatRows
from vqlabel.metrics.code_usage import CodeUsage
from vqlabel.metrics.distortion import as_logits
from vqlabel.metrics.likelihood import likelihood_of
from vqlabel.progress import Progress, silent
from vqlabel.storage.apart import check_apart
from vqlabel.storage.formats import CODEC, INTERNAL
from vqlabel.storage.targets import atomic_target, check_target
from vqlabel.threads import small_operations
from vqlabel.type_checks import check_argument_types
from vqlabel.workflows.pack import describe_fit, join_contexts

SAMPLE_LABELS, SAMPLE_BYTES = 131_072, 512 << 20  # what a fit looks at, at most; a larger dump is sampled by batches
HELD_LABELS = 8192
STATE = 3  # of what an interrupted fit left; another where the same options make other steps, or sizes
CHUNK = 2048  # labels encoded at a time
SUM = 32  # bytes of a state's sha256, which stands at its end


@check_argument_types
def fit(
    dump: str | PathLike[str] | LabelSource,
    config: FitConfig | None = None,
    *,
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = silent,
) -> tuple[LabelCodec, dict[str, Any]]:
    """Fit a codec to a dump, keeping the last epochs (or the last tenth of the records) out.

    Args:
        dump: a path for `open_labels`, or a source.
        out: where to write the codec file; the state of an unfinished fit lies beside it as `<out>.state`.
        resume: continue from that state; the result is the same, byte for byte, as without the interruption, with the same number of
            threads on the same machine.

    Returns:
        The codec, and a report: the resolved configuration, what was held out, and distortion `seen` and `held`; where labels are
        unbiased rather than calibrated, their `contrast`, `bias_slope` and `calibrated`, the distortion held out that contrast 1 would have;
        `contrast_limited`, true where codes say too little of a label for unbiased ones, so that they are calibrated; `mean_label`, KL held
        out of one label for all; `rates`, code bits -> distortion held out of the cheaper labels that the codec can make.

    Raises:
        BadLabels: the dump is malformed, has fewer than 2 labels, or changed while it was read.
        TargetExists: `out` is there and `overwrite` is false; or something else has the name of the state.
        UsageError: `resume` without a state, or the state is of another dump or configuration; or `out` is no place for a codec file.
    """
    check_target(out, CODEC, overwrite=overwrite)
    source = dump if isinstance(dump, LabelSource) else open_labels(dump)
    check_apart(out, *source.inputs)
    config = with_temperature(config or FitConfig(), source)
    if resume and (out is None or not _state_of(out).exists()):
        raise UsageError(f"--resume: there is no {_state_of(out or 'codec')}, so nothing was interrupted; run without --resume")
    if not resume and out is not None:
        _refuse_other_state(_state_of(out))
    sample, held_out = read_sample(source, progress, least=1 if config.codec == "raw" else 2)
    return fit_sample(sample, held_out, config, out=out, overwrite=overwrite, resume=resume, progress=progress)


def with_temperature(config: FitConfig, source: LabelSource) -> FitConfig:
    """Where the user named no temperature: what the students of this layout train at, or a mix; 1 for those of sigmoids."""
    if config.temperature is not None:
        return config
    if source.domain == "sigmoid":
        return replace(config, temperature=(1.0,))
    return replace(config, temperature=MIX if source.temperature is None else (source.temperature,))


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


@small_operations()
@cpu_by_default()
def fit_sample(
    sample: LabelSample,
    held_out: str,
    config: FitConfig,
    *,
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = silent,
) -> tuple[LabelCodec, dict[str, Any]]:
    """`fit` for a sample that was read before."""
    config = with_codec(config, sample)
    hooks = FitHooks(progress=progress)
    if out is not None:
        state, labels = _state_of(out), np.ascontiguousarray(sample.seen.numpy()).data
        mark = hashlib.sha256(f"{STATE} {config.to_json()}".encode())
        mark.update(labels)
        name = mark.hexdigest()
        hooks = FitHooks(
            progress=progress,
            save=_StateKeeper(state, name),
            resumed=_load_state(state, name) if resume else None,
        )
    codec = CODECS[str(config.codec)][0].fit(sample, config, hooks).eval()
    codec.fitted_on = sample.fitted_on
    temperatures = config.temperature or MIX
    if sample.domain != "sigmoid":
        temperatures = tuple(sorted({*MIX, *temperatures}))
    report = {
        "codec": codec.kind,
        "config": codec.config.to_dict(),
        "fit": config.to_dict(),
        "code_bits": code_bits(codec, sample),
        "held_out": held_out,
        "seen": {"labels": len(sample.seen), **measure(codec, sample, "seen", temperatures)},
        "held": {"labels": len(sample.held), **measure(codec, sample, "held", temperatures)},
    }
    if codec.kind != "raw" and not _over_sets(codec, sample):
        report["mean_label"] = {"labels": len(sample.held), **measure_mean_label(sample, temperatures)}
    if isinstance(codec, VqaeCodec) and codec.contrast != 1:
        report["contrast"] = codec.contrast
        report["bias_slope"] = bias_slope(codec, sample)
        report["calibrated"] = {"labels": len(sample.held), **measure(codec.calibrated(), sample, "held", temperatures)}
    if isinstance(codec, VqaeCodec) and codec.contrast_limited:
        report["contrast_limited"] = True
    if isinstance(codec, VqaeCodec) and codec.cheaper:
        cheaper = [codec.cheaper[slots] for slots in sorted(codec.cheaper)]
        report["rates"] = {str(sum(c.code_bits)): measure(c, sample, "held", temperatures) for c in cheaper}
    if isinstance(codec, VqaeCodec) and codec.config.slots:
        report["perplexity"] = _perplexity(codec, sample)
    if notes := [*sample.notes, *_level_notes(codec, sample), *_dropped_notes(codec, sample)]:
        report["notes"] = notes
    if out is not None:
        save_codec(codec, out, report, overwrite=overwrite)
        _state_of(out).unlink(missing_ok=True)
    return codec, report


def _state_of(out: str | PathLike[str]) -> Path:
    return Path(out).with_name(Path(out).name + ".state")


def read_sample(source: LabelSource, progress: Progress = silent, least: int = 2) -> tuple[LabelSample, str]:
    """The labels that a fit sees and those it is judged by, and what was held out, in words.

    With two epochs or more the last eighth of the epochs is held out; else the last tenth of the records. Rows that are the same for all
    classes are left out of both.

    Args:
        least: labels that are needed: 2, or 1 for a codec that fits nothing, which then sees the label that it is judged by.

    Raises:
        BadLabels: the dump is malformed, was never finished, or has fewer labels.
    """
    epochs = sorted({place.epoch for place in source.places})
    last = set(epochs[-max(1, len(epochs) // 8) :]) if len(epochs) > 1 else set()
    seen_at = [i for i, place in enumerate(source.places) if place.epoch not in last]
    held_at = [i for i, place in enumerate(source.places) if place.epoch in last]
    most = max(2, min(SAMPLE_LABELS, SAMPLE_BYTES // (4 * source.classes)))
    seen = _read_some(source, seen_at, most, lambda done, total: progress("reading", done, total, {}))
    held = _read_some(source, held_at, min(HELD_LABELS, most), lambda *_: None)
    source.check_unchanged()
    total = sum(round(sum(map(len, part)) * len(at) / len(part)) for part, at in ((seen, seen_at), (held, held_at)) if part)
    flat = FlatRows(path=source.path)
    seen, held = ([_telling(batch, flat) for batch in part] for part in (seen, held))
    flat.check()
    if last:
        first, many = min(last), len(last)
        words = f"the last epoch ({first})" if many == 1 else f"the last {many} epochs (from {first})"
    else:
        seen, held = _split_last_tenth(seen)
        words = "the last tenth of the records"
    if not sum(map(len, seen)) and least == 1:
        seen = held
    count = [sum(map(len, part)) for part in (seen, held)]
    if flat.rows < 2 and not all(count):
        raise BadLabels(f"{source.path}: {flat.rows} labels; a fit needs at least 2")
    if not all(count):
        raise BadLabels(
            f"{source.path}: {count[0]} labels to fit to, {count[1]} held out ({words}), rows of one number for all classes left out; a fit "
            "needs at least one of each"
        )
    return LabelSample(
        seen=_stack(seen),
        held=_stack(held),
        seen_context=join_contexts([b.context() for b in seen]),
        held_context=join_contexts([b.context() for b in held]),
        domain=source.domain,
        dtype=source.dtype,
        support=source.support,
        notes=tuple(flat.notes()),
        total=total,
        fitted_on=describe_fit(source),
    ), words


def _read_some(source: LabelSource, places: list[int], most: int, progress: Callable[[int, int], None]) -> list[LabelBatch]:
    """All batches at `places`, or as many, evenly spread, as hold about `most` labels."""
    if not places:
        return []
    first = source.read(places[0])
    keep = max(1, min(len(places), most // len(first)))
    chosen = [places[i * len(places) // keep] for i in range(keep)]
    batches = []
    for done, at in enumerate(chosen):
        batches.append(first if at == places[0] else source.read(at))
        progress(done + 1, keep)
    return batches


def _telling(batch: LabelBatch, flat: FlatRows) -> LabelBatch:
    """A batch without its flat rows."""
    telling = flat.add(batch.labels)
    return batch if telling.all() else batch.rows(np.flatnonzero(telling))


def _split_last_tenth(batches: list[LabelBatch]) -> tuple[list[LabelBatch], list[LabelBatch]]:
    total = sum(map(len, batches))
    rest = total - max(1, total // 10)
    seen, held = [], []
    for batch in batches:
        cut = max(0, min(len(batch), rest))
        rest -= cut
        seen += [_plain(batch, 0, cut)] if cut else []
        held += [_plain(batch, cut, len(batch))] if cut < len(batch) else []
    return seen, held


def _plain(batch: LabelBatch, start: int, stop: int) -> LabelBatch:
    """Records start:stop of a batch. Mixing partners may lie outside, so a part of a batch is a record without them."""
    if (start, stop) == (0, len(batch)):
        return batch
    image = None if batch.image is None else batch.image[start:stop]
    return LabelBatch(labels=batch.labels[start:stop], place=batch.place, image=image)


def _stack(batches: list[LabelBatch]) -> Tensor:
    return torch.from_numpy(np.concatenate([batch.labels for batch in batches]))


def measure(codec: LabelCodec, sample: LabelSample, part: str, temperatures: tuple[float, ...] = MIX) -> dict[str, float]:
    """Distortion at these temperatures of the `part` ("seen" or "held") of a sample, through encode and decode."""
    figures = likelihood_of(sample.domain).distortion(
        temperatures=temperatures,
        domain=sample.domain,
        sets=_over_sets(codec, sample),
    )
    with torch.inference_mode():
        for labels, context in sample.steps(part, CHUNK):
            figures.add(labels, codec.decode(codec.encode(labels, context), context))
    return {name: round(value, 6) for name, value in figures.figures().items()}


def _dropped_notes(codec: LabelCodec, sample: LabelSample) -> list[str]:
    """Where a codec stores fewer classes of a label than are known."""
    kept = getattr(codec.config, "k", None)
    if sample.support is None or kept is None or kept >= sample.support.k:
        return []
    mass = measure(codec, sample, "held", ()).get("mass_kept")
    share = "" if mass is None else f", which have {100 * mass:.1f} % of the probability at T = 1"
    return [
        f"{kept} of the {sample.support.k} known classes of a label are stored{share}; more --bits, or a smaller --ratio, keep all"
    ]


def _level_notes(codec: LabelCodec, sample: LabelSample) -> list[str]:
    """Of what students that do not take a softmax would miss."""
    if codec.kind != "vqae" or sample.domain != "logits":
        return []
    level, usual = level_spread(sample.seen, sample.domain)
    if level < VARIES_MOST * usual:
        return []
    sentence = (
        f"labels' mean over classes varies (std {level:.2g}, that of a class about it {usual:.2g}) and is left out: students of a softmax never "
        "see it; for students of sigmoids or of squared error use --domain sigmoid, or --codec raw"
    )
    return [sentence]


def _over_sets(codec: LabelCodec, sample: LabelSample) -> bool:
    """Whether figures are over the classes that labels hold."""
    return codec.holds_sets or (sample.support is not None and sample.support.rest == "zero")


@torch.inference_mode()
def measure_mean_label(sample: LabelSample, temperatures: tuple[float, ...] = MIX) -> dict[str, float]:
    """KL held out of one label for all, at each temperature the best that there is: the mean of the distributions that the fit sees."""
    likelihood = likelihood_of(sample.domain)
    totals = [torch.zeros(sample.classes, dtype=torch.float64) for _ in temperatures]
    for labels, _ in sample.steps("seen", CHUNK):
        logits = as_logits(labels, sample.domain)
        for total, t in zip(totals, temperatures, strict=True):
            total += likelihood.probabilities(logits / t).sum(0, dtype=torch.float64)
    means = [t * likelihood.inverse(total / len(sample.seen)).float() for total, t in zip(totals, temperatures, strict=True)]
    found = [0.0] * len(temperatures)
    for labels, _ in sample.steps("held", CHUNK):
        logits = as_logits(labels, sample.domain)
        for at, (mean, t) in enumerate(zip(means, temperatures, strict=True)):
            found[at] += float(likelihood.divergence(logits, mean.expand_as(logits), t).sum(dtype=torch.float64))
    count = max(1, len(sample.held))
    return {f"{likelihood.figure}{t:g}": round(total / count, 6) for t, total in zip(temperatures, found, strict=True)}


@torch.inference_mode()
def bias_slope(codec: VqaeCodec, sample: LabelSample) -> dict[str, float]:
    """Slope of decoded on raw probabilities about their means, held out, at each of the codec's temperatures: 1 where labels are unbiased."""
    found, probabilities = {}, likelihood_of(sample.domain).probabilities
    for t in codec.config.temperature:
        sums, means, count = (
            torch.zeros(2, dtype=torch.float64),
            torch.zeros(2, sample.classes, dtype=torch.float64),
            len(sample.held),
        )
        for labels, context in sample.steps("held", CHUNK):
            decoded = codec.decode(codec.encode(labels, context), context)
            raw, own = (probabilities(as_logits(x, sample.domain) / t).double() for x in (labels, decoded))
            sums += torch.stack([(raw * own).sum(), raw.square().sum()])
            means += torch.stack([raw.sum(0), own.sum(0)]) / count
        product, power = sums - count * torch.stack([means[0] @ means[1], means[0] @ means[0]])
        found[f"T{t:g}"] = round(float(product / power.clamp_min(1e-30)), 4)
    return found


def code_bits(codec: LabelCodec, sample: LabelSample, parts: Sequence[str] = ("seen", "held")) -> float:
    """Code bits of a label: of the mean label of these parts, its count included, where they differ."""
    if not codec.counted and ANS not in codec.codings:
        return sum(codec.code_bits)
    before, bits, count = codec.effort, 0.0, 0
    codec.set_effort("fast")  # how many codes a label has does not depend on it
    try:
        with torch.inference_mode():
            for part in parts:
                for labels, context in sample.steps(part, COUNT_ROWS):
                    bits, count = bits + codec.stored_bits(codec.encode(labels, context)), count + len(labels)
    finally:
        codec.set_effort(before)
    return round(bits / max(1, count), 4)


def _perplexity(codec: LabelCodec, sample: LabelSample) -> list[float]:
    usage = CodeUsage(codec.config.slots, codec.config.codebook_size)
    with torch.inference_mode():
        for labels, context in itertools.islice(sample.steps("seen", CHUNK), HELD_LABELS // CHUNK):
            codes, counted = codec.encode(labels, context).numpy(), int(codec.counted)
            usage.add(codes[:, counted : counted + codec.config.slots], codes[:, 0] if counted else None)
    return [round(float(p), 1) for p in usage.perplexity()]


class _StateKeeper:
    """Saves the state of a fit. Where that fails, as on a full disk, the fit goes on without: a state is a convenience."""

    def __init__(self, path: Path, mark: str) -> None:
        self._path, self._mark, self._failed = path, mark, False

    def __call__(self, values: dict[str, Any]) -> None:
        try:
            _save_state(self._path, {"mark": self._mark, "fit": values})
        except VqlabelError as error:
            if not self._failed:
                warnings.warn(f"{error}; the fit goes on, and cannot be resumed from here", VqlabelWarning, stacklevel=2)
            self._failed = True


def _save_state(path: Path, state: dict[str, Any]) -> None:
    """torch.save, and the sha256 of that behind it."""
    torch.save(state, data := io.BytesIO())
    if path.is_symlink():  # the target's owner may link it elsewhere; a state is ours, and goes nowhere else
        path.unlink()
    with atomic_target(path, INTERNAL, overwrite=True) as partial:
        partial.write_bytes(data.getvalue() + hashlib.sha256(data.getvalue()).digest())


def _read_state(path: Path) -> bytes | None:
    """What `_save_state` saved; None where a file is something else, or damaged."""
    data = path.read_bytes()
    return data[:-SUM] if hashlib.sha256(data[:-SUM]).digest() == data[-SUM:] else None


def _load_state(path: Path, mark: str) -> dict[str, Any]:
    data = _read_state(path)
    if data is None:
        raise UsageError(f"{path}: no readable state of a fit (its sha256 does not fit); delete it and run without --resume")
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if state["mark"] != mark:
        raise UsageError(f"{path}: is of another dump or another configuration; give the same flags, or run without --resume")
    return dict(state["fit"])


def _refuse_other_state(path: Path) -> None:
    """Raises TargetExists where a fit would replace something that no fit left."""
    if path.exists() and (path.is_dir() or _read_state(path) is None):
        raise TargetExists(
            f"{path}: is no state that this vqlabel's fit left, and a fit keeps its own there; delete it, or name another codec file"
        )
