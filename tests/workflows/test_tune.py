"""A budget -> a codec inside it."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import vqlabel
from vqlabel import FitConfig
from vqlabel.cli import app
from vqlabel.cli.parse import read_size
from vqlabel.codecs import LabelCodec
from vqlabel.codecs.vqae.fit.resolve import resolve
from vqlabel.errors import TargetExists, UsageError
from vqlabel.labels import open_labels
from vqlabel.report import account
from vqlabel.vql.file import VqlFile
from vqlabel.workflows.sample import read_sample
from vqlabel.workflows.tune import tune
from vqlabel.workflows.tune_search import Search, Trial


def repeated(path: Path, logits: NDArray[np.float16], times: int) -> Path:
    np.save(path, np.concatenate([logits] * times))
    return path


@pytest.fixture
def dump(tmp_path: Path, logits: NDArray[np.float16]) -> Path:
    return repeated(tmp_path / "dump.npy", logits, 4)


@pytest.fixture
def small_dump(tmp_path: Path, logits: NDArray[np.float16]) -> Path:
    """Half as large: enough for a target distortion, which, unlike a budget, need not exceed the header."""
    return repeated(tmp_path / "dump.npy", logits, 2)


QUICK: dict[str, Any] = {"epochs": 2, "codebook_size": 8}


def test_the_tuned_codec_fills_its_budget_and_a_file_of_it_stays_inside(dump: Path, tmp_path: Path) -> None:
    budget, trials = 14_000, list[Trial]()
    codec, report = tune(
        dump,
        FitConfig(bytes=budget, **QUICK | {"epochs": 1}),
        minutes=9,
        on_trial=trials.append,
        out=tmp_path / "c.safetensors",
    )
    assert 0.97 * budget <= report["bytes"] <= budget
    assert len(trials) == len(report["trials"]) > 2
    assert all(trial.bytes <= budget for trial in trials)
    chosen = min(trials, key=lambda trial: trial.loss)
    assert report["config"]["slots"] == chosen.resolved.slots
    vqlabel.pack(dump, tmp_path / "a.vql", codec=codec)
    size = account(VqlFile(tmp_path / "a.vql")).bytes
    assert size["codes"] + size["codec"] + size["container"] <= budget
    assert vqlabel.load_codec(tmp_path / "c.safetensors")[1]["budget"] == budget


@pytest.mark.parametrize(("minutes", "passes"), [(1e-4, 3), (9, 10)])
def test_the_final_fit_has_fewer_epochs_if_one_trial_took_the_time_budget(dump: Path, minutes: float, passes: int) -> None:
    config = FitConfig(bytes=14_000, slots=2, weight_bits=4, prior=False, epochs=10, codebook_size=8)
    assert tune(dump, config, minutes=minutes)[1]["fit"]["epochs"] == passes


def test_no_trial_starts_that_leaves_no_time_for_the_final_fit(dump: Path) -> None:
    report = tune(dump, FitConfig(bytes=14_000, **QUICK), minutes=1e-4)[1]
    assert len(report["trials"]) == 1
    assert "one trial took the time of --minutes 0.0001: its sizes were compared with no others" in report["notes"][-1]


def test_slots_are_traded_for_bits_per_number(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss has a diagonal valley: changing only slots, or only bits per number, does not lower it."""

    def run(self: Search, config: FitConfig) -> Trial:
        shape = resolve(config, self.stats)
        start = self.trials[0].resolved if self.trials else shape
        along, across = start.slots + 3 - shape.slots, start.slots + start.weight_bits - shape.slots - shape.weight_bits
        trial = Trial(config=config, resolved=shape, bytes=0, loss=along**2 + 100 * across**2, kl={}, seconds=0, fit_seconds=0)
        self.trials.append(trial)
        return trial

    monkeypatch.setattr(Search, "run", run)
    sample, _ = read_sample(open_labels(dump))
    search = Search(sample, FitConfig(bytes=40_000, codebook_size=8), math.inf, lambda _: None)
    assert search.within(40_000).loss == 0
    assert search.trials[0].loss == 9


