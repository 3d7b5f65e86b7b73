"""Distortion of next-token distributions against dense formulas, and an infinite KL."""

import math

import pytest
import torch

from vqlabel.labels.sparse import SparseLabels
from vqlabel.metrics.token_distortion import TokenDistortion, sparse_kl

UNIFORM = [1 / 8] * 8
HALF = [1 / 4] * 4 + [0.0] * 4


def figures(teacher: list[list[float]], decoded: list[list[float]]) -> dict[str, float | None]:
    distortion = TokenDistortion()
    for p, q in zip(teacher, decoded, strict=True):
        distortion.add(torch.tensor([p]), torch.tensor([q]))
    return distortion.figures()


def test_figures_are_those_of_dense_formulas() -> None:
    rows = torch.Generator().manual_seed(0)
    p, q = (torch.softmax(3 * torch.randn(5, 8, generator=rows, dtype=torch.float64), 1) for _ in range(2))
    q[[0, 3]] = p[[0, 3]].sqrt() / p[[0, 3]].sqrt().sum(1, keepdim=True)  # the likeliest token is the same
    distortion = TokenDistortion()
    distortion.add(p[:2].float(), q[:2].float())
    distortion.add(p[2:].float(), q[2:].float())
    kl = (p * (p / q).log()).sum(1).mean().item()
    confidence, likeliest = q.max(1)  # five labels of different confidence: each is a bin of its own
    assert distortion.labels == 5
    assert distortion.figures() == pytest.approx(
        {
            "kl": kl,
            "kl_stored": kl,
            "mass_stored": 1.0,
            "squared_error": (p - q).square().sum(1).mean().item(),
            "total_variation": (p - q).abs().sum(1).mean().item() / 2,
            "top1_agreement": (p.argmax(1) == q.argmax(1)).double().mean().item(),
            "ece": (confidence - p.gather(1, likeliest[:, None])[:, 0]).abs().mean().item(),
        },
        rel=1e-5,
    )


def test_a_label_that_excludes_tokens_has_an_infinite_kl_and_a_kl_over_its_own_tokens() -> None:
    teacher = [0.3, 0.1, 0.2, 0.2, 0.1, 0.1, 0.0, 0.0]
    got = figures([teacher], [HALF])
    assert got["kl"] is None
    assert got["mass_stored"] == pytest.approx(0.8)
    renormalised = [p / 0.8 for p in teacher[:4]]
    assert got["kl_stored"] == pytest.approx(sum(p * math.log(p / 0.25) for p in renormalised), rel=1e-5)
    assert got["squared_error"] == pytest.approx(0.05**2 + 0.15**2 + 2 * 0.05**2 + 2 * 0.1**2, rel=1e-5)
    assert got["total_variation"] == pytest.approx((0.05 + 0.15 + 0.05 + 0.05 + 0.2) / 2, rel=1e-5)


def test_one_label_that_excludes_tokens_makes_the_mean_kl_infinite() -> None:
    got = figures([UNIFORM, UNIFORM], [UNIFORM, HALF])
    assert (got["kl"], got["mass_stored"]) == (None, 0.75)
    assert figures([UNIFORM, HALF], [UNIFORM, HALF])["kl"] == 0  # what the teacher excludes, too, costs nothing


def test_probabilities_of_zero_and_subnormal_ones_give_finite_figures() -> None:
    teacher = [1.0 - 1e-30, 1e-40, *[0.0] * 6]
    got = figures([teacher], [UNIFORM])
    assert got["kl"] == pytest.approx(math.log(8), rel=1e-6)


def test_labels_of_one_confidence_may_differ_from_the_teacher_s_if_their_mean_does_not() -> None:
    over, under = [0.5, *[0.5 / 7] * 7], [0.3, *[0.1] * 7]
    decoded = [0.4, *[0.6 / 7] * 7]
    assert figures([over, under], [decoded, decoded])["ece"] == pytest.approx(0, abs=1e-6)
    assert figures([over, over], [decoded, decoded])["ece"] == pytest.approx(0.1, rel=1e-5)


def test_no_label_has_zeros_as_figures() -> None:
    assert set(TokenDistortion().figures().values()) == {0.0, 1.0}


def sparse(k: int, seed: int, *, has_tail: bool, classes: int = 12) -> SparseLabels:
    """5 labels that sum to less than 1 without a tail."""
    rows = torch.Generator().manual_seed(seed)
    p = torch.softmax(2 * torch.randn(5, classes, generator=rows, dtype=torch.float64), 1)
    values, ids = p.topk(k, 1)
    rest = (1 - values.sum(1, keepdim=True)) / (classes - k) if has_tail else torch.zeros(5, 1, dtype=torch.float64)
    return SparseLabels(ids=ids, values=values, rest=rest, classes=classes)


@pytest.mark.parametrize(("k", "other"), [(4, 4), (5, 3), (2, 6), (8, 7), (10, 11)])
def test_the_kl_of_sparse_labels_is_that_of_dense_ones(k: int, other: int) -> None:
    labels, decoded = sparse(k, 0, has_tail=True), sparse(other, 1, has_tail=True)
    p, q = labels.as_dense(), decoded.as_dense()
    torch.testing.assert_close(sparse_kl(labels, decoded), (p * (p / q).log()).sum(1))
    torch.testing.assert_close(sparse_kl(labels, labels), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_kl_of_labels_without_a_tail_is_over_the_decoded_tokens() -> None:
    labels, decoded = sparse(5, 0, has_tail=False), sparse(4, 1, has_tail=False)
    p, q = labels.as_dense(), decoded.as_dense()
    p = torch.where(q > 0, p, 0)
    p = p / p.sum(1, keepdim=True)
    expected = (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(1)
    torch.testing.assert_close(sparse_kl(labels, decoded), expected)
