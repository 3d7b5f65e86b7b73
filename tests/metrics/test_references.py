"""KL of one mean label and of top-k in as many bits, and the sentence that compares labels with them."""

import pytest
import torch
import torch.nn.functional as F

from vqlabel.metrics.distortion import kl_divergence
from vqlabel.metrics.judgement import judge
from vqlabel.metrics.references import MeanLabelReference, TextReferences, TopKReference, topk_classes

LOGITS = 3 * torch.randn(200, 30, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_the_mean_label_has_the_kl_of_the_mean_distribution(temperature: float) -> None:
    reference = MeanLabelReference((temperature,), "logits")
    for part in LOGITS.split(64):
        reference.add(part)
    mean = F.softmax(LOGITS / temperature, 1).mean(0).log() * temperature
    expected = float(kl_divergence(LOGITS, mean.expand_as(LOGITS), temperature).mean())
    assert reference.figures() == {f"kl_T{temperature:g}": pytest.approx(expected, rel=1e-4)}


def test_as_many_classes_are_stored_as_fit_into_the_bits() -> None:
    assert topk_classes(130, 1000) == (5, 130)
    assert topk_classes(129.9, 1000) == (4, 104)
    assert topk_classes(3, 1000) == (1, 26), "one class at least"
    assert topk_classes(1e6, 30) == (30, 30 * 21)


def test_top_k_has_less_kl_with_more_bits_and_none_with_all_classes() -> None:
    kls = []
    for bits in (21, 63, 210, 630):
        reference = TopKReference(bits, (1.0,), LOGITS, "logits")
        reference.add(LOGITS)
        kls.append(reference.figures()["kl_T1"])
    assert kls == sorted(kls, reverse=True)
    assert kls[-1] == pytest.approx(0, abs=1e-4)


def test_the_tail_of_top_k_is_at_its_best_level_for_the_temperatures_that_labels_are_for() -> None:
    reference = TopKReference(42, (1.0, 20.0), LOGITS, "logits", fitted_for=(1.0,))
    reference.add(LOGITS)
    centred = LOGITS - LOGITS.mean(1, keepdim=True)
    kept = centred.topk(2, 1)
    rest = -kept.values.sum(1, keepdim=True) / 28
    kls = []
    for level in torch.arange(-5, 15, 0.02).tolist():
        tail = (rest + level).expand_as(centred).scatter(1, kept.indices, kept.values)
        kls.append(float(kl_divergence(LOGITS, tail, 1.0).mean()))
    assert reference.figures()["kl_T1"] == pytest.approx(min(kls), rel=1e-3)


def test_top_tokens_of_documents_share_what_is_left_equally() -> None:
    references = TextReferences(2 * 21)
    for part in LOGITS.split(64):
        references.add(part)
    p = LOGITS.softmax(1)
    top = p.topk(2, 1)
    rest = (1 - top.values.sum(1, keepdim=True)) / 28
    q = rest.expand_as(p).scatter(1, top.indices, top.values)
    found = references.judged(0.01)
    assert found["topk"] == {
        "k": 2,
        "bits": 42,
        "budget": 42,
        "kl_T1": pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-3),
    }
    assert found["judgement"]["verdict"] == "good"


@pytest.mark.parametrize(
    ("kl", "verdict", "sentence"),
    [
        (0.1, "good", "good: KL at T = 1 is 1/20 of that of one mean label, and 1/5 of that of top-5 in as many bytes"),
        (
            1.0,
            "mixed",
            "mixed: KL at T = 1 is 2 times that of top-5 in as many bytes, until there are more labels; KL is 1/2 of that of one mean",
        ),
        (2.5, "poor", "poor: KL at T = 1 is 1.25 times that of one mean label; more --bits"),
    ],
)
def test_labels_are_judged_by_the_baselines_alone(kl: float, verdict: str, sentence: str) -> None:
    found = judge({"kl_T1": kl}, {"kl_T1": 2.0}, {"k": 5, "bits": 130, "kl_T1": 0.5}, ["kl_T1"], exact_bits=16_000)
    assert found is not None
    assert found["verdict"] == verdict and found["sentence"].startswith(sentence)
    assert (found["over_mean_label"], found["over_topk"]) == (pytest.approx(2 / kl), pytest.approx(0.5 / kl))


def test_the_temperature_with_the_least_factor_counts() -> None:
    mean, top = {"kl_T1": 2.0, "kl_T20": 0.2}, {"k": 5, "bits": 130, "kl_T1": 1.0, "kl_T20": 0.1}
    found = judge({"kl_T1": 0.1, "kl_T20": 0.15}, mean, top, ["kl_T1", "kl_T20"])
    assert found is not None and found["verdict"] == "mixed" and "at T = 20 is 1.5 times" in found["sentence"]
    assert judge({}, {}, None, ["kl_T1"]) is None
    exact = judge({"kl_T1": 0.1}, {"kl_T1": 2.0}, top, ["kl_T1"], exact_bits=100)
    assert exact is not None and "hold the labels exactly (--codec raw)" in exact["sentence"]
