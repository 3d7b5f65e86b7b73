"""Codebooks and nearest codes: against brute force, and theorems."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from vqlabel.codecs.vqae.fit.kmeans import fit_codebooks, grow_kmeans, nearest, quantize, shrink_noise
from vqlabel.metrics.code_usage import CodeUsage

DIM = 16


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hadamard(size: int) -> Tensor:
    """[size, size] matrix of +-1 with orthogonal rows."""
    rows = torch.ones(1, 1)
    while len(rows) < size:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    return rows


def residual_sum(codebooks: Tensor, codes: Tensor) -> Tensor:
    """[m, k, d], [..., m] -> [..., d]."""
    return torch.stack([book[codes[..., slot]] for slot, book in enumerate(codebooks)]).sum(0)


def squared_error(latents: Tensor, codebooks: Tensor, codes: Tensor) -> Tensor:
    """[n, m] codes -> [n] squared distance of their sum from the latents."""
    return (latents - residual_sum(codebooks, codes)).square().sum(1)


def all_sequences(slots: int, k: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(k), repeat=slots)))


@pytest.fixture(scope="module")
def latents() -> Tensor:
    """Integers, whose products are exact, so that search and brute force compare the same distances."""
    return torch.randint(-8, 9, (200, 6), generator=generator()).float()


@pytest.fixture(scope="module")
def codebooks() -> Tensor:
    """[3, 4, 6] integers, half as large in each slot as in the one before."""
    return torch.stack([torch.randint(-top, top + 1, (4, 6), generator=generator(top)).float() for top in (8, 4, 2)])


def test_nearest_is_the_brute_force_nearest(latents: Tensor, codebooks: Tensor) -> None:
    distance = (latents[:, None] - codebooks[0]).square().sum(2)
    codes = nearest(latents, codebooks[0])
    torch.testing.assert_close(distance.gather(1, codes[:, None])[:, 0], distance.min(1).values)


def test_every_slot_has_the_nearest_code_to_the_residual(latents: Tensor, codebooks: Tensor) -> None:
    residual, want = latents, []
    for book in codebooks:
        want.append(nearest(residual, book))
        residual = residual - book[want[-1]]
    assert torch.equal(quantize(latents, codebooks, "residual"), torch.stack(want, 1))


def test_residual_codes_of_a_sum_of_well_separated_vectors_are_exact() -> None:
    """Orthogonal vectors of magnitudes 16, 4 and 1: later slots do not change the nearest vector of earlier ones."""
    rows = hadamard(DIM)
    books = torch.stack([16 * rows[:5], 4 * rows[5:10], rows[10:15]])
    codes = all_sequences(3, 5)
    assert torch.equal(quantize(residual_sum(books, codes), books, "residual"), codes)


def test_grouped_codes_of_concatenated_vectors_are_exact() -> None:
    books = torch.stack([hadamard(4), 3 * hadamard(4) + 1])
    codes = all_sequences(2, 4)
    joined = torch.cat([books[0][codes[:, 0]], books[1][codes[:, 1]]], 1)
    assert torch.equal(quantize(joined, books, "grouped"), codes)


def test_grouped_codes_are_the_optimum_over_all_sequences() -> None:
    drawn, books = torch.randn(50, 6, generator=generator(5)), torch.randn(2, 4, 3, generator=generator(6))
    codes = all_sequences(2, 4)
    joined = torch.cat([books[0][codes[:, 0]], books[1][codes[:, 1]]], 1)
    best = (drawn[:, None] - joined).square().sum(2).argmin(1)
    assert torch.equal(quantize(drawn, books, "grouped"), codes[best])


@pytest.mark.parametrize("size", [0, 1, 1024, 1025])
def test_codes_do_not_depend_on_the_number_of_latents(size: int, codebooks: Tensor) -> None:
    drawn = torch.randint(-8, 9, (1500, 6), generator=generator(7)).float()
    assert torch.equal(quantize(drawn, codebooks, "residual")[:size], quantize(drawn[:size], codebooks, "residual"))


def test_kmeans_finds_separated_clusters() -> None:
    """With two codes per cluster; Lloyd's algorithm is not optimal, so two seeds of eight may fail."""
    successes = 0
    for seed in range(8):
        draw = generator(seed)
        means = 10 * torch.randn(8, 5, generator=draw)
        points = means.repeat_interleave(40, 0) + 0.1 * torch.randn(320, 5, generator=draw)
        centroids = grow_kmeans(points, 16, draw)
        successes += bool(torch.cdist(means, centroids).min(1).values.max() < 0.5)
    assert successes >= 6


