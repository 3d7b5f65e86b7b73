"""Interrupted runs of pack, tune and fits of documents: the same call continues them, to the same bytes."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import vqlabel
from tests.text_corpus import small_split, write_head, write_hidden_states
from vqlabel import FitConfig, TextFitConfig
from vqlabel.cli import app
from vqlabel.codecs.file import load_stored_codec
from vqlabel.codecs.sample import FitHooks
from vqlabel.codecs.token_vqae.fit import stages
from vqlabel.codecs.token_vqae.sample import TextSample
from vqlabel.errors import TargetExists, UsageError
from vqlabel.workflows import run_state
from vqlabel.workflows import tune_search as search
from vqlabel.workflows.text import tune as text_tune
from vqlabel.workflows.text.fit import fit_text
from vqlabel.workflows.text.tune import TextGoal, tune_text
from vqlabel.workflows.tune import tune
from vqlabel.workflows.tune_search import Trial

QUICK = FitConfig(bits=12, codebook_size=8, prior=False, epochs=1)
TEXT = TextFitConfig(codebook_size=8, width=8, layers=1, window=2, epochs=2, slots=2, ids=1, latent=8)


@pytest.fixture(autouse=True)
def every_state_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "SAVE_SHARE", math.inf)
    monkeypatch.setattr(stages, "REPORT_STEPS", 4)


class Watch:
    """A progress callback: records stages, and interrupts at the n-th report of one."""

    def __init__(self, stage: str = "", count: int = 1) -> None:
        self.stage, self.count, self.seen = stage, count, list[tuple[str, int]]()

    def __call__(self, stage: str, done: int, _total: int, _figures: dict[str, float]) -> None:
        self.seen.append((stage, done))
        if [name for name, _ in self.seen].count(self.stage) == self.count:
            raise KeyboardInterrupt

    @property
    def stages(self) -> set[str]:
        return {name for name, _ in self.seen}


def interrupted(run: Callable[..., object], stage: str, count: int = 1) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(progress=Watch(stage, count))


@pytest.fixture
def dump(tmp_path: Path, logits: NDArray[np.float16]) -> Path:
    np.save(tmp_path / "dump.npy", np.concatenate([logits] * 2))
    return tmp_path / "dump.npy"


@pytest.fixture(scope="module")
def text_dump(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dump of documents and its head."""
    folder = tmp_path_factory.mktemp("text")
    return write_hidden_states(folder / "dump", small_split(60)), write_head(folder)


