"""A dump of documents -> KL over bits of token_vqae and of its peers, on held-out documents (docs/compare.md)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import numpy as np

from vqlabel.codecs.sample import FitHooks
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.codecs.token_vqae.fit.stages import random_documents
from vqlabel.codecs.token_vqae.fit.train import fit
from vqlabel.codecs.token_vqae.sample import TextSample, TextSplit
from vqlabel.config import TextFitConfig
from vqlabel.errors import UsageError, require
from vqlabel.labels.text.open import refuse_topk
from vqlabel.labels.text.source import TextSource
from vqlabel.progress import Progress, noted, silent
from vqlabel.report.rate_distortion import DEFAULT_BITS
from vqlabel.report.text.methods import CODEC, CODED, FP8, METHODS
from vqlabel.report.text.points import Point, Size, codec_points, peer_points, student_labels
from vqlabel.report.text.student import ProbsOf, StudentSchedule
from vqlabel.report.text.student_labels import StudentCorpus, train_and_judge
from vqlabel.report.text.student_network import CausalStudent, StudentConfig
from vqlabel.threads import large_operations
from vqlabel.type_checks import check_argument_types
from vqlabel.workflows.text.open import open_text_dump
from vqlabel.workflows.text.sample import read_text_sample

STUDENT_LABELS = 128_000  # labels of documents that students learn from
PIECE_TOKENS = 129  # of a document that a student reads together, 128 labels
STUDENT_WIDTH = 128  # features of a token
MAX_BITS = 4096  # code bits per label


@dataclass(frozen=True, kw_only=True, slots=True)
class TextCompareConfig:
    """What `compare_text` measures.

    Raises:
        UsageError: no rate, or one outside 0..MAX_BITS; no method, or an unknown one; no pass; a teacher of no byte.
    """

    bits: Sequence[int] = DEFAULT_BITS  # code bits per label at which token_vqae is measured
    methods: Sequence[str] | None = None  # names in METHODS; None: all
    fit: TextFitConfig = field(default_factory=TextFitConfig)  # sizes of token_vqae; its rate and seed are not used
    seed: int = 0
    teacher_bytes: int | None = None  # size of the teacher, to compare with
    students: bool = False  # whether a student is trained from the labels of every point
    passes: int = 4  # of a student over its documents

    def __post_init__(self) -> None:
        require(len(self.bits) > 0, "bits", list(self.bits), "must name at least one rate")
        for rate in self.bits:
            require(0 <= rate <= MAX_BITS, "bits", rate, f"must be 0..{MAX_BITS} code bits per label")
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


@large_operations()
@check_argument_types
def compare_text(
    dump: str | PathLike[str] | TextSource,
    config: TextCompareConfig | None = None,
    *,
    head: str | PathLike[str] | None = None,
    layer: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The rate-distortion curves of a dump of documents, as a JSON object; see docs/compare.md.

    One codec is fitted and measured at all rates. All figures are those of held-out documents, which the fit does not
    see.

    Args:
        dump: a path for `open_text_labels`, or a source.
        head: the teacher's output head, a path for `open_head`.
        layer: of hidden states of several layers, the one to read; None: the last.

    Returns:
        `labels` and `documents` of the dump, and `points`, by rising code_bits: method, setting, code_bits;
        fixed_bytes, all_in_bits at the dump's number of labels and all_in_at at others, and the same under `referenced`
        if the head is named and not stored (None: it cannot be named); the figures of `TokenDistortion`. With students,
        `student` has their schedule and the scores from hard and dense labels, and every point has `student`: kl, ce,
        ece, top1 as `StudentScores`, and `share` of the gain in KL from hard to dense labels (None: there is no gain).

    Raises:
        UsageError: the head is missing or of another size.
        BadLabels: the dump has fewer than 2 documents, or is malformed.
    """
    config = config or TextCompareConfig()
    refuse_topk(dump)
    opened = open_text_dump(dump, head, layer=layer)
    source, is_hidden = opened.source, bool(opened.about["head"])
    methods = [name for name in METHODS if config.methods is None or name in config.methods]
    if not is_hidden and FP8 in methods:
        if config.methods is not None:
            raise UsageError(f"methods is {FP8!r}; {source.path} holds logits, not hidden states: leave it out")
        methods.remove(FP8)
    sample = read_text_sample(opened, config.fit.labels, config.seed, progress)
    labels, documents = int(np.maximum(source.lengths - 1, 0).sum()), int((source.lengths > 1).sum())
    codec = _fit(sample, config, progress) if {CODEC, CODED} & set(methods) else None
    points = list[Point]()
    if codec is not None and CODEC in methods:
        points += codec_points(codec, sample.held_out, config.rates, documents / labels, progress)
    points += peer_points(methods, sample.held_out, codec, config.seed, is_hidden, progress)
    if not is_hidden:  # the head is the codec's own
        points = [point.without_reference() if point.method in (CODEC, CODED) else point for point in points]
    points.sort(key=lambda point: point.code_bits)
    students = _Students(sample, config, progress) if config.students else None
    scores = [{} for _ in points] if students is None else students.of_points(points, codec)
    return {
        "dump": str(source.path),
        "vocabulary": sample.train.labels.head.vocabulary,
        "labels": labels,
        "documents": documents,
        "sampled": {"train": len(sample.train.labels), "held_out": len(sample.held_out.labels)},
        "head": opened.about["head"],
        "config": None if codec is None else codec.config.to_dict(),
        "seed": config.seed,
        "bits": list(config.rates),
        "methods": {name: METHODS[name] for name in methods},
        "teacher": _teacher(config.teacher_bytes, labels),
        "student": None if students is None else students.summary,
        "points": [{**point.to_dict(labels), **own} for point, own in zip(points, scores, strict=True)],
        **noted(source.notes),
    }