@pytest.mark.parametrize(
    ("temperature", "budget"), [("1", 90_000), ("1,4,20", 40_000), ("16,15,14,13,12,11,10,9,8,7,6,5,4,3,2,1", 90_000)]
)
def test_a_file_with_every_column_and_tensor_stays_inside_its_budget(
    tree: Path, tmp_path: Path, temperature: str, budget: int
) -> None:
    out = tmp_path / "a.vql"
    command = ["pack", str(tree), "-o", str(out), "--bytes", str(budget), "--temperature", temperature, "--prior", "--epochs", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert VqlFile(out).codec["config"]["lift"] == (budget == 90_000), "a tail gain would take too much of the smaller budget"
    size = account(VqlFile(out)).bytes
    assert size["codes"] + size["codec"] + size["container"] <= budget


def test_any_number_of_labels_without_codes_stays_inside_its_budget(tmp_path: Path) -> None:
    budget, out = 14_000, tmp_path / "a.vql"
    np.save(tmp_path / "dump.npy", np.random.default_rng(0).normal(size=(90, 500, 20)).astype(np.float16))
    config = FitConfig(bytes=budget, slots=0, prior=True, epochs=1)
    vqlabel.pack(tmp_path / "dump.npy", out, codec=vqlabel.fit(tmp_path / "dump.npy", config)[0])
    size = account(VqlFile(out)).bytes
    assert 0.97 * budget < size["codes"] + size["codec"] + size["container"] <= budget


def test_a_judge_chooses_the_trial_with_the_lowest_loss_and_other_temperatures_are_tried(dump: Path) -> None:
    judged = list[LabelCodec]()

    def prefer_4(codec: LabelCodec) -> dict[str, float]:
        judged.append(codec)
        return {"loss": abs(codec.config.temperatures[0] - 4), "top1": 7.0}

    config = FitConfig(bytes=14_000, slots=2, weight_bits=4, prior=False, epochs=1, codebook_size=8)
    report = tune(dump, config, judge=prefer_4)[1]
    assert [trial["config"]["temperature"] for trial in report["trials"]] == [(1.0,), (4.0,), (20.0,)]
    assert [trial["student"] for trial in report["trials"]] == 3 * [{"top1": 7.0}]
    assert report["config"]["temperature"] == (4.0,)
    assert any(codec.fit_figures(lambda _: {}) for codec in judged)  # students see labels with the gain that pack writes
    one = tune(dump, replace(config, temperature=(2.0,)), judge=prefer_4)[1]
    assert [trial["config"]["temperature"] for trial in one["trials"]] == [(2.0,)]


def test_the_time_of_students_does_not_shorten_the_final_fit(dump: Path) -> None:
    search = Search(read_sample(open_labels(dump))[0], FitConfig(bytes=14_000, epochs=10, **{"codebook_size": 8}), 0.0)
    trial = search.run(search.config)
    slow = replace(trial, seconds=trial.seconds + 1000)
    search.until = time.monotonic() + 20 * trial.fit_seconds + 10
    assert search.in_time(slow) == slow.config


def test_a_search_for_a_kl_has_no_other_judge(dump: Path) -> None:
    with pytest.raises(UsageError, match=r"--kl 0\.5: a search for a KL has no other judge"):
        tune(dump, FitConfig(**QUICK), kl=0.5, judge=lambda _: {"loss": 0.0})


def test_a_budget_in_bits_per_label_counts_all_parts(dump: Path) -> None:
    labels = 4 * 6 * 60
    report = tune(dump, FitConfig(**QUICK), bits=90, minutes=0.05)[1]
    assert report["budget"] == 90 * labels // 8 >= report["bytes"]


def test_a_distortion_is_reached_with_few_bytes(small_dump: Path) -> None:
    near, far = (tune(small_dump, FitConfig(temperature=(1.0,), **QUICK), kl=kl, minutes=9)[1] for kl in (0.5, 1.5))
    assert near["held_out"]["kl_T1"] < 0.6
    assert near["bytes"] > far["bytes"]


def test_fit_and_pack_reach_a_distortion_as_tune_does(small_dump: Path, tmp_path: Path) -> None:
    options = ["--kl", "1.2", "--temperature", "1", "--epochs", "1", "--codebook-size", "8"]
    for command, out in (("fit", "a.codec"), ("tune", "b.codec"), ("pack", "a.vql")):
        result = CliRunner().invoke(app, [command, str(small_dump), "-o", str(tmp_path / out), *options])
        assert result.exit_code == 0, result.stderr
    assert (tmp_path / "a.codec").stat().st_size == (tmp_path / "b.codec").stat().st_size
    assert vqlabel.stats(tmp_path / "a.vql", against=small_dump)["distortion"]["kl_T1"] < 1.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--codec", "topk"], "codec is 'topk'"),
        (["fit", "--code-width", "4"], "--code-width is 4"),
        (["pack", "--codec", "some.codec"], "--kl 1: some.codec is already fitted; remove --kl"),
    ],
)
def test_a_target_distortion_with_contradicting_options_is_refused(
    dump: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    command, *options = arguments
    result = CliRunner().invoke(app, [command, str(dump), "-o", str(tmp_path / "out"), "--kl", "1", *options])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("config", "options"), [({}, {}), ({"bytes": 9999}, {"kl": 1.0}), ({"ratio": 9.0}, {"bits": 3})])
