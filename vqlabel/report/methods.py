"""A method's name and a rate -> the fitted method, its bits and its distortion: vqae, and what else could store the
labels.

Two parts are measured and never mixed. "held out": on labels that no method was fitted to, where fixed parts are not
counted. "all-in": on all sampled labels, training and held out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs import FitHooks, LabelCodec, LabelSample
from vqlabel.codecs.fit import fit_codec
from vqlabel.config import FitConfig
from vqlabel.errors import MissingExtra
from vqlabel.labels import Context
from vqlabel.metrics.distortion import Distortion, as_logits
from vqlabel.progress import Progress, silent
from vqlabel.report.baselines import BASELINES, Baseline, TrainingLabels
from vqlabel.report.student_benchmark import Recode
from vqlabel.workflows.fit_report import code_bits, measure

PARTS = HELD_OUT, ALL_IN = ("held out", "all-in")
VQAE_PRIORS = {"vqae": None, "vqae-no-prior": False}  # method -> FitConfig.prior
METHODS = {  # method -> its title in tables and plots
    "vqae": "vqae",
    "vqae-no-prior": "vqae without prior",
    **{name: baseline.title for name, baseline in BASELINES.items()},
}
SPLITS = ("train", "held_out")  # of a sample: training and held-out labels
MAX_CHUNK_LABELS, MAX_CHUNK_BYTES = 8192, 64 << 20  # labels that are coded at a time, and compressed as one zstd frame
COMPRESSED_CHUNKS = 4  # of each split, evenly spaced: those that a method which compresses is measured on


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One method at one setting."""

    setting: str  # the parameters that meet the rate
    fixed_bytes: int  # codebooks, projections, tables, decoder: stored once, however many labels
    code_bits: dict[str, float]  # per label, by part
    distortion: dict[str, dict[str, float]]  # figures of `Distortion`, by part


class FittedMethod(NamedTuple):
    """A measurement, and the function that puts labels through the method."""

    measurement: Measurement
    recode: Recode