def test_a_pack_that_is_interrupted_while_it_packs_does_not_fit_again(dump: Path, tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> Any:
        return vqlabel.pack(dump, tmp_path / name, QUICK, save_codec=tmp_path / f"{name}.codec", **options)

    whole = run("whole.vql")
    interrupted(lambda progress: run("a.vql", progress=progress), "decoder, round 1")
    assert not (tmp_path / "a.vql").exists()
    interrupted(lambda progress: run("a.vql", progress=progress), "packing")
    assert {path.name for path in tmp_path.glob("a.*")} == {"a.vql.state"}, "the saved codec, too, is written at the end"
    watch = Watch()
    resumed = run("a.vql", progress=watch)
    assert not any(stage.startswith(("decoder", "codebooks", "choosing")) for stage in watch.stages)
    assert (tmp_path / "a.vql").read_bytes() == (tmp_path / "whole.vql").read_bytes()
    assert (tmp_path / "a.vql.codec").read_bytes() == (tmp_path / "whole.vql.codec").read_bytes()
    assert {**resumed, "path": ""} == {**whole, "path": ""}
    assert not (tmp_path / "a.vql.state").exists()


def test_a_saved_codec_packs_the_same_labels_and_is_a_target_of_its_own(dump: Path, tmp_path: Path) -> None:
    out, codec = tmp_path / "a.vql", tmp_path / "a.codec"
    vqlabel.pack(dump, out, QUICK, save_codec=codec)
    vqlabel.pack(dump, tmp_path / "b.vql", codec=codec)
    assert vqlabel.load_codec(codec)[1]["held_out"]["labels"]
    assert out.read_bytes() == (tmp_path / "b.vql").read_bytes()
    with pytest.raises(TargetExists, match=r"a\.codec exists; pass --overwrite"):
        vqlabel.pack(dump, tmp_path / "c.vql", QUICK, save_codec=codec)
    for path, first in ((tmp_path / "c.vql", "--out"), (tmp_path / "c.vql.state", "the state of this run")):
        with pytest.raises(UsageError, match=rf"{path.name}: is the target of both .*{first}"):
            vqlabel.pack(dump, tmp_path / "c.vql", QUICK, save_codec=path)
    with pytest.raises(UsageError, match=r"--save-codec .*new\.codec: this run fits no codec"):
        vqlabel.pack(dump, tmp_path / "c.vql", codec=codec, save_codec=tmp_path / "new.codec")
    assert not (tmp_path / "c.vql").exists()


@pytest.fixture
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials that seem to take no time, so that two searches make the same ones."""
    monkeypatch.setattr(search.Search, "_time_for_more", lambda _: True)


TUNED = FitConfig(bytes=14_000, slots=2, prior=False, epochs=2, codebook_size=8)


@pytest.mark.usefixtures("fixed_time")
def test_an_interrupted_search_repeats_no_trial(dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits, fit_codec = list[FitConfig](), search.fit_codec

    def counted(sample: Any, config: FitConfig) -> Any:
        fits.append(config)
        return fit_codec(sample, config)

    def stop(_: Trial) -> None:
        if len(fits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(search, "fit_codec", counted)
    tune(dump, TUNED, out=tmp_path / "whole.codec")
    trials = len(fits)
    assert trials > 3
    fits.clear()
    with pytest.raises(KeyboardInterrupt):
        tune(dump, TUNED, out=tmp_path / "a.codec", on_trial=stop)
    interrupted(lambda progress: tune(dump, TUNED, out=tmp_path / "a.codec", progress=progress), "decoder, round 2")
    assert len(fits) == trials
    with pytest.raises(UsageError, match=r"a\.codec\.state: .*other settings \(bytes 14000, now 15000\); .* --restart"):
        tune(dump, replace(TUNED, bytes=15_000), out=tmp_path / "a.codec")
    watch = Watch()
    report = tune(dump, TUNED, out=tmp_path / "a.codec", progress=watch)[1]
    assert len(fits) == len(report["trials"]) == trials
    assert "decoder, round 2" in watch.stages and "codebooks" not in watch.stages, "the last fit continues, too"
    same, whole = (vqlabel.load_codec(tmp_path / name) for name in ("a.codec", "whole.codec"))
    for name, tensor in whole[0].state_dict().items():
        assert np.array_equal(tensor, same[0].state_dict()[name])
    assert same[1]["held_out"] == whole[1]["held_out"]


def test_the_time_of_interrupted_runs_counts(dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: Trial) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(dump, TUNED, out=tmp_path / "a.codec", on_trial=stop)
    read = run_state._read
    monkeypatch.setattr(run_state, "_read", lambda path: {**read(path), "seconds": 3600.0})
    report = tune(dump, TUNED, out=tmp_path / "a.codec", minutes=10)[1]
    assert report["seconds"] > 3600 and len(report["trials"]) == 1


def test_a_judge_that_cannot_be_told_from_others_has_no_state(dump: Path, tmp_path: Path) -> None:
    def stop(_: Trial) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(dump, TUNED, out=tmp_path / "a.codec", on_trial=stop, judge=lambda _: {"loss": 0.0})
    assert not list(tmp_path.glob("a.*"))


def test_a_kl_that_is_not_reached_writes_the_nearest_codec_and_exits_with_1(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "REACH_TRIALS", 1)
    options = [
        "--kl",
        "1e-5",
        "--temperature",
        "1",
        "--epochs",
        "1",
        "--codebook-size",
        "8",
        "--slots",
        "1",
        "--no-prior",
        "--latent",
        "4",
    ]
    for command, out in (("tune", "a.codec"), ("pack", "a.vql")):
        result = CliRunner().invoke(app, [command, str(dump), "-o", str(tmp_path / out), *options])
        assert result.exit_code == 1, result.stderr
        assert "vqlabel: --kl 1e-05 was not reached: the nearest codec of" in result.stderr
        assert "of the budget" not in result.stdout
        assert (tmp_path / out).exists() and not (tmp_path / f"{out}.state").exists()
    report = vqlabel.load_codec(tmp_path / "a.codec")[1]
    assert f"a held-out KL of {report['held_out']['kl_T1']:.3f} with {report['bytes']:,} bytes" in report["missed"]


# --- documents --------------------------------------------------------------------------------------------------------

TEXT_STOPS = [("prior", 2), ("prior, KL", 1), ("prior, KL", 7), ("choosing codes", 1), ("codebooks", 1), ("all weights", 1)]


@pytest.fixture(scope="module")
def whole_text(text_dump: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "a.codec"
    fit_text(text_dump[0], TEXT, head=text_dump[1], out=out)
    return out.read_bytes()


@pytest.mark.parametrize("stop", [*TEXT_STOPS, None], ids=str)
def test_an_interrupted_fit_to_documents_gives_the_bytes_of_an_uninterrupted_one(
    stop: tuple[str, int] | None, text_dump: tuple[Path, Path], tmp_path: Path, whole_text: bytes
) -> None:
    out = tmp_path / "a.codec"

    def run(**options: Any) -> object:
        return fit_text(text_dump[0], TEXT, head=text_dump[1], out=out, **options)

    for stage, count in [stop] if stop else TEXT_STOPS[::2]:
        interrupted(run, stage, count)
        assert [path.name for path in tmp_path.iterdir()] == ["a.codec.state"]
    watch = Watch()
    run(progress=watch)
    assert out.read_bytes() == whole_text
    assert ("prior", 4) not in watch.seen, "what was done is not done again"
    assert "prior" not in watch.stages or stop == ("prior", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.codec"]


def test_a_state_of_another_fit_to_documents_is_refused(text_dump: tuple[Path, Path], tmp_path: Path, whole_text: bytes) -> None:
    out, (path, head) = tmp_path / "a.codec", text_dump
    interrupted(lambda progress: fit_text(path, TEXT, head=head, out=out, progress=progress), "prior, KL")
    other = write_hidden_states(tmp_path / "other", small_split(60, 1))
    for dump, config, change in ((path, replace(TEXT, bits=8), "bits None, now 8.0"), (other, TEXT, "dump .* tokens, .*")):
        with pytest.raises(UsageError, match=rf"a\.codec\.state: .*other settings \({change}\); .* --restart"):
            fit_text(dump, config, head=head, out=out)
    watch = Watch()
    fit_text(path, TEXT, head=head, out=out, restart=True, progress=watch)
    assert "prior" in watch.stages and out.read_bytes() == whole_text


@pytest.mark.parametrize("goal", [{}, {"kl": 0.3}], ids=str)
@pytest.mark.parametrize("embed", [True, False])
def test_a_pack_of_documents_does_not_fit_again(
    goal: dict[str, float], embed: bool, text_dump: tuple[Path, Path], tmp_path: Path
) -> None:
    config = replace(TEXT, epochs=1, embed_head=embed)

    def run(name: str, **options: Any) -> Any:
        codec = tmp_path / f"{name}.codec"
        return vqlabel.pack_text(
            text_dump[0],
            tmp_path / name,
            config,
            head=text_dump[1],
            save_codec=codec,
            **goal,
            **options,  # type: ignore[arg-type]
        )

    whole = run("whole.vql")
    interrupted(lambda progress: run("a.vql", progress=progress), "encoding")
    watch = Watch()
    resumed = run("a.vql", progress=watch)
    assert watch.stages == {"reading", "encoding"}
    assert (tmp_path / "a.vql").read_bytes() == (tmp_path / "whole.vql").read_bytes()
    assert (resumed["fit"]["held_out"], resumed["bytes"]) == (whole["fit"]["held_out"], whole["bytes"])
    assert (tmp_path / "a.vql.codec").exists() and not (tmp_path / "a.vql.state").exists()


def test_an_interrupted_search_for_a_codec_of_documents_repeats_no_fit(
    text_dump: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, goal, head = replace(TEXT, slots=1, epochs=1, latent=None), TextGoal(bytes=17_000), text_dump[1]
    fits, fit_and_choose = list[TextFitConfig](), text_tune.fit_and_choose

    def counted(sample: TextSample, config: TextFitConfig, hooks: FitHooks) -> Any:
        result = fit_and_choose(sample, config, hooks)
        fits.append(config)
        return result

    monkeypatch.setattr(text_tune, "fit_and_choose", counted)
    whole = tune_text(text_dump[0], goal, config, head=head, out=tmp_path / "whole.codec")[1]
    assert len(whole["trials"]) > 1

    def run(**options: Any) -> Any:
        return tune_text(text_dump[0], goal, config, head=head, out=tmp_path / "a.codec", **options)

    fits.clear()
    interrupted(run, "codebooks")
    watch = Watch("codebooks")
    with pytest.raises(KeyboardInterrupt):
        run(progress=lambda *report: watch(*report) if fits else None)
    assert len(fits) == 1, "interrupted in the second fit"
    codec, report = run()
    assert len(fits) == len(whole["trials"])
    keys = ("slots", "ids", "latent", "prior_width", "bytes", "rate")
    assert [{key: trial[key] for key in keys} for trial in report["trials"]] == [
        {key: trial[key] for key in keys} for trial in whole["trials"]
    ]
    again = load_stored_codec(tmp_path / "whole.codec")[0]
    for name, tensor in again.decoder_tensors().items():
        assert np.array_equal(tensor, codec.decoder_tensors()[name])
    assert not (tmp_path / "a.codec.state").exists()
