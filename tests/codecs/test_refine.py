"""Coordinate descent on codes: the least loss a slot has, never a larger one."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from vqlabel.codecs.distortion import mixed_cross_entropy, teacher_pull
from vqlabel.codecs.refine import CLAMP, Refiner

N, C, K = 60, 12, 8
TEMPERATURES = [(1.0,), (4.0,), (1.0, 4.0)]


def draw(slots: int, size: float = 2.0, seed: int = 0) -> tuple[Tensor, list[Tensor], Tensor]:
    """Teachers [N, C], what each code of a slot adds (m of [K, C]), and logits [N, C] before any code."""
    rng = torch.Generator().manual_seed(seed)
    teacher = 2 * size * torch.randn(N, C, generator=rng)
    moves = [size * torch.randn(K, C, generator=rng) for _ in range(slots)]
    return teacher - teacher.mean(1, keepdim=True), moves, torch.randn(N, C, generator=rng)


def decoded(base: Tensor, moves: list[Tensor], codes: Tensor) -> Tensor:
    return base + sum(move[codes[:, slot]] for slot, move in enumerate(moves))


def any_codes(slots: int) -> Tensor:
    return torch.randint(K, (N, slots), generator=torch.Generator().manual_seed(9))


def refine(
    codes: Tensor, base: Tensor, pull: Tensor, moves: list[Tensor], temperatures: Sequence[float], order: Sequence[int]
) -> Tensor:
    """With a latent that is the logits themselves."""
    refiner = Refiner(torch.stack(moves), torch.eye(C), base.mean(0), temperatures)
    return refiner(codes, decoded(base, moves, codes), pull, order)


@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_one_slot_refined_is_the_best_there_is(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(1)
    pull, codes = teacher_pull(teacher, temperatures), any_codes(1)
    found = refine(codes, base, pull, moves, temperatures, [0])
    tried = torch.stack([mixed_cross_entropy(base + moves[0][code], pull, temperatures) for code in range(K)], 1)
    assert torch.equal(found[:, 0], tried.argmin(1))
    assert len(tried.argmin(1).unique()) > 4


@pytest.mark.parametrize("temperatures", [(20.0,), (16.0, 40.0), (1.0, 4.0, 20.0)], ids=str)
def test_at_high_temperatures_a_second_order_polynomial_finds_as_good_codes(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(3, 8.0)
    pull, codes = teacher_pull(teacher, temperatures), any_codes(3)
    before = mixed_cross_entropy(decoded(base, moves, codes), pull, temperatures)
    found = refine(codes, base, pull, moves, temperatures, [0, 1, 2] * 4)
    tried = torch.stack([
        mixed_cross_entropy(decoded(base, moves, torch.tensor([code] * N)), pull, temperatures)
        for code in itertools.product(range(K), repeat=3)
    ])  # fmt: skip
    gained = (before - mixed_cross_entropy(decoded(base, moves, found), pull, temperatures)).mean()
    assert gained > 0.9 * (before - tried.amin(0)).mean()


@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_no_code_of_one_slot_is_better_once_a_sweep_changes_nothing(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(3)
    pull, codes = teacher_pull(teacher, temperatures), any_codes(3)
    found = refine(codes, base, pull, moves, temperatures, [0, 1, 2] * 30)
    assert torch.equal(found, refine(found, base, pull, moves, temperatures, [0, 1, 2]))
    best = mixed_cross_entropy(decoded(base, moves, found), pull, temperatures)
    for slot, code in itertools.product(range(3), range(K)):
        other = found.clone()
        other[:, slot] = code
        loss = mixed_cross_entropy(decoded(base, moves, other), pull, temperatures)
        assert bool((loss >= best - 1e-5 * best.abs()).all())


@pytest.mark.parametrize("size", [0.1, 2.0, CLAMP / 5], ids=lambda size: f"moves of {size:g}")
@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
@pytest.mark.parametrize("sweeps", [1, 3])
def test_no_labels_loss_grows(sweeps: int, temperatures: tuple[float, ...], size: float) -> None:
    for seed in range(4):
        teacher, moves, base = draw(4, size, seed)
        pull, codes = teacher_pull(teacher, temperatures), any_codes(4)
        before = mixed_cross_entropy(decoded(base, moves, codes), pull, temperatures)
        found = refine(codes, base, pull, moves, temperatures, [0, 1, 2, 3] * sweeps)
        after = mixed_cross_entropy(decoded(base, moves, found), pull, temperatures)
        rounding = 1e-6 * (pull * torch.stack([decoded(base, moves, c) for c in (codes, found)]).abs()).sum(2).amax(0)
        assert bool((after <= before + rounding + 1e-5 * before.abs()).all())
        assert float((after < before).float().mean()) > 0.5


def test_neither_codes_nor_logits_are_changed_in_place() -> None:
    teacher, moves, base = draw(2)
    codes = any_codes(2)
    logits = decoded(base, moves, codes)
    kept = codes.clone(), logits.clone()
    Refiner(torch.stack(moves), torch.eye(C), base.mean(0), (1.0, 20.0))(codes, logits, teacher_pull(teacher, (1.0, 20.0)), [0, 1])
    assert torch.equal(codes, kept[0])
    assert torch.equal(logits, kept[1])


def test_no_sweeps_are_no_change() -> None:
    teacher, moves, base = draw(2)
    codes = any_codes(2)
    assert torch.equal(refine(codes, base, teacher_pull(teacher, (1.0,)), moves, (1.0,), []), codes)
