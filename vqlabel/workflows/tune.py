"""A budget -> the codec that makes the best labels inside it: quick fits of several shapes, then a whole fit of the winner."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from vqlabel.codecs import LabelCodec, LabelSample, fit_codec, save_codec
from vqlabel.codecs.budget import budget_of
from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.codecs.vqae.fit.budget import DEFAULT_BITS, MAX_WEIGHT_BITS, MIN_WEIGHT_BITS
from vqlabel.codecs.vqae.fit.dataset_stats import DatasetStats, dataset_stats
from vqlabel.codecs.vqae.fit.resolve import resolve
from vqlabel.codecs.vqae.fit.train import default_epochs
from vqlabel.codecs.vqae.sizes import file_bytes
from vqlabel.config import DEFAULT_BITS as USUAL_LABEL_BITS
from vqlabel.config import FitConfig
from vqlabel.container.overhead import FILE_BYTES
from vqlabel.errors import UsageError, require
from vqlabel.labels import LabelSource, open_labels
from vqlabel.metrics.distortion import temperature_weight
from vqlabel.metrics.likelihood import likelihood_of
from vqlabel.progress import Progress, silent
from vqlabel.storage.apart import check_apart
from vqlabel.storage.formats import CODEC
from vqlabel.storage.targets import check_target
from vqlabel.threads import small_operations
from vqlabel.workflows.fit import fit_sample, with_temperature
from vqlabel.workflows.fit_report import measure
from vqlabel.workflows.sample import read_sample

QUICK = 0.3  # of a whole fit's passes: enough to rank shapes, if not to judge them
SHARES = (0.25, 0.4, 0.6, 0.75, 0.0, 0.9)  # of a budget that codes may take, besides the rule's
WEIGHT_BITS = (3, 5, 6, 8)  # of a stored number, besides the rule's
SMALL, LARGE, FEW_BITS = 16, 256, 32  # codebooks that are tried, and up to which rate
REACH_TRIALS, NEAR = 8, 0.04  # of `reach`: fits, and how near in KL or in bytes is near enough


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One shape that was tried: its bytes in a file of the whole dump, and its held-out loss after a quick fit."""

    config: FitConfig
    resolved: VqaeConfig
    bytes: int
    loss: float  # weighted sum of the KLs below: `mixed_kl_divergence`
    kl: dict[str, float]  # at each temperature, nats times T^2
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"config": self.resolved.to_dict(), "bytes": self.bytes, "loss": self.loss, "kl": self.kl, "seconds": self.seconds}


