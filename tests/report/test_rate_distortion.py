"""The rate-distortion curves of a dump: points, bytes, held-out labels, refusals, and the plot."""

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
from vqlabel.report.baselines import BASELINES, TrainingLabels
from vqlabel.report.methods import measure_baseline, measure_codec
from vqlabel.report.plots import check_plot_file, plot_rate_distortion
from vqlabel.report.rate_distortion import CompareConfig, compare_methods
from vqlabel.workflows.fit_report import measure
from vqlabel.workflows.sample import read_sample

pytestmark = pytest.mark.usefixtures("short_fits")

CHEAP = ("topk", "topk-coded", "raw", "int8", "int4", "pca-scalar", "hard")
FIGURES = {"kl_T1", "kl_T4", "kl_T20", "relative_mse", "top1_agreement"}


def compare(dump: Any, bits: Any = (24,), **options: Any) -> dict[str, Any]:
    return compare_methods(dump, CompareConfig(bits=bits, **options))


@pytest.fixture(scope="module")
def comparison(tree: Path) -> dict[str, Any]:
    """Of SRe2L's tree, at the temperatures of an unknown student."""
    return compare(tree, (24, 48), methods=[*CHEAP, "vqae"], temperature=(1, 4, 20), teacher_bytes=9000)


def points_of(comparison: dict[str, Any], method: str, part: str) -> list[dict[str, Any]]:
    return [p for p in comparison["points"] if (p["method"], p["part"]) == (method, part)]


def test_every_method_has_the_same_settings_held_out_and_all_in(comparison: dict[str, Any]) -> None:
    assert json.loads(json.dumps(comparison)) == comparison
    assert set(comparison["methods"]) == {*CHEAP, "vqae"}
    for method in comparison["methods"]:
        held, every = points_of(comparison, method, "held out"), points_of(comparison, method, "all-in")
        assert [p["setting"] for p in held] == [p["setting"] for p in every]
        assert len(held) == (2 if method == "vqae" or BASELINES[method].has_rate else 1), method
        for point in held + every:
            assert set(point) == {"method", "setting", "part", "code_bits", "fixed_bytes", "all_in_bits", *FIGURES}
            assert all(point[name] >= 0 for name in FIGURES)
    assert (comparison["labels"], comparison["classes"], comparison["domain"], comparison["dtype"]) == (360, 40, "logits", "F16")
    assert comparison["sampled"] == {"train": 300, "held_out": 60}
    assert comparison["split"] == "the last epoch (5)"
    assert comparison["temperature"] == [1, 4, 20]
    assert comparison["bits"] == [24, 48]
    assert comparison["skipped"] == {}


def test_all_in_bits_are_code_bits_and_fixed_bytes_divided_by_the_labels(comparison: dict[str, Any]) -> None:
    for point in comparison["points"]:
        (every,) = (p for p in points_of(comparison, point["method"], "all-in") if p["setting"] == point["setting"])
        assert point["all_in_bits"] == every["all_in_bits"]
        assert every["all_in_bits"] == pytest.approx(every["code_bits"] + 8 * every["fixed_bytes"] / 360, abs=1e-3)
    assert comparison["teacher"] == {"bytes": 9000, "all_in_bits": 200.0}


def test_a_vqae_point_has_the_bytes_and_figures_of_its_codec(comparison: dict[str, Any], tree: Path) -> None:
    sample, _ = read_sample(open_labels(tree))
    config = FitConfig(bits=24, temperature=(1.0, 4.0, 20.0), gain=1.0)  # the axis is KL
    codec = fit_codec(sample, replace(config, codec="vqae"))
    point = points_of(comparison, "vqae", "held out")[0]
    assert point["fixed_bytes"] == sum(tensor.nbytes for tensor in codec.decoder_tensors().values())
    assert point["code_bits"] == sum(codec.code_bits)
    held, seen = measure(codec, sample, "held_out"), measure(codec, sample, "train")
    assert {name: point[name] for name in FIGURES} == pytest.approx({name: held[name] for name in FIGURES}, abs=2e-6)
    every = points_of(comparison, "vqae", "all-in")[0]
    assert every["kl_T4"] == pytest.approx((300 * seen["kl_T4"] + 60 * held["kl_T4"]) / 360, abs=2e-6)


