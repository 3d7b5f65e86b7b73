"""A dump -> distortion over bytes, of vqae and of the baselines: held out and all-in, never mixed (docs/compare.md)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vqlabel.codecs import LabelSample
from vqlabel.config import MIX, FitConfig
from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels import LabelSource, open_labels
from vqlabel.labels.memory import Dump
from vqlabel.progress import Progress, silent
from vqlabel.report.baselines import MAX_FP16
from vqlabel.report.methods import ALL_IN, METHODS, PARTS, FittedMethod, Measurement, MethodFitter, has_rate, installed_methods
from vqlabel.report.student_benchmark import StudentBenchmark
from vqlabel.threads import large_operations
from vqlabel.type_checks import check_argument_types
from vqlabel.workflows.sample import read_sample

DEFAULT_BITS = (8, 16, 32, 64, 128, 256)  # code bits per label
MAX_BITS = 1 << 16  # code bits per label: more than raw labels of 4,096 classes take


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig:
    """What `compare_methods` fits, and for which student.

    Raises:
        UsageError: no rate, or one outside 1..MAX_BITS; no method, or an unknown one; no pass; a teacher of no byte.
    """

    bits: Sequence[int] = DEFAULT_BITS  # code bits per label at which methods that have a rate are fitted
    methods: Sequence[str] | None = None  # names in METHODS; None: all, except those whose package is not installed
    temperature: Sequence[float] | None = None  # of the student; None: the layout's, else 1, 4, 20
    seed: int = 0
    teacher_bytes: int | None = None  # size of the teacher, to compare with
    passes: int = 4  # over all views, of each student

    def __post_init__(self) -> None:
        require(len(self.bits) > 0, "bits", list(self.bits), "must name at least one rate")
        for rate in self.bits:
            require(1 <= rate <= MAX_BITS, "bits", rate, f"must be 1..{MAX_BITS} code bits per label")
        require(self.methods is None or len(self.methods) > 0, "methods", self.methods, f"must be some of {', '.join(METHODS)}")
        for name in self.methods or ():
            require(name in METHODS, "methods", name, f"must be one of {', '.join(METHODS)}")
        require(self.passes >= 1, "passes", self.passes, "must be at least 1")
        require(
            self.teacher_bytes is None or self.teacher_bytes > 0, "teacher_bytes", self.teacher_bytes, "must be at least 1 byte"
        )

    @property
    def rates(self) -> tuple[int, ...]:
        """`bits` in rising order, each once."""
        return tuple(sorted(set(self.bits)))

    def installed_methods(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """Methods to run, in the order of METHODS and each once; methods that are skipped, with the reason.

        Raises:
            MissingExtra: a method that was named needs a package that is not installed.
        """
        names = [name for name in METHODS if self.methods is None or name in self.methods]
        return installed_methods(names, required=self.methods is not None)

    def fit_config(self, source: LabelSource) -> FitConfig:
        """For the fits to one dump. Gain 1: the axis is KL, and calibrated labels have the least.

        Raises:
            UsageError: a temperature or the seed is out of range.
        """
        default = MIX if source.about.temperature is None else (source.about.temperature,)
        return FitConfig(temperature=tuple(self.temperature) if self.temperature else default, seed=self.seed, gain=1.0)


@large_operations()
@check_argument_types
def compare_methods(
    dump: Dump,
    config: CompareConfig | None = None,
    *,
    benchmark: StudentBenchmark | None = None,
    notify: Callable[[str], None] = lambda _: None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The rate-distortion curves of a dump, as a JSON object; see docs/compare.md.

    Every method is fitted to the training labels alone (`read_sample`).

    Args:
        dump: a path for `open_labels`, or a source.
        benchmark: of this dump: a student is trained from raw labels and from the labels of every method, at the lowest
            temperature. Takes minutes per point.
        notify: is called with a line of text if methods are skipped, or have no point at these rates.

    Returns:
        The labels that were measured, and `points`: method, setting, part ("held out" or "all-in"), code_bits and
        all_in_bits per label, fixed_bytes, and the figures of `Distortion`. With a benchmark, `student` has the
        training schedule and the scores from raw labels, and every all-in point has `student`, the scores of
        `StudentBenchmark.train_and_score`.

    Raises:
        UsageError: a temperature or the seed is out of range; the labels are sigmoid.
        BadLabels: the dump is malformed, has fewer than 2 labels, or labels outside fp16's range.
        MissingExtra: a method that was named needs a package that is not installed.
    """
    config = config or CompareConfig()
    source = _open_distributions(dump)
    fit_config = config.fit_config(source)
    methods, skipped = config.installed_methods()
    if skipped:
        notify(f"{', '.join(skipped)}: skipped; {next(iter(skipped.values()))}")
    sample, split = read_sample(source, progress)
    sample = sample.dense()
    labels = _count_labels(source, progress)
    _check_fp16_range(source, sample)
    students = None if benchmark is None else _Students(benchmark, config, fit_config, progress)
    fitted = _fit_all(MethodFitter(sample, fit_config, config.rates[-1], progress), methods, config.rates, progress, students)
    shown = {name for name, *_ in fitted}
    absent = {name: f"its smallest setting takes more than {config.rates[-1]} bits" for name in methods if name not in shown}
    for name, reason in absent.items():
        notify(f"{name}: no point; {reason}: raise --bits")
    return {
        "dump": str(source.path),
        "classes": source.classes,
        "domain": source.domain,
        "dtype": source.dtype,
        "labels": labels,
        "sampled": {"train": len(sample.train), "held_out": len(sample.held_out)},
        "split": split,
        "temperature": list(fit_config.temperature or ()),
        "seed": config.seed,
        "bits": list(config.rates),
        "methods": {name: METHODS[name] for name in methods},
        "skipped": {**skipped, **absent},
        "teacher": _teacher(config.teacher_bytes, labels),
        "student": None if students is None else students.summary,
        "points": [_point(part, labels, *method) for part in PARTS for method in fitted],
    }


