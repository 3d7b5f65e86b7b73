"""Codes by a beam and coordinate descent: the least loss that a slot has, never a larger one."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from vqlabel.codecs.vqae.search import CLAMP, Encoder, find_rate_multiplier, used
from vqlabel.metrics.distortion import mixed_cross_entropy, soft_target

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


def encode(
    base: Tensor, pull: Tensor, moves: list[Tensor], temperatures: Sequence[float], sweeps: int = 0, beam: int = 1
) -> Tensor:
    """With a latent that is the logits themselves."""
    return Encoder(torch.stack(moves), torch.eye(C), base.mean(0), temperatures)(base, pull, sweeps, beam)


@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_every_code_is_the_best_given_those_before(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(3)
    pull, logits = soft_target(teacher, temperatures), base
    found = encode(base, pull, moves, temperatures)
    for slot, move in enumerate(moves):
        tried = torch.stack([mixed_cross_entropy(logits + move[code], pull, temperatures) for code in range(K)], 1)
        assert torch.equal(found[:, slot], tried.argmin(1))
        assert len(tried.argmin(1).unique()) > 4
        logits = logits + move[found[:, slot]]


@pytest.mark.parametrize("temperatures", [(20.0,), (16.0, 40.0), (1.0, 4.0, 20.0)], ids=str)
def test_at_high_temperatures_a_second_order_polynomial_finds_as_good_codes(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(3, 5.0 if 1.0 not in temperatures else 2.0)
    pull = soft_target(teacher, temperatures)
    found = mixed_cross_entropy(decoded(base, moves, encode(base, pull, moves, temperatures, 3)), pull, temperatures)
    tried = torch.stack([
        mixed_cross_entropy(decoded(base, moves, torch.tensor([code] * N)), pull, temperatures)
        for code in itertools.product(range(K), repeat=3)
    ])  # fmt: skip
    assert (tried.mean(0) - found).mean() > 0.95 * (tried.mean(0) - tried.amin(0)).mean()


def test_codes_that_move_logits_far_are_tried_exactly_at_high_temperatures_too() -> None:
    teacher, moves, base = draw(1, size=60.0)
    pull = soft_target(teacher, (20.0,))
    losses = torch.stack([mixed_cross_entropy(base + move, pull, (20.0,)) for move in moves[0]], 1)
    assert torch.equal(encode(base, pull, moves, (20.0,))[:, 0], losses.argmin(1))


@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_no_code_of_one_slot_is_better_once_a_sweep_changes_nothing(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(3)
    pull = soft_target(teacher, temperatures)
    found = encode(base, pull, moves, temperatures, 30)
    assert torch.equal(found, encode(base, pull, moves, temperatures, 31))
    best = mixed_cross_entropy(decoded(base, moves, found), pull, temperatures)
    for slot, code in itertools.product(range(3), range(K)):
        other = found.clone()
        other[:, slot] = code
        loss = mixed_cross_entropy(decoded(base, moves, other), pull, temperatures)
        assert bool((loss >= best - 1e-5 * best.abs()).all())


@pytest.mark.parametrize("size", [0.1, 2.0, CLAMP / 5], ids=lambda size: f"moves of {size:g}")
@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_no_labels_loss_grows_with_a_sweep(temperatures: tuple[float, ...], size: float) -> None:
    for seed in range(4):
        teacher, moves, base = draw(4, size, seed)
        pull = soft_target(teacher, temperatures)
        codes = [encode(base, pull, moves, temperatures, sweeps) for sweeps in range(3)]
        losses = [mixed_cross_entropy(decoded(base, moves, found), pull, temperatures) for found in codes]
        rounding = 1e-6 * (pull * torch.stack([decoded(base, moves, found) for found in codes]).abs()).sum(2).amax(0)
        for before, after in itertools.pairwise(losses):
            assert bool((after <= before + rounding + 1e-5 * before.abs()).all())
        assert float(losses[1].mean()) < float(losses[0].mean())


@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_a_beam_of_all_beginnings_finds_the_best_codes_of_all(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(3)
    pull = soft_target(teacher, temperatures)
    tried = torch.stack([
        mixed_cross_entropy(decoded(base, moves, torch.tensor([code] * N)), pull, temperatures)
        for code in itertools.product(range(K), repeat=3)
    ])  # fmt: skip
    losses = [
        mixed_cross_entropy(decoded(base, moves, encode(base, pull, moves, temperatures, 0, beam)), pull, temperatures)
        for beam in (1, 4, K * K)
    ]
    torch.testing.assert_close(losses[2], tried.amin(0), atol=1e-4, rtol=1e-5)
    assert float(losses[2].mean()) < float(losses[1].mean()) < float(losses[0].mean())


def test_a_beam_is_no_wider_than_the_codes_there_are() -> None:
    teacher, moves, base = draw(1)
    pull = soft_target(teacher, (1.0,))
    assert torch.equal(encode(base, pull, moves, (1.0,), 0, 99), encode(base, pull, moves, (1.0,)))


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("sweeps", [0, 2])
def test_a_class_whose_probability_vanished_comes_back(sweeps: int, beam: int) -> None:
    """The first code takes half of the classes down by 45 nats and, by what is left of them, 200: what products kept up would be 0."""
    teacher, moves, base = draw(3)
    down = torch.where(torch.arange(C) < C // 2, -100.0, 0.0)
    start, lifted = base + down, [moves[0] - 0.45 * down, moves[1] - 0.55 * down, moves[2]]
    pull = soft_target(teacher, (1.0,))
    far = mixed_cross_entropy(decoded(start, lifted, encode(start, pull, lifted, (1.0,), sweeps, beam)), pull, (1.0,))
    near = mixed_cross_entropy(decoded(base, moves, encode(base, pull, moves, (1.0,), sweeps, beam)), pull, (1.0,))
    assert float(far.mean()) == pytest.approx(float(near.mean()), rel=0.1)


def test_a_class_that_codes_take_away_and_bring_back_is_noticed() -> None:
    """Three slots take half of the classes down by 39 nats each, three bring them back: what products kept up would stay 0."""
    teacher, moves, base = draw(6, 0.3)
    down = torch.where(torch.arange(C) < C // 2, -39.0, 0.0)
    bent = [move + (down if slot < 3 else -down) for slot, move in enumerate(moves)]
    pull = soft_target(teacher, (1.0,))
    for sweeps, beam in ((0, 1), (2, 1), (0, 4)):
        found = encode(base, pull, bent, (1.0,), sweeps, beam)
        last = decoded(base, bent[:5], found[:, :5])
        tried = torch.stack([mixed_cross_entropy(last + bent[5][code], pull, (1.0,)) for code in range(K)], 1)
        assert bool((tried.gather(1, found[:, 5:])[:, 0] <= tried.amin(1) + 1e-3).all())


def test_a_class_that_vanished_comes_back_in_the_sweeps_of_variable_labels() -> None:
    teacher, moves, base = draw(3)
    down = torch.where(torch.arange(C) < C // 2, -100.0, 0.0)
    start, lifted = base + down, [moves[0] - 0.45 * down, moves[1] - 0.55 * down, moves[2]]
    encoder, pull = Encoder(torch.stack(lifted), torch.eye(C), start.mean(0), (1.0,)), soft_target(teacher, (1.0,))
    once, again = (encoder.variable(start, pull, sweeps, 0.0) for sweeps in (0, 3))
    whole = once[:, 0] == 3
    assert int(whole.sum()) > N // 2
    before, after = (mixed_cross_entropy(decoded(start, lifted, c[:, 1:]), pull, (1.0,))[whole] for c in (once, again))
    assert bool((after <= before + 1e-4 * before.abs()).all()) and float(after.mean()) < float(before.mean())


def test_the_logits_are_not_changed_in_place() -> None:
    teacher, moves, base = draw(2)
    kept = base.clone()
    for beam in (1, 4):
        encode(base, soft_target(teacher, (1.0, 20.0)), moves, (1.0, 20.0), 1, beam)
    assert torch.equal(base, kept)


def test_no_labels_have_no_codes() -> None:
    teacher, moves, base = draw(2)
    assert encode(base[:0], soft_target(teacher, (1.0,))[:0], moves, (1.0,), 1).shape == (0, 2)


# As many codes as pay.


def both(base: Tensor, moves: list[Tensor], temperatures: Sequence[float]) -> Encoder:
    return Encoder(torch.stack(moves), torch.eye(C), base.mean(0), temperatures)


def counted(base: Tensor, moves: list[Tensor], codes: Tensor) -> Tensor:
    """Logits of counts and codes [n, 1 + m]."""
    return base + sum(move[codes[:, slot + 1]] * (codes[:, :1] > slot) for slot, move in enumerate(moves))


@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_the_loss_of_every_prefix_is_that_of_its_logits(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(4)
    pull = soft_target(teacher, temperatures)
    found, codes = both(base, moves, temperatures).prefix_losses(base, pull), encode(base, pull, moves, temperatures)
    before = mixed_cross_entropy(base, pull, temperatures)
    for count in range(5):
        loss = mixed_cross_entropy(decoded(base, moves[:count], codes), pull, temperatures)
        torch.testing.assert_close(found[:, count], loss - before, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("temperatures", [*TEMPERATURES, (1.0, 20.0)], ids=str)
def test_a_code_is_used_where_it_pays(temperatures: tuple[float, ...]) -> None:
    """And at no price where it helps at all; what a label has is what a fixed codec gives it, up to its count."""
    teacher, moves, base = draw(5, 0.7)
    pull = soft_target(teacher, temperatures)
    encoder, prefixes = both(base, moves, temperatures), encode(base, pull, moves, temperatures)
    losses = encoder.prefix_losses(base, pull)
    for price in (0.0, 0.1, 1.0, 1e9):
        codes = encoder.variable(base, pull, 0, price)
        cost = losses + price * torch.arange(6)
        assert torch.equal(cost.gather(1, codes[:, :1])[:, 0], cost.amin(1))
        assert torch.equal(codes[:, 1:], prefixes * (torch.arange(5) < codes[:, :1]))
    assert not bool(codes.any()), "nothing is worth a billion"
    assert len(encoder.variable(base, pull, 0, 0.1)[:, 0].unique()) > 2


def test_a_higher_price_never_buys_more_codes() -> None:
    teacher, moves, base = draw(6, 0.5)
    encoder, pull = both(base, moves, (1.0,)), soft_target(teacher, (1.0,))
    counts = [encoder.variable(base, pull, 0, price)[:, 0] for price in (0, 0.01, 0.03, 0.1, 0.3, 1, 3)]
    for before, after in itertools.pairwise(counts):
        assert bool((after <= before).all())
    assert float(counts[0].float().mean()) > 5 > 1 > float(counts[-1].float().mean())


def test_the_price_is_the_least_at_which_the_mean_label_has_no_more_codes() -> None:
    teacher, moves, base = draw(6, 0.5)
    losses = both(base, moves, (1.0,)).prefix_losses(base, soft_target(teacher, (1.0,)))
    for most in (0.0, 0.7, 2.0, 3.5):
        price = find_rate_multiplier(losses, most)
        reached = float(used(losses, price).float().mean())
        assert most - 2 / N <= reached <= most < float(used(losses, 0.999 * price - 1e-6).float().mean()) + 2 / N
    assert find_rate_multiplier(losses, 6) == find_rate_multiplier(losses[:0], 0) == 0


@pytest.mark.parametrize("size", [0.1, 0.7, 2.0], ids=lambda size: f"moves of {size:g}")
@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_no_labels_loss_grows_with_a_sweep_over_the_codes_that_it_has(temperatures: tuple[float, ...], size: float) -> None:
    for seed in range(4):
        teacher, moves, base = draw(5, size, seed)
        pull = soft_target(teacher, temperatures)
        encoder = both(base, moves, temperatures)
        price = find_rate_multiplier(encoder.prefix_losses(base, pull), 2.5)
        codes = [encoder.variable(base, pull, sweeps, price) for sweeps in range(3)]
        assert all(torch.equal(found[:, 0], codes[0][:, 0]) for found in codes)
        losses = [mixed_cross_entropy(counted(base, moves, found), pull, temperatures) for found in codes]
        for before, after in itertools.pairwise(losses):
            assert bool((after <= before + 1e-4 * before.abs()).all())
        assert float(losses[1].mean()) < float(losses[0].mean())
        assert not bool((codes[2][:, 1:] * (torch.arange(5) >= codes[2][:, :1])).any())


def test_no_labels_have_no_counts_either() -> None:
    teacher, moves, base = draw(2)
    for sweeps in (0, 1):
        assert both(base, moves, (1.0,)).variable(base[:0], soft_target(teacher, (1.0,))[:0], sweeps, 1.0).shape == (0, 3)
