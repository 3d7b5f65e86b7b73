"""Trial fits of different sizes on one sample -> the best one inside a budget, or the smallest that reaches a KL."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from vqlabel.codecs import LabelCodec, LabelSample, fit_codec
from vqlabel.codecs.budget import budget_of
from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.codecs.vqae.fit.budget import DEFAULT_WEIGHT_BITS, MAX_WEIGHT_BITS, MIN_WEIGHT_BITS
from vqlabel.codecs.vqae.fit.dataset_stats import DatasetStats, dataset_stats
from vqlabel.codecs.vqae.fit.resolve import resolve
from vqlabel.codecs.vqae.fit.train import default_epochs
from vqlabel.codecs.vqae.sizes import file_bytes
from vqlabel.config import DEFAULT_BITS, FitConfig
from vqlabel.container.overhead import FILE_BYTES
from vqlabel.errors import UsageError
from vqlabel.metrics.distortion import temperature_weight
from vqlabel.metrics.likelihood import likelihood_of
from vqlabel.workflows.fit_report import measure
from vqlabel.workflows.run_state import RunState

QUICK = 0.3  # share of a complete fit's epochs in a trial: enough to rank shapes, too few to predict their final KL
SHARES = (0.25, 0.4, 0.6, 0.75, 0.0, 0.9)  # shares of the budget for codes that are tried, besides the default
WEIGHT_BITS = (3, 5, 6, 8)  # bits per stored number that are tried, besides the default
SMALL, LARGE = 16, 256  # codebook sizes that are tried
FEW_BITS = 32  # code bits per label up to which both are tried; at higher rates one slot is a small step already
REACH_TRIALS = 8  # maximum number of trials of `Search.reach`
NEAR = 0.04  # tolerance of `Search.reach`, in the logarithms of KL and of bytes

Judge = Callable[[LabelCodec], dict[str, float]]  # scores of a student of a codec's labels; `loss` is minimised


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial fit of one shape: its bytes in a file of the complete dump, and its held-out loss."""

    config: FitConfig
    resolved: VqaeConfig
    bytes: int
    loss: float  # weighted sum of `kl`: `mixed_kl_divergence`; or the loss of the student
    kl: dict[str, float]  # at each temperature, lowest first; nats times T^2
    seconds: float
    fit_seconds: float  # of these, what the fit took
    student: dict[str, float] = field(default_factory=dict)  # scores of a student of its labels, if students judge

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible values; `config` is the resolved one."""
        scores = {"student": self.student} if self.student else {}
        return {
            "config": self.resolved.to_dict(), "bytes": self.bytes, "loss": self.loss, "kl": self.kl, **scores, "seconds": self.seconds
        }  # fmt: skip

    def to_state(self) -> dict[str, Any]:
        """All fields, for `RunState`."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "config": self.config.to_dict(),
            "resolved": self.resolved.to_dict(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Trial":
        """Inverse of `to_state`."""
        return cls(**{**state, "config": FitConfig.from_dict(state["config"]), "resolved": VqaeConfig.from_dict(state["resolved"])})


def _slots(config: VqaeConfig) -> int:
    """Slots per label; at a variable rate of the mean label."""
    return round(config.rate / config.code_bits) if config.variable else config.slots


def first_figure(trial: Trial) -> str:
    """Name of the KL at the first temperature."""
    return next(iter(trial.kl))


def _first_kl(trial: Trial) -> float:
    """KL at the first temperature."""
    return trial.kl[first_figure(trial)]


class Search:
    """Trial fits of different shapes on one sample.

    Args:
        config: what it leaves open is searched.
        until: end of the time budget, on the clock of `time.monotonic`.
        on_trial: called after every trial.
        judge: ranks the trials by the students of their labels, which have the gain of `config`. None: by the held-out
            KL of calibrated labels, which depends on the codes only.
        temperatures: to fit for besides that of `config`. KL at one says nothing about KL at another: only for a judge.
        state: keeps the trials; those of an interrupted run, `stored`, are not repeated.

    Attributes:
        budget: in bytes; None: `config` has none.
    """

    def __init__(
        self,
        sample: LabelSample,
        config: FitConfig,
        until: float,
        on_trial: Callable[[Trial], None] = lambda _: None,
        judge: Judge | None = None,
        temperatures: Sequence[tuple[float, ...]] = (),
        state: RunState | None = None,
    ) -> None:
        self.sample, self.config, self.until, self.on_trial = sample, config, until, on_trial
        self.judge, self.temperatures = judge, temperatures
        self.stats: DatasetStats = dataset_stats(sample)
        self.budget = budget_of(config, self.stats.labels, self.stats.classes)
        self.state = state or RunState(None)
        self.stored = [Trial.from_state(trial) for trial in self.state.result("trials") or []]
        self.trials: list[Trial] = []
        self.out_of_time = False  # whether `within` left out trials

    def within(self, budget: int) -> Trial:
        """The best of the shapes that fill `budget`, in bytes.

        Tries different shares of the budget for codes, then neighbours of the best shape until none is better.

        Raises:
            UsageError: the budget is too small for any shape.
        """
        best = self.run(replace(self.config, bytes=budget, ratio=None))
        temperatures = [{"temperature": t} for t in self.temperatures]
        moves = [*temperatures, *self._shares(best, budget), *self._neighbours(best)]
        while moves:
            before = best
            for options in moves:
                if not self._time_for_more():
                    self.out_of_time = True
                    return best
                best = self._better(best, options)
            moves = [] if best is before else self._neighbours(best)
        return best

    def _shares(self, default: Trial, budget: int) -> list[dict[str, Any]]:
        """Other numbers of slots than those of the default shape, the nearest first."""
        if self.config.slots is not None or self.config.bits is not None:
            return []
        bits, slots, width = 8 * budget / self.stats.labels, _slots(default.resolved), default.resolved.code_bits
        counts = [slots + 1, slots - 1, *(round(share * bits / width) for share in SHARES)]
        moves: list[dict[str, Any]] = [{"slots": count} for count in dict.fromkeys(counts) if count >= 0]
        if self.config.codebook_size is None and slots * width <= FEW_BITS:
            small_width = (SMALL - 1).bit_length()
            counts = [max(1, slots * width // small_width), *(round(share * bits / small_width) for share in SHARES)]
            moves += [{"slots": count, "codebook_size": SMALL} for count in dict.fromkeys(counts) if count > 0]
        return moves

    def _neighbours(self, best: Trial) -> list[dict[str, Any]]:
        """Changes of one size that the user left open; or of slots against bits per stored number, at one budget."""
        given, shape = self.config, best.resolved
        slots, free_slots = _slots(shape), given.slots is None and given.bits is None
        moves: list[dict[str, Any]] = []
        if given.weight_bits is None:
            moves += [{"weight_bits": bits} for bits in (DEFAULT_WEIGHT_BITS, *WEIGHT_BITS)]
        if free_slots:
            moves += [{"slots": count} for count in (slots + 1, slots - 1) if count >= 0]
        if free_slots and given.weight_bits is None:
            trades = [(slots - 1, shape.weight_bits + 1), (slots + 1, shape.weight_bits - 1)]
            moves += [
                {"slots": count, "weight_bits": bits}
                for count, bits in trades
                if count >= 0 and MIN_WEIGHT_BITS <= bits <= MAX_WEIGHT_BITS
            ]
        if given.codebook_size is None and slots * shape.code_bits <= FEW_BITS:
            moves += [{"codebook_size": SMALL if shape.codebook_size != SMALL else LARGE}]
        if given.prior is None and shape.prior is not None:
            moves += [{"prior": False}]
        return moves

    def _better(self, best: Trial, options: dict[str, Any]) -> Trial:
        """The better of `best` and `best` with `options` changed."""
        try:
            trial = self.run(self._changed(best, options))
        except UsageError:  # this shape does not fit into the budget
            return best
        return trial if trial.loss < best.loss else best

    def _changed(self, best: Trial, options: dict[str, Any]) -> FitConfig:
        """The configuration of `best` with `options` changed.

        Raises:
            UsageError: the options contradict each other.
        """
        config = best.config
        if self.config.variable_rate:
            config = replace(config, codebook_size=best.resolved.codebook_size)
            return replace(config, **self._as_mean_bits(options, config))
        if config.slots is None and config.bits is None:  # fix the default sizes, which would be resolved anew for other options
            config = replace(config, slots=best.resolved.slots, codebook_size=best.resolved.codebook_size)
        config = replace(config, **options)
        if "codebook_size" in options and "slots" not in options and best.resolved.slots:  # keep the code bits per label
            width = resolve(config, self.stats).code_bits
            config = replace(config, slots=max(1, best.resolved.slots * best.resolved.code_bits // width))
        return config

    def _as_mean_bits(self, options: dict[str, Any], config: FitConfig) -> dict[str, Any]:
        """`options` with a number of slots as bits of the mean label, which set the rate if it is variable."""
        others = {name: value for name, value in options.items() if name != "slots"}
        if "slots" not in options:
            return others
        width = resolve(replace(config, bytes=None, ratio=None, **{"bits": DEFAULT_BITS, **others}), self.stats).code_bits
        return {**others, "bits": options["slots"] * width}

    def reach(self, kl: float) -> Trial:
        """The default shape with the fewest bytes whose trial has at most this KL, by the secant method on the
        logarithms of both; if no trial reached it, the nearest one.

        Raises:
            UsageError: there are too few labels for any codec.
        """
        labels, classes = self.stats.labels, self.stats.classes
        low, high = math.log(FILE_BYTES), math.log(labels * classes / 2)  # bytes: too few; 1/4 of fp16, more than any KL needs
        size, smallest, previous = min(high, math.log(FILE_BYTES + 4 * labels)), None, None
        for _ in range(REACH_TRIALS):
            try:
                trial = self.run(replace(self.config, bytes=int(math.exp(size)), ratio=None))
            except UsageError:  # no codec is so small
                low, size = size, (size + high) / 2 if smallest is None else (size + math.log(smallest.bytes)) / 2
                continue
            excess = math.log(max(_first_kl(trial), 1e-9) / (0.99 * kl))
            slope = (
                -0.5
                if previous is None or abs(size - previous[0]) < 1e-3
                else min(-0.2, (excess - previous[1]) / (size - previous[0]))
            )
            previous = size, excess
            if excess <= 0:
                high, smallest = size, trial
            else:
                low = size
            if high - low < NEAR or -NEAR < excess <= 0 or not self._time_for_more():
                break
            secant = size - excess / slope
            size = secant if low < secant < high else (low + high) / 2
        if not self.trials:
            raise UsageError(f"--kl {kl:g}: no codec of these {labels:,} labels has less than 1/4 of fp16's bytes; use --codec raw")
        return min(self.trials, key=_first_kl) if smallest is None else smallest

    def run(self, config: FitConfig) -> Trial:
        """A trial fit, measured on held-out labels; if the shape was tried before, that trial.

        Raises:
            UsageError: the configuration has no shape inside its budget.
        """
        quick = replace(config, gain=1.0) if self.judge is None else config
        resolved = resolve(quick, self.stats)
        for trial in self.trials:
            if replace(trial.resolved, price=0.0) == resolved:
                return trial
        for trial in self.stored:
            if replace(trial.resolved, price=0.0) == resolved:
                self.trials.append(trial)
                self.on_trial(trial)
                return trial
        start = time.monotonic()
        codec = fit_codec(self.sample, replace(quick, epochs=self._quick_epochs()))
        assert isinstance(codec.config, VqaeConfig)
        figures = measure(codec, self.sample, "held_out", codec.config.temperature)
        kl = {name: value for name, value in figures.items() if name.startswith(likelihood_of(self.sample.domain).figure)}
        fit_seconds = time.monotonic() - start
        student = {} if self.judge is None else self.judge(codec)
        loss = student.pop(
            "loss", sum(temperature_weight(t) * kl for t, kl in zip(codec.config.temperature, kl.values(), strict=True))
        )
        trial = Trial(
            config=config, resolved=codec.config, bytes=file_bytes(codec.config, self.stats.labels), loss=round(loss, 6), kl=kl,
            student=student, seconds=round(time.monotonic() - start, 1), fit_seconds=round(fit_seconds, 1),
        )  # fmt: skip
        self.trials.append(trial)
        self.state.keep("trials", [trial.to_state() for trial in self.trials])
        self.on_trial(trial)
        return trial

    def in_time(self, best: Trial) -> FitConfig:
        """The configuration of the best trial, with fewer epochs if the time left is too short for a complete fit."""
        complete = self.config.epochs or default_epochs(self.sample)
        affordable = int(complete * (self.until - time.monotonic()) / max(best.fit_seconds / QUICK, 1e-9))
        return best.config if affordable >= complete else replace(best.config, epochs=max(self._quick_epochs(), affordable))

    def _quick_epochs(self) -> int:
        return max(1, round(QUICK * (self.config.epochs or default_epochs(self.sample))))

    def _time_for_more(self) -> bool:
        """Whether another trial leaves time for a complete fit; the interrupted run had it for its trials."""
        if len(self.trials) < len(self.stored):
            return True
        trial, fit = max(trial.seconds for trial in self.trials), max(trial.fit_seconds for trial in self.trials)
        return time.monotonic() + trial + fit / QUICK < self.until
