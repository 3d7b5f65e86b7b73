"""Calibration against closed forms: perfect labels, overconfident labels, codebooks of means."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.metrics.calibration import Calibration

TEMPERATURES = (1.0, 4.0, 20.0)


@pytest.fixture(scope="module")
def raw() -> Tensor:
    """[500, 20] logits of a teacher that is confident in some labels and not in others."""
    rng = torch.Generator().manual_seed(0)
    return torch.randn(500, 20, generator=rng) * torch.linspace(0.5, 5, 500)[:, None]


def figures(raw: Tensor, decoded: Tensor, *temperatures: float, domain: str = "logits") -> dict[str, dict[str, object]]:
    running = Calibration(temperatures=temperatures or (1.0,), domain=domain)
    running.add(raw, decoded)
    return running.figures()


def means(probs: Tensor, codes: int) -> Tensor:
    """[n, C] -> [n, C]: every label is replaced by the arithmetic mean of the labels that share its code."""
    code = torch.arange(len(probs)) % codes
    return torch.stack([probs[code == j].mean(0) for j in range(codes)])[code]


def test_perfect_labels_have_slope_1_and_no_error(raw: Tensor) -> None:
    for temperature, found in zip(TEMPERATURES, figures(raw, raw + 7, *TEMPERATURES).values(), strict=True):
        assert found["slope"] == pytest.approx(1, abs=1e-5)
        assert found["intercept"] == pytest.approx(0, abs=1e-6)
        assert found["ece"] == pytest.approx(0, abs=1e-6)
        p = F.softmax(raw.double() / temperature, 1)
        entropy = float(-(p * p.log()).sum(1).mean())
        assert found["entropy"] == pytest.approx({"raw": entropy, "decoded": entropy}, rel=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_means_over_a_code_have_slope_1_and_no_error_at_their_temperature(temperature: float, raw: Tensor) -> None:
    """sum (q - 1/C) p = sum (q - 1/C) q, because q is the mean of p over all that share it; so it is in every bin."""
    decoded = temperature * means(F.softmax(raw.double() / temperature, 1), 7).log()
    found = figures(raw, decoded, temperature)[f"T{temperature:g}"]
    assert found["slope"] == pytest.approx(1, abs=1e-5)
    assert found["intercept"] == pytest.approx(0, abs=1e-6)
    assert found["ece"] == pytest.approx(0, abs=1e-6)
    assert found["entropy"]["decoded"] > found["entropy"]["raw"], "a mean is less confident than its parts"


@pytest.mark.parametrize("scale", [1.5, 3.0])
def test_overconfident_labels_have_a_slope_below_1_and_underconfident_ones_above(scale: float, raw: Tensor) -> None:
    sure, flat = figures(raw, scale * raw)["T1"], figures(raw, raw / scale)["T1"]
    assert sure["slope"] < 1 < flat["slope"]
    assert sure["intercept"] == pytest.approx((1 - sure["slope"]) / 20) and sure["intercept"] > 0 > flat["intercept"]
    assert sure["entropy"]["decoded"] < sure["entropy"]["raw"] < flat["entropy"]["decoded"]
    assert min(sure["ece"], flat["ece"]) > 0.05


def test_the_line_is_that_of_least_squares(raw: Tensor) -> None:
    decoded = raw + torch.randn(raw.shape, generator=torch.Generator().manual_seed(1))
    found = figures(raw, decoded, *TEMPERATURES)
    for t in TEMPERATURES:
        p, q = (F.softmax(x.double() / t, 1).flatten() for x in (raw, decoded))
        want = torch.linalg.lstsq(torch.stack([q, torch.ones_like(q)], 1), p).solution
        assert found[f"T{t:g}"]["slope"] == pytest.approx(float(want[0]), rel=1e-5)
        assert found[f"T{t:g}"]["intercept"] == pytest.approx(float(want[1]), abs=1e-7)


def test_reliability_by_hand() -> None:
    """Probabilities in, so that the bins can be read off; the class that counts is the decoded label's top one."""
    decoded = torch.tensor([[0.62, 0.38], [0.34, 0.66], [0.05, 0.95], [1.0, 0.0]])
    raw = torch.tensor([[0.5, 0.5], [0.7, 0.3], [0.1, 0.9], [0.8, 0.2]])
    found = figures(raw, decoded, domain="probs")["T1"]
    want = [(1, 0.62, 0.5), (1, 0.66, 0.3), (1, 0.95, 0.9), (1, 1.0, 0.8)]
    assert [tuple(each.values()) for each in found["bins"]] == [pytest.approx(each, abs=1e-6) for each in want]
    assert list(found["bins"][0]) == ["labels", "confidence", "raw"]
    assert found["ece"] == pytest.approx((0.12 + 0.36 + 0.05 + 0.2) / 4, abs=1e-6)
    assert found["relative_ece"] == pytest.approx((0.12 + 0.36 + 0.05 + 0.2) / (0.62 + 0.66 + 0.95 + 1), abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_bins_have_equal_numbers_of_labels_and_errors_are_visible_at_every_temperature(temperature: float) -> None:
    """At T = 20 all 1,000 probabilities of a label are near 0.001.

    Bins of equal width have one point, and an error of 0.0001.
    """
    logits = 3 * torch.randn(2000, 1000, generator=torch.Generator().manual_seed(0))
    found = figures(logits, 2 * logits, temperature)[f"T{temperature:g}"]
    assert len(found["bins"]) == 10
    assert max(abs(each["labels"] - 200) for each in found["bins"]) <= 40
    assert [each["confidence"] for each in found["bins"]] == sorted(each["confidence"] for each in found["bins"])
    assert found["relative_ece"] > 0.2
    assert found["ece"] == pytest.approx(
        found["relative_ece"] * sum(each["labels"] * each["confidence"] for each in found["bins"]) / 2000
    )


def test_figures_do_not_depend_on_the_batches(raw: Tensor) -> None:
    decoded = 1.3 * raw.flip(1)
    running = Calibration(temperatures=TEMPERATURES)
    for x, y in zip(raw.split(17), decoded.split(17), strict=True):
        running.add(x, y)
    assert running.labels == 500
    for found, want in zip(running.figures().values(), figures(raw, decoded, *TEMPERATURES).values(), strict=True):
        assert found.pop("entropy") == pytest.approx(want.pop("entropy"), rel=1e-9)
        for one, whole in zip(found.pop("bins"), want.pop("bins"), strict=True):
            assert one == pytest.approx(whole, rel=1e-9)
        assert found == pytest.approx(want, rel=1e-9)


def test_memory_does_not_grow_with_the_number_of_labels(raw: Tensor) -> None:
    running, sizes = Calibration(), list[int]()
    for _ in range(3):
        running.add(raw, raw)
        sizes.append(len(pickle.dumps(running)))
    assert max(sizes) - min(sizes) < 8 and max(sizes) < 3 * 21 * 512 * 8 + 1000  # three float64 per step of confidence


def test_probabilities_have_the_figures_of_their_logits(raw: Tensor) -> None:
    raw = raw / 3  # no probability that half precision could not hold: `as_logits` lifts those
    decoded = raw + torch.randn(raw.shape, generator=torch.Generator().manual_seed(1))
    want = figures(raw, decoded, 1, 4)
    found = figures(F.softmax(raw, 1), F.softmax(decoded, 1), 1, 4, domain="probs")
    for name in ("T1", "T4"):
        assert [found[name][key] for key in ("slope", "ece")] == pytest.approx(
            [want[name][key] for key in ("slope", "ece")], rel=1e-4
        )


def test_uniform_labels_have_no_slope_and_without_labels_there_are_no_figures(raw: Tensor) -> None:
    found = figures(raw, torch.zeros(500, 20))["T1"]
    assert found["slope"] is found["intercept"] is None
    assert found["entropy"]["decoded"] == pytest.approx(math.log(20))
    assert [each["labels"] for each in found["bins"]] == [500]
    assert Calibration().figures() == {}
