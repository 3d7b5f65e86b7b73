"""A goal -> the codec for documents that meets it with the fewest bits, or with the least KL, of a few fits."""

import math
import time
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from vqlabel.codecs.file import save_codec
from vqlabel.codecs.token_vqae.choose import Choices
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.codecs.token_vqae.fit.price import MAX_PRICE, MIN_PRICE, Rate, price_of, price_of_kl, rate_at
from vqlabel.codecs.token_vqae.sample import TextSample
from vqlabel.config import TextFitConfig
from vqlabel.errors import UsageError, require
from vqlabel.labels.text.open import refuse_topk
from vqlabel.labels.text.source import TextSource
from vqlabel.progress import Progress, noted, silent
from vqlabel.storage.apart import check_apart
from vqlabel.storage.formats import CODEC
from vqlabel.storage.targets import check_target
from vqlabel.type_checks import check_argument_types
from vqlabel.workflows.run_state import RunState, codec_from_state, codec_to_state
from vqlabel.workflows.text.file_size import DumpSize
from vqlabel.workflows.text.fit import at_price, fit_and_choose, settings_of
from vqlabel.workflows.text.open import OpenedText, open_text_dump
from vqlabel.workflows.text.sample import read_text_sample

GOALS = ("kl", "bits", "bytes", "ratio")  # fields of `TextGoal`
MAX_FIXED = 0.1  # share of a file up to which a smaller codec is not tried
MAX_LIMIT = 32  # codes and exact ids per label up to which larger limits are tried


@dataclass(frozen=True, kw_only=True, slots=True)
class TextGoal:
    """What `tune_text` reaches: one of a held-out KL and three budgets.

    Raises:
        UsageError: none or several, or a number is not above 0.
    """

    kl: float | None = None  # nats, reached with the fewest bytes
    bits: float | None = None  # all bits of the file per label
    bytes: int | None = None  # of the file
    ratio: float | None = None  # fp16 logits to the file
    minutes: float = 10  # no further fit begins if it would end later

    def __post_init__(self) -> None:
        if sum(getattr(self, name) is not None for name in GOALS) != 1:
            raise UsageError("tune: name one budget, of --ratio, --bytes, --bits (all counted) and --kl")
        for name in (*GOALS, "minutes"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, value, "must be above 0")

    def budget(self, size: DumpSize, vocabulary: int) -> int | None:
        """Bytes of the file; None: the goal is a KL."""
        return size.budget(self.bytes, self.ratio, vocabulary) if self.bits is None else int(self.bits * size.labels / 8)


@check_argument_types
def tune_text(
    dump: str | PathLike[str] | TextSource,
    goal: TextGoal,
    config: TextFitConfig | None = None,
    *,
    head: str | PathLike[str] | None = None,
    layer: int | None = None,
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress = silent,
) -> tuple[TokenVqae, dict[str, Any]]:
    """Fit a codec to the labels of documents that reaches a goal on held-out documents.

    One fit has all rates, so few are made. Limits of codes and exact ids are doubled while they keep a fit from the
    goal. While fixed parts take more than a tenth of the file, the latent or the prior's width is halved. The search
    ends with the first fit that is no better than the one before it.

    Args:
        dump: a path for `open_text_labels`, or a source.
        config: sizes that differ from their defaults are kept; its rate is not used.
        head: the teacher's output head, a path for `open_head`.
        layer: of hidden states of several layers, the one to read; None: the last.
        out: codec file to write; `pack_text` packs with it at the rate of the goal. Fits that are done, and the state
            of an unfinished one, are kept beside it as `<out>.state`, and the same call continues from there, with the
            time that is left.
        restart: discards that state.

    Returns:
        The codec, and the report of `fit_text` with `budget` (bytes; None for a KL), `bytes` (of the file of this
        dump), `ratio`, `trials` and `seconds` added; and `missed`, a sentence, if no fit reaches the goal: the codec is
        then the nearest one.

    Raises:
        UsageError: the head is missing or of another size; or the state is of another dump or other options.
        BadLabels: the dump has fewer than 2 documents, or is malformed.
        TargetExists: `out` exists and `overwrite` is false.
    """
    check_target(out, CODEC, overwrite=overwrite)
    check_apart(out, dump.path if isinstance(dump, TextSource) else dump, beside=(head,))
    refuse_topk(dump)
    state = RunState(out, restart=restart)
    opened = open_text_dump(dump, head, layer=layer)
    codec, report = tune_opened(opened, goal, config or TextFitConfig(), state, progress=progress)
    if out is not None:
        save_codec(codec, out, report, overwrite=overwrite)
    state.remove()
    return codec, report


