"""A budget -> the best codec inside it: trial fits of several shapes, then a complete fit of the best one."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any, Unpack

from vqlabel.codecs import LabelCodec, save_codec
from vqlabel.codecs.budget import budget_of
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
from vqlabel.workflows.fit import fit_sample
from vqlabel.workflows.sample import read_sample
from vqlabel.workflows.tune_search import Judge, Search, Trial

OTHER_TEMPERATURES = ((4.0,), (20.0,))  # tried besides the default if students judge


@small_operations()
@check_argument_types
def tune(
    dump: Dump,
    config: FitConfig | None = None,
    *,
    kl: float | None = None,
    bits: float | None = None,
    minutes: float = 10,
    judge: Judge | None = None,
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
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
        on_trial: called after every trial.

    Returns:
        The codec, and `fit`'s report with `budget`, `bytes`, `ratio`, `judge`, `trials` and `seconds` added.

    Raises:
        UsageError: no budget or several, or one that is too small for any codec; the message has the smallest one. Or
            `kl` and `judge`: a KL is reached, not judged.
    """
    start, config = time.monotonic(), config_of(FitConfig, config, options)
    check_budget(config, bits, kl, minutes, judged=judge is not None)
    check_target(out, CODEC, overwrite=overwrite)
    source = dump if isinstance(dump, LabelSource) else open_labels(dump)
    check_apart(out, *source.inputs)
    temperatures = OTHER_TEMPERATURES if judge is not None and config.temperature is None else ()
    config = replace(config, codec="vqae")
    if kl is not None and config.gain is None:
        config = replace(config, gain=1.0)
    sample, split = read_sample(source, progress)
    sample = sample.dense()
    if bits is not None:
        config = replace(config, bytes=max(1, int(bits * dataset_stats(sample).labels / 8)))
    search = Search(sample, config, start + 60 * minutes, on_trial, judge, temperatures)
    budget = budget_of(config, search.stats.labels, search.stats.classes)
    if budget is None:
        assert kl is not None
        best = search.reach(kl)
    else:
        best = search.within(budget)
    codec, report = fit_sample(sample, split, search.in_time(best), progress=progress)
    report |= {
        "budget": best.bytes if budget is None else budget, **_size(codec, search),
        "judge": "kl" if judge is None else "student", "trials": [trial.to_dict() for trial in search.trials],
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip
    if search.out_of_time and len(search.trials) == 1:
        sentence = (
            f"one trial took the time of --minutes {minutes:g}: its sizes were compared with no others; more minutes try more"
        )
        report["notes"] = [*report.get("notes", ()), sentence]
    if out is not None:
        save_codec(codec, out, report, overwrite=overwrite)
    return codec, report


def _size(codec: LabelCodec, search: Search) -> dict[str, Any]:
    """Bytes of a file of all labels, and the ratio of fp16 to it."""
    assert isinstance(codec.config, VqaeConfig)
    size = file_bytes(codec.config, search.stats.labels)
    return {"bytes": size, "ratio": round(2 * search.stats.labels * search.stats.classes / size, 1)}


def check_budget(config: FitConfig, bits: float | None, kl: float | None, minutes: float, *, judged: bool) -> None:
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
