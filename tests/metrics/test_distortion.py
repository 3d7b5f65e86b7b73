"""Losses and metrics against closed forms."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.labels.batch import NOWHERE
from vqlabel.metrics.distortion import (
    Distortion,
    as_logits,
    hellinger_features,
    kl_divergence,
    mixed_cross_entropy,
    mixed_kl_divergence,
    present,
    soft_target,
    temperature_weight,
)

P, Q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.75, 0.0]])
KL_PQ = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
TEMPERATURES = (1.0, 4.0, 20.0)


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    """Logits of a teacher and of a student that is often wrong; float64, for tight tolerances."""
    rng = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(50, 20, generator=rng, dtype=torch.float64)
    return teacher, teacher + torch.randn(50, 20, generator=rng, dtype=torch.float64)


def plain_kl(teacher: NDArray[np.float64], student: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """The definition, in numpy."""
    p, q = (np.exp(x / temperature) / np.exp(x / temperature).sum(1, keepdims=True) for x in (teacher, student))
    return np.asarray((p * np.log(p / q)).sum(1))


def test_kl_of_known_distributions() -> None:
    assert kl_divergence(P.log().clamp_min(-50), Q.log().clamp_min(-50), 1).item() == pytest.approx(KL_PQ, rel=1e-6)
    assert kl_divergence(Q.log().clamp_min(-50), P.log().clamp_min(-50), 1).item() == pytest.approx(
        0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-6
    )
    assert kl_divergence(torch.zeros(1, 8), torch.tensor([[math.log(9.0)] + [0.0] * 7]), 1).item() == pytest.approx(
        math.log(16 / 8) - math.log(9) / 8
    )


@pytest.mark.parametrize("temperature", [0.5, 1, 4, 20])
def test_kl_at_a_temperature_is_that_of_the_tempered_distributions_times_its_square(
    temperature: float, pair: tuple[Tensor, Tensor]
) -> None:
    teacher, student = pair
    want = temperature**2 * plain_kl(teacher.numpy(), student.numpy(), temperature)
    np.testing.assert_allclose(kl_divergence(teacher, student, temperature), want, rtol=1e-9)
    assert kl_divergence(
        temperature * P.log().clamp_min(-50), temperature * Q.log().clamp_min(-50), temperature
    ).item() == pytest.approx(temperature**2 * KL_PQ, rel=1e-5)


def test_kl_is_zero_for_equals_and_above_for_others(pair: tuple[Tensor, Tensor]) -> None:
    teacher, student = pair
    assert float(kl_divergence(teacher, teacher, 4).abs().max()) < 1e-12
    assert float(kl_divergence(teacher, student, 4).min()) > 0


def test_a_shift_of_the_logits_changes_no_kl(pair: tuple[Tensor, Tensor]) -> None:
    teacher, student = pair
    shifts = torch.linspace(-30, 30, len(teacher), dtype=torch.float64)[:, None]
    torch.testing.assert_close(kl_divergence(teacher + shifts, student - 2 * shifts, 4), kl_divergence(teacher, student, 4))
    torch.testing.assert_close(as_logits(teacher + shifts, "logits"), as_logits(teacher, "logits"), atol=1e-4, rtol=0)


def test_kl_at_a_high_temperature_is_the_squared_error_of_centred_logits_over_twice_the_classes(
    pair: tuple[Tensor, Tensor],
) -> None:
    teacher, student = pair
    gap = (teacher - student) - (teacher - student).mean(1, keepdim=True)
    torch.testing.assert_close(kl_divergence(teacher, student, 3000), gap.square().sum(1) / (2 * 20), rtol=5e-3, atol=0)


def test_logits_are_centred_and_probabilities_become_logits_of_the_same_softmax(pair: tuple[Tensor, Tensor]) -> None:
    logits = as_logits(pair[0], "logits")
    assert logits.dtype == torch.float32
    assert float(logits.mean(1).abs().max()) < 1e-6
    probs = torch.softmax(pair[0], 1)
    torch.testing.assert_close(as_logits(probs, "probs"), logits, atol=1e-4, rtol=0)
    with_zero = as_logits(torch.tensor([[1.0, 0.0]], dtype=torch.float16), "probs")
    assert bool(torch.isfinite(with_zero).all())
    torch.testing.assert_close(torch.softmax(with_zero, 1), torch.tensor([[1.0, 0.0]]), atol=1e-6, rtol=0)


def test_mixed_kl_weighs_every_temperature_by_its_power_of_6_fifths(pair: tuple[Tensor, Tensor]) -> None:
    teacher, student = (x.float() for x in pair)
    want = (
        kl_divergence(teacher, student, 1)
        + 4**1.2 * kl_divergence(teacher, student, 4)
        + 20**1.2 * kl_divergence(teacher, student, 20)
    )
    torch.testing.assert_close(mixed_kl_divergence(teacher, student, TEMPERATURES), want)
    assert temperature_weight(1) == 1
    assert temperature_weight(10) == pytest.approx(15.848932)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_squared_distance_of_hellinger_features_is_the_kl_of_close_distributions(
    temperature: float, pair: tuple[Tensor, Tensor]
) -> None:
    teacher = pair[0]
    student = teacher + 0.01 * temperature * torch.randn(
        teacher.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    distance = (hellinger_features(teacher, temperature) - hellinger_features(student, temperature)).square().sum(1)
    want = temperature_weight(temperature) * kl_divergence(teacher, student, temperature)
    torch.testing.assert_close(distance, want, rtol=0.02, atol=0)


def test_hellinger_features_lie_on_a_sphere_and_ignore_a_shift(pair: tuple[Tensor, Tensor]) -> None:
    features = hellinger_features(pair[0], 4)
    radius = 4 * math.sqrt(2 * temperature_weight(4))
    torch.testing.assert_close(features.norm(dim=1), torch.full((50,), radius, dtype=torch.float64))
    torch.testing.assert_close(hellinger_features(pair[0] + 7, 4), features)


@pytest.mark.parametrize("temperatures", [(1.0,), (20.0,), TEMPERATURES])
def test_mixed_cross_entropy_is_mixed_kl_and_the_teachers_entropies(
    temperatures: tuple[float, ...], pair: tuple[Tensor, Tensor]
) -> None:
    teacher, student = (x.float() for x in pair)
    loss = mixed_cross_entropy(student, soft_target(teacher, temperatures), temperatures)
    entropy = torch.zeros(len(teacher))
    for t in temperatures:
        p = torch.softmax(teacher / t, 1)
        entropy -= temperature_weight(t) * t * t * (p * p.log()).sum(1)
    torch.testing.assert_close(loss, mixed_kl_divergence(teacher, student, temperatures) + entropy, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("temperatures", [(1.0,), (20.0,), TEMPERATURES])
def test_the_gradient_of_mixed_cross_entropy_is_that_of_mixed_kl(
    temperatures: tuple[float, ...], pair: tuple[Tensor, Tensor]
) -> None:
    teacher, student = (x.float() for x in pair)
    weight = torch.linspace(-1, 2, len(teacher))  # of each label's loss
    gradients = []
    for loss in (
        lambda y: mixed_cross_entropy(y, soft_target(teacher, temperatures), temperatures),
        lambda y: mixed_kl_divergence(teacher, y, temperatures),
    ):
        y = student.clone().requires_grad_(True)
        (loss(y) * weight).sum().backward()
        gradients.append(y.grad)
    assert float(gradients[1].abs().max()) > 0.1
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=2e-5 * float(gradients[1].abs().max()))


def test_a_soft_target_may_be_stored_in_halves(pair: tuple[Tensor, Tensor]) -> None:
    teacher, student = (x.float() for x in pair)
    target = soft_target(teacher, (1.0,))
    whole, half = (mixed_cross_entropy(student, p, (1.0,)) for p in (target, target.half()))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=1e-2, atol=1e-2)


def test_figures_are_means_over_all_labels_whatever_the_batches(pair: tuple[Tensor, Tensor]) -> None:
    raw, decoded = (x.float() for x in pair)
    whole, parts = Distortion(temperatures=TEMPERATURES), Distortion(temperatures=TEMPERATURES)
    whole.add(raw, decoded)
    for x, y in zip(raw.split(7), decoded.split(7), strict=True):
        parts.add(x, y)
    figures = whole.figures()
    assert figures == pytest.approx(parts.figures(), rel=1e-5)
    centred = [x - x.mean(1, keepdims=True) for x in (pair[0].numpy(), pair[1].numpy())]
    want = {f"kl_T{t:g}": t**2 * plain_kl(*centred, t).mean() for t in TEMPERATURES}
    want["relative_mse"] = ((centred[0] - centred[1]) ** 2).sum() / (centred[0] ** 2).sum()
    want["mse"] = ((pair[0].numpy() - pair[1].numpy()) ** 2).mean()
    want["top1_agreement"] = (centred[0].argmax(1) == centred[1].argmax(1)).mean()
    assert figures == pytest.approx(want, rel=1e-3)
    assert 0.3 < want["top1_agreement"] < 1


def test_figures_of_equal_labels_are_exact_and_those_of_no_labels_are_zero() -> None:
    equal = Distortion(temperatures=(2.0,))
    equal.add(torch.randn(5, 4), torch.zeros(5, 4))
    assert equal.figures()["relative_mse"] == pytest.approx(1)  # nothing is preserved
    same = Distortion(temperatures=(2.0,))
    labels = torch.randn(5, 4)
    same.add(labels, labels + 3)
    assert same.figures() == pytest.approx({"kl_T2": 0, "relative_mse": 0, "mse": 9, "top1_agreement": 1}, abs=1e-5)
    assert Distortion().figures() == {"relative_mse": 0, "mse": 0, "top1_agreement": 0}


def test_figures_of_probabilities_are_those_of_their_logits() -> None:
    figures = Distortion(temperatures=(1.0,), domain="probs")
    figures.add(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]]))
    assert figures.figures()["kl_T1"] == pytest.approx(KL_PQ, rel=1e-5)


@pytest.mark.parametrize("domain", ["logits", "probs"])
def test_sets_are_compared_over_their_shared_classes(domain: str) -> None:
    """The shared classes have (2/3, 1/3) in raw labels and (1/3, 2/3) in decoded ones.

    Raw holds classes 0, 1, 2 with 1/2, 1/4, 1/4; decoded holds 0, 1, 3 with 1/4, 1/2, 1/4.
    """
    raw, decoded = torch.tensor([[0.5, 0.25, 0.25, 0.0]]), torch.tensor([[0.25, 0.5, 0.0, 0.25]])
    if domain == "logits":
        raw, decoded = (torch.where(p > 0, 7 + p.log(), NOWHERE) for p in (raw, decoded))
    figures = Distortion(temperatures=(1.0,), domain=domain, sets=True)
    figures.add(raw, decoded)
    found = figures.figures()
    assert found["kl_T1"] == pytest.approx(2 / 3 * math.log(2) - 1 / 3 * math.log(2), rel=1e-5)
    assert found["mass_kept"] == pytest.approx(0.75) and found["top1_agreement"] == 0
    assert found["relative_mse"] == pytest.approx(4, rel=1e-5), "logits of log 2 and 0, centred, against their negatives"
    assert found["mse"] == pytest.approx(math.log(2) ** 2 if domain == "logits" else 1 / 16, rel=1e-5)


def test_an_absent_class_is_absent_in_every_type_of_label() -> None:
    for kind in (torch.float16, torch.bfloat16, torch.float32):
        assert present(torch.tensor([[NOWHERE, NOWHERE + 20, -65504, -50, 3]]).to(kind), "logits").tolist() == [
            [False] * 3 + [True] * 2
        ]
    assert present(torch.tensor([[0.0, -0.0, 1e-7]]), "probs").tolist() == [[False, False, True]]


def test_the_relative_error_of_uniform_labels_is_the_squared_error_a_label() -> None:
    figures = Distortion()
    figures.add(torch.zeros(5, 4), torch.tensor([[1.0, -1, 1, -1]]).expand(5, 4))
    assert figures.figures()["relative_mse"] == pytest.approx(4), "the squared error of a label"
