"""A fit to a budget stores top-k labels where these are better."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

import vqlabel
from vqlabel import FitConfig
from vqlabel.cli import app
from vqlabel.labels import LabelSource, open_labels
from vqlabel.metrics.distortion import kl_divergence
from vqlabel.workflows.fallback import top_k_kl
from vqlabel.workflows.sample import read_sample


@pytest.fixture
def peaked(tmp_path: Path) -> LabelSource:
    """240 labels of 1,000 classes, of which three random ones have nearly all of the probability."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 0.1, (4, 60, 1000))
    np.put_along_axis(logits, rng.integers(0, 1000, (4, 60, 3)), 14, 2)
    return saved(tmp_path / "peaked.npy", logits)


def saved(path: Path, logits: NDArray[np.float64]) -> LabelSource:
    """Their softmax as a dump."""
    np.save(path, torch.from_numpy(logits).softmax(-1).float().numpy())
    return open_labels(path, domain="probs")


QUICK = {"epochs": 1, "temperature": (1.0,)}


def test_a_budget_stores_the_largest_classes_where_their_kl_is_lower(peaked: LabelSource, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["pack", str(peaked.path), "-o", str(tmp_path / "a.vql"), "--bytes", "17000", "--epochs", "1", "--domain", "probs"]
    )
    assert result.exit_code == 0, result.stderr
    assert "--codec topk: the " in result.stderr and "(--codec vqae stores it all the same)" in " ".join(result.stderr.split())
    figures = vqlabel.stats(tmp_path / "a.vql", against=peaked.path)
    size = figures["bytes"]
    assert figures["codec"] == "topk" and figures["distortion"]["top1_agreement"] == 1
    assert size["codes"] + size["codec"] + size["container"] <= 17_000


def test_a_vqae_is_kept_if_it_is_chosen_or_better_or_has_no_budget(
    peaked: LabelSource, logits: NDArray[np.float16], tmp_path: Path
) -> None:
    smooth = saved(tmp_path / "smooth.npy", np.concatenate([logits] * 4).astype(np.float64))
    for dump, config in (
        (peaked, FitConfig(bytes=17_000, codec="vqae", **QUICK)),
        (peaked, FitConfig(bytes=17_000, weight_bits=4, **QUICK)),
        (peaked, FitConfig(bits=8, codebook_size=4, **QUICK)),
        (smooth, FitConfig(bytes=14_000, epochs=2, temperature=(1.0,))),
    ):
        codec, report = vqlabel.fit(dump, config)
        assert codec.kind == report["codec"] == report["fit"]["codec"] == "vqae"


def test_the_report_of_a_top_k_codec_has_its_configuration(peaked: LabelSource) -> None:
    codec, report = vqlabel.fit(peaked, FitConfig(bytes=17_000, **QUICK))
    assert codec.kind == report["codec"] == report["fit"]["codec"] == "topk"
    assert report["config"]["k"] == report["fit"]["slots"] and report["fit"]["bytes"] is None


def test_logits_are_never_replaced(tmp_path: Path, peaked: LabelSource) -> None:
    """At T = 20, the 3 of 1,000 classes that fit into the budget have a hundredth of the probability."""
    np.save(tmp_path / "logits.npy", np.log(np.load(peaked.path)).astype(np.float16))
    assert vqlabel.fit(tmp_path / "logits.npy", FitConfig(bytes=17_000, **QUICK))[0].kind == "vqae"


def test_a_vqae_is_kept_if_students_would_lose_much_of_the_probability(tmp_path: Path) -> None:
    """One class has half of the probability, the others share the rest: a flat tail is exact, one class is not."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 0.1, (4, 60, 100))
    np.put_along_axis(logits, rng.integers(0, 100, (4, 60, 1)), np.log(100), 2)
    sample = read_sample(saved(tmp_path / "half.npy", logits))[0]
    assert top_k_kl(sample, 1, 1.0) == pytest.approx(np.log(2), abs=0.05)
    assert top_k_kl(sample, 100, 1.0) == 0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_kl_of_top_k_labels_is_that_of_the_worse_direction(tree: Path, temperature: float) -> None:
    sample, k = read_sample(open_labels(tree))[0], 3
    raw = sample.held_out.float()
    p = (raw / temperature).softmax(1)
    kept = p.topk(k, 1)
    rest = (1 - kept.values.sum(1, keepdim=True)) / (p.shape[1] - k)
    flat = rest.expand_as(p).scatter(1, kept.indices, kept.values)
    by_flat_tail = kl_divergence(raw, temperature * flat.log(), temperature).mean()
    alone = torch.full_like(raw, -1e6).scatter(1, kept.indices, raw.gather(1, kept.indices))
    by_students = kl_divergence(alone, raw, temperature).mean()
    direct = torch.maximum(by_flat_tail, by_students)
    torch.testing.assert_close(torch.tensor(top_k_kl(sample, k, temperature)), direct, rtol=1e-4, atol=1e-6)
