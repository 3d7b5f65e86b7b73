"""`fit`: the held-out split, the report, and that an interrupted and resumed fit gives the same bytes."""

import dataclasses
import io
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forge import flip_bit
from numpy.typing import NDArray

import vqlabel
from vqlabel import FitConfig, LabelBatch
from vqlabel.codecs import LabelCodec, LabelSample
from vqlabel.errors import BadLabels, TargetExists, UsageError
from vqlabel.labels import About, LabelSource, Place, open_labels
from vqlabel.metrics.distortion import Distortion
from vqlabel.progress import silent
from vqlabel.workflows import run_state
from vqlabel.workflows.fit import fit, fit_sample
from vqlabel.workflows.run_state import RunState
from vqlabel.workflows.sample import read_sample

QUICK = FitConfig(bits=12, codebook_size=8, prior=False, epochs=2)
LONGER = FitConfig(bits=12, codebook_size=8, prior=True, image_width=4, hidden=8, weight_bits=7, temperature=(1.0,), epochs=4)
Progress = Callable[[str, int, int, dict[str, float]], None]


class Memory(LabelSource):
    """A dump of given batches."""

    def __init__(self, batches: list[LabelBatch]) -> None:
        self.path, self._batches, classes = Path("memory"), batches, batches[0].labels.shape[1]
        self.about = About(layout="memory", classes=classes, domain="logits", dtype="F16", order="none")
        self.places = [batch.place for batch in batches]

    def _load(self, index: int) -> tuple[LabelBatch, str]:
        return self._batches[index], f"batch {index}"


def numbered(sizes: list[int], epochs: int = 1) -> Memory:
    """Batches whose labels identify their record: class 0 is its number, class 1 the negative of it."""
    batches, record = [], 0
    for epoch in range(epochs):
        for number, size in enumerate(sizes):
            ids = np.arange(record, record + size, dtype=np.float16)
            batches.append(LabelBatch(labels=np.stack([ids, -ids - 1], 1), place=Place(epoch, number)))
            record += size
    return Memory(batches)


def test_the_last_epoch_is_held_out(dump: Path, logits: NDArray[np.float16]) -> None:
    sample, words = read_sample(open_labels(dump))
    assert torch.equal(sample.train, torch.from_numpy(logits[:-1]).flatten(0, 1))
    assert torch.equal(sample.held_out, torch.from_numpy(logits[-1]))
    assert words == "the last epoch (5)"
    assert (sample.classes, sample.domain, sample.dtype) == (40, "logits", "F16")


@pytest.mark.parametrize(("epochs", "held"), [(2, 1), (8, 1), (15, 1), (16, 2), (33, 4)])
def test_an_eighth_of_the_epochs_is_held_out(epochs: int, held: int) -> None:
    sample, words = read_sample(numbered([2, 1], epochs))
    assert sample.train[:, 0].tolist() == list(range(3 * (epochs - held)))
    assert sample.held_out[:, 0].tolist() == list(range(3 * (epochs - held), 3 * epochs))
    assert words == (f"the last epoch ({epochs - 1})" if held == 1 else f"the last {held} epochs (from {epochs - held})")


@pytest.mark.parametrize(
    ("sizes", "held"), [([100], 10), ([99], 9), ([2], 1), ([19], 1), ([4] * 15, 6), ([50, 3, 3, 4], 6), ([1, 1, 1], 1)]
)
def test_the_last_tenth_of_the_records_of_a_single_epoch_is_held_out(sizes: list[int], held: int) -> None:
    sample, words = read_sample(numbered(sizes))
    total = sum(sizes)
    assert sample.train[:, 0].tolist() == list(range(total - held))
    assert sample.held_out[:, 0].tolist() == list(range(total - held, total))
    assert words == "the last tenth of the records"


def test_a_tree_holds_out_its_last_epoch_with_its_images(tree: Path, batches: list[LabelBatch]) -> None:
    sample, words = read_sample(open_labels(tree))
    last = [batch for batch in batches if batch.place.epoch == 5]
    assert words == "the last epoch (5)"
    np.testing.assert_array_equal(sample.held_out.numpy(), np.concatenate([batch.labels for batch in last]))
    assert sample.held_out_context is not None
    assert sample.train_context is not None
    np.testing.assert_array_equal(sample.held_out_context.image, np.concatenate([batch.context().image for batch in last]))
    np.testing.assert_array_equal(sample.held_out_context.partner, np.concatenate([batch.context().partner for batch in last]))
    assert len(sample.train_context.image) == len(sample.train) == 300


