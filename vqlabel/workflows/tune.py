"""A budget -> the best codec inside it: trial fits of several shapes, then a complete fit of the best one."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any, Unpack

from vqlabel.codecs import LabelCodec, save_codec
from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.codecs.vqae.fit.dataset_stats import dataset_stats
from vqlabel.codecs.vqae.sizes import file_bytes
from vqlabel.config import FitConfig
from vqlabel.errors import UsageError, require
from vqlabel.labels import LabelSource, open_labels
from vqlabel.labels.memory import Dump
from vqlabel.progress import Progress, silent
from vqlabel.storage.apart import check_apart
from vqlabel.storage.formats import CODEC
from vqlabel.storage.targets import check_target
from vqlabel.threads import small_operations
from vqlabel.type_checks import check_argument_types
from vqlabel.workflows.config_options import TuneOptions, config_of
from vqlabel.workflows.fit import fit_sample, settings_of
from vqlabel.workflows.run_state import RunState
from vqlabel.workflows.sample import read_sample
from vqlabel.workflows.tune_search import Judge, Search, Trial, first_figure

OTHER_TEMPERATURES = ((4.0,), (20.0,))  # tried besides the default if students judge


MINUTES = 10  # default time budget


@check_argument_types
def tune(
    dump: Dump,
    config: FitConfig | None = None,
    *,
    kl: float | None = None,
    bits: float | None = None,
    minutes: float = MINUTES,
    judge: Judge | None = None,
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress = silent,
    on_trial: Callable[[Trial], None] = lambda _: None,
    **options: Unpack[TuneOptions],
) -> tuple[LabelCodec, dict[str, Any]]:
    """Find and fit the best codec inside a budget. Budgets do not count augmentation and image order.

    Args:
        dump: a path for `open_labels`, a source, or labels in memory (`open_labels`).
        config: has the budget as `bytes` or `ratio`; sizes that it gives are kept, the others are searched. The result
            has the gain that `config` asks for. Or pass its fields: `tune(dump, ratio=500)`.
        bits: the budget in bits per label, all parts counted.
        kl: instead of a budget, the held-out KL (nats, times T^2) at the first temperature to reach with the fewest
            bytes. The gain is then 1, which gives the lowest KL, unless `config` has another.
        minutes: time budget, including the final fit, whose duration is estimated from its trial; it has fewer epochs
            if one trial took too long.
        judge: a codec -> scores of a student of its labels, such as `report.StudentJudge`; the trial with the lowest
            `loss` is the best. Then other temperatures are tried too, unless `config` has one. None: trials are
            compared by the held-out KL of calibrated labels (gain 1), which depends on the codes only.
        out: the codec file to write. The trials that are done and the state of the last fit are kept beside it as
            `<out>.state`, and the same call continues from there, with the time that is left. A judge without
            `settings`, which tell it from others, has no such state.
        restart: discards that state.
        on_trial: called after every trial.

    Returns:
        The codec, and `fit`'s report with `budget` (bytes; None for a KL), `bytes`, `ratio`, `judge`, `trials` and
        `seconds` added; and `missed`, a sentence, if the held-out KL is above `kl`: the codec is then the nearest one.

    Raises:
        UsageError: no budget or several, or one that is too small for any codec; the message has the smallest one. Or
            `kl` and `judge`: a KL is reached, not judged. Or the state is of another dump or other options.
    """
    config = config_of(FitConfig, config, options)
    check_budget(config, bits, kl, minutes, judged=judge is not None)
    check_target(out, CODEC, overwrite=overwrite)
    source = dump if isinstance(dump, LabelSource) else open_labels(dump)
    check_apart(out, *source.inputs)
    state = RunState(out if judge is None or hasattr(judge, "settings") else None, restart=restart)
    codec, report = tune_source(
        source, config, state, kl=kl, bits=bits, minutes=minutes, judge=judge, progress=progress, on_trial=on_trial
    )
    if out is not None:
        save_codec(codec, out, report, overwrite=overwrite)
    state.remove()
    return codec, report


@small_operations()
def tune_source(
    source: LabelSource,
    config: FitConfig,
    state: RunState,
    *,
    kl: float | None = None,
    bits: float | None = None,
    minutes: float = MINUTES,
    judge: Judge | None = None,
    progress: Progress = silent,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> tuple[LabelCodec, dict[str, Any]]:
    """As `tune`, without an output; `state` keeps the codec at the end."""
    temperatures = OTHER_TEMPERATURES if judge is not None and config.temperature is None else ()
    config = replace(config, codec="vqae")
    if kl is not None and config.gain is None:
        config = replace(config, gain=1.0)
    sample, split = read_sample(source, progress)
    sample = sample.dense()
    if bits is not None:
        config = replace(config, bytes=max(1, int(bits * dataset_stats(sample).labels / 8)))
    state.begin({**settings_of(config, sample), "bits": bits, "kl": kl, "judge": getattr(judge, "settings", None)})
    if (kept := state.codec()) is not None:
        return kept
    search = Search(sample, config, time.monotonic() - state.seconds + 60 * minutes, on_trial, judge, temperatures, state)
    best, final = _search(search, kl, state)
    codec, report = fit_sample(sample, split, final, state=state, progress=progress)
    report |= {
        "budget": search.budget, **_size(codec, search), "judge": "kl" if judge is None else "student",
        "trials": [trial.to_dict() for trial in search.trials], "seconds": round(state.seconds, 1),
    }  # fmt: skip
    if search.out_of_time and len(search.trials) == 1:
        sentence = (
            f"one trial took the time of --minutes {minutes:g}: its sizes were compared with no others; more minutes try more"
        )
        report["notes"] = [*report.get("notes", ()), sentence]
    if kl is not None and (found := report.get("calibrated", report["held_out"])[first_figure(best)]) > kl:
        report["missed"] = (
            f"--kl {kl:g} was not reached: the nearest codec of {len(search.trials)} trials has a held-out KL of {found:.4g} with "
            f"{report['bytes']:,} bytes, and is the result (tune --minutes gives a search more time)"
        )
    state.keep_codec(codec, report)
    return codec, report


def _search(search: Search, kl: float | None, state: RunState) -> tuple[Trial, FitConfig]:
    """The best trial, and the configuration of the final fit; both those of the interrupted run if it had chosen."""
    chosen = state.result("chosen")
    if chosen is None:
        if search.budget is None:
            assert kl is not None
            best = search.reach(kl)
        else:
            best = search.within(search.budget)
        index, final = search.trials.index(best), search.in_time(best)
        state.keep("chosen", {"trial": index, "final": final.to_dict(), "out_of_time": search.out_of_time})
        return best, final
    search.trials, search.out_of_time = search.stored, chosen["out_of_time"]
    return search.trials[chosen["trial"]], FitConfig.from_dict(chosen["final"])


def _size(codec: LabelCodec, search: Search) -> dict[str, Any]:
    """Bytes of a file of all labels, and the ratio of fp16 to it."""
    assert isinstance(codec.config, VqaeConfig)
    size = file_bytes(codec.config, search.stats.labels)
    return {"bytes": size, "ratio": round(2 * search.stats.labels * search.stats.classes / size, 1)}


def check_budget(config: FitConfig, bits: float | None, kl: float | None, minutes: float = MINUTES, *, judged: bool) -> None:
    """Raises UsageError unless there is one budget, of bytes if students judge, and sizes to search for it."""
    if kl is not None and judged:
        raise UsageError(f"--kl {kl:g}: a search for a KL has no other judge; name a budget with --judge student")
    if sum(given is not None for given in (config.bytes, config.ratio, bits, kl)) != 1:
        raise UsageError("tune: name one budget, of --ratio, --bytes, --bits (all counted) and --kl")
    for name, value in (("bits", bits), ("kl", kl), ("minutes", minutes)):
        require(value is None or 0 < value < math.inf, name, value, "must be above 0")
    require(
        config.codec in (None, "vqae"),
        "codec",
        config.codec,
        "must be vqae, or left out: tune searches the sizes of a vqae, and other codecs have none",
    )
    require(config.code_width is None, "code_width", config.code_width, "must be given with bits, not with a budget")