def test_one_budget_must_be_named(dump: Path, config: dict[str, Any], options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="name one budget"):
        tune(dump, FitConfig(**config), **options)


@pytest.mark.parametrize("given", [{"bits": 0.0}, {"bits": -3}, {"kl": 0.0}, {"kl": float("nan")}, {"bits": 9, "minutes": 0}])
def test_a_budget_that_is_not_positive_is_refused(dump: Path, given: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="it must be above 0"):
        tune(dump, FitConfig(), **given)


def test_an_existing_target_is_refused_before_any_work(dump: Path, tmp_path: Path) -> None:
    (tmp_path / "c.safetensors").write_bytes(b"precious")
    with pytest.raises(TargetExists, match=r"c\.safetensors exists; pass --overwrite"):
        tune(dump, FitConfig(bytes=14_000), out=tmp_path / "c.safetensors")


def test_the_command_tunes_and_pack_accepts_fit_options_and_a_lower_rate(dump: Path, tmp_path: Path) -> None:
    codec, runner = tmp_path / "c.safetensors", CliRunner()
    quick = ["--epochs", "1", "--codebook-size", "8", "--json"]
    result = runner.invoke(app, ["tune", str(dump), "-o", str(codec), "--bytes", "14kB", "--minutes", "0.05", *quick])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["budget"] == 14_000 >= report["bytes"]
    assert "slots of 8" in result.stderr
    packed = runner.invoke(app, ["pack", str(dump), "-o", str(tmp_path / "a.vql"), "--ratio", "8", *quick])
    assert packed.exit_code == 0, packed.stderr
    cut = runner.invoke(app, ["pack", str(dump), "-o", str(tmp_path / "b.vql"), "--codec", str(codec), "--bits", "3", "--json"])
    assert json.loads(cut.stdout)["code_bits"] == 3
    late = runner.invoke(app, ["pack", str(dump), "-o", str(tmp_path / "d.vql"), "--codec", str(codec), "--ratio", "500"])
    assert late.exit_code == 2
    assert "ratio is 500.0; it only applies when a codec is fitted" in late.stderr
    over = runner.invoke(app, ["pack", str(dump), "-o", str(tmp_path / "d.vql"), "--codec", str(codec), "--bits", "3000"])
    assert over.exit_code == 2
    assert "bits is 3000; it must be 3..15, the codec's 5 slots of 3 bits each" in over.stderr


@pytest.mark.parametrize(
    ("text", "size"), [("500", 500), ("5MB", 5_000_000), ("1.5 kB", 1500), ("2KiB", 2048), ("3gb", 3_000_000_000)]
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "5 apples", "five", "1e400"])
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must be a number of bytes"):
        read_size(text)