def test_a_large_dump_is_sampled_over_all_its_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqlabel.workflows.sample.SAMPLE_LABELS", 100)
    monkeypatch.setattr("vqlabel.workflows.sample.HELD_OUT_LABELS", 20)
    sample, _ = read_sample(numbered([10, 10], epochs=32))
    seen = sample.train[:, 0] // 20
    assert len(sample.train) == 100
    assert len(sample.held_out) == 20
    assert len(seen.unique()) == 10, "ten batches from ten epochs"
    assert float(seen.max()) >= 24
    assert float(seen.max()) < 28 <= float((sample.held_out[:, 0] // 20).min())


def test_the_report_has_figures_of_seen_and_of_held_out_labels(dump: Path, logits: NDArray[np.float16]) -> None:
    codec, report = fit(dump, QUICK)
    assert json.loads(json.dumps(report)).keys() == {
        "codec",
        "config",
        "fit",
        "code_bits",
        "split",
        "train",
        "held_out",
        "gain",
        "calibrated",
        "rates",
        "perplexity",
        "mean_label",
        "topk",
        "bias_slope",
        "temperature_auto",
    }
    assert report["split"] == "the last epoch (5)"
    assert report["code_bits"] == sum(codec.code_bits) == 12
    assert report["fit"] == {**QUICK.to_dict(), "codec": "vqae", "temperature": (1.0,)}
    assert report["config"] == codec.config.to_dict()
    for part, labels in (("train", logits[:-1].reshape(-1, 40)), ("held_out", logits[-1])):
        figures, raw = Distortion(), torch.from_numpy(labels)
        with torch.no_grad():
            figures.add(raw, codec.decode(codec.encode(raw)))
        assert report[part] == pytest.approx({"labels": len(raw), **figures.figures()}, rel=1e-3)
    assert report["held_out"]["kl_T1"] > report["train"]["kl_T1"] > 0
    assert report["rates"].keys() == {"3", "6"}
    assert report["held_out"]["kl_T1"] < report["rates"]["6"]["kl_T1"] < report["rates"]["3"]["kl_T1"]
    assert report["gain"] == codec.gain > 1  # type: ignore[attr-defined]
    plain = fit(dump, replace(QUICK, gain=1.0))[1]
    assert plain.keys() == report.keys() - {"gain", "calibrated", "bias_slope"}
    assert report["calibrated"] == plain["held_out"] != report["held_out"]
    assert len(report["perplexity"]) == 4
    assert all(4 < p <= 8 for p in report["perplexity"])


def test_the_report_is_stored_in_the_codec_file(dump: Path, tmp_path: Path) -> None:
    _, report = fit(dump, QUICK, out=tmp_path / "a.codec")
    assert vqlabel.load_codec(tmp_path / "a.codec")[1] == json.loads(json.dumps(report))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_gives_others(dump: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit(dump, dataclasses.replace(QUICK, seed=seed), out=tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


@pytest.fixture(autouse=True)
def every_state_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "SAVE_SHARE", math.inf)


def interrupt(stage: str, done: int) -> Progress:
    def progress(now: str, at: int, _total: int, _figures: dict[str, float]) -> None:
        if (now, at) == (stage, done):
            raise KeyboardInterrupt

    return progress


@pytest.fixture(scope="module")
def uninterrupted(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path, losses = tmp_path_factory.mktemp("whole") / "a.codec", []

    def progress(stage: str, _done: int, _total: int, figures: dict[str, float]) -> None:
        if stage == "decoder, round 2":
            losses.append(figures["loss"])

    fit(dump, LONGER, out=path, progress=progress)
    assert losses.index(min(losses)) > 1, "what follows an interruption would not count"
    return path.read_bytes()


STOPS = [
    [("prior", 1)],
    [("prior", 4)],
    [("codebooks", 0)],
    pytest.param([("codebooks", 1)], marks=pytest.mark.slow),
    [("choosing codes", 0)],
    pytest.param([("choosing codes", 1)], marks=pytest.mark.slow),
    [("decoder, round 1", 1)],
    [("decoder, round 1", 4)],
    pytest.param([("decoder, round 2", 1)], marks=pytest.mark.slow),
    pytest.param([("decoder, round 2", 3)], marks=pytest.mark.slow),
    [("decoder, round 2", 4)],
    [("6 bits", 1)],
    [("3 bits", 2)],
    [("prior", 3), ("decoder, round 1", 2), ("decoder, round 1", 3), ("decoder, round 2", 2)],
]


@pytest.mark.parametrize("stops", STOPS, ids=str)
def test_an_interrupted_and_resumed_fit_gives_the_bytes_of_an_uninterrupted_one(
    stops: list[tuple[str, int]], dump: Path, tmp_path: Path, uninterrupted: bytes
) -> None:
    out, state = tmp_path / "a.codec", tmp_path / "a.codec.state"
    for stage, done in stops:
        with pytest.raises(KeyboardInterrupt):
            fit(dump, LONGER, out=out, progress=interrupt(stage, done))
        assert list(tmp_path.iterdir()) == [state]
    stages: list[tuple[str, int]] = []
    fit(dump, LONGER, out=out, progress=lambda stage, done, *_: stages.append((stage, done)))
    assert out.read_bytes() == uninterrupted
    assert list(tmp_path.iterdir()) == [out], "the state goes when the fit is done"
    assert ("prior", 1) not in stages, "what was done is not done again"
    assert ("codebooks", 0) not in stages or stops[-1][0] in ("prior", "codebooks", "choosing codes")
    assert ("6 bits", 1) not in stages or stops[-1][0] != "3 bits"


def test_an_interruption_while_the_state_is_written_leaves_the_state_before(
    dump: Path, tmp_path: Path, uninterrupted: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, written, write = tmp_path / "a.codec", [], Path.write_bytes

    def halting_write(path: Path, data: bytes) -> None:
        written.append(path)
        write(path, data[: len(data) // 2] if len(written) == 3 else data)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", halting_write)
    with pytest.raises(KeyboardInterrupt):
        fit(dump, LONGER, out=out)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a.codec.state"]
    fit(dump, LONGER, out=out)
    assert out.read_bytes() == uninterrupted


def test_a_state_of_another_configuration_or_dump_is_refused_and_kept(
    dump: Path, tmp_path: Path, logits: NDArray[np.float16], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, state = tmp_path / "a.codec", tmp_path / "a.codec.state"
    with pytest.raises(KeyboardInterrupt):
        fit(dump, QUICK, out=out, progress=interrupt("decoder, round 1", 1))
    before = state.read_bytes()
    np.save(tmp_path / "other.npy", logits + np.float16(0.5))
    others = ((dump, dataclasses.replace(QUICK, seed=1), "seed 0, now 1"), (tmp_path / "other.npy", QUICK, "dump .*, now .*"))
    for source, config, change in others:
        with pytest.raises(UsageError, match=rf"a\.codec\.state: is the state of .* other settings \({change}\); .* --restart"):
            fit(source, config, out=out)
    assert state.read_bytes() == before
    monkeypatch.setattr(run_state, "STATE", run_state.STATE + 1)
    with pytest.raises(UsageError, match=r"\(vqlabel .*, state \d, now .*, state \d\)"):
        fit(dump, QUICK, out=out)


def test_a_restart_replaces_a_state_and_nothing_else_of_that_name(dump: Path, tmp_path: Path, uninterrupted: bytes) -> None:
    out, state = tmp_path / "a.codec", tmp_path / "a.codec.state"
    with pytest.raises(KeyboardInterrupt):
        fit(dump, QUICK, out=out, progress=interrupt("decoder, round 1", 1))
    fit(dump, LONGER, out=out, restart=True)
    assert out.read_bytes() == uninterrupted
    assert not state.exists()
    state.write_bytes(b"of somebody else")
    with pytest.raises(TargetExists, match=r"a\.codec\.state: .* is not a readable state .*; delete it, or name another"):
        fit(dump, QUICK, out=out, overwrite=True, restart=True)
    assert state.read_bytes() == b"of somebody else"


def test_saving_takes_a_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "SAVE_SHARE", 1e-6)
    state = RunState(tmp_path / "a")
    state.begin({})
    hooks = state.fit_hooks(silent)
    for step in range(3):
        hooks.save({"step": step})
    again = RunState(tmp_path / "a")
    again.begin({})
    assert again.fit_hooks(silent).resumed == {"step": 0}
    assert again.seconds >= state.seconds - 1


@pytest.mark.parametrize("lost", ["a bit", "the end", "a field"])
def test_a_damaged_state_is_refused(lost: str, dump: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "a.codec", tmp_path / "a.codec.state"
    with pytest.raises(KeyboardInterrupt):
        fit(dump, QUICK, out=out, progress=interrupt("decoder, round 1", 1))
    data = state.read_bytes()
    damaged = [data[:-1]]
    if lost == "a bit":
        damaged = [flip_bit(data, at, at % 8) for at in range(0, len(data), len(data) // 40)]
    elif lost == "a field":
        saved = torch.load(io.BytesIO(data), weights_only=True)
        for name in saved["fit"]:
            torch.save({**saved, "fit": {key: value for key, value in saved["fit"].items() if key != name}}, kept := io.BytesIO())
            damaged.append(kept.getvalue())
    for content in damaged:
        state.write_bytes(content)
        with pytest.raises(TargetExists, match=r"this is not a readable state .*; delete it"):
            fit(dump, QUICK, out=out)


def test_a_state_that_is_a_link_is_not_written_through(dump: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "a.codec", tmp_path / "a.codec.state"
    with pytest.raises(KeyboardInterrupt):
        fit(dump, QUICK, out=out, progress=interrupt("decoder, round 1", 1))
    elsewhere, before = state.rename(tmp_path / "elsewhere"), (tmp_path / "elsewhere").read_bytes()
    state.symlink_to(elsewhere)
    fit(dump, QUICK, out=out)
    assert elsewhere.read_bytes() == before


def test_an_existing_codec_is_kept_without_overwrite(dump: Path, tmp_path: Path, uninterrupted: bytes) -> None:
    out = tmp_path / "a.codec"
    out.write_bytes(b"precious")
    with pytest.raises(TargetExists, match=r"a\.codec exists; pass --overwrite"):
        fit(dump, QUICK, out=out)
    assert out.read_bytes() == b"precious"
    fit(dump, LONGER, out=out, overwrite=True)
    assert out.read_bytes() == uninterrupted


def test_a_missing_folder_is_refused_before_the_dump_is_read(dump: Path, tmp_path: Path) -> None:
    def unread(*_: object) -> None:
        raise AssertionError("the dump was read")

    with pytest.raises(UsageError, match="nowhere: no such folder; make it first"):
        fit(dump, QUICK, out=tmp_path / "nowhere" / "a.codec", progress=unread)


CODECS: dict[str, dict[str, Any]] = {
    "residual": {"bits": 32},
    "grouped": {"bits": 32, "code_width": 2},
    "one number": {"bits": 4, "latent": 1},
    "no training": {"bits": 32, "epochs": 0},
    "top-k": {"codec": "topk", "bits": 64},
    "raw": {"codec": "raw"},
}


@pytest.mark.parametrize("options", CODECS.values(), ids=CODECS.keys())
@pytest.mark.parametrize("labels", [2, 3, 10])
def test_a_dump_of_a_few_labels_is_fitted(
    labels: int, options: dict[str, Any], logits: NDArray[np.float16], tmp_path: Path
) -> None:
    np.save(tmp_path / "few.npy", logits[0, :labels])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codec, report = fit(tmp_path / "few.npy", FitConfig(**{"epochs": 2, **options}), out=tmp_path / "few.codec")
    assert (report["train"]["labels"], report["held_out"]["labels"]) == (labels - 1, 1)
    raw = torch.from_numpy(logits[0, :labels])
    again = vqlabel.load_codec(tmp_path / "few.codec")[0]
    with torch.no_grad():
        assert torch.equal(again.decode(again.encode(raw)), codec.decode(codec.encode(raw)))


def test_a_dump_of_one_label_is_refused_except_for_the_raw_codec(logits: NDArray[np.float16], tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", logits[0, :1])
    assert fit(tmp_path / "one.npy", FitConfig(codec="raw"))[1]["held_out"]["kl_T1"] == 0
    for codec in ("vqae", "topk"):
        with pytest.raises(BadLabels, match=r"one\.npy: 1 labels; a fit needs at least 2"):
            fit(tmp_path / "one.npy", FitConfig(codec=codec))


@pytest.mark.parametrize("steps", range(1, 24))
def test_the_schedule_allows_any_number_of_training_steps(steps: int) -> None:
    """Torch's one-cycle schedule divides 0 by 0 if its warm-up has one step."""
    fit(numbered([20]), FitConfig(bits=4, codebook_size=4, epochs=steps))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "topk", "bits": 21}, "topk needs 22 bits for one of 40 classes; --bits is 21"),
        ({"codec": "topk", "slots": 41, "bits": 1}, None),
        ({"latent": 10, "code_width": 4}, "code_width is 4; it must be latent / slots = 10/2 for grouped slots"),
        ({"slots": 3, "latent": 16, "code_width": 4}, "code_width is 4; it must be latent / slots = 16/3"),
        ({"bits": 1 << 16}, r"slots is \d+; it must be 0\.\.1024"),
    ],
)
def test_options_that_exceed_the_labels_are_refused(options: dict[str, Any], message: str | None, dump: Path) -> None:
    if message is None:
        assert fit(dump, FitConfig(**options))[0].config.k == 40
        return
    with pytest.raises(UsageError, match=message):
        fit(dump, FitConfig(**options))


def test_logits_outside_the_range_of_float16_are_refused_before_a_codec_is_written(
    logits: NDArray[np.float16], tmp_path: Path
) -> None:
    masked = logits.astype(np.float32)
    masked[..., :3] = -1e9
    np.save(tmp_path / "masked.npy", masked)
    with pytest.raises(
        BadLabels, match=r"a label holds 1e\+09; the decoder is stored in fp16, whose largest number is 65504: clamp the labels"
    ):
        fit(tmp_path / "masked.npy", QUICK)
    np.save(tmp_path / "masked.npy", np.clip(masked, -100, None))
    assert fit(tmp_path / "masked.npy", QUICK)[1]["held_out"]["kl_T1"] < 1


def test_labels_of_the_other_domain_are_refused(dump: Path, probs: NDArray[np.float16], tmp_path: Path) -> None:
    np.save(tmp_path / "probs.npy", probs)
    with pytest.raises(BadLabels, match="these are probabilities; pass --domain probs"):
        fit(tmp_path / "probs.npy", QUICK)
    with pytest.raises(BadLabels, match="these are not probabilities; pass --domain logits"):
        fit(open_labels(dump, domain="probs"), QUICK)
    assert fit(open_labels(tmp_path / "probs.npy", domain="probs"), QUICK)[0].config.domain == "probs"


def test_an_incomplete_dump_is_refused_by_fit_and_by_pack(logits: NDArray[np.float16], codec: LabelCodec, tmp_path: Path) -> None:
    labels = logits.reshape(-1, logits.shape[2]).copy()
    labels[200:] = 0
    np.save(tmp_path / "a.npy", labels)
    message = r"a\.npy: 160 of 360 rows are all zero: were these labels never written\? Label these images again, or leave them out"
    with pytest.raises(BadLabels, match=message):
        vqlabel.fit(tmp_path / "a.npy", FitConfig(codec="raw"))
    with pytest.raises(BadLabels, match=message):
        vqlabel.pack(tmp_path / "a.npy", tmp_path / "a.vql", codec=codec)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npy"]


def test_a_few_zero_rows_give_a_note_and_are_not_evaluated(logits: NDArray[np.float16], tmp_path: Path) -> None:
    labels = np.tile(logits.reshape(-1, logits.shape[2]), (2, 1))
    labels[[3, 700]] = 0
    labels[710:] = 1
    np.save(tmp_path / "a.npy", labels)
    sample, _ = read_sample(open_labels(tmp_path / "a.npy"))
    assert len(sample.train) + len(sample.held_out) == 708
    assert bool((sample.held_out != sample.held_out[:, :1]).any(1).all())
    codec, report = vqlabel.fit(tmp_path / "a.npy", FitConfig(codec="raw"))
    names = ["2 of 720 rows are all zero: were these labels never written?", "10 of 720 rows have the same value for all classes"]
    assert [note.partition(": ")[2] for note in report["notes"]] == names
    assert vqlabel.pack(tmp_path / "a.npy", tmp_path / "a.vql", codec=codec)["notes"] == report["notes"]


def test_a_varying_mean_over_classes_gives_a_note_if_it_is_not_stored(logits: NDArray[np.float16]) -> None:
    flat = torch.from_numpy(logits.reshape(-1, logits.shape[2])).float()
    flat -= flat.mean(1, keepdim=True)
    level = 3 * torch.randn(len(flat), 1, generator=torch.Generator().manual_seed(0))
    for labels, noted in ((flat, False), (flat + level, True)):
        sample = LabelSample(
            train=labels[:300], held_out=labels[300:], train_context=None, held_out_context=None, domain="logits", dtype="F32"
        )
        report = fit_sample(sample, "some", FitConfig(bits=3, codebook_size=8, epochs=0))[1]
        assert ("notes" in report) == noted
    assert report["notes"][0].startswith("the mean of a label over its classes varies (std ")
    assert "notes" not in fit_sample(sample, "some", FitConfig(codec="raw"))[1]
