"""The curve of a dump: what is on it, what its bytes are, what is held out, and the picture."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vqlabel.codecs import fit_codec
from vqlabel.config import FitConfig
from vqlabel.errors import BadLabels, MissingExtra, TargetExists, UsageError
from vqlabel.labels import open_labels
from vqlabel.metrics.distortion import Distortion
from vqlabel.report.baselines import PEERS, Seen
from vqlabel.report.plot_rate_distortion import plot_curve
from vqlabel.report.plots import check_picture
from vqlabel.report.rate_distortion import METHODS, compare, measure_codec, measure_peer
from vqlabel.workflows.fit_report import measure
from vqlabel.workflows.sample import read_sample

CHEAP = ("topk", "topk-coded", "raw", "int8", "int4", "pca-scalar", "hard")
FIGURES = {"kl_T1", "kl_T4", "kl_T20", "relative_mse", "top1_agreement"}


@pytest.fixture(scope="module")
def found(tree: Path) -> dict[str, Any]:
    """Of SRe2L's tree, at the temperatures of no student in particular."""
    return compare(tree, (24, 48), methods=[*CHEAP, "vqae"], temperature=(1, 4, 20), teacher_bytes=9000)


def at(found: dict[str, Any], method: str, part: str) -> list[dict[str, Any]]:
    return [p for p in found["points"] if (p["method"], p["part"]) == (method, part)]


def test_every_method_has_its_points_on_both_parts(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found)) == found
    assert set(found["methods"]) == {*CHEAP, "vqae"}
    for method in found["methods"]:
        held, every = at(found, method, "held out"), at(found, method, "all-in")
        assert [p["setting"] for p in held] == [p["setting"] for p in every]
        assert len(held) == (2 if method == "vqae" or PEERS[method].at_rates else 1), method
        for point in held + every:
            assert set(point) == {"method", "setting", "part", "code_bits", "fixed_bytes", "all_in_bits", *FIGURES}
            assert all(point[name] >= 0 for name in FIGURES)
    assert (found["labels"], found["classes"], found["domain"], found["dtype"]) == (360, 40, "logits", "F16")
    assert found["sampled"] == {"seen": 300, "held": 60}
    assert found["held_out"] == "the last epoch (5)"
    assert found["temperature"] == [1, 4, 20]
    assert found["bits"] == [24, 48]
    assert found["skipped"] == {}


def test_all_in_bits_are_codes_and_fixed_parts_over_the_labels(found: dict[str, Any]) -> None:
    for point in found["points"]:
        (every,) = (p for p in at(found, point["method"], "all-in") if p["setting"] == point["setting"])
        assert point["all_in_bits"] == every["all_in_bits"]
        assert every["all_in_bits"] == pytest.approx(every["code_bits"] + 8 * every["fixed_bytes"] / 360, abs=1e-3)
    assert found["teacher"] == {"bytes": 9000, "all_in_bits": 200.0}


def test_a_vqae_has_the_bytes_and_figures_that_its_codec_has(found: dict[str, Any], tree: Path) -> None:
    sample, _ = read_sample(open_labels(tree))
    config = FitConfig(bits=24, temperature=(1.0, 4.0, 20.0), contrast=1.0)  # the axis is KL
    codec = fit_codec(sample, replace(config, codec="vqae"))
    point = at(found, "vqae", "held out")[0]
    assert point["fixed_bytes"] == sum(tensor.nbytes for tensor in codec.decoder_tensors().values())
    assert point["code_bits"] == sum(codec.code_bits)
    held, seen = measure(codec, sample, "held"), measure(codec, sample, "seen")
    assert {name: point[name] for name in FIGURES} == pytest.approx({name: held[name] for name in FIGURES}, abs=2e-6)
    every = at(found, "vqae", "all-in")[0]
    assert every["kl_T4"] == pytest.approx((300 * seen["kl_T4"] + 60 * held["kl_T4"]) / 360, abs=2e-6)