def test_all_in_figures_equal_those_of_all_sampled_labels_measured_at_once(tree: Path) -> None:
    sample, _ = read_sample(open_labels(tree))
    sample = replace(sample, held_out=3 * sample.held_out)  # of another power, to which the squared error is relative
    baseline = BASELINES["pca-scalar"].fit(TrainingLabels(sample, (1.0,), 0), 24)
    assert baseline is not None
    measured, figures = measure_baseline(baseline, sample), Distortion()
    both = torch.cat([sample.train, sample.held_out])
    codes = baseline.encode(both)
    figures.add(both, baseline.decode(codes))
    assert measured.distortion["all-in"] == pytest.approx(figures.figures(), rel=1e-4)
    assert measured.code_bits["all-in"] == pytest.approx(baseline.bits(codes) / 360, rel=1e-5)


def test_settings_do_not_depend_on_the_held_out_labels(logits: NDArray[np.float16], tmp_path: Path) -> None:
    other = logits.copy()
    other[-1] = other[-1, ::-1]
    settings = []
    for name, labels in (("a.npy", logits), ("b.npy", other)):
        np.save(tmp_path / name, labels)
        comparison = compare(tmp_path / name, (24,), methods=CHEAP, temperature=(1.0,))
        settings.append([(p["setting"], p["fixed_bytes"]) for p in comparison["points"]])
    assert settings[0] == settings[1]


def test_raw_labels_have_no_distortion_and_more_bits_give_less(comparison: dict[str, Any]) -> None:
    (raw,), (coarse,) = points_of(comparison, "raw", "held out"), points_of(comparison, "int4", "held out")
    assert (raw["kl_T1"], raw["relative_mse"], raw["top1_agreement"]) == (0, 0, 1)
    assert coarse["code_bits"] < points_of(comparison, "int8", "held out")[0]["code_bits"] < raw["code_bits"]
    for method in ("vqae", "topk", "topk-coded", "pca-scalar"):
        small, large = points_of(comparison, method, "held out")
        assert large["kl_T20"] < small["kl_T20"], method


def test_rates_with_the_same_setting_give_one_point(dump: Path) -> None:
    comparison = compare(dump, (48, 44, 8, 48), methods=["topk"])
    assert comparison["bits"] == [8, 44, 48]
    assert [p["setting"] for p in points_of(comparison, "topk", "held out")] == ["k 2"], "a class takes 22 bits"


def test_without_image_indices_vqae_with_and_without_prior_are_one_fit(
    dump: Path, tmp_path: Path, logits: NDArray[np.float16], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "plain.npy", logits.reshape(-1, 40))
    fits = []
    monkeypatch.setattr("vqlabel.report.methods.fit_codec", lambda *a: fits.append(a) or fit_codec(*a))
    comparison = compare(tmp_path / "plain.npy", (16,), methods=["vqae-no-prior", "vqae"])
    assert len(fits) == 1
    (one,), (two,) = points_of(comparison, "vqae", "held out"), points_of(comparison, "vqae-no-prior", "held out")
    assert one["setting"] == two["setting"] + ", no prior: it would cost more than it saves"
    assert one["kl_T1"] == two["kl_T1"]
    assert comparison["split"] == "the last tenth of the records"


def test_a_few_probabilities_or_logits_of_two_classes_can_be_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "probs.npy", rng.dirichlet([1, 1, 1], 30).astype(np.float32))
    np.save(tmp_path / "two.npy", rng.normal(size=(5, 2)).astype(np.float16))
    for name, domain in (("probs.npy", "probs"), ("two.npy", "logits")):
        comparison = compare(open_labels(tmp_path / name, domain=domain), (8, 64), methods=CHEAP)
        assert all(math.isfinite(p[figure]) for p in comparison["points"] for figure in FIGURES)
        assert points_of(comparison, "raw", "held out")[0]["kl_T1"] < 1e-4


def test_the_same_seed_gives_the_same_points(dump: Path) -> None:
    first, second = (compare(dump, (24,), methods=[*CHEAP, "vqae-no-prior"], seed=5) for _ in range(2))
    assert first == second