def tune_opened(
    opened: OpenedText, goal: TextGoal, config: TextFitConfig, state: RunState, *, progress: Progress = silent
) -> tuple[TokenVqae, dict[str, Any]]:
    """As `tune_text`, for a dump that is open and without an output."""
    source = opened.source
    refuse_topk(source)
    if not config.embed_head and not opened.about["head"]:
        raise UsageError(f"--reference-head: must be left out: {source.path} holds logits, and their head is made by the fit")
    dump_size = DumpSize.of(source)
    sample = read_text_sample(opened, config.labels, config.seed, progress)
    config = replace(config, bits=None, bytes=None, ratio=None)
    goals = {name: getattr(goal, name) for name in GOALS}
    state.begin({**settings_of(opened, sample, config), **goals, "goal": "search"})
    search = _Search(sample, goal, config, dump_size, state, progress)
    best = search.run()
    price = search.nearest_price if best.rate is None else best.rate.price
    codec, report = at_price(best.codec, best.choices, sample, best.config, price)
    size = dump_size.file_bytes(best.fixed, rate_at(best.choices, best.codec.config, price).bits)
    report |= {
        "head": opened.about["head"],
        "budget": search.budget,
        "bytes": size,
        "ratio": round(2 * dump_size.labels * codec.config.classes / size, 1),
        "trials": [trial.to_dict() for trial in search.trials],
        "seconds": round(state.seconds, 1),
        **({"missed": search.missed(best)} if best.rate is None else {}),
        **noted([*source.notes, *search.notes]),
    }
    return codec, report


@dataclass(frozen=True, kw_only=True, eq=False)
class _Trial:
    """One fit.

    Attributes:
        choices: of the held-out labels.
        fixed: bytes of the file besides labels.
        rate: at which the goal is reached; None: at none.
        bytes: of the file at this rate; without one, of its fixed parts.
        score: the lower, the better.
    """

    config: TextFitConfig
    codec: TokenVqae
    choices: Choices
    fixed: int
    rate: Rate | None
    bytes: int
    score: tuple[int, float]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        config = self.codec.config
        width = 0 if config.prior is None else config.prior.width
        sizes = {"slots": config.slots, "ids": config.ids, "latent": config.latent, "prior_width": width}
        rate = None if self.rate is None else self.rate.to_dict()
        return {**sizes, "fixed_bytes": self.fixed, "bytes": self.bytes, "rate": rate, "seconds": round(self.seconds, 1)}


