"""The quality of the labels that `pack` writes: figures and warnings."""

from typing import Any

import pytest
import torch

from vqlabel import FitConfig
from vqlabel.codecs import LabelSample
from vqlabel.metrics.distortion import kl_divergence
from vqlabel.workflows.fit import fit_sample
from vqlabel.workflows.fit_report import measure_mean_label
from vqlabel.workflows.quality import EARLIER_NAMES, fit_quality

GOOD = {"kl_T1": 0.1, "kl_T4": 0.2, "kl_T20": 0.3, "top1_agreement": 0.9}
MEAN = {"kl_T1": 2.0, "kl_T4": 2.0, "kl_T20": 1.5}


def report(**changes: Any) -> dict[str, Any]:
    """The report of a fit for students at T = 1 and 20."""
    default = {
        "codec": "vqae", "code_bits": 32, "config": {"temperature": [1.0, 20.0]}, "split": "the last epoch (5)",
        "held_out": {"labels": 100, **GOOD}, "mean_label": {"labels": 100, **MEAN},
    }  # fmt: skip
    return {**default, **changes}


def held(**changes: float) -> dict[str, Any]:
    return {"labels": 100, **GOOD, **changes}


def test_figures_are_at_the_students_temperatures_with_those_of_one_mean_label() -> None:
    quality = fit_quality(report(), 32)
    assert quality["held_out"] == {"kl_T1": 0.1, "kl_T20": 0.3, "top1_agreement": 0.9}
    assert quality["mean_label"] == {"kl_T1": 2.0, "kl_T20": 1.5}
    assert (quality["split"], quality["labels"], quality["temperature"]) == ("the last epoch (5)", 100, [1.0, 20.0])
    assert quality["warnings"] == []


@pytest.mark.parametrize(
    ("worse", "message"),
    [
        ({"top1_agreement": 0.49}, "the largest class is the teacher's in only 49.0 % of the held-out labels"),
        ({"kl_T20": 1.01}, "KL at T = 20 is 1.010 nats (times T^2), above 1"),
        ({"kl_T20": 1.5}, "KL at T = 20 is 1.500, that of one mean label for all is 1.500"),
        ({"kl_T1": 2.5}, "KL at T = 1 is 2.500, that of one mean label for all is 2.000"),
    ],
)
def test_poor_labels_give_a_warning(worse: dict[str, float], message: str) -> None:
    (warning,) = fit_quality(report(held_out=held(**worse)), 32)["warnings"]
    assert message in warning
    assert "--bits" in warning


def test_unbiased_labels_are_judged_by_the_kl_of_the_calibrated_ones() -> None:
    unbiased = report(held_out=held(kl_T20=1.4), calibrated=held(), gain=1.5)
    assert fit_quality(unbiased, 32)["warnings"] == []
    assert fit_quality(unbiased, 32)["calibrated"] == {"kl_T1": 0.1, "kl_T20": 0.3}
    assert len(fit_quality(report(held_out=held(kl_T20=1.4)), 32)["warnings"]) == 1


def test_the_report_of_an_earlier_codec_file_is_read_by_the_names_of_its_time() -> None:
    current = report(calibrated=held(), gain=1.25, gain_limited=True, train=held())
    earlier = {earlier_name: current[name] for earlier_name, name in EARLIER_NAMES.items()}
    names = set(EARLIER_NAMES.values())
    earlier |= {name: value for name, value in current.items() if name not in names}
    assert earlier["held_out"] == "the last epoch (5)", "the words for what was held out had the name that figures have today"
    assert fit_quality(earlier, 32) == fit_quality(current, 32)
    quality = fit_quality(earlier, 32)
    assert quality["gain"] == 1.25 and quality["gain_limited"] is True and "calibrated" in quality


def test_the_configuration_of_another_program_may_be_missing() -> None:
    for config in ({}, {"config": None}):
        other = {name: value for name, value in report().items() if name != "config"} | config | {"fit": {"temperature": [1.0]}}
        assert fit_quality(other, 32)["temperature_auto"] is False


def test_calibrated_figures_without_a_gain_are_left_out() -> None:
    for odd in ({}, {"gain": "large"}, {"gain": None}):
        quality = fit_quality(report(calibrated=held(), **odd), 32)
        assert "calibrated" not in quality and "gain" not in quality


def test_a_lower_rate_has_its_own_figures_or_none() -> None:
    several = report(rates={"16": held(top1_agreement=0.6)}, calibrated=held(), gain=1.5)
    assert fit_quality(several, 16)["held_out"]["top1_agreement"] == 0.6
    assert "calibrated" not in fit_quality(several, 16)
    assert fit_quality(several, 24) == {}


def test_raw_labels_are_exact() -> None:
    assert fit_quality({"codec": "raw"}, 640, "some.codec") == {"exact": True}


@pytest.mark.parametrize(
    "odd",
    [
        {}, {"held_out": 7}, {"held_out": {}}, {"held_out": {"kl_T1": "low"}}, {"config": None}, {"config": {"temperature": "hot"}}, {"rates": 7},
        {"mean_label": []}, {"code_bits": None},
    ],
    ids=str,
)  # fmt: skip
def test_the_report_of_another_program_raises_no_error(odd: dict[str, Any]) -> None:
    """A codec file may have any JSON."""
    assert isinstance(fit_quality({**report(), **odd} if odd else {}, 32, "some.codec"), dict)


def test_the_mean_label_has_the_least_kl_of_all_constant_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = 2 * torch.randn(500, 12, generator=generator) + torch.linspace(-2, 2, 12)
    sample = LabelSample(train=labels, held_out=labels, train_context=None, held_out_context=None, domain="logits", dtype="F32")
    figures = measure_mean_label(sample, (1.0, 5.0))
    for t in (1.0, 5.0):
        mean = (labels / t).softmax(1).mean(0).log() * t
        best = float(kl_divergence(labels, mean.expand_as(labels), t).mean())
        assert figures[f"kl_T{t:g}"] == pytest.approx(best, rel=1e-4)
        others = (mean + 0.3 * t * torch.randn(12, generator=generator) for _ in range(5))
        assert all(float(kl_divergence(labels, other.expand_as(labels), t).mean()) > best for other in others)


def test_a_fit_reports_figures_at_its_own_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randn(200, 12, generator=generator)
    sample = LabelSample(
        train=labels[:150], held_out=labels[150:], train_context=None, held_out_context=None, domain="logits", dtype="F32"
    )
    report = fit_sample(sample, "some", FitConfig(bits=4, codebook_size=4, epochs=1, temperature=(2.0,)))[1]
    assert {"kl_T1", "kl_T2", "kl_T20", "top1_agreement"} < report["held_out"].keys()
    assert fit_quality(report, 4)["held_out"].keys() == {"kl_T2", "top1_agreement"}
    assert report["mean_label"].keys() == {"labels", "kl_T1", "kl_T2", "kl_T4", "kl_T20"}
