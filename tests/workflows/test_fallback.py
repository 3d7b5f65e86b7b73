"""A fit to a budget stores top-k labels where these are better."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import vqlabel
from vqlabel import FitConfig
from vqlabel.cli import app
from vqlabel.labels import open_labels
from vqlabel.metrics.distortion import kl_divergence
from vqlabel.workflows.fallback import flat_tail_kl
from vqlabel.workflows.sample import read_sample


@pytest.fixture
def peaked(tmp_path: Path) -> Path:
    """240 labels of 1,000 classes, of which three random ones have nearly all of the probability."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 0.1, (4, 60, 1000)).astype(np.float16)
    np.put_along_axis(logits, rng.integers(0, 1000, (4, 60, 3)), np.float16(14), 2)
    np.save(tmp_path / "peaked.npy", logits)
    return tmp_path / "peaked.npy"


QUICK = {"epochs": 1, "temperature": (1.0,)}


def test_a_budget_stores_the_largest_classes_where_their_kl_is_lower(peaked: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["pack", str(peaked), "-o", str(tmp_path / "a.vql"), "--bytes", "17000", "--epochs", "1"])
    assert result.exit_code == 0, result.stderr
    assert "--codec topk: the " in result.stderr and "(--codec vqae stores it all the same)" in " ".join(result.stderr.split())
    figures = vqlabel.stats(tmp_path / "a.vql", against=peaked)
    size = figures["bytes"]
    assert figures["codec"] == "topk" and figures["distortion"]["top1_agreement"] == 1
    assert size["codes"] + size["codec"] + size["container"] <= 17_000


def test_a_vqae_is_kept_if_it_is_chosen_or_better_or_has_no_budget(peaked: Path, tree: Path) -> None:
    for dump, config in (
        (peaked, FitConfig(bytes=17_000, codec="vqae", **QUICK)),
        (peaked, FitConfig(bytes=17_000, weight_bits=4, **QUICK)),
        (peaked, FitConfig(bits=8, codebook_size=4, **QUICK)),
        (tree, FitConfig(bytes=14_000, epochs=2, temperature=(1.0,))),
    ):
        codec, report = vqlabel.fit(dump, config)
        assert codec.kind == report["codec"] == report["fit"]["codec"] == "vqae"


def test_the_report_of_a_top_k_codec_has_its_configuration(peaked: Path) -> None:
    codec, report = vqlabel.fit(peaked, FitConfig(bytes=17_000, **QUICK))
    assert codec.kind == report["codec"] == report["fit"]["codec"] == "topk"
    assert report["config"]["k"] == report["fit"]["slots"] and report["fit"]["bytes"] is None


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_kl_of_a_flat_tail_is_that_of_labels_with_one(tree: Path, temperature: float) -> None:
    sample, k = read_sample(open_labels(tree))[0], 3
    raw = sample.held_out.float()
    p = (raw / temperature).softmax(1)
    kept = p.topk(k, 1)
    rest = (1 - kept.values.sum(1, keepdim=True)) / (p.shape[1] - k)
    flat = rest.expand_as(p).scatter(1, kept.indices, kept.values)
    direct = kl_divergence(raw, temperature * flat.log(), temperature).mean()
    torch.testing.assert_close(torch.tensor(flat_tail_kl(sample, k, temperature)), direct, rtol=1e-4, atol=1e-6)
