"""Search for codes: beam search finds the least loss of every slot, and coordinate descent never increases it."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from vqlabel.codecs.vqae.search import CLAMP, CodeSearch, best_counts, find_rate_multiplier
from vqlabel.metrics.distortion import mixed_cross_entropy, soft_target

N, C, K = 60, 12, 8
TEMPERATURES = [(1.0,), (4.0,), (1.0, 3.0)]


def draw(slots: int, size: float = 2.0, seed: int = 0) -> tuple[Tensor, list[Tensor], Tensor]:
    """Teacher logits [N, C], what each code of a slot adds (m of [K, C]), and logits [N, C] without codes."""
    rng = torch.Generator().manual_seed(seed)
    teacher = 2 * size * torch.randn(N, C, generator=rng)
    moves = [size * torch.randn(K, C, generator=rng) for _ in range(slots)]
    return teacher - teacher.mean(1, keepdim=True), moves, torch.randn(N, C, generator=rng)


def decoded(base: Tensor, moves: list[Tensor], codes: Tensor) -> Tensor:
    return base + sum(move[codes[:, slot]] for slot, move in enumerate(moves))


def encode(
    base: Tensor, target: Tensor, moves: list[Tensor], temperatures: Sequence[float], sweeps: int = 0, beam: int = 1
) -> Tensor:
    """Codes from a `CodeSearch` whose latent is the logits."""
    return CodeSearch(torch.stack(moves), torch.eye(C), base.mean(0), temperatures)(base, target, sweeps, beam)


@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_every_code_has_the_least_loss_given_those_before(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(3)
    target, logits = soft_target(teacher, temperatures), base
    codes = encode(base, target, moves, temperatures)
    for slot, move in enumerate(moves):
        tried = torch.stack([mixed_cross_entropy(logits + move[code], target, temperatures) for code in range(K)], 1)
        assert torch.equal(codes[:, slot], tried.argmin(1))
        assert len(tried.argmin(1).unique()) > 4
        logits = logits + move[codes[:, slot]]


@pytest.mark.parametrize("temperatures", [(20.0,), (16.0, 40.0), (1.0, 4.0, 20.0)], ids=str)
def test_the_polynomial_of_high_temperatures_finds_nearly_optimal_codes(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(3, 5.0 if 1.0 not in temperatures else 2.0)
    target = soft_target(teacher, temperatures)
    losses = mixed_cross_entropy(decoded(base, moves, encode(base, target, moves, temperatures, 3)), target, temperatures)
    tried = torch.stack([
        mixed_cross_entropy(decoded(base, moves, torch.tensor([code] * N)), target, temperatures)
        for code in itertools.product(range(K), repeat=3)
    ])  # fmt: skip
    assert (tried.mean(0) - losses).mean() > 0.95 * (tried.mean(0) - tried.amin(0)).mean()


def test_large_code_vectors_are_evaluated_exactly_at_high_temperatures() -> None:
    teacher, moves, base = draw(1, size=60.0)
    target = soft_target(teacher, (20.0,))
    losses = torch.stack([mixed_cross_entropy(base + move, target, (20.0,)) for move in moves[0]], 1)
    assert torch.equal(encode(base, target, moves, (20.0,))[:, 0], losses.argmin(1))


@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_converged_codes_are_optimal_in_every_single_slot(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(3)
    target = soft_target(teacher, temperatures)
    codes = encode(base, target, moves, temperatures, 30)
    assert torch.equal(codes, encode(base, target, moves, temperatures, 31))
    best = mixed_cross_entropy(decoded(base, moves, codes), target, temperatures)
    for slot, code in itertools.product(range(3), range(K)):
        other = codes.clone()
        other[:, slot] = code
        loss = mixed_cross_entropy(decoded(base, moves, other), target, temperatures)
        assert bool((loss >= best - 1e-5 * best.abs()).all())


@pytest.mark.parametrize("size", [0.1, 2.0, CLAMP / 5], ids=lambda size: f"moves of {size:g}")
@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_a_sweep_increases_no_labels_loss(temperatures: tuple[float, ...], size: float) -> None:
    for seed in range(4):
        teacher, moves, base = draw(4, size, seed)
        target = soft_target(teacher, temperatures)
        codes = [encode(base, target, moves, temperatures, sweeps) for sweeps in range(3)]
        losses = [mixed_cross_entropy(decoded(base, moves, chosen), target, temperatures) for chosen in codes]
        rounding = 1e-6 * (target * torch.stack([decoded(base, moves, chosen) for chosen in codes]).abs()).sum(2).amax(0)
        for before, after in itertools.pairwise(losses):
            assert bool((after <= before + rounding + 1e-5 * before.abs()).all())
        assert float(losses[1].mean()) < float(losses[0].mean())


@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_a_beam_of_all_hypotheses_finds_the_global_optimum(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(3)
    target = soft_target(teacher, temperatures)
    tried = torch.stack([
        mixed_cross_entropy(decoded(base, moves, torch.tensor([code] * N)), target, temperatures)
        for code in itertools.product(range(K), repeat=3)
    ])  # fmt: skip
    losses = [
        mixed_cross_entropy(decoded(base, moves, encode(base, target, moves, temperatures, 0, beam)), target, temperatures)
        for beam in (1, 4, K * K)
    ]
    torch.testing.assert_close(losses[2], tried.amin(0), atol=1e-4, rtol=1e-5)
    assert float(losses[2].mean()) < float(losses[1].mean()) < float(losses[0].mean())


def test_a_beam_wider_than_the_codebook_is_valid() -> None:
    teacher, moves, base = draw(1)
    target = soft_target(teacher, (1.0,))
    assert torch.equal(encode(base, target, moves, (1.0,), 0, 99), encode(base, target, moves, (1.0,)))


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("sweeps", [0, 2])
def test_a_class_whose_probability_underflows_is_recovered(sweeps: int, beam: int) -> None:
    """Half of the logits are lowered by 100 nats and restored by the first two codes: products would stay at 0."""
    teacher, moves, base = draw(3)
    down = torch.where(torch.arange(C) < C // 2, -100.0, 0.0)
    start, shifted = base + down, [moves[0] - 0.45 * down, moves[1] - 0.55 * down, moves[2]]
    target = soft_target(teacher, (1.0,))
    far = mixed_cross_entropy(decoded(start, shifted, encode(start, target, shifted, (1.0,), sweeps, beam)), target, (1.0,))
    near = mixed_cross_entropy(decoded(base, moves, encode(base, target, moves, (1.0,), sweeps, beam)), target, (1.0,))
    assert float(far.mean()) == pytest.approx(float(near.mean()), rel=0.1)


def test_an_underflow_between_slots_is_detected() -> None:
    """Three slots lower half of the classes by 39 nats each, and three restore them: products would stay at 0."""
    teacher, moves, base = draw(6, 0.3)
    down = torch.where(torch.arange(C) < C // 2, -39.0, 0.0)
    cancelling = [move + (down if slot < 3 else -down) for slot, move in enumerate(moves)]
    target = soft_target(teacher, (1.0,))
    for sweeps, beam in ((0, 1), (2, 1), (0, 4)):
        codes = encode(base, target, cancelling, (1.0,), sweeps, beam)
        last = decoded(base, cancelling[:5], codes[:, :5])
        tried = torch.stack([mixed_cross_entropy(last + cancelling[5][code], target, (1.0,)) for code in range(K)], 1)
        assert bool((tried.gather(1, codes[:, 5:])[:, 0] <= tried.amin(1) + 1e-3).all())


def test_an_underflow_is_recovered_in_the_sweeps_of_a_variable_rate() -> None:
    teacher, moves, base = draw(3)
    down = torch.where(torch.arange(C) < C // 2, -100.0, 0.0)
    start, shifted = base + down, [moves[0] - 0.45 * down, moves[1] - 0.55 * down, moves[2]]
    search, target = CodeSearch(torch.stack(shifted), torch.eye(C), start.mean(0), (1.0,)), soft_target(teacher, (1.0,))
    once, again = (search.variable(start, target, sweeps, 0.0) for sweeps in (0, 3))
    whole = once[:, 0] == 3
    assert int(whole.sum()) > N // 2
    before, after = (mixed_cross_entropy(decoded(start, shifted, c[:, 1:]), target, (1.0,))[whole] for c in (once, again))
    assert bool((after <= before + 1e-4 * before.abs()).all()) and float(after.mean()) < float(before.mean())


def test_the_search_does_not_change_its_inputs() -> None:
    teacher, moves, base = draw(2)
    kept = base.clone()
    for beam in (1, 4):
        encode(base, soft_target(teacher, (1.0, 20.0)), moves, (1.0, 20.0), 1, beam)
    assert torch.equal(base, kept)


def test_zero_labels_give_zero_codes() -> None:
    teacher, moves, base = draw(2)
    assert encode(base[:0], soft_target(teacher, (1.0,))[:0], moves, (1.0,), 1).shape == (0, 2)


# Variable rate.


def search_of(base: Tensor, moves: list[Tensor], temperatures: Sequence[float]) -> CodeSearch:
    return CodeSearch(torch.stack(moves), torch.eye(C), base.mean(0), temperatures)


def counted(base: Tensor, moves: list[Tensor], codes: Tensor) -> Tensor:
    """Logits decoded from counts and codes [n, 1 + m]."""
    return base + sum(move[codes[:, slot + 1]] * (codes[:, :1] > slot) for slot, move in enumerate(moves))


@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_prefix_losses_are_those_of_the_decoded_logits(temperatures: tuple[float, ...]) -> None:
    teacher, moves, base = draw(4)
    target = soft_target(teacher, temperatures)
    prefix_losses, codes = (
        search_of(base, moves, temperatures).prefix_losses(base, target),
        encode(base, target, moves, temperatures),
    )
    before = mixed_cross_entropy(base, target, temperatures)
    for count in range(5):
        loss = mixed_cross_entropy(decoded(base, moves[:count], codes), target, temperatures)
        torch.testing.assert_close(prefix_losses[:, count], loss - before, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("temperatures", [*TEMPERATURES, (1.0, 20.0)], ids=str)
def test_the_count_of_a_label_minimises_its_rate_distortion_cost(temperatures: tuple[float, ...]) -> None:
    """Up to its count, a label has the codes of a fixed rate."""
    teacher, moves, base = draw(5, 0.7)
    target = soft_target(teacher, temperatures)
    search, prefixes = search_of(base, moves, temperatures), encode(base, target, moves, temperatures)
    losses = search.prefix_losses(base, target)
    for price in (0.0, 0.1, 1.0, 1e9):
        codes = search.variable(base, target, 0, price)
        cost = losses + price * torch.arange(6)
        assert torch.equal(cost.gather(1, codes[:, :1])[:, 0], cost.amin(1))
        assert torch.equal(codes[:, 1:], prefixes * (torch.arange(5) < codes[:, :1]))
    assert not bool(codes.any()), "at a price of 1e9 no code lowers the cost"
    assert len(search.variable(base, target, 0, 0.1)[:, 0].unique()) > 2


def test_a_higher_price_never_gives_more_codes() -> None:
    teacher, moves, base = draw(6, 0.5)
    search, target = search_of(base, moves, (1.0,)), soft_target(teacher, (1.0,))
    counts = [search.variable(base, target, 0, price)[:, 0] for price in (0, 0.01, 0.03, 0.1, 0.3, 1, 3)]
    for before, after in itertools.pairwise(counts):
        assert bool((after <= before).all())
    assert float(counts[0].float().mean()) > 5 > 1 > float(counts[-1].float().mean())


def test_the_rate_multiplier_is_the_least_that_meets_the_target() -> None:
    teacher, moves, base = draw(6, 0.5)
    losses = search_of(base, moves, (1.0,)).prefix_losses(base, soft_target(teacher, (1.0,)))
    for target_codes in (0.0, 0.7, 2.0, 3.5):
        price = find_rate_multiplier(losses, target_codes)
        average = float(best_counts(losses, price).float().mean())
        assert (
            target_codes - 2 / N
            <= average
            <= target_codes
            < float(best_counts(losses, 0.999 * price - 1e-6).float().mean()) + 2 / N
        )
    assert find_rate_multiplier(losses, 6) == find_rate_multiplier(losses[:0], 0) == 0


@pytest.mark.parametrize("size", [0.1, 0.7, 2.0], ids=lambda size: f"moves of {size:g}")
@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_a_sweep_at_a_variable_rate_increases_no_labels_loss(temperatures: tuple[float, ...], size: float) -> None:
    for seed in range(4):
        teacher, moves, base = draw(5, size, seed)
        target = soft_target(teacher, temperatures)
        search = search_of(base, moves, temperatures)
        price = find_rate_multiplier(search.prefix_losses(base, target), 2.5)
        codes = [search.variable(base, target, sweeps, price) for sweeps in range(3)]
        assert all(torch.equal(chosen[:, 0], codes[0][:, 0]) for chosen in codes)
        losses = [mixed_cross_entropy(counted(base, moves, chosen), target, temperatures) for chosen in codes]
        for before, after in itertools.pairwise(losses):
            assert bool((after <= before + 1e-4 * before.abs()).all())
        assert float(losses[1].mean()) < float(losses[0].mean())
        assert not bool((codes[2][:, 1:] * (torch.arange(5) >= codes[2][:, :1])).any())


def test_zero_labels_give_zero_counts() -> None:
    teacher, moves, base = draw(2)
    for sweeps in (0, 1):
        assert search_of(base, moves, (1.0,)).variable(base[:0], soft_target(teacher, (1.0,))[:0], sweeps, 1.0).shape == (0, 3)