def _fit(sample: TextSample, config: TextCompareConfig, progress: Progress) -> TokenVqae:
    """A codec for the middle of the rates: one fit gives the curve, because fits for other rates differ little."""
    middle = config.rates[len(config.rates) // 2]
    fit_config = replace(config.fit, bits=float(middle), bytes=None, ratio=None, seed=config.seed)
    return fit(sample, fit_config, FitHooks(progress=progress))


class _Students:
    """Trains students on documents of the training sample, all with the same schedule and the same start.

    Attributes:
        summary: the schedule, numbers of labels, and the scores from hard and dense labels.
    """

    def __init__(self, sample: TextSample, config: TextCompareConfig, progress: Progress) -> None:
        split = random_documents(sample.train, STUDENT_LABELS, config.seed)[0]
        self.split, self.learn, self.held_out = split, _corpus(split), _corpus(sample.held_out)
        self.schedule, self.progress = StudentSchedule(passes=config.passes, seed=config.seed), progress
        ends = {name: self._scores(labels) for name, labels in (("hard", self.learn.hard), ("dense", self.learn.dense))}
        self.kl = {name: scores["kl"] for name, scores in ends.items()}
        counts = {"labels": len(split.labels), "judged_labels": len(sample.held_out.labels)}
        self.summary = {"passes": config.passes, "seed": config.seed, **counts, **ends}

    def of_points(self, points: Sequence[Point], codec: TokenVqae | None) -> list[dict[str, Any]]:
        """`student` of every point; points that differ in their bits alone share one."""
        scores = dict[Any, dict[str, float | None]]()
        distinct = list({point.source: point for point in points}.values())
        for point, labels in zip(
            distinct, student_labels(distinct, codec, self.split, self.schedule.seed, self.progress), strict=True
        ):
            scores[point.source] = self._scores(labels)
        return [{"student": {**scores[point.source], "share": self._share(scores[point.source]["kl"])}} for point in points]

    def _scores(self, labels: ProbsOf) -> dict[str, Any]:
        vocabulary = self.split.labels.shape[1]
        student = CausalStudent.draw(StudentConfig(vocabulary=vocabulary, width=STUDENT_WIDTH), self.schedule.seed)
        return train_and_judge(student, self.learn, self.held_out, labels, self.schedule, progress=self.progress)[0]._asdict()

    def _share(self, kl: float | None) -> float | None:
        """Of the gain of dense over hard labels."""
        gain = self.kl["hard"] - self.kl["dense"]
        return None if gain <= 0 or kl is None else (self.kl["hard"] - kl) / gain


def _corpus(split: TextSplit) -> StudentCorpus:
    return StudentCorpus(split.documents, split.labels).cut(PIECE_TOKENS)


def _teacher(teacher_bytes: int | None, labels: int) -> dict[str, Any] | None:
    if teacher_bytes is None:
        return None
    at = Size(bits=0.0, embedded=teacher_bytes).all_in(labels)
    return {"bytes": teacher_bytes, "all_in_bits": at["all_in_bits"], "all_in_at": at["all_in_at"]}
