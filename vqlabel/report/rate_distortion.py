"""A dump -> distortion over bytes, of vqae and of what else a user could store: held out and all-in, never mixed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs import FitHooks, LabelCodec, LabelSample
from vqlabel.codecs.fit import fit_codec
from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.config import MIX, FitConfig
from vqlabel.errors import BadLabels, MissingExtra, UsageError, require
from vqlabel.labels import Context, LabelSource, open_labels
from vqlabel.metrics.distortion import Distortion, as_logits
from vqlabel.progress import Progress, silent
from vqlabel.report.baselines import HALF_MOST, PEERS, Faiss, Peer, Seen, import_faiss
from vqlabel.report.student_benchmark import Lesson, Recode
from vqlabel.threads import large_operations
from vqlabel.workflows.fit_report import code_bits, measure
from vqlabel.workflows.sample import read_sample

BITS = (8, 16, 32, 64, 128, 256)
BITS_MOST = 1 << 16  # of a rate: more than raw labels of 4,096 classes
PARTS = HELD, ALL_IN = ("held out", "all-in")
VQAE = {"vqae": ("vqae", None), "vqae-no-prior": ("vqae without prior", False)}  # method: title, FitConfig.prior
METHODS = {**{name: title for name, (title, _) in VQAE.items()}, **{name: peer.title for name, peer in PEERS.items()}}
CHUNK_LABELS, CHUNK_BYTES = 8192, 64 << 20  # labels at a time, and in one zstd frame, at most
PRICED_CHUNKS = 4  # of each part, evenly spread: what zstd is asked about


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One method at one setting: on the held-out labels (HELD), and on all sampled labels (ALL_IN)."""

    setting: str
    fixed_bytes: int  # codebooks, projections, tables, decoder: once, however many labels
    code_bits: dict[str, float]  # per label, by part
    distortion: dict[str, dict[str, float]]  # of `Distortion`, by part