def test_one_centroid_is_the_mean_and_as_many_as_points_have_a_small_error() -> None:
    points = torch.randn(64, 3, generator=generator(8)) + 5
    torch.testing.assert_close(grow_kmeans(points, 1, generator())[0], points.mean(0))
    few = grow_kmeans(points, 64, generator())
    assert float((points - few[nearest(points, few)]).square().sum(1).mean()) < 0.1 * float(points.var(0).sum())


def test_a_centroid_is_the_mean_of_its_points() -> None:
    points = torch.cat([torch.randn(50, 4, generator=generator(9)) + shift for shift in (-20, 0, 20)])
    centroids = grow_kmeans(points, 3, generator(10))
    codes = nearest(points, centroids)
    assert sorted(torch.bincount(codes).tolist()) == [50, 50, 50]
    for code in range(3):
        torch.testing.assert_close(centroids[code], points[codes == code].mean(0), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("points", "k"), [(1, 8), (3, 8), (5, 256)])
@pytest.mark.parametrize("width", [1, 4])
def test_codebooks_may_have_more_codes_than_distinct_points(points: int, k: int, width: int) -> None:
    distinct = torch.randn(points, width, generator=generator(11))
    for copies in (1, 30):
        latents = distinct.repeat(copies, 1)
        books = fit_codebooks(latents, 2, k, "residual", generator())
        assert books.shape == (2, k, width)
        assert bool(torch.isfinite(books).all())
        codes = quantize(latents, books, "residual")
        assert float((latents - residual_sum(books, codes)).abs().max()) < 0.05


def test_identical_points_give_finite_codebooks() -> None:
    books = fit_codebooks(torch.full((40, 4), 2.5), 3, 8, "residual", generator())
    assert bool(torch.isfinite(books).all())
    torch.testing.assert_close(
        residual_sum(books, torch.zeros(1, 3, dtype=torch.long))[0], torch.full((4,), 2.5), atol=1e-3, rtol=0
    )


def test_dead_codes_are_restarted() -> None:
    """99 of 100 points are equal, and so are most initial centroids, whose codes are then unused."""
    spread = torch.randn(50, 4, generator=generator(12))
    points = torch.cat([torch.zeros(4950, 4), spread])
    centroids = grow_kmeans(points, 32, generator(13))
    usage = CodeUsage(1, 32)
    usage.add(nearest(spread, centroids)[:, None].numpy())
    assert usage.perplexity()[0] > 10
    assert float((spread - centroids[nearest(spread, centroids)]).square().sum(1).mean()) < 0.4 * float(
        spread.square().sum(1).mean()
    )


def test_codes_of_a_gaussian_are_used_evenly() -> None:
    points = torch.randn(4000, 8, generator=generator(14))
    books = fit_codebooks(points, 2, 16, "residual", generator())
    usage = CodeUsage(2, 16)
    usage.add(quantize(points, books, "residual").numpy())
    assert np.all(usage.perplexity() > 0.8 * 16)
    assert np.all(usage.perplexity() <= 16)


@pytest.mark.parametrize(("quantizer", "width"), [("residual", 12), ("grouped", 3)])
def test_codebooks_have_one_table_per_slot_and_are_deterministic(quantizer: str, width: int) -> None:
    points = torch.randn(300, 12, generator=generator(15))
    books = fit_codebooks(points, 4, 8, quantizer, generator())
    assert books.shape == (4, 8, width)
    assert torch.equal(books, fit_codebooks(points, 4, 8, quantizer, generator()))


def test_every_residual_slot_lowers_the_error() -> None:
    points = torch.randn(2000, 8, generator=generator(16))
    books = fit_codebooks(points, 6, 8, "residual", generator())
    codes = quantize(points, books, "residual")
    errors = [float(squared_error(points, books[:slots], codes[:, :slots]).mean()) for slots in range(1, 7)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.9 * float(points.square().sum(1).mean())
    assert errors[-1] < 0.4 * errors[0]


def test_shrinkage_lowers_the_error_in_noise_dimensions() -> None:
    draw = generator()
    size = torch.tensor([5.0, 1.0, 1.0, 1.0])

    def points(count: int) -> Tensor:
        return torch.randn(count, 4, generator=draw) * size + 3

    train, new = points(400), points(20_000)
    codebook = grow_kmeans(train[:, :1], 64, draw)
    codes = nearest(train[:, :1], codebook)
    means = torch.stack([train[codes == code].mean(0) for code in range(64) if (codes == code).any()])
    shrunk = shrink_noise(train, means)
    error = [(new - book[nearest(new[:, :1], book[:, :1])]).square().sum(1).mean() for book in (means, shrunk)]
    assert error[1] < 0.97 * error[0]
    assert torch.allclose(shrunk[:, 0], means[:, 0], atol=0.1), "the dimension that codes determine is not shrunk"
    assert torch.allclose(shrink_noise(means, means), means, atol=1e-4), "with one point per code, noise cannot be estimated"
