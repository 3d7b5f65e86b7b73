"""Latents -> codebooks and their indices: k-means by growing dimensions, residual or grouped slots."""

import torch
from torch import Tensor

GROWTH = 5  # steps by which k-means grows from one dimension to all
LLOYD = 4  # Lloyd iterations a step
CHUNK = 1024  # latents searched at a time: what one of them needs stays in the processor's cache


def fit_codebooks(latents: Tensor, slots: int, codebook_size: int, quantizer: str, generator: torch.Generator) -> Tensor:
    """Fit one codebook per slot.

    Args:
        latents: [n, d_h] float32.
        quantizer: "residual" (slot j codes what slots before it left) or "grouped" (slot j codes its own d_h / m numbers, so few that
            there is no noise worth shrinking).

    Returns:
        [m, k, d_c] float32; d_c = d_h for residual slots, d_h / m for grouped ones.
    """
    if quantizer == "grouped":
        return torch.stack([grow_kmeans(part, codebook_size, generator) for part in latents.chunk(slots, 1)])
    codebooks, rest = [], latents
    for _ in range(slots):
        codebook = shrink_noise(rest, grow_kmeans(rest, codebook_size, generator))
        codebooks.append(codebook)
        rest = rest - codebook[nearest(rest, codebook)]
    return torch.stack(codebooks)


def grow_kmeans(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """K-means that starts in the first principal component and adds dimensions, new ones at the mean.

    From random points in all dimensions Lloyd's algorithm keeps the noise of its starting points, and residual stages add that up.
    The idea is that of faiss' ProgressiveDimClustering.

    Args:
        points: [n, d] float32, n >= 1.

    Returns:
        [k, d] centroids.
    """
    mean = points.mean(0)
    axes = torch.linalg.eigh((points - mean).T @ (points - mean))[1].flip(1)
    rotated, width = (points - mean) @ axes, points.shape[1]
    start = (
        torch.randint(len(points), (k,), generator=generator)
        if len(points) < k
        else torch.randperm(len(points), generator=generator)[:k]
    )
    centroids = rotated[start.to(points.device), :1]
    for step in range(1, GROWTH + 1):
        wide = max(1, round(width ** (step / GROWTH)))
        centroids = torch.cat([centroids, centroids.new_zeros(k, wide - centroids.shape[1])], 1)
        centroids = _lloyd(rotated[:, :wide].contiguous(), centroids, generator)
    return torch.addmm(mean, centroids, axes.T)


def shrink_noise(points: Tensor, codebook: Tensor) -> Tensor:
    """`codebook` [k, d], k-means of `points` [n, d], with every dimension drawn to its mean as far as it is noise.

    A code of few points is their mean and an n-th of their variance. Where codes differ by no more than that, new points are nearer to the
    mean of all: James and Stein's estimate, with one share for all codes of a dimension.
    """
    at = nearest(points, codebook)
    count, mean = torch.bincount(at, minlength=len(codebook)).to(points), points.mean(0)
    within = (points - codebook[at]).square().sum(0) / max(1, len(points) - len(codebook))
    between = (count[:, None] * (codebook - mean).square()).sum(0) / max(1, len(codebook) - 1)
    return torch.lerp(mean, codebook, (1 - within / between.clamp_min(1e-30)).clamp_min(0))


def nearest(points: Tensor, codebook: Tensor) -> Tensor:
    """[n] index of the nearest row of `codebook` [k, d] for each of `points` [n, d]."""
    square = codebook.square().sum(1)
    return torch.cat([torch.addmm(square, part, codebook.T, alpha=-2).argmin(1) for part in points.split(CHUNK)])


def _lloyd(points: Tensor, centroids: Tensor, generator: torch.Generator) -> Tensor:
    k = len(centroids)
    for _ in range(LLOYD):
        at = nearest(points, centroids)
        count = torch.bincount(at, minlength=k)
        total = torch.zeros_like(centroids).index_add_(0, at, points)
        centroids = total / count.clamp_min(1)[:, None]
        dead = (count == 0).nonzero()[:, 0]
        if len(dead):  # a dead code starts again beside one of the busiest
            noise = torch.randn(len(dead), points.shape[1], generator=generator).to(points)
            busy = count.topk(len(dead)).indices
            centroids[dead] = centroids[busy] + 1e-2 * noise * points.std(correction=0)
    return centroids


def quantize(latents: Tensor, codebooks: Tensor, quantizer: str) -> Tensor:
    """[n, m] int64: of every slot in turn the nearest code, of what the slots before it left or of its own group's numbers.

    Args:
        latents: [n, d_h]; codebooks: [m, k, d_c].
    """
    if quantizer == "grouped":
        parts = latents.chunk(len(codebooks), 1)
        return torch.stack([nearest(part, book) for part, book in zip(parts, codebooks, strict=True)], 1)
    codes = []
    for codebook in codebooks:
        codes.append(nearest(latents, codebook))
        latents = latents - codebook[codes[-1]]
    return torch.stack(codes, 1)
