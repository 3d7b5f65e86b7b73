"""Codes by coordinate descent: the least loss that a slot has, never a larger one."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from vqlabel.codecs.distortion import mixed_cross_entropy, teacher_pull
from vqlabel.codecs.encoder import CLAMP, Encoder

N, C, K = 60, 12, 8
TEMPERATURES = [(1.0,), (4.0,), (1.0, 3.0)]


def draw(slots: int, size: float = 2.0, seed: int = 0) -> tuple[Tensor, list[Tensor], Tensor]:
    """Teachers [N, C], what each code of a slot adds (m of [K, C]), and logits [N, C] before any code."""
    rng = torch.Generator().manual_seed(seed)
    teacher = 2 * size * torch.randn(N, C, generator=rng)
    moves = [size * torch.randn(K, C, generator=rng) for _ in range(slots)]
    return teacher - teacher.mean(1, keepdim=True), moves, torch.randn(N, C, generator=rng)


def decoded(base: Tensor, moves: list[Tensor], codes: Tensor) -> Tensor:
    return base + sum(move[codes[:, slot]] for slot, move in enumerate(moves))


def encode(base: Tensor, pull: Tensor, moves: list[Tensor], temperatures: Sequence[float], sweeps: int = 0) -> Tensor:
    """With a latent that is the logits themselves."""
    return Encoder(torch.stack(moves), torch.eye(C), base.mean(0), temperatures)(base, pull, sweeps)


@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_every_code_is_the_best_given_those_before(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(3)
    pull, logits = teacher_pull(teacher, temperatures), base
    found = encode(base, pull, moves, temperatures)
    for slot, move in enumerate(moves):
        tried = torch.stack([mixed_cross_entropy(logits + move[code], pull, temperatures) for code in range(K)], 1)
        assert torch.equal(found[:, slot], tried.argmin(1))
        assert len(tried.argmin(1).unique()) > 4
        logits = logits + move[found[:, slot]]


@pytest.mark.parametrize("temperatures", [(20.0,), (16.0, 40.0), (1.0, 4.0, 20.0)], ids=str)
def test_at_high_temperatures_a_second_order_polynomial_finds_as_good_codes(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(3, 5.0 if 1.0 not in temperatures else 2.0)
    pull = teacher_pull(teacher, temperatures)
    found = mixed_cross_entropy(decoded(base, moves, encode(base, pull, moves, temperatures, 3)), pull, temperatures)
    tried = torch.stack([
        mixed_cross_entropy(decoded(base, moves, torch.tensor([code] * N)), pull, temperatures)
        for code in itertools.product(range(K), repeat=3)
    ])  # fmt: skip
    assert (tried.mean(0) - found).mean() > 0.95 * (tried.mean(0) - tried.amin(0)).mean()


@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_no_code_of_one_slot_is_better_once_a_sweep_changes_nothing(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(3)
    pull = teacher_pull(teacher, temperatures)
    found = encode(base, pull, moves, temperatures, 30)
    assert torch.equal(found, encode(base, pull, moves, temperatures, 31))
    best = mixed_cross_entropy(decoded(base, moves, found), pull, temperatures)
    for slot, code in itertools.product(range(3), range(K)):
        other = found.clone()
        other[:, slot] = code
        loss = mixed_cross_entropy(decoded(base, moves, other), pull, temperatures)
        assert bool((loss >= best - 1e-5 * best.abs()).all())


@pytest.mark.parametrize("size", [0.1, 2.0, CLAMP / 10], ids=lambda size: f"moves of {size:g}")
@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_no_labels_loss_grows_with_a_sweep(temperatures: tuple[float, ...], size: float) -> None:
    for seed in range(4):
        teacher, moves, base = draw(4, size, seed)
        pull = teacher_pull(teacher, temperatures)
        codes = [encode(base, pull, moves, temperatures, sweeps) for sweeps in range(3)]
        losses = [mixed_cross_entropy(decoded(base, moves, found), pull, temperatures) for found in codes]
        rounding = 1e-6 * (pull * torch.stack([decoded(base, moves, found) for found in codes]).abs()).sum(2).amax(0)
        for before, after in itertools.pairwise(losses):
            assert bool((after <= before + rounding + 1e-5 * before.abs()).all())
        assert float(losses[1].mean()) < float(losses[0].mean())


def test_the_logits_are_not_changed_in_place() -> None:
    teacher, moves, base = draw(2)
    kept = base.clone()
    encode(base, teacher_pull(teacher, (1.0, 20.0)), moves, (1.0, 20.0), 1)
    assert torch.equal(base, kept)


def test_no_labels_have_no_codes() -> None:
    teacher, moves, base = draw(2)
    assert encode(base[:0], teacher_pull(teacher, (1.0,))[:0], moves, (1.0,), 1).shape == (0, 2)