def test_the_default_temperature_is_that_of_the_layout(tree: Path, dump: Path) -> None:
    assert compare(tree, (24,), methods=["hard"])["temperature"] == [20.0]
    assert compare(dump, (24,), methods=["hard"])["temperature"] == [1.0, 4.0, 20.0]


def test_a_raw_codec_has_its_bits_and_no_fixed_bytes(dump: Path) -> None:
    sample, _ = read_sample(open_labels(dump))
    codec = fit_codec(sample, FitConfig(codec="raw"))
    measured = measure_codec(codec, sample)
    assert (measured.fixed_bytes, measured.code_bits) == (0, {"held out": 640.0, "all-in": 640.0})


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_invalid_options_are_refused(dump: Path, tmp_path: Path) -> None:
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
    with pytest.raises(BadLabels, match=r"a label has 2e\+06; .* largest number is 65504: clamp the labels"):
        compare(tmp_path / "large.npy", methods=["topk"])


def test_without_faiss_its_methods_are_skipped_by_default_and_refused_if_named(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    lines: list[str] = []
    comparison = compare_methods(dump, CompareConfig(bits=(24,)), notify=lines.append)
    assert set(comparison["methods"]) == {*CHEAP, "vqae", "vqae-no-prior"}
    assert set(comparison["skipped"]) == {"pq", "opq", "rq"}
    (line,) = lines
    assert line.startswith("pq, opq, rq: skipped; ")
    assert "pip install 'vqlabel[baselines]'" in line
    with pytest.raises(MissingExtra, match=r"pip install 'vqlabel\[baselines\]'"):
        compare(dump, (24,), methods=["topk", "rq"])


# --- the plot ---------------------------------------------------------------------------------------------------------


def test_the_plot_has_held_out_and_all_in_panels_with_the_values_of_the_points(
    comparison: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="the extra `plot` is not installed")
    drawn: list[Any] = []
    save = figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *a, **o: (drawn.append(self), save(self, *a, **o))[1])
    plot_rate_distortion(comparison, tmp_path / "rd.png")
    assert (tmp_path / "rd.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["rd.png"]
    axes = drawn[0].axes
    assert len(axes) == 8, "KL at T = 1, 4, 20 and top-1, held out and all-in"
    assert [a.get_title(loc="left").split(";")[0] for a in axes[:2]] == ["held out", "all-in"]
    assert [a.get_xlabel() for a in axes[-2:]] == [
        "bits per label, codes only",
        "bits per label, codes and fixed parts",
    ]
    lines = {line.get_label(): line for line in axes[1].get_lines()}
    assert set(lines) == {*comparison["methods"].values(), "the teacher itself"}
    assert lines["the teacher itself"].get_xdata()[0] == 200
    assert list(lines["vqae"].get_xdata()) == [p["all_in_bits"] for p in points_of(comparison, "vqae", "all-in")]
    assert list(lines["raw + zstd"].get_ydata()) == [1e-3], "at the bottom"
    assert list(lines["vqae"].get_ydata()) == [p["kl_T1"] for p in points_of(comparison, "vqae", "all-in")]
    held = {line.get_label(): line for line in axes[6].get_lines()}
    assert "the teacher itself" not in held
    assert list(held["vqae"].get_xdata()) == [p["code_bits"] for p in points_of(comparison, "vqae", "held out")]
    assert list(held["vqae"].get_ydata()) == [p["top1_agreement"] for p in points_of(comparison, "vqae", "held out")]
    plot_rate_distortion({**comparison, "temperature": [20.0]}, tmp_path / "rd.svg")
    assert len(drawn[1].axes) == 4


def test_a_plot_file_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    (tmp_path / "a.png").write_bytes(b"precious")
    with pytest.raises(TargetExists, match=r"a\.png exists; pass --overwrite"):
        check_plot_file(tmp_path / "a.png", overwrite=False)
    with pytest.raises(UsageError, match=r"a\.xyz: not a name of an image file"):
        check_plot_file(tmp_path / "a.xyz", overwrite=False)
    with pytest.raises(UsageError, match="no such folder; make it first"):
        check_plot_file(tmp_path / "no" / "a.png", overwrite=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"vqlabel\[plot\]"):
        check_plot_file(tmp_path / "b.png", overwrite=False)
