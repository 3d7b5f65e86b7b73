"""Initialize a decoder: output map by PCA of logits, image vectors by mean latents, codebooks by k-means."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.vqae.fit.kmeans import fit_codebooks, quantize
from vqlabel.codecs.vqae.fit.split import CHUNK, Split
from vqlabel.codecs.vqae.prior import Prior, PriorInputs
from vqlabel.codecs.vqae.single_rate import SingleRateVqae
from vqlabel.metrics.distortion import as_logits
from vqlabel.metrics.likelihood import likelihood_of

PCA_LABELS, KMEANS_LABELS = 16_384, 65_536  # training labels that PCA and k-means are computed on, at most


@torch.no_grad()
def initialize_map(codec: SingleRateVqae, train: Split, generator: torch.Generator) -> None:
    """Set the output map to the leading components of the logits, with latents of unit variance; then the prior."""
    decoder, config = codec.decoder, codec.config
    sample = train.labels[torch.randperm(len(train.labels), generator=generator)[:PCA_LABELS].to(train.labels.device)]
    logits = as_logits(sample, config.domain)
    mean = logits.mean(0)
    logits -= mean
    width = min(config.latent, *logits.shape)
    _, scale, axes = _components(logits, width + 8, 2, generator)
    scale, axes = (scale[:width] / math.sqrt(len(logits))).clamp_min(1e-6), axes[:, :width]
    decoder.out.zero_()
    decoder.out[:width] = (axes * scale).T
    decoder.bias.copy_(mean + train.mean_logit.mean())
    if decoder.prior is not None and train.prior_inputs is not None:
        latents = torch.cat([(as_logits(x, config.domain) - mean) @ axes / scale for x in train.labels.split(CHUNK)])
        _initialize_prior(decoder.prior, train.prior_inputs, latents)


def _initialize_prior(prior: Prior, inputs: PriorInputs, latents: Tensor) -> None:
    """Set image vectors and mixed map by an SVD of every image's mean latent, weighted by lambda, and damp the hidden
    layer's output.

    Args:
        latents: [n, d] of the labels, d <= d_h.
    """
    width = latents.shape[1]
    total, count = latents.new_zeros(len(prior.images), width), latents.new_full((len(prior.images), 1), 1.0)
    for image, share in ((inputs.image, inputs.share), (inputs.partner, 1 - inputs.share)):
        total.index_add_(0, image, latents * share)
        count.index_add_(0, image, share)
    means = total / count
    _, scale, axes = torch.linalg.svd(means, full_matrices=False)
    rank = min(prior.images.shape[1], len(scale))
    scale = (scale[:rank] / math.sqrt(len(means))).clamp_min(1e-6)
    prior.images.zero_()
    prior.images[:, :rank] = means @ axes[:rank].T / scale
    prior.mixed.weight.zero_()
    prior.mixed.weight[:width, :rank] = (scale[:, None] * axes[:rank]).T
    prior.outside.weight.mul_(0.3)
    prior.outside.bias.zero_()


@torch.no_grad()
def initialize_codebooks(codec: SingleRateVqae, train: Split, generator: torch.Generator) -> None:
    """Set codebooks by k-means, then refine them or the output map by least squares on the residual of the prior.

    Without a prior the least-squares decoder of the codes becomes the output map. With one, which shares the map, the
    decoder is projected onto the map, which gives a linear transform of the codebooks.
    """
    decoder, config = codec.decoder, codec.config
    codebooks, codes = _kmeans_codes(codec, train, generator)
    if config.variable:  # at first every label has all codes
        codes = F.pad(codes, (1, 0), value=config.slots)
    scale = codebooks.square().sum((1, 2)).mean().sqrt() / math.sqrt(config.codebook_size * config.code_width)
    decoder.codebook.copy_(codebooks / scale.clamp_min(1e-12))
    solution = _least_squares_decoder(codec, train, codes)
    if train.prior_inputs is None:
        decoder.out.copy_(solution[:-1])
        decoder.bias.copy_(solution[-1])
    else:
        out, d = decoder.out, config.latent
        ridge = 1e-6 * out.square().sum() / d * torch.eye(d, device=out.device)
        transform = torch.linalg.solve(out @ out.T + ridge, out @ solution[:-1].T).T  # [d, d]
        decoder.codebook.copy_(decoder.codebook @ transform)


def _least_squares_decoder(codec: SingleRateVqae, train: Split, codes: Tensor) -> Tensor:
    """[d + 1, C] ridge regression of the logits, minus the prior's, on latents of `codes` [n, m] and a constant."""
    decoder, config = codec.decoder, codec.config
    d = config.latent
    square, cross = decoder.out.new_zeros(d + 1, d + 1), decoder.out.new_zeros(d + 1, config.classes)
    for index in train.chunks():
        z = F.pad(decoder.latent(codes[index]), (0, 1), value=1.0)
        residual = _residual_logits(codec, train, index)
        square += z.T @ z
        cross += z.T @ residual
    ridge = 1e-4 * square.diagonal().mean() * torch.eye(d + 1, device=square.device)
    solution: Tensor = torch.linalg.solve(square + ridge, cross)
    return solution


