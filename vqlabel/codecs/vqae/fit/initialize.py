"""Where training starts: the output map from PCA of logits, image vectors from mean latents, codebooks from k-means."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.vqae.fit.kmeans import fit_codebooks, quantize
from vqlabel.codecs.vqae.fit.split import CHUNK, Split
from vqlabel.codecs.vqae.single_rate import SingleRateVqae
from vqlabel.metrics.distortion import as_logits
from vqlabel.metrics.likelihood import likelihood_of

PCA_LABELS, KMEANS_LABELS = 16_384, 65_536


@torch.no_grad()
def initialize_map(codec: SingleRateVqae, seen: Split, generator: torch.Generator) -> None:
    """The output map spans the logits' leading components, its latent of unit variance; image vectors start at their mean latent."""
    decoder, config = codec.decoder, codec.config
    some = seen.labels[torch.randperm(len(seen.labels), generator=generator)[:PCA_LABELS].to(seen.labels.device)]
    logits = as_logits(some, config.domain)
    mean = logits.mean(0)
    logits -= mean
    width = min(config.latent, *logits.shape)
    _, size, axes = _components(logits, width + 8, 2, generator)
    size, axes = (size[:width] / math.sqrt(len(logits))).clamp_min(1e-6), axes[:, :width]
    decoder.out.zero_()
    decoder.out[:width] = (axes * size).T
    decoder.bias.copy_(mean + seen.level.mean())
    if decoder.prior is None or seen.known is None:
        return
    latents = torch.cat([(as_logits(x, config.domain) - mean) @ axes / size for x in seen.labels.split(CHUNK)])
    prior, known = decoder.prior, seen.known
    total, count = latents.new_zeros(len(prior.images), width), latents.new_full((len(prior.images), 1), 1.0)
    for image, share in ((known.image, known.share), (known.partner, 1 - known.share)):
        total.index_add_(0, image, latents * share)
        count.index_add_(0, image, share)
    centre = total / count
    _, size, axes = torch.linalg.svd(centre, full_matrices=False)
    kept = min(prior.images.shape[1], len(size))
    size = (size[:kept] / math.sqrt(len(centre))).clamp_min(1e-6)
    prior.images.zero_()
    prior.images[:, :kept] = centre @ axes[:kept].T / size
    prior.mixed.weight.zero_()
    prior.mixed.weight[:width, :kept] = (size[:, None] * axes[:kept]).T
    prior.outside.weight.mul_(0.3)
    prior.outside.bias.zero_()


@torch.no_grad()
def initialize_codebooks(codec: SingleRateVqae, seen: Split, generator: torch.Generator) -> None:
    """The best linear decoder of the first codes, by least squares on what the prior left of the centred logits.

    Without a prior the output map is free to be that; with one, which shares the map, the codebooks are what of it the map can express.
    """
    decoder, config = codec.decoder, codec.config
    books, codes = _first_codes(codec, seen, generator)
    if config.variable:  # for a start every label has all
        codes = F.pad(codes, (1, 0), value=config.slots)
    size = books.square().sum((1, 2)).mean().sqrt() / math.sqrt(config.codebook_size * config.code_width)
    decoder.codebook.copy_(books / size.clamp_min(1e-12))
    d = config.latent
    square, cross = decoder.out.new_zeros(d + 1, d + 1), decoder.out.new_zeros(d + 1, config.classes)
    for at in seen.chunks():
        z = F.pad(decoder.latent(codes[at]), (0, 1), value=1.0)
        rest = as_logits(seen.labels[at], config.domain)
        if seen.known is not None:
            rest -= decoder(seen.none(at), seen.known.rows(at))
            if likelihood_of(config.domain).shift_invariant:
                rest -= rest.mean(1, keepdim=True)
        if seen.head is not None:
            rest = rest.scatter(1, seen.head[at], 0)
        if seen.known is None:
            rest = rest + seen.level[at, None]
        square += z.T @ z
        cross += z.T @ rest
    ridge = 1e-4 * square.diagonal().mean() * torch.eye(d + 1, device=square.device)
    best = torch.linalg.solve(square + ridge, cross)  # [d + 1, C]
    if seen.known is None:
        decoder.out.copy_(best[:-1])
        decoder.bias.copy_(best[-1])
    else:
        out = decoder.out
        ridge = 1e-6 * out.square().sum() / d * torch.eye(d, device=out.device)
        turn = torch.linalg.solve(out @ out.T + ridge, out @ best[:-1].T).T  # [d, d]
        decoder.codebook.copy_(decoder.codebook @ turn)


@torch.no_grad()
def _first_codes(codec: SingleRateVqae, seen: Split, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Where the decoder starts: codebooks [m, k, d_c] and codes [n, m] by k-means in a space whose plain distance is KL.

    That space is PCA of Hellinger features; with a prior, of what the label's are more than the predicted label's.
    """
    config = codec.config
    some = torch.randperm(len(seen.labels), generator=generator)[:PCA_LABELS].to(seen.labels.device)
    features = torch.cat([_features(codec, seen, at) for at in some.split(CHUNK)])
    mean = features.mean(0)
    features -= mean
    width = min(config.latent, *features.shape)
    basis = _components(features, width + 16, 3, generator)[2][:, :width]
    del features
    latents = torch.cat([(_features(codec, seen, at) - mean) @ basis for at in seen.chunks()])
    latents = F.pad(latents, (0, config.latent - width))
    if config.quantizer == "grouped":
        latents = latents[:, _balanced(latents.var(0, correction=0), config.slots, config.code_width)]
    some = torch.randperm(len(latents), generator=generator)[:KMEANS_LABELS].to(latents.device)
    books = fit_codebooks(latents[some], config.slots, config.codebook_size, config.quantizer, generator)
    return books, quantize(latents, books, config.quantizer)


def _components(x: Tensor, count: int, iterations: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular vectors and values of [n, d], `count` of them at most. Random numbers are the global generator's, which goes
    back as it was, that of the device too.
    """
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(1 << 31, (1,), generator=generator)))
        found: tuple[Tensor, Tensor, Tensor] = torch.svd_lowrank(x, q=min(count, *x.shape), niter=iterations)
    return found


def _features(codec: SingleRateVqae, part: Split, at: Tensor) -> Tensor:
    """[n, len(temperatures) * C] of the labels `at`."""
    logits, temperatures = part.visible(as_logits(part.labels[at], codec.config.domain), at), codec.config.temperature
    features = likelihood_of(codec.config.domain).features
    found = torch.cat([features(logits, t) for t in temperatures], 1)
    if part.known is None:
        return found
    expected = part.visible(codec.decoder(part.none(at), part.known.rows(at)), at)
    return found.sub_(torch.cat([features(expected, t) for t in temperatures], 1))


def _balanced(variance: Tensor, slots: int, width: int) -> Tensor:
    """Order of the latent's numbers in which every group has a like product of variances (OPQ's start, Ge et al. 2013)."""
    groups: list[list[int]] = [[] for _ in range(slots)]
    load = [0.0] * slots
    for at in variance.argsort(descending=True).tolist():
        slot = min((s for s in range(slots) if len(groups[s]) < width), key=lambda s: load[s])
        groups[slot].append(at)
        load[slot] += math.log(max(float(variance[at]), 1e-12)) - math.log(1e-12)
    return torch.tensor([at for group in groups for at in group], device=variance.device)
