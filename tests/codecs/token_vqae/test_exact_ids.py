"""Exact ids: their log-odds, what they leave to other tokens, and the choice of ids."""

import pytest
import torch

from vqlabel.codecs.token_vqae.exact_ids import STEP, ZERO_LEVEL, add_exact, choose_ids


def rows(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32).log()


def test_a_level_moves_the_log_odds_of_its_token_and_keeps_the_ratios_of_the_others() -> None:
    before = rows(0.5, 0.25, 0.125, 0.125)
    after = add_exact(before.clone(), torch.tensor([[1, 0]]), torch.tensor([[ZERO_LEVEL + 3, 0]]), torch.tensor([1])).softmax(1)
    assert float(torch.logit(after[0, 1])) == pytest.approx(float(torch.logit(torch.tensor(0.25))) + 3 * STEP, abs=1e-5)
    assert float(after[0, 0] / after[0, 2]) == pytest.approx(4.0, rel=1e-5)
    assert float(after.sum()) == pytest.approx(1.0)


def test_a_second_level_counts_from_the_odds_against_the_tokens_that_are_not_yet_exact() -> None:
    before = rows(0.5, 0.25, 0.125, 0.125)
    levels = torch.tensor([[ZERO_LEVEL + 2, ZERO_LEVEL - 1]])
    after = add_exact(before.clone(), torch.tensor([[0, 1]]), levels, torch.tensor([2])).softmax(1)[0]
    first = torch.sigmoid(torch.logit(torch.tensor(0.5)) + 2 * STEP)
    second = torch.sigmoid(torch.logit(torch.tensor(0.5)) - STEP) * (1 - first)  # 0.25 of the remaining 0.5
    torch.testing.assert_close(after[:2], torch.stack([first, second]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(after[2:], ((1 - first - second) / 2).expand(2), atol=1e-6, rtol=1e-5)


def test_ids_beyond_a_label_s_count_change_nothing() -> None:
    before = rows(0.5, 0.25, 0.125, 0.125)
    after = add_exact(before.clone(), torch.tensor([[1, 2]]), torch.tensor([[30, 2]]), torch.tensor([0]))
    torch.testing.assert_close(after.log_softmax(1), before)


def logits(rows: int, tokens: int, seed: int, scale: float) -> torch.Tensor:
    return (torch.randn(rows, tokens, generator=torch.Generator().manual_seed(seed)) * scale).log_softmax(1)


@pytest.mark.parametrize(("seed", "scale"), [(0, 2.0), (1, 2.0), (2, 12.0), (3, 30.0)])
def test_the_kl_of_a_choice_is_that_of_the_decoded_labels(seed: int, scale: float) -> None:
    teacher, decoded = logits(6, 30, seed, 2.0), logits(6, 30, seed + 9, scale)
    divergence = (teacher.exp() * (teacher - decoded)).sum(1)
    candidates = decoded[:, :25].exp()
    kl, chosen, levels = choose_ids(teacher[:, :25].exp(), candidates, decoded[:, 25:].exp().sum(1), divergence, 5)
    for count in range(6):
        counts = torch.full((6,), count)
        after = add_exact(decoded.clone(), chosen, levels + ZERO_LEVEL, counts).log_softmax(1)
        torch.testing.assert_close(kl[:, count].float(), (teacher.exp() * (teacher - after)).sum(1), atol=1e-4, rtol=1e-4)


def test_ids_are_chosen_once_each_and_the_first_removes_the_most_kl_of_any() -> None:
    teacher, decoded = logits(20, 12, 0, 2.0), logits(20, 12, 1, 2.0)
    divergence = (teacher.exp() * (teacher - decoded)).sum(1)
    p, q = teacher.exp(), decoded.exp()
    kl, chosen, _ = choose_ids(p, q, torch.zeros(20), divergence, 4)
    assert all(len(set(row)) == 4 for row in chosen.tolist())
    removed = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()  # by an id whose level is not rounded
    assert (removed.argmax(1) == chosen[:, 0]).all()
    assert (kl[:, 1] < kl[:, 0]).all()


def test_a_repeated_candidate_is_chosen_once() -> None:
    teacher, weight = torch.tensor([[0.7, 0.7, 0.2, 0.1]]), torch.tensor([[0.1, 0.0, 0.2, 0.6]])
    _, chosen, _ = choose_ids(teacher, weight, torch.tensor([0.1]), torch.tensor([1.0]), 3)
    assert sorted(chosen[0].tolist()) == [0, 2, 3]


def test_two_tokens_of_equal_probability_both_become_exact() -> None:
    teacher, decoded = torch.tensor([[0.45, 0.45, 0.05, 0.05]]), torch.tensor([[0.1, 0.1, 0.4, 0.4]])
    divergence = (teacher * (teacher / decoded).log()).sum(1)
    kl, chosen, levels = choose_ids(teacher, decoded, torch.tensor([0.0]), divergence, 2)
    after = add_exact(decoded.log(), chosen, levels + ZERO_LEVEL, torch.tensor([2])).softmax(1)
    assert sorted(chosen[0].tolist()) == [0, 1]
    assert float(kl[0, 2]) < 0.02
    assert float(after[0, :2].min()) > 0.38


def test_a_token_that_is_decoded_as_certain_and_is_not_becomes_exact() -> None:
    teacher, decoded = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[20.0, 0.0, 0.0]]).log_softmax(1)
    divergence = (teacher * (teacher.log() - decoded)).sum(1)
    weight = (decoded - decoded[:, :1]).exp()
    kl, chosen, levels = choose_ids(teacher, weight, torch.tensor([0.0]), divergence, 2)
    after = add_exact(decoded.clone(), chosen, levels + ZERO_LEVEL, torch.tensor([2])).softmax(1)
    assert float((teacher * (teacher / after).log()).sum()) == pytest.approx(float(kl[0, 2]), abs=1e-4)
    assert kl[0, 2] < 0.6 * divergence[0]