@small_operations()
def tune(
    dump: str | PathLike[str] | LabelSource,
    config: FitConfig,
    *,
    kl: float | None = None,
    bits: float | None = None,
    minutes: float = 10,
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    tried: Callable[[Trial], None] = lambda _: None,
) -> tuple[LabelCodec, dict[str, Any]]:
    """Find and fit the best codec inside a budget; a budget is all of a file but augmentation and order.

    Args:
        config: carries the budget as `bytes` or `ratio`; sizes that it names are kept, the others are searched. Trials are judged by
            calibrated labels, gain 1, which hold what codes say; the winner has the gain that `config` asks for.
        bits: the budget in bits per label, everything counted.
        kl: instead of a budget, the held-out KL (nats, times T^2) to reach with the fewest bytes, at the lowest temperature; who counts
            in KL gets the labels of the least, gain 1, unless `config` names another.
        minutes: for all; the last whole fit is begun in time to end within it, as far as its quick fit tells, and has fewer passes where
            one trial alone took too long for that.
        tried: called after every trial.

    Returns:
        The codec, and `fit`'s report with `budget`, `bytes` and `trials` added.

    Raises:
        UsageError: none or several budgets, or one that nothing fits into: the nearest is named.
    """
    began = time.monotonic()
    if sum(given is not None for given in (config.bytes, config.ratio, bits, kl)) != 1:
        raise UsageError("tune: name one budget, of --ratio, --bytes, --bits (all counted) and --kl")
    for name, value in (("bits", bits), ("kl", kl), ("minutes", minutes)):
        require(value is None or 0 < value < math.inf, name, value, "must be above 0")
    require(config.codec in (None, "vqae"), "codec", config.codec, "has no sizes that a search could choose; vqae has")
    require(config.code_width is None, "code_width", config.code_width, "cuts code bits that you name: give no budget")
    check_target(out, CODEC, overwrite=overwrite)
    source = dump if isinstance(dump, LabelSource) else open_labels(dump)
    check_apart(out, *source.inputs)
    config = replace(with_temperature(config, source), codec="vqae")
    if kl is not None and config.gain is None:
        config = replace(config, gain=1.0)
    sample, held_out = read_sample(source, progress)
    if bits is not None:
        config = replace(config, bytes=max(1, int(bits * dataset_stats(sample).labels / 8)))
    search = Search(sample, config, began + 60 * minutes, tried)
    budget = budget_of(config, search.stats.labels, search.stats.classes)
    if budget is None:
        assert kl is not None
        best = search.reach(kl)
    else:
        best = search.within(budget)
    codec, report = fit_sample(sample, held_out, search.in_time(best), progress=progress)
    assert isinstance(codec.config, VqaeConfig)
    size = file_bytes(codec.config, search.stats.labels)
    report |= {
        "budget": best.bytes if budget is None else budget, "bytes": size, "ratio": round(2 * search.stats.labels * sample.classes / size, 1),
        "trials": [trial.to_dict() for trial in search.trials], "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    if out is not None:
        save_codec(codec, out, report, overwrite=overwrite)
    return codec, report


def _slots(config: VqaeConfig) -> int:
    """Of the mean label."""
    return round(config.rate / config.code_bits) if config.variable else config.slots


class Search:
    """Trials on one sample, the same shape never twice."""

    def __init__(self, sample: LabelSample, config: FitConfig, until: float, tried: Callable[[Trial], None]) -> None:
        self.sample, self.config, self.until, self.tried = sample, config, until, tried
        self.stats: DatasetStats = dataset_stats(sample)
        self.trials: list[Trial] = []

    def within(self, budget: int) -> Trial:
        """The best of the shapes that fill `budget`: how much of it goes into codes, far apart; then neighbours of the best while one is
        better.
        """
        best = self.run(replace(self.config, bytes=budget, ratio=None))  # refuses a budget that is too small
        moves = [*self._shares(best, budget), *self._neighbours(best)]
        while moves:
            before = best
            for options in moves:
                if not self._time_for_more():
                    return best
                best = self._better(best, options)
            moves = [] if best is before else self._neighbours(best)
        return best

    def _shares(self, rule: Trial, budget: int) -> list[dict[str, Any]]:
        """Numbers of slots, the nearest to the rule's first."""
        if self.config.slots is not None or self.config.bits is not None:
            return []
        each, at = 8 * budget / self.stats.labels, _slots(rule.resolved)
        slots = [at + 1, at - 1, *(round(share * each / rule.resolved.code_bits) for share in SHARES)]
        found: list[dict[str, Any]] = [{"slots": count} for count in dict.fromkeys(slots) if count >= 0]
        if self.config.codebook_size is None and at * rule.resolved.code_bits <= FEW_BITS:
            width = (SMALL - 1).bit_length()
            slots = [max(1, at * rule.resolved.code_bits // width), *(round(share * each / width) for share in SHARES)]
            found += [{"slots": count, "codebook_size": SMALL} for count in dict.fromkeys(slots) if count > 0]
        return found

    def _neighbours(self, best: Trial) -> list[dict[str, Any]]:
        """One thing changed, of those that the user left open; or slots and bits a number against each other, which share the budget."""
        given, at = self.config, best.resolved
        moves: list[dict[str, Any]] = []
        if given.weight_bits is None:
            moves += [{"weight_bits": bits} for bits in (DEFAULT_BITS, *WEIGHT_BITS)]
        if given.slots is None and given.bits is None:
            moves += [{"slots": slots} for slots in (_slots(at) + 1, _slots(at) - 1) if slots >= 0]
        if given.slots is None and given.bits is None and given.weight_bits is None:
            traded = [(_slots(at) - 1, at.weight_bits + 1), (_slots(at) + 1, at.weight_bits - 1)]
            moves += [
                {"slots": slots, "weight_bits": bits}
                for slots, bits in traded
                if slots >= 0 and MIN_WEIGHT_BITS <= bits <= MAX_WEIGHT_BITS
            ]
        if given.codebook_size is None and _slots(at) * at.code_bits <= FEW_BITS:  # of many, steps are small enough
            moves += [{"codebook_size": SMALL if at.codebook_size != SMALL else LARGE}]
        if given.prior is None and at.prior is not None:
            moves += [{"prior": False}]
        return moves

    def _better(self, best: Trial, options: dict[str, Any]) -> Trial:
        """The better of `best` and what `options` make of it."""
        try:
            start = best.config
            if self.config.variable_rate:
                start = replace(start, codebook_size=best.resolved.codebook_size)
                options = self._on_average(options, start)
            elif start.slots is None and start.bits is None:  # the rule's own, which it would choose anew beside anything else
                start = replace(start, slots=best.resolved.slots, codebook_size=best.resolved.codebook_size)
            config = replace(start, **options)
            if not self.config.variable_rate and (
                "codebook_size" in options and "slots" not in options and best.resolved.slots
            ):  # as many bits in more, smaller steps, or the other way round
                width = resolve(config, self.stats).code_bits
                config = replace(config, slots=max(1, best.resolved.slots * best.resolved.code_bits // width))
            trial = self.run(config)
        except UsageError:  # this shape has no room in the budget
            return best
        return trial if trial.loss < best.loss else best

    def _on_average(self, options: dict[str, Any], near: FitConfig) -> dict[str, Any]:
        """A number of slots as the bits of the mean label, which is what names a rate where slots are variable."""
        others = {name: value for name, value in options.items() if name != "slots"}
        if "slots" not in options:
            return others
        width = resolve(replace(near, bytes=None, ratio=None, **{"bits": USUAL_LABEL_BITS, **others}), self.stats).code_bits
        return {**others, "bits": options["slots"] * width}

    def reach(self, kl: float) -> Trial:
        """The rule's codec at the least bytes whose quick fit reaches `kl`, by the secant in the logarithms of both."""
        labels, classes = self.stats.labels, self.stats.classes
        low, high = math.log(FILE_BYTES), math.log(labels * classes / 2)  # too few bytes; more than anybody needs, 1/4 of fp16
        at, good, before = min(high, math.log(FILE_BYTES + 4 * labels)), None, None
        for _ in range(REACH_TRIALS):
            try:
                trial = self.run(replace(self.config, bytes=int(math.exp(at)), ratio=None))
            except UsageError:  # nothing is that small
                low, at = at, (at + high) / 2 if good is None else (at + math.log(good.bytes)) / 2
                continue
            off = math.log(max(next(iter(trial.kl.values())), 1e-9) / (0.99 * kl))
            slope = -0.5 if before is None or abs(at - before[0]) < 1e-3 else min(-0.2, (off - before[1]) / (at - before[0]))
            before = at, off
            if off <= 0:
                high, good = at, trial
            else:
                low = at
            if high - low < NEAR or -NEAR < off <= 0 or not self._time_for_more():
                break
            wanted = at - off / slope
            at = wanted if low < wanted < high else (low + high) / 2
        if good is None:
            nearest = min(self.trials, key=lambda trial: next(iter(trial.kl.values())))
            raise UsageError(
                f"--kl {kl:g} was not reached in the time; the nearest is {next(iter(nearest.kl.values())):.3f} with {nearest.bytes} bytes "
                "(--minutes gives more time)"
            )
        return good

    def run(self, config: FitConfig) -> Trial:
        """Fit quickly and judge held out; a shape that was tried before costs nothing."""
        quick = replace(config, gain=1.0)
        resolved = resolve(quick, self.stats)
        for trial in self.trials:
            if replace(trial.resolved, price=0.0) == resolved:
                return trial
        began = time.monotonic()
        passes = self._quick_passes()
        codec = fit_codec(self.sample, replace(quick, epochs=passes))
        assert isinstance(codec.config, VqaeConfig)
        found = measure(codec, self.sample, "held", codec.config.temperature)
        kl = {name: value for name, value in found.items() if name.startswith(likelihood_of(self.sample.domain).figure)}
        loss = sum(temperature_weight(t) * value for t, value in zip(codec.config.temperature, kl.values(), strict=True))
        trial = Trial(
            config=config, resolved=codec.config, bytes=file_bytes(codec.config, self.stats.labels), loss=round(loss, 6), kl=kl,
            seconds=round(time.monotonic() - began, 1),
        )  # fmt: skip
        self.trials.append(trial)
        self.tried(trial)
        return trial

    def in_time(self, best: Trial) -> FitConfig:
        """The winner's configuration; where even the first trial left too little time for a whole fit, with as many passes as fit in."""
        whole = self.config.epochs or default_epochs(self.sample)
        passes = int(whole * (self.until - time.monotonic()) / max(best.seconds / QUICK, 1e-9))
        return best.config if passes >= whole else replace(best.config, epochs=max(self._quick_passes(), passes))

    def _quick_passes(self) -> int:
        return max(1, round(QUICK * (self.config.epochs or default_epochs(self.sample))))

    def _time_for_more(self) -> bool:
        """Whether another trial leaves time for the whole fit."""
        longest = max(trial.seconds for trial in self.trials)
        return time.monotonic() + longest * (1 + 1 / QUICK) < self.until