class _Students:
    """Trains students of one benchmark, all with the same schedule.

    Attributes:
        summary: the schedule, and the scores from raw labels.
    """

    def __init__(self, benchmark: StudentBenchmark, config: CompareConfig, fit_config: FitConfig, progress: Progress) -> None:
        assert fit_config.temperature is not None
        self.benchmark, self.progress = benchmark, progress
        self.schedule: dict[str, Any] = {
            "temperature": min(fit_config.temperature), "passes": config.passes, "seed": config.seed
        }  # fmt: skip
        counts = {"views": len(benchmark.views), "new_images": len(benchmark.new_images)}
        raw = benchmark.train_and_score(benchmark.raw_labels, progress=progress, **self.schedule)
        self.summary = {**self.schedule, **counts, "raw": raw}

    def scores(self, fitted: FittedMethod) -> dict[str, float]:
        """Of a student of the labels that a method gives back."""
        labels = self.benchmark.recoded_labels(fitted.recode)
        return self.benchmark.train_and_score(labels, progress=self.progress, **self.schedule)


def _fit_all(
    fitter: MethodFitter, methods: Sequence[str], rates: Sequence[int], progress: Progress, students: _Students | None
) -> list[tuple[str, Measurement, dict[str, float] | None]]:
    """Method, measurement and student scores; each setting of a method once: two rates may have the same setting."""
    jobs = [(name, rate) for name in methods for rate in (rates if has_rate(name) else rates[:1])]
    results: dict[tuple[str, str], tuple[str, Measurement, dict[str, float] | None]] = {}
    for done, (name, rate) in enumerate(jobs):
        progress("methods", done, len(jobs), {})
        fitted = fitter.fit(name, rate)
        if fitted is not None and (key := (name, fitted.measurement.setting)) not in results:
            results[key] = (name, fitted.measurement, None if students is None else students.scores(fitted))
    progress("methods", len(jobs), len(jobs), {})
    return list(results.values())


def _open_distributions(dump: Dump) -> LabelSource:
    """Raises UsageError for sigmoid labels."""
    source = dump if isinstance(dump, LabelSource) else open_labels(dump)
    if source.domain == "sigmoid":
        raise UsageError(
            f"{source.path}: has sigmoid labels, but compare supports only labels that are one distribution over the classes; "
            "`vqlabel fit` prints the distortion of vqae for sigmoid labels"
        )
    return source


def _count_labels(source: LabelSource, progress: Progress) -> int:
    """Labels of the whole dump; a source knows only the number of its batches."""
    labels = 0
    for done, batch in enumerate(source):
        labels += len(batch)
        progress("counting", done + 1, len(source), {})
    return labels


def _check_fp16_range(source: LabelSource, sample: LabelSample) -> None:
    """Raises BadLabels for a label that the baselines, which store fp16, would clip."""
    largest = max(float(labels.abs().max()) for labels in (sample.train, sample.held_out))
    if largest > MAX_FP16:
        raise BadLabels(
            f"{source.path}: a label has {largest:.3g}; the methods compared here store fp16, whose largest number is {MAX_FP16:.0f}: "
            "clamp the labels"
        )


def _teacher(teacher_bytes: int | None, labels: int) -> dict[str, Any] | None:
    return None if teacher_bytes is None else {"bytes": teacher_bytes, "all_in_bits": round(8 * teacher_bytes / labels, 4)}


def _point(part: str, labels: int, name: str, measurement: Measurement, scores: dict[str, float] | None) -> dict[str, Any]:
    figures = {
        figure: value for figure, value in measurement.distortion[part].items() if figure != "mse"
    }  # most code centred logits
    return {
        "method": name,
        "setting": measurement.setting,
        "part": part,
        "code_bits": round(measurement.code_bits[part], 4),
        "fixed_bytes": measurement.fixed_bytes,
        "all_in_bits": round(measurement.code_bits[ALL_IN] + 8 * measurement.fixed_bytes / labels, 4),
        **{figure: max(0.0, round(value, 6)) for figure, value in figures.items()},
        **({} if scores is None or part != ALL_IN else {"student": scores}),
    }
