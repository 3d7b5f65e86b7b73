"""A `.vql` and a dump -> distortion and calibration of its labels, and whether it was packed from this very dump."""

import math
from typing import Any

import torch
from torch import Tensor

from vqlabel.codecs import LabelCodec
from vqlabel.config import MIX
from vqlabel.dtypes import torch_type
from vqlabel.errors import UsageError
from vqlabel.labels import LabelBatch, LabelSource, SparseLabels, open_labels
from vqlabel.labels.fingerprint import LabelsHash
from vqlabel.labels.memory import Dump
from vqlabel.labels.pruning import Pruned
from vqlabel.metrics.calibration import Calibration
from vqlabel.metrics.judgement import judge
from vqlabel.metrics.likelihood import likelihood_of
from vqlabel.metrics.pairs import pairs
from vqlabel.metrics.references import MeanLabelReference, TopKReference
from vqlabel.progress import Progress, silent
from vqlabel.report.account import account
from vqlabel.threads import large_operations
from vqlabel.vql.decode import decode_steps, label_steps, narrow, read_codec
from vqlabel.vql.file import VqlFile
from vqlabel.workflows.encode import to_tensors

# Figures before and after rounding to the dump's dtype are both reported if one changes by this share, or by 1e-4 if it
# is below 0.01.
MIN_CHANGE = 0.01
REFERENCE_LABELS = 8192  # labels that baselines are measured on, from batches spread over the dump


@large_operations()
def distortion_against(file: VqlFile, dump: Dump, *, device: str = "cpu", progress: Progress = silent) -> dict[str, Any]:
    """Decode every label, in the dump's dtype as `unpack` writes it, and compare it with the dump's, batch by batch.

    Returns:
        distortion: KL at T = 1, 4, 20, top-1 agreement, squared error (relative, of centred logits; and of the labels
            as stored); None for a figure that is not a finite float32.
        distortion_f32: the same for float32 labels, as `vqlabel.open` returns them, if rounding to the dump's dtype
            changes a figure by a hundredth.
        calibration: `Calibration.figures` at the codec's temperatures, or at 1 for a codec without any. Empty for
            sigmoid labels, which are not distributions over the classes.
        baselines: `labels`, those measured, about REFERENCE_LABELS; `kl`, of the file's labels; `mean_label` and
            `topk`, see `metrics.references`, at the codec's temperatures. If the file's labels are unbiased: `gain`,
            and `kl` is that of the same codes with a gain of 1. `judgement`: see `metrics.judgement.judge`. Only for
            dense labels that are distributions, and a codec with losses.
        same_dump: whether the dump's labels have the sha256 that the file records; None if it records none.

    Raises:
        UsageError: the dump has another number of classes or records, or another domain.
    """
    source = _open_same_shape(file, dump)
    codec = read_codec(file).to(device)
    comparison, baselines = _Comparison(file, source, codec), _Baselines(file, source, codec)
    fingerprint, start = LabelsHash(), 0
    for done, batch in enumerate(source):
        if start + len(batch) > file.records:
            raise UsageError(
                f"{source.path} has more than the {file.records} records of {file.container.path}: not the dump it was packed from"
            )
        fingerprint.add(done, batch)
        comparison.add(batch, start, device)
        baselines.add(batch, start, device)
        start += len(batch)
        progress("comparing", done + 1, len(source), {})
    if start != file.records:
        raise UsageError(
            f"{source.path} has {start} records, {file.container.path} has {file.records}: not the dump it was packed from"
        )
    packed_from = file.source.get("labels_sha256")
    return {
        **comparison.figures(),
        **baselines.figures(),
        "same_dump": None if packed_from is None else packed_from == fingerprint.hexdigest(source),
    }


def _open_same_shape(file: VqlFile, dump: Dump) -> LabelSource:
    """The dump, pruned as the file is.

    Raises:
        UsageError: another number of classes, or another domain.
    """
    source = dump if isinstance(dump, LabelSource) else open_labels(dump, domain=file.label["domain"])
    pruned = file.pruned
    if pruned is not None and "pruned" not in source.about.details:
        source = Pruned(source, pruned["keep"], pruned["by"], pruned["seed"])
    path = file.container.path
    if source.classes != file.classes:
        raise UsageError(f"{source.path} has {source.classes} classes, {path} has {file.classes}: not the dump it was packed from")
    if source.domain != file.label["domain"]:
        raise UsageError(
            f"{source.path} has {source.domain} labels, {path} has {file.label['domain']} labels: not the dump it was packed from"
        )
    return source