@large_operations()
def compare(
    dump: str | PathLike[str] | LabelSource,
    bits: Sequence[int] = BITS,
    *,
    methods: Sequence[str] | None = None,
    temperature: Sequence[float] | None = None,
    seed: int = 0,
    teacher_bytes: int | None = None,
    lesson: Lesson | None = None,
    passes: int = 4,
    say: Callable[[str], None] = lambda _: None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The rate-distortion curve of a dump, as one dictionary that JSON takes; see docs/compare.md.

    Every method learns from the seen part alone (`fitting.read_sample`). "held out" measures it on labels that it has not seen, where
    fixed parts cost nothing; "all-in" on all sampled labels, with fixed parts shared by the labels of this very dump.

    Args:
        dump: a path for `open_labels`, or a source.
        bits: code bits per label that methods with a rate are fitted for.
        methods: names in METHODS; None: all, without those whose extra is not installed (`skipped`, and `say` says so).
        temperature: the student's; None: as the layout says, else 1, 4, 20.
        teacher_bytes: size of the teacher: adds `teacher`, its bytes per label of this dump.
        lesson: of this dump: the labels of every method, and raw ones, train a student, `passes` times over all views, at the lowest
            temperature. That takes minutes a point.
        say: called with a line for a person.

    Returns:
        What was measured on, and `points`: method, setting, part ("held out" or "all-in"), code_bits and all_in_bits per label,
        fixed_bytes, and the figures of `Distortion`. With a lesson `student` says how students were trained and what raw labels gave
        them, and every point that is all-in has `student`, the figures of `Lesson.learn`.

    Raises:
        UsageError: a rate, method, temperature or seed that cannot be.
        BadLabels: the dump is malformed, has fewer than 2 labels, or labels that fp16 cannot hold.
        MissingExtra: a method that was named needs a package that is not installed.
    """
    rates, chosen = check_rates(bits), check_methods(methods)
    require(passes >= 1, "passes", passes, "must be at least 1")
    require(teacher_bytes is None or teacher_bytes > 0, "teacher_bytes", teacher_bytes, "must be at least 1 byte")
    source = dump if isinstance(dump, LabelSource) else open_labels(dump)
    if source.domain == "sigmoid":
        raise UsageError(
            f"{source.path}: holds sigmoid labels, and the methods that are compared here store one distribution a label; `fit` prints what "
            "vqae makes of them"
        )
    degrees = tuple(temperature) if temperature else MIX if source.temperature is None else (source.temperature,)
    config = FitConfig(
        temperature=degrees, seed=seed, contrast=1.0
    )  # the axis is KL; refuses what cannot be before anything is read
    chosen, skipped = _without_missing(chosen, named=methods is not None)
    if skipped:
        say(f"{', '.join(skipped)}: skipped; {next(iter(skipped.values()))}")
    sample, words = read_sample(source, progress)
    labels = _count(source, progress)
    most = max(float(part.abs().max()) for part in (sample.seen, sample.held))
    if most > HALF_MOST:
        raise BadLabels(
            f"{source.path}: a label holds {most:.3g}; halves, which the methods here store, end at 65504: clamp the labels"
        )
    how: dict[str, Any] = {"temperature": min(degrees), "passes": passes, "seed": seed}
    student = None if lesson is None else {**how, "views": len(lesson.views), "new_images": len(lesson.new)}
    if lesson is not None and student is not None:
        student["raw"] = lesson.learn(lesson.raw, progress=progress, **how)
    jobs = [(name, rate) for name in chosen for rate in (rates if name in VQAE or PEERS[name].at_rates else rates[:1])]
    bench, found = _Bench(sample, config, rates[-1], progress), dict[tuple[str, str], Measured]()
    worth = dict[tuple[str, str], dict[str, float]]()
    for done, (name, rate) in enumerate(jobs):
        progress("methods", done, len(jobs), {})
        result = bench.run(name, rate)
        if result is None or (name, result[0].setting) in found:  # two rates may leave room for the same setting
            continue
        measured, recode = result
        found[name, measured.setting] = measured
        if lesson is not None:
            worth[name, measured.setting] = lesson.learn(lesson.recoded(recode), progress=progress, **how)
    progress("methods", len(jobs), len(jobs), {})
    return {
        "dump": str(source.path),
        "classes": source.classes,
        "domain": source.domain,
        "dtype": source.dtype,
        "labels": labels,
        "sampled": {"seen": len(sample.seen), "held": len(sample.held)},
        "held_out": words,
        "temperature": list(degrees),
        "seed": seed,
        "bits": list(rates),
        "methods": {name: METHODS[name] for name in chosen},
        "skipped": skipped,
        "teacher": None if teacher_bytes is None else {"bytes": teacher_bytes, "all_in_bits": round(8 * teacher_bytes / labels, 4)},
        "student": student,
        "points": [
            _point(name, measured, part, labels, worth.get((name, setting)))
            for part in PARTS
            for (name, setting), measured in found.items()
        ],
    }


def check_rates(bits: Sequence[int]) -> tuple[int, ...]:
    """Rising and each once. Raises UsageError where one cannot be, or there is none."""
    require(len(bits) > 0, "bits", list(bits), "must name at least one rate")
    for rate in bits:
        require(1 <= rate <= BITS_MOST, "bits", rate, f"must be 1..{BITS_MOST} code bits per label")
    return tuple(sorted(set(bits)))


def check_methods(methods: Sequence[str] | None) -> tuple[str, ...]:
    """In the order of METHODS and each once; all for None. Raises UsageError for one that is unknown, or none."""
    require(methods is None or len(methods) > 0, "methods", methods, f"must be some of {', '.join(METHODS)}")
    for name in methods or ():
        require(name in METHODS, "methods", name, f"must be one of {', '.join(METHODS)}")
    return tuple(name for name in METHODS if methods is None or name in methods)


def _without_missing(chosen: tuple[str, ...], *, named: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    """Without the methods whose package is not installed, and why; a user who named one is told so by MissingExtra."""
    need = [name for name in chosen if name in PEERS and issubclass(PEERS[name], Faiss)]
    try:
        if need:
            import_faiss()
    except MissingExtra as error:
        if named:
            raise
        return tuple(name for name in chosen if name not in need), dict.fromkeys(need, str(error))
    return chosen, {}


def _count(source: LabelSource, progress: Progress) -> int:
    """Labels of the whole dump; only its batches know."""
    labels = 0
    for done, batch in enumerate(source):
        labels += len(batch)
        progress("counting", done + 1, len(source), {})
    return labels


class _Bench:
    """Fits methods to a sample and measures them on both its parts."""

    def __init__(self, sample: LabelSample, config: FitConfig, most_bits: int, progress: Progress) -> None:
        assert config.temperature is not None
        self.sample, self.config, self.progress = sample, config, progress
        self.seen = Seen(sample, config.temperature, config.seed, most_bits)
        self.without_prior: dict[int, tuple[Measured, Recode]] = {}

    def run(self, name: str, rate: int) -> tuple[Measured, Recode] | None:
        """None where not even the method's smallest setting fits the rate."""
        if name in VQAE:
            return self.vqae(rate, VQAE[name][1])
        peer = PEERS[name].fit(self.seen, rate)
        if peer is None:
            return None
        return measure_peer(peer, self.sample, self.progress), lambda labels, _: peer.decode(peer.encode(labels))

    def vqae(self, rate: int, prior: bool | None) -> tuple[Measured, Recode]:
        """A fit that was left its prior and came out without one is the fit without: it is not done twice.

        Distortion is of calibrated labels, students get unbiased ones: docs/how-it-works.md.
        """
        if prior is False and rate in self.without_prior:
            return self.without_prior[rate]
        config = replace(self.config, bits=rate, prior=prior)
        codec = fit_codec(self.sample, config, FitHooks(progress=self.progress))
        assert isinstance(codec, VqaeCodec)
        found = measure_codec(codec.calibrated(), self.sample)

        def recode(labels: Tensor, context: Context | None) -> Tensor:
            return as_logits(codec.decode(codec.encode(labels, context), context), self.sample.domain)

        if codec.config.prior is None:
            self.without_prior[rate] = found, recode
            if prior is None:
                found = replace(found, setting=found.setting + ", no prior: it would not pay")
        return found, recode


def measure_codec(codec: LabelCodec, sample: LabelSample) -> Measured:
    """A fitted codec, through `fitting.measure`; its fixed bytes are those of the tensors that travel."""
    bits = {HELD: float(code_bits(codec, sample, ["held"])), ALL_IN: float(code_bits(codec, sample))}
    return Measured(
        setting=f"{bits[HELD]:g} bits",
        fixed_bytes=sum(tensor.nbytes for tensor in codec.decoder_tensors().values()),
        code_bits=bits,
        distortion=_by_part({part: measure(codec, sample, part) for part in ("seen", "held")}, sample),
    )


def measure_peer(peer: Peer, sample: LabelSample, progress: Progress = silent) -> Measured:
    """A fitted peer, on all labels of the sample; what zstd takes is asked on up to PRICED_CHUNKS chunks of each part."""
    size = max(1, min(CHUNK_LABELS, CHUNK_BYTES // (4 * sample.classes)))
    figures, bits, priced = {}, {}, {}
    for part in ("seen", "held"):
        distortion = Distortion(domain=sample.domain)
        chunks = -(-len(getattr(sample, part)) // size)
        asked = range(chunks) if not peer.slow_bits else {i * chunks // PRICED_CHUNKS for i in range(PRICED_CHUNKS)}
        total = count = 0.0
        for at, (labels, _) in enumerate(sample.steps(part, size)):
            codes = peer.encode(labels)
            decoded = peer.decode(codes)
            distortion.add(labels, decoded if sample.domain == "logits" else F.softmax(decoded, 1))
            if at in asked:
                total, count = total + peer.bits(codes), count + len(labels)
            progress("measuring", at + 1, chunks, {})
        figures[part], bits[part], priced[part] = distortion.figures(), total / count, len(getattr(sample, part))
    both = sum(bits[part] * priced[part] for part in bits) / sum(priced.values())
    return Measured(
        setting=peer.setting,
        fixed_bytes=peer.fixed_bytes,
        code_bits={HELD: bits["held"], ALL_IN: both},
        distortion=_by_part(figures, sample),
    )


def _by_part(figures: dict[str, dict[str, float]], sample: LabelSample) -> dict[str, dict[str, float]]:
    """Figures of the sample's parts -> of the held-out labels, and of all: means weighed by labels, squared error by its power."""
    labels = {part: len(getattr(sample, part)) for part in figures}
    power = {part: _power(sample, part) for part in figures}
    every = {}
    for name in figures["held"]:
        weight: dict[str, Any] = power if name == "relative_mse" else labels
        every[name] = sum(weight[p] * figures[p][name] for p in figures) / max(sum(weight.values()), 1e-30)
    return {HELD: figures["held"], ALL_IN: every}


def _power(sample: LabelSample, part: str) -> float:
    """Sum of squared centred logits."""
    return sum(as_logits(labels, sample.domain).square().sum().item() for labels, _ in sample.steps(part, 2048))


def _point(name: str, measured: Measured, part: str, labels: int, worth: dict[str, float] | None) -> dict[str, Any]:
    bits, figures = measured.code_bits[part], dict(measured.distortion[part])
    del figures["mse"]  # most peers code centred logits, so it would say nothing of them
    return {
        "method": name,
        "setting": measured.setting,
        "part": part,
        "code_bits": round(bits, 4),
        "fixed_bytes": measured.fixed_bytes,
        "all_in_bits": round(measured.code_bits[ALL_IN] + 8 * measured.fixed_bytes / labels, 4),
        **{figure: max(0.0, round(value, 6)) for figure, value in figures.items()},
        **({} if worth is None or part == HELD else {"student": worth}),
    }
