"""Latents -> codebooks and their indices: k-means by growing dimensions, residual or grouped slots."""

import torch
from torch import Tensor

GROWTH_STEPS = 5  # steps from one dimension to all
LLOYD_ITERATIONS = 4  # per step
CHUNK = 1024  # latents searched at a time, so that distances stay in the processor's cache


def fit_codebooks(
    latents: Tensor, slots: int, codebook_size: int, quantizer: str, generator: torch.Generator, weight: Tensor | None = None
) -> Tensor:
    """Fit one codebook per slot.

    Args:
        latents: [n, d_h] float32.
        quantizer: "residual" (slot j codes the residual of the slots before it) or "grouped" (slot j codes its own d_h
            / m numbers, too few for `shrink_noise` to matter).

    Returns:
        [m, k, d_c] float32; d_c = d_h for residual slots, d_h / m for grouped ones.
    """
    if quantizer == "grouped":
        return torch.stack([grow_kmeans(group, codebook_size, generator) for group in latents.chunk(slots, 1)])
    codebooks, residual = [], latents
    for _ in range(slots):
        codebook = grow_kmeans(residual, codebook_size, generator, weight)
        codebook = shrink_noise(residual, codebook) if weight is None else codebook
        codebooks.append(codebook)
        residual = residual - codebook[nearest(residual, codebook)]
    return torch.stack(codebooks)


def grow_kmeans(points: Tensor, k: int, generator: torch.Generator, weight: Tensor | None = None) -> Tensor:
    """K-means that starts in the first principal component and adds dimensions, in which centroids start at the mean.

    Started from random points in all dimensions, Lloyd's algorithm keeps their noise, which accumulates over residual
    slots.

    Source: faiss, ProgressiveDimClustering.

    Args:
        points: [n, d] float32, n >= 1.
        weight: [n] of each point's squared error; None: equal.

    Returns:
        [k, d] centroids.
    """
    share = None if weight is None else weight[:, None] / weight.sum()
    mean = points.mean(0) if share is None else (points * share).sum(0)
    centred = points - mean
    axes = _principal_axes(centred if share is None else centred * (share * len(points)).sqrt())
    rotated, width = (points - mean) @ axes, points.shape[1]
    start = (
        torch.randint(len(points), (k,), generator=generator)
        if len(points) < k
        else torch.randperm(len(points), generator=generator)[:k]
    )
    centroids = rotated[start.to(points.device), :1]
    for step in range(1, GROWTH_STEPS + 1):
        dimensions = max(1, round(width ** (step / GROWTH_STEPS)))
        centroids = torch.cat([centroids, centroids.new_zeros(k, dimensions - centroids.shape[1])], 1)
        centroids = _lloyd(rotated[:, :dimensions].contiguous(), centroids, generator, weight)
    return torch.addmm(mean, centroids, axes.T)


def _principal_axes(centred: Tensor) -> Tensor:
    """[d, d] eigenvectors of the scatter of points [n, d], the widest first.

    The scatter is scaled by a power of two, which is exact: that of points that differ by rounding alone is so small
    that LAPACK returns NaN.
    """
    scatter = centred.T @ centred
    exponent = torch.frexp(scatter.diagonal().amax())[1]
    axes: Tensor = torch.linalg.eigh(torch.ldexp(scatter, -exponent))[1]
    return axes.flip(1)


def shrink_noise(points: Tensor, codebook: Tensor) -> Tensor:
    """`codebook` [k, d], k-means of `points` [n, d], with every dimension shrunk to its mean by its share of noise.

    The mean of few points has a sampling error. In dimensions where codes differ by no more than that error, the mean
    of all points is the better estimate: the James-Stein estimator, with one factor for all codes of a dimension.
    """
    codes = nearest(points, codebook)
    count, mean = torch.bincount(codes, minlength=len(codebook)).to(points), points.mean(0)
    within = (points - codebook[codes]).square().sum(0) / max(1, len(points) - len(codebook))
    between = (count[:, None] * (codebook - mean).square()).sum(0) / max(1, len(codebook) - 1)
    return torch.lerp(mean, codebook, (1 - within / between.clamp_min(1e-30)).clamp_min(0))


def nearest(points: Tensor, codebook: Tensor) -> Tensor:
    """[n] index of the nearest row of `codebook` [k, d] for each of `points` [n, d]."""
    square = codebook.square().sum(1)
    return torch.cat([torch.addmm(square, chunk, codebook.T, alpha=-2).argmin(1) for chunk in points.split(CHUNK)])


def _lloyd(points: Tensor, centroids: Tensor, generator: torch.Generator, weight: Tensor | None) -> Tensor:
    """[k, d] centroids after LLOYD_ITERATIONS on points [n, d], weighted by `weight` [n]."""
    k = len(centroids)
    weighted = points if weight is None else points * weight[:, None]
    for _ in range(LLOYD_ITERATIONS):
        codes = nearest(points, centroids)
        count = torch.bincount(codes, weight, minlength=k)
        total = torch.zeros_like(centroids).index_add_(0, codes, weighted)
        centroids = total / (count.clamp_min(1) if weight is None else count.clamp_min(1e-30))[:, None]
        dead = (count == 0).nonzero()[:, 0]
        if len(dead):  # restart a dead code near one of the most used
            noise = torch.randn(len(dead), points.shape[1], generator=generator).to(points)
            most_used = count.topk(len(dead)).indices
            centroids[dead] = centroids[most_used] + 1e-2 * noise * points.std(correction=0)
    return centroids


def quantize(latents: Tensor, codebooks: Tensor, quantizer: str) -> Tensor:
    """[n, m] int64: the nearest code of every slot in turn, to the residual of the slots before it or to its own group
    of numbers.

    Args:
        latents: [n, d_h]; codebooks: [m, k, d_c].
    """
    if quantizer == "grouped":
        groups = latents.chunk(len(codebooks), 1)
        return torch.stack([nearest(group, codebook) for group, codebook in zip(groups, codebooks, strict=True)], 1)
    codes = []
    for codebook in codebooks:
        codes.append(nearest(latents, codebook))
        latents = latents - codebook[codes[-1]]
    return torch.stack(codes, 1)