class _Comparison:
    """Running distortion and calibration of a file's labels against raw ones."""

    def __init__(self, file: VqlFile, source: LabelSource, codec: LabelCodec) -> None:
        self.file, self.codec, self.dtype = file, codec, torch_type(file.label["dtype"])
        temperatures: tuple[float, ...] = codec.config.temperatures
        sigmoid = source.domain == "sigmoid"
        sets = codec.config.holds_sets or (source.support is not None and source.support.rest == "zero")
        metric, degrees = likelihood_of(source.domain).distortion, temperatures if sigmoid else MIX
        self.written, self.decoded = (metric(temperatures=degrees, domain=source.domain, sets=sets) for _ in range(2))
        self.calibration = None if sigmoid else Calibration(domain=source.domain, temperatures=temperatures)

    def add(self, batch: LabelBatch, start: int, device: str) -> None:
        """Compare a batch of raw labels with the records from `start` on."""
        raw, first = to_tensors(batch.labels, device), 0
        steps = label_steps if isinstance(raw, SparseLabels) else decode_steps
        for decoded in steps(self.file, self.codec, start, start + len(batch), device):
            self._add_step(raw[first : first + len(decoded)], decoded, start + first)
            first += len(decoded)

    def _add_step(self, raw: Tensor | SparseLabels, decoded: Tensor | SparseLabels, first: int) -> None:
        written: Tensor | SparseLabels
        if isinstance(decoded, SparseLabels):
            written = decoded.map_values(lambda values: narrow(values, self.dtype, self.file, first).float())
        else:
            written = narrow(decoded, self.dtype, self.file, first).float()
        domain, sets = self.written.domain, self.written.sets
        for x, y in pairs(raw, written, domain, sets=sets):
            self.written.add(x, y)
        if self.calibration is not None:  # which counts an absent class of probabilities as MIN_PROBABILITY
            for x, y in pairs(raw, written, domain, sets=domain == "logits"):
                self.calibration.add(x, y, self.file.classes)
        if self.dtype != torch.float32:
            for x, y in pairs(raw, decoded, domain, sets=sets):
                self.decoded.add(x, y)

    def figures(self) -> dict[str, Any]:
        """`distortion`, `distortion_f32` if it differs, `calibration`."""
        figures, f32 = ({name: round(value, 6) for name, value in part.figures().items()} for part in (self.written, self.decoded))
        differs = self.decoded.labels and any(
            abs(f32[name] - value) > MIN_CHANGE * max(value, MIN_CHANGE) for name, value in figures.items()
        )
        return {
            "distortion": _finite(figures),
            **({"distortion_f32": _finite(f32)} if differs else {}),
            "calibration": {} if self.calibration is None else _six_digits(self.calibration.figures()),
        }


class _Baselines:
    """Running KL of one mean label, and of top-k in as many bytes, on batches spread over the dump."""

    def __init__(self, file: VqlFile, source: LabelSource, codec: LabelCodec) -> None:
        self.file, self.domain, self.labels = file, source.domain, 0
        sparse = codec.config.holds_sets or source.support is not None
        self.applies = not (sparse or codec.config.lossless or source.domain == "sigmoid") and bool(codec.config.temperatures)
        self.gain = float(getattr(codec, "gain", 1.0))
        self.codec = codec.calibrated() if self.applies else codec
        self.temperatures = codec.config.temperatures
        self.every = max(1, -(-file.records // REFERENCE_LABELS))  # of the batches
        self.own = likelihood_of(source.domain).distortion(temperatures=self.temperatures, domain=source.domain)
        self.mean = MeanLabelReference(self.temperatures, source.domain)
        self.topk: TopKReference | None = None  # made from the first batch
        self.batches = 0  # so far

    @torch.no_grad()
    def add(self, batch: LabelBatch, start: int, device: str) -> None:
        """Count a batch, the records from `start` on, if it is one of those that are measured."""
        self.batches += 1
        if not self.applies or (self.batches - 1) % self.every or isinstance(batch.labels, SparseLabels):
            return
        raw, first = to_tensors(batch.labels, device), 0
        assert isinstance(raw, Tensor)
        if self.topk is None:
            self.topk = TopKReference(account(self.file).bits_per_label()["labels"], self.temperatures, raw, self.domain)
        for reference in (self.mean, self.topk):
            reference.add(raw)
        for decoded in decode_steps(self.file, self.codec, start, start + len(batch), device):
            self.own.add(raw[first : first + len(decoded)], decoded)
            first += len(decoded)
        self.labels += len(batch)

    def figures(self) -> dict[str, Any]:
        """`baselines`, if they apply."""
        if self.topk is None:
            return {}
        names = [f"kl_T{t:g}" for t in self.temperatures]
        own = {name: value for name, value in self.own.figures().items() if name in names}
        own = {name: round(value, 6) for name, value in own.items()}
        mean, topk = self.mean.figures(), self.topk.figures()
        gain = {} if self.gain == 1 else {"gain": self.gain}
        verdict = judge(own, mean, topk, names, exact_bits=16 * self.file.classes)
        return {"baselines": {"labels": self.labels, **gain, "kl": own, "mean_label": mean, "topk": topk, "judgement": verdict}}


def _finite(figures: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN and no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _six_digits(value: Any) -> Any:
    """Round to six significant digits, not decimals: at T = 20 the mean probability of 1,000 classes is 0.001."""
    if isinstance(value, dict):
        return {name: _six_digits(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_six_digits(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