def _residual_logits(codec: SingleRateVqae, train: Split, index: Tensor) -> Tensor:
    """[b, C] logits of the labels `index` [b] minus the prior's, 0 for exact classes."""
    residual = as_logits(train.labels[index], codec.config.domain)
    if train.prior_inputs is not None:
        residual -= codec.decoder(train.no_codes(index), train.prior_inputs.rows(index))
        if likelihood_of(codec.config.domain).shift_invariant:
            residual -= residual.mean(1, keepdim=True)
    if train.exact_ids is not None:
        residual = residual.scatter(1, train.exact_ids[index], 0)
    if train.prior_inputs is None:
        residual = residual + train.mean_logit[index, None]
    return residual


@torch.no_grad()
def _kmeans_codes(codec: SingleRateVqae, train: Split, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Codebooks [m, k, d_c] and codes [n, m] by k-means in a space whose Euclidean distance approximates KL.

    The space is PCA of Hellinger features; with a prior, of their difference from those of the predicted label.
    """
    config = codec.config
    sample = torch.randperm(len(train.labels), generator=generator)[:PCA_LABELS].to(train.labels.device)
    features = torch.cat([_features(codec, train, index) for index in sample.split(CHUNK)])
    mean = features.mean(0)
    features -= mean
    width = min(config.latent, *features.shape)
    basis = _components(features, width + 16, 3, generator)[2][:, :width]
    del features  # the largest array of a fit
    latents = torch.cat([(_features(codec, train, index) - mean) @ basis for index in train.chunks()])
    latents = F.pad(latents, (0, config.latent - width))
    if config.quantizer == "grouped":
        latents = latents[:, _balanced_order(latents.var(0, correction=0), config.slots, config.code_width)]
    sample = torch.randperm(len(latents), generator=generator)[:KMEANS_LABELS].to(latents.device)
    codebooks = fit_codebooks(latents[sample], config.slots, config.codebook_size, config.quantizer, generator)
    return codebooks, quantize(latents, codebooks, config.quantizer)


def _components(x: Tensor, count: int, iterations: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Randomized SVD of x [n, d]: at most `count` leading left vectors, values and right vectors; the global generator
    is restored.
    """
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(1 << 31, (1,), generator=generator)))
        svd: tuple[Tensor, Tensor, Tensor] = torch.svd_lowrank(x, q=min(count, *x.shape), niter=iterations)
    return svd


def _features(codec: SingleRateVqae, split: Split, index: Tensor) -> Tensor:
    """[b, len(temperatures) * C] features of the labels `index` [b], minus those of the prior's labels, if any."""
    logits, temperatures = split.without_exact(as_logits(split.labels[index], codec.config.domain), index), codec.config.temperature
    features_at = likelihood_of(codec.config.domain).features
    features = torch.cat([features_at(logits, t) for t in temperatures], 1)
    if split.prior_inputs is None:
        return features
    predicted = split.without_exact(codec.decoder(split.no_codes(index), split.prior_inputs.rows(index)), index)
    return features.sub_(torch.cat([features_at(predicted, t) for t in temperatures], 1))


def _balanced_order(variance: Tensor, slots: int, width: int) -> Tensor:
    """[d_h] order of latent dimensions such that all groups have similar products of variances (initialization of OPQ,
    Ge et al. 2013).
    """
    groups: list[list[int]] = [[] for _ in range(slots)]
    log_product = [0.0] * slots
    for dimension in variance.argsort(descending=True).tolist():
        slot = min((s for s in range(slots) if len(groups[s]) < width), key=lambda s: log_product[s])
        groups[slot].append(dimension)
        log_product[slot] += math.log(max(float(variance[dimension]), 1e-12)) - math.log(1e-12)
    return torch.tensor([dimension for group in groups for dimension in group], device=variance.device)