def test_all_in_figures_are_those_of_all_sampled_labels_at_once(tree: Path) -> None:
    sample, _ = read_sample(open_labels(tree))
    sample = replace(sample, held=3 * sample.held)  # of another power, which squared error is relative to
    peer = PEERS["pca-scalar"].fit(Seen(sample, (1.0,), 0), 24)
    assert peer is not None
    measured, figures = measure_peer(peer, sample), Distortion()
    both = torch.cat([sample.seen, sample.held])
    codes = peer.encode(both)
    figures.add(both, peer.decode(codes))
    assert measured.distortion["all-in"] == pytest.approx(figures.figures(), rel=1e-4)
    assert measured.code_bits["all-in"] == pytest.approx(peer.bits(codes) / 360, rel=1e-5)


def test_nothing_is_learned_from_the_held_out_labels(logits: NDArray[np.float16], tmp_path: Path) -> None:
    other = logits.copy()
    other[-1] = other[-1, ::-1]
    settings = []
    for name, labels in (("a.npy", logits), ("b.npy", other)):
        np.save(tmp_path / name, labels)
        found = compare(tmp_path / name, (24,), methods=CHEAP, temperature=(1.0,))
        settings.append([(p["setting"], p["fixed_bytes"]) for p in found["points"]])
    assert settings[0] == settings[1]


def test_lossless_labels_have_no_distortion_and_more_bits_less(found: dict[str, Any]) -> None:
    (raw,), (coarse,) = at(found, "raw", "held out"), at(found, "int4", "held out")
    assert (raw["kl_T1"], raw["relative_mse"], raw["top1_agreement"]) == (0, 0, 1)
    assert coarse["code_bits"] < at(found, "int8", "held out")[0]["code_bits"] < raw["code_bits"]
    for method in ("vqae", "topk", "topk-coded", "pca-scalar"):
        small, large = at(found, method, "held out")
        assert large["kl_T20"] < small["kl_T20"], method


def test_rates_that_leave_room_for_the_same_setting_give_one_point(dump: Path) -> None:
    found = compare(dump, (48, 44, 8, 48), methods=["topk"])
    assert found["bits"] == [8, 44, 48]
    assert [p["setting"] for p in at(found, "topk", "held out")] == ["k 2"], "a class takes 22 bits"


def test_without_images_a_vqae_is_fitted_once(
    dump: Path, tmp_path: Path, logits: NDArray[np.float16], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "plain.npy", logits.reshape(-1, 40))
    fits = []
    monkeypatch.setattr("vqlabel.report.rate_distortion.fit_codec", lambda *a: fits.append(a) or fit_codec(*a))
    found = compare(tmp_path / "plain.npy", (16,), methods=["vqae-no-prior", "vqae"])
    assert len(fits) == 1
    (one,), (two,) = at(found, "vqae", "held out"), at(found, "vqae-no-prior", "held out")
    assert one["setting"] == two["setting"] + ", no prior: it would not pay"
    assert one["kl_T1"] == two["kl_T1"]
    assert found["held_out"] == "the last tenth of the records"


def test_probabilities_two_classes_and_a_handful_of_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "probs.npy", rng.dirichlet([1, 1, 1], 30).astype(np.float32))
    np.save(tmp_path / "two.npy", rng.normal(size=(5, 2)).astype(np.float16))
    for name, domain in (("probs.npy", "probs"), ("two.npy", "logits")):
        found = compare(open_labels(tmp_path / name, domain=domain), (8, 64), methods=CHEAP)
        assert all(math.isfinite(p[figure]) for p in found["points"] for figure in FIGURES)
        assert at(found, "raw", "held out")[0]["kl_T1"] < 1e-4


def test_the_same_seed_gives_the_same_points(dump: Path) -> None:
    first, second = (compare(dump, (24,), methods=[*CHEAP, "vqae-no-prior"], seed=5) for _ in range(2))
    assert first == second


def test_the_temperature_is_the_layouts_where_none_is_named(tree: Path, dump: Path) -> None:
    assert compare(tree, (24,), methods=["hard"])["temperature"] == [20.0]
    assert compare(dump, (24,), methods=["hard"])["temperature"] == [1.0, 4.0, 20.0]


def test_the_codec_of_the_package_is_measured_as_any(dump: Path) -> None:
    sample, _ = read_sample(open_labels(dump))
    codec = fit_codec(sample, FitConfig(codec="raw"))
    measured = measure_codec(codec, sample)
    assert (measured.fixed_bytes, measured.code_bits) == (0, {"held out": 640.0, "all-in": 640.0})