class _Search:
    """Fits one after the other while each is better than those before it.

    Attributes:
        budget: bytes of the file; None: the goal is a KL.
        trials: all fits so far.
        notes: for the report.
        nearest_price: at which a codec comes nearest to a goal that it does not reach.
    """

    def __init__(
        self,
        sample: TextSample,
        goal: TextGoal,
        config: TextFitConfig,
        size: DumpSize,
        state: RunState,
        progress: Progress,
    ) -> None:
        self.sample, self.goal, self.config, self.size, self.state, self.progress = sample, goal, config, size, state, progress
        self.stored = list[dict[str, Any]](state.result("trials") or [])
        self.nearest_price = MAX_PRICE if goal.kl is None else MIN_PRICE
        self.budget = goal.budget(size, sample.train.labels.head.vocabulary)
        self.trials, self.notes = list[_Trial](), list[str]()

    def run(self) -> _Trial:
        """The best fit; its rate is None if none reaches the goal."""
        best = self._try(self.config)
        while (config := self._next(best)) is not None:
            is_done = len(self.trials) < len(self.stored)  # by the interrupted run
            if not is_done and self.state.seconds + best.seconds > 60 * self.goal.minutes:
                self.notes.append(
                    f"{len(self.trials)} fits took the time of --minutes {self.goal.minutes:g}: more minutes try other sizes"
                )
                break
            trial = self._try(config)
            if trial.score >= best.score:
                break
            best = trial
        return best

    def _try(self, config: TextFitConfig) -> _Trial:
        start, index = time.monotonic(), len(self.trials)
        if index < len(self.stored):
            stored = self.stored[index]
            codec, choices, seconds = codec_from_state(stored["codec"])[0], Choices(*stored["choices"]), stored["seconds"]
            if codec.config.head == "referenced":
                codec.attach(self.sample.train.labels.head)
        else:
            codec, choices = fit_and_choose(self.sample, config, self.state.fit_hooks(self.progress))
            seconds = time.monotonic() - start
            self.stored.append({"codec": codec_to_state(codec, {}), "choices": list(choices), "seconds": seconds})
            self.state.keep("trials", self.stored)
        fixed = self.size.fixed_bytes(codec)
        rate = self._rate(codec, choices, fixed)
        size = fixed if rate is None else self.size.file_bytes(fixed, rate.bits)
        if self.budget is None:
            score = (0, float(size)) if rate is not None else (1, rate_at(choices, codec.config, MIN_PRICE).kl)
        else:
            score = (0, rate.kl) if rate is not None else (1, float(fixed))
        trial = _Trial(
            config=config, codec=codec, choices=choices, fixed=fixed, rate=rate, bytes=size, score=score, seconds=seconds
        )
        self.trials.append(trial)
        return trial

    def _rate(self, codec: TokenVqae, choices: Choices, fixed: int) -> Rate | None:
        """Of the goal."""
        if self.goal.kl is not None:
            price = price_of_kl(choices, codec.config, self.goal.kl)
            return None if price is None else rate_at(choices, codec.config, price)
        bits = self._bits_left(fixed)
        rate = rate_at(choices, codec.config, price_of(choices, codec.config, bits))
        return rate if rate.bits <= bits else None

    def _bits_left(self, fixed: int) -> float:
        """Code bits per label that the budget leaves beside fixed parts."""
        assert self.budget is not None
        return self.size.bits_left(self.budget, fixed)

    def _next(self, best: _Trial) -> TextFitConfig | None:
        """What may be better than the best fit; None: nothing."""
        if self.budget is None:
            needs_more = best.rate is None
        else:
            needs_more = self._bits_left(best.fixed) > rate_at(best.choices, best.codec.config, MIN_PRICE).bits
        if needs_more:
            return self._with_larger_limits(best)
        return self._smaller(best) if best.rate is None or best.fixed > MAX_FIXED * best.bytes else None

    def _with_larger_limits(self, trial: _Trial) -> TextFitConfig | None:
        free = [name for name in ("slots", "ids") if self._is_free(name) and 2 * getattr(trial.config, name) <= MAX_LIMIT]
        return replace(trial.config, **{name: 2 * getattr(trial.config, name) for name in free}) if free else None

    def _smaller(self, trial: _Trial) -> TextFitConfig | None:
        """With half the latent or half the prior's width, of the part that takes more bytes."""
        halves = list[tuple[int, dict[str, Any]]]()
        if self._is_free("latent") and (latent := trial.codec.config.latent // 2):
            halves.append((_bytes(trial.codec, "decoder.out"), {"latent": latent}))
        if self._is_free("width") and trial.codec.config.prior is not None and (width := trial.config.width // 16 * 8):
            halves.append((_bytes(trial.codec, "decoder.prior"), {"width": width}))
        has_prior = trial.codec.config.prior is not None  # a fit removes one that predicts nothing
        return replace(trial.config, prior=has_prior, **max(halves, key=lambda half: half[0])[1]) if halves else None

    def _is_free(self, name: str) -> bool:
        return bool(getattr(self.config, name) == getattr(TextFitConfig(), name))

    def missed(self, best: _Trial) -> str:
        """The goal that the best fit does not reach, what it has, and the remedy."""
        tried = f"the nearest of {len(self.trials)} codecs is the result"
        if self.budget is not None:
            return (
                f"a budget of {self.budget:,} bytes for {self.size.labels:,} labels was not reached: {tried}; its fixed parts alone take "
                f"{best.fixed:,} bytes: allow more, or name the head with --reference-head so that the file does not contain it"
            )
        rate = rate_at(best.choices, best.codec.config, MIN_PRICE)
        return (
            f"--kl {self.goal.kl:g} was not reached: {tried}; its held-out KL is {rate.kl:.4f} at {rate.bits:.1f} code bits per label: "
            "allow more, or raise --slots, --ids and --latent"
        )


def _bytes(codec: TokenVqae, part: str = "") -> int:
    """Of the tensors that a file stores, whose names begin with `part`."""
    return sum(tensor.nbytes for name, tensor in codec.decoder_tensors().items() if name.startswith(part))