def installed_methods(names: Sequence[str], *, required: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    """Split methods into those that can run, and those whose package is not installed, with the reason.

    Raises:
        MissingExtra: `required`, and a package is not installed.
    """
    skipped: dict[str, str] = {}
    for name in names:
        try:
            if name in BASELINES:
                BASELINES[name].check_installed()
        except MissingExtra as error:
            if required:
                raise
            skipped[name] = str(error)
    return tuple(name for name in names if name not in skipped), skipped


def has_rate(name: str) -> bool:
    """Whether a method has a point at every rate, or one point in all."""
    return name in VQAE_PRIORS or BASELINES[name].has_rate


class MethodFitter:
    """Fits methods to the training labels of one sample.

    Args:
        config: temperature, seed and gain of the fits.
        max_bits: the largest rate that will be fitted, code bits per label.
    """

    def __init__(self, sample: LabelSample, config: FitConfig, max_bits: int, progress: Progress = silent) -> None:
        assert config.temperature is not None
        self.sample, self.config, self.progress = sample, config, progress
        self.train = TrainingLabels(sample, config.temperature, config.seed, max_bits)
        self.without_prior: dict[int, FittedMethod] = {}  # rate -> vqae

    def fit(self, name: str, bits: int) -> FittedMethod | None:
        """A method at a rate of code bits per label; None if its smallest setting takes more."""
        return self._fit_vqae(bits, VQAE_PRIORS[name]) if name in VQAE_PRIORS else self._fit_baseline(name, bits)

    def _fit_vqae(self, bits: int, prior: bool | None) -> FittedMethod:
        """Distortion is that of calibrated labels; students get the unbiased ones (docs/how-it-works.md).

        A fit that chooses to have no prior is the fit without a prior, which is then not repeated.
        """
        if prior is False and bits in self.without_prior:
            return self.without_prior[bits]
        config = replace(self.config, bits=bits, prior=prior)
        codec = fit_codec(self.sample, config, FitHooks(progress=self.progress))

        def recode(labels: Tensor, context: Context | None) -> Tensor:
            return as_logits(codec.decode(codec.encode(labels, context), context), self.sample.domain)

        fitted = FittedMethod(measure_codec(codec.calibrated(), self.sample), recode)
        if codec.config.image_prior is not None:
            return fitted
        self.without_prior[bits] = fitted
        if prior is False:
            return fitted
        setting = f"{fitted.measurement.setting}, no prior: it would cost more than it saves"
        return fitted._replace(measurement=replace(fitted.measurement, setting=setting))

    def _fit_baseline(self, name: str, bits: int) -> FittedMethod | None:
        baseline = BASELINES[name].fit(self.train, bits)
        if baseline is None:
            return None
        measurement = measure_baseline(baseline, self.sample, self.progress)
        return FittedMethod(measurement, lambda labels, _: baseline.decode(baseline.encode(labels)))


def measure_codec(codec: LabelCodec, sample: LabelSample) -> Measurement:
    """Measure a fitted codec; its fixed bytes are those of the tensors that a `.vql` stores."""
    bits = {HELD_OUT: float(code_bits(codec, sample, ["held_out"])), ALL_IN: float(code_bits(codec, sample))}
    return Measurement(
        setting=f"{bits[HELD_OUT]:g} bits",
        fixed_bytes=sum(tensor.nbytes for tensor in codec.decoder_tensors().values()),
        code_bits=bits,
        distortion=_by_part({split: measure(codec, sample, split) for split in SPLITS}, sample),
    )


def measure_baseline(baseline: Baseline, sample: LabelSample, progress: Progress = silent) -> Measurement:
    """Measure a fitted baseline on all labels; bits that need a compressor, on some chunks."""
    measured = {split: _measure_split(baseline, sample, split, progress) for split in SPLITS}
    bits = {split: split_bits for split, (split_bits, _) in measured.items()}
    labels = {split: len(getattr(sample, split)) for split in SPLITS}
    return Measurement(
        setting=baseline.setting,
        fixed_bytes=baseline.fixed_bytes,
        code_bits={HELD_OUT: bits["held_out"], ALL_IN: _weighted_mean(bits, labels)},
        distortion=_by_part({split: figures for split, (_, figures) in measured.items()}, sample),
    )


def _measure_split(baseline: Baseline, sample: LabelSample, split: str, progress: Progress) -> tuple[float, dict[str, float]]:
    """Bits per label, and distortion, of one split."""
    size = max(1, min(MAX_CHUNK_LABELS, MAX_CHUNK_BYTES // (4 * sample.classes)))
    chunks = -(-len(getattr(sample, split)) // size)
    counted = {i * chunks // COMPRESSED_CHUNKS for i in range(COMPRESSED_CHUNKS)} if baseline.compresses else range(chunks)
    distortion, bits, labels_counted = Distortion(domain=sample.domain), 0.0, 0
    for number, (labels, _) in enumerate(sample.steps(split, size)):
        codes = baseline.encode(labels)
        decoded = baseline.decode(codes)
        distortion.add(labels, decoded if sample.domain == "logits" else F.softmax(decoded, 1))
        if number in counted:
            bits, labels_counted = bits + baseline.bits(codes), labels_counted + len(labels)
        progress("measuring", number + 1, chunks, {})
    return bits / labels_counted, distortion.figures()


def _by_part(figures: dict[str, dict[str, float]], sample: LabelSample) -> dict[str, dict[str, float]]:
    """Figures by split -> by part. Means are weighted by labels, the relative squared error by the labels' power."""
    labels = {split: len(getattr(sample, split)) for split in figures}
    power = {split: _power(sample, split) for split in figures}
    all_in = {
        name: _weighted_mean({split: figures[split][name] for split in figures}, power if name == "relative_mse" else labels)
        for name in figures["held_out"]
    }
    return {HELD_OUT: figures["held_out"], ALL_IN: all_in}


def _weighted_mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    return sum(weights[name] * value for name, value in values.items()) / max(sum(weights.values()), 1e-30)


def _power(sample: LabelSample, split: str) -> float:
    """Sum of the squared centred logits of a split."""
    return sum(as_logits(labels, sample.domain).square().sum().item() for labels, _ in sample.steps(split, 2048))