# --- refusals -----------------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused(dump: Path, tmp_path: Path) -> None:
    for message, options in (
        ("bits is 0; it must be 1..65536 code bits per label", {"bits": (8, 0)}),
        ("must name at least one rate", {"bits": ()}),
        ("methods is 'zip'; it must be one of vqae, vqae-no-prior, topk", {"methods": ["zip"]}),
        ("must be some of vqae", {"methods": []}),
        ("teacher_bytes is 0", {"teacher_bytes": 0}),
        ("temperature is .*must be 1 to 16 numbers", {"temperature": (0.0,)}),
        ("seed is -1", {"seed": -1}),
    ):
        with pytest.raises(UsageError, match=message):
            compare(dump, **options)  # type: ignore[arg-type]
    np.save(tmp_path / "large.npy", np.full((4, 3), 1e6, np.float32) * np.arange(3, dtype=np.float32))
    with pytest.raises(BadLabels, match=r"a label holds 2e\+06; halves"):
        compare(tmp_path / "large.npy", methods=["topk"])


def test_without_faiss_its_rows_are_skipped_or_refused(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr("vqlabel.report.rate_distortion.METHODS", {name: METHODS[name] for name in PEERS})
    said: list[str] = []
    found = compare(dump, (24,), say=said.append)
    assert set(found["methods"]) == set(CHEAP)
    assert set(found["skipped"]) == {"pq", "opq", "rq"}
    (line,) = said
    assert line.startswith("pq, opq, rq: skipped; ")
    assert "pip install 'vqlabel[baselines]'" in line
    with pytest.raises(MissingExtra, match=r"pip install 'vqlabel\[baselines\]'"):
        compare(dump, (24,), methods=["topk", "rq"])


# --- the picture --------------------------------------------------------------------------------------------------------------------


def test_the_picture_says_what_is_held_out_and_what_is_all_in(
    found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="the extra `plot` is not installed")
    drawn: list[Any] = []
    save = figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *a, **o: (drawn.append(self), save(self, *a, **o))[1])
    plot_curve(found, tmp_path / "rd.png")
    assert (tmp_path / "rd.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["rd.png"]
    axes = drawn[0].axes
    assert len(axes) == 8, "KL at T = 1, 4, 20 and top-1, held out and all-in"
    assert [a.get_title(loc="left").split(";")[0] for a in axes[:2]] == ["held out", "all-in"]
    assert [a.get_xlabel() for a in axes[-2:]] == [
        "bytes per label, codes only",
        "bytes per label, every byte of codes and fixed parts",
    ]
    lines = {line.get_label(): line for line in axes[1].get_lines()}
    assert set(lines) == {*found["methods"].values(), "the teacher itself"}
    assert lines["the teacher itself"].get_xdata()[0] == 25
    assert list(lines["vqae"].get_xdata()) == [p["all_in_bits"] / 8 for p in at(found, "vqae", "all-in")]
    assert list(lines["raw + zstd"].get_ydata()) == [1e-3], "at the foot"
    assert list(lines["vqae"].get_ydata()) == [p["kl_T1"] for p in at(found, "vqae", "all-in")]
    held = {line.get_label(): line for line in axes[6].get_lines()}
    assert "the teacher itself" not in held
    assert list(held["vqae"].get_xdata()) == [p["code_bits"] / 8 for p in at(found, "vqae", "held out")]
    assert list(held["vqae"].get_ydata()) == [p["top1_agreement"] for p in at(found, "vqae", "held out")]
    plot_curve({**found, "temperature": [20.0]}, tmp_path / "rd.svg")
    assert len(drawn[1].axes) == 4


def test_a_picture_that_cannot_be_written_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    (tmp_path / "a.png").write_bytes(b"precious")
    with pytest.raises(TargetExists, match=r"a\.png exists; pass --overwrite"):
        check_picture(tmp_path / "a.png", overwrite=False)
    with pytest.raises(UsageError, match=r"a\.xyz: no picture can be written there"):
        check_picture(tmp_path / "a.xyz", overwrite=False)
    with pytest.raises(UsageError, match="no such folder; make it first"):
        check_picture(tmp_path / "no" / "a.png", overwrite=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"vqlabel\[plot\]"):
        check_picture(tmp_path / "b.png", overwrite=False)
