"""Fit the VQAE for tokens in stages: the prior, by squared error and then by KL; codebooks, by residual k-means of the
distance from the prior; then twice, codes by exact KL and training on them; at the end all weights together.
"""

import numpy as np
import torch
from torch import Tensor

from vqlabel.codecs.hidden_labels import HiddenLabels
from vqlabel.codecs.precision import cpu_by_default, float32_arithmetic
from vqlabel.codecs.sample import FitHooks
from vqlabel.codecs.token_vqae.choose import Choices
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.codecs.token_vqae.config import TokenPriorConfig, TokenVqaeConfig
from vqlabel.codecs.token_vqae.fit.latent import Directions, metric_root, principal_directions, sufficient
from vqlabel.codecs.token_vqae.fit.price import price_of
from vqlabel.codecs.token_vqae.fit.run import PARTS, FitRun
from vqlabel.codecs.token_vqae.fit.stages import (
    HELD_OUT_LABELS,
    Stage,
    first_documents,
    label_weights,
    mean_fisher,
    prior_kl,
    random_documents,
)
from vqlabel.codecs.token_vqae.sample import TextSample, TextSplit
from vqlabel.codecs.vqae.fit.kmeans import fit_codebooks
from vqlabel.codecs.weights import rounded
from vqlabel.config import DEFAULT_TEXT_BITS, TextFitConfig
from vqlabel.progress import Progress
from vqlabel.threads import small_operations

PRIOR, PRIOR_KL, CODEBOOKS, ALL_WEIGHTS = range(4)  # stages of a fit
METRIC_LABELS = 4096  # whose Fisher matrices are averaged
CODEBOOK_LABELS = 32_768  # that codebooks are initialized and first trained on
HEADS = 4
DEFAULT_VISITS = 250_000
PRIOR_VISITS, CODE_VISITS, LAST_VISITS = 2.0, 0.4, 0.25  # of later stages, relative to the prior's first
MIN_PRIOR_GAIN = 0.03  # share of the held-out KL without codes that a prior must remove to be stored
LAST_RATE = 0.3  # learning rate of the last stage, relative to the first


def fit(sample: TextSample, config: TextFitConfig, hooks: FitHooks) -> TokenVqae:
    """Fit a codec to `sample.train`, at the price that gives `config.bits` on `sample.held_out`, on `config.device`."""
    device, sample = torch.device(config.device), sample.to(config.device)
    with small_operations(), torch.inference_mode(False), torch.enable_grad(), cpu_by_default(), float32_arithmetic(device):
        state = hooks.resumed or {}
        directions = Directions(**state["directions"]) if state else _directions(sample.train, config)
        codec = _new_codec(sample.train, directions.to(device), config)
        latents = _set_output(codec, sample.train.labels, directions.to(device))
        _fit_stages(codec, sample, latents, config, FitRun(codec, directions, hooks))
        codec.round()
        return codec.eval()


def _directions(split: TextSplit, config: TextFitConfig) -> Directions:
    """The directions of hidden states that labels keep."""
    labels, head = split.labels, split.labels.head
    metric = mean_fisher(labels[:: max(1, len(labels) // METRIC_LABELS)], head.weight.T.contiguous() * head.scale)
    directions = principal_directions(labels.hidden, metric)
    return directions.first(min(head.weight.shape[1], config.latent or sufficient(labels, directions)))


def _new_codec(split: TextSplit, directions: Directions, config: TextFitConfig) -> TokenVqae:
    """A codec without codes."""
    head = split.labels.head
    width = head.weight.shape[1]
    prior = TokenPriorConfig(width=config.width, layers=config.layers, heads=HEADS, window=config.window, future=config.future)
    resolved = TokenVqaeConfig(
        classes=head.vocabulary, domain="hidden", hidden=width, latent=directions.analysis.shape[1],
        slots=config.slots, codebook_size=config.codebook_size, ids=min(config.ids, head.vocabulary - 1), weight_bits=config.weight_bits,
        prior=prior if config.prior else None, head="embedded" if config.embed_head else "referenced",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # layers draw their initial weights from the global generator
        torch.default_generator.manual_seed(config.seed)
        return TokenVqae(resolved).to(config.device)


@torch.no_grad()
def _set_output(codec: TokenVqae, labels: HiddenLabels, directions: Directions) -> Tensor:
    """Set projection, output map and bias, as they are stored. Returns the latents [n, d_h] of the labels."""
    decoder, head, bits = codec.decoder, labels.head, codec.config.weight_bits
    decoder.projection.copy_(rounded(directions.synthesis, bits))
    decoder.center.copy_(directions.center.half())
    decoder.bias.copy_(head.weight @ decoder.center * head.scale)
    if head.bias is not None:
        decoder.bias.add_(head.bias * head.scale)
    decoder.attach(head)
    if codec.config.head == "embedded":
        decoder.out.copy_(rounded(decoder.out, bits))
    return (labels.hidden.float() - directions.center) @ directions.analysis


def _fit_stages(codec: TokenVqae, sample: TextSample, latents: Tensor, config: TextFitConfig, run: FitRun) -> None:
    decoder, seed, split, visits = codec.decoder, config.seed, sample.train, _visits(config, sample.train)
    unit = _root_mean_square(latents)
    metric = mean_fisher(split.labels[:: max(1, len(split.labels) // METRIC_LABELS)], decoder.out.detach())
    if decoder.prior is not None:
        decoder.prior.scale_output(unit)
        _fit_prior(codec, sample, latents, metric, config, run)
    run.skip_to(CODEBOOKS)
    if not config.slots:
        return
    subset, rows = random_documents(split, CODEBOOK_LABELS, seed)
    if run.starts(CODEBOOKS):
        with torch.no_grad():
            decoder.codebook.copy_(_codebooks(codec, subset, latents[rows], metric, seed))
        run.codes = choose_all(codec, subset, run.progress).codes
    if run.stage == CODEBOOKS:
        run.train(
            subset,
            Stage(
                name="codebooks", visits=round(CODE_VISITS * visits), seed=seed + 2, parts=("codebook",), unit=unit, codes=run.codes
            ),
        )
        run.advance()
    if run.starts(ALL_WEIGHTS):
        choices = choose_all(codec, subset, run.progress)
        price = price_of(choices, codec.config, DEFAULT_TEXT_BITS if config.bits is None else config.bits)
        run.codes, run.counts = choices.codes, choices.stored(codec.config, price)[:, 0]
    if run.stage == ALL_WEIGHTS:
        stage = Stage(
            name="all weights", visits=round(LAST_VISITS * visits), seed=seed + 3, parts=PARTS, unit=unit, rate=LAST_RATE,
            codes=run.codes, counts=run.counts,
        )  # fmt: skip
        run.train(subset, stage)
        run.advance()


def _fit_prior(codec: TokenVqae, sample: TextSample, latents: Tensor, metric: Tensor, config: TextFitConfig, run: FitRun) -> None:
    """Train the prior; remove it if it predicts held-out labels no better than one latent for all does."""
    decoder, split, held_out, seed = codec.decoder, sample.train, sample.held_out, config.seed
    visits, unit = _visits(config, split), _root_mean_square(latents)
    bias = decoder.bias.clone()
    run.restore()
    if run.stage == PRIOR:
        stage = Stage(name="prior", visits=visits, seed=seed, parts=("prior",), unit=unit, metric=metric, target=latents)
        run.train(split, stage, held_out)
        run.advance()
    if run.stage == PRIOR_KL:
        stage = Stage(name="prior, KL", visits=round(PRIOR_VISITS * visits), seed=seed + 1, parts=("prior", "bias"), unit=unit)
        run.train(split, stage, held_out)
        some, mean = first_documents(held_out, HELD_OUT_LABELS), latents.mean(0)
        if prior_kl(decoder, some) > (1 - MIN_PRIOR_GAIN) * prior_kl(decoder, some, mean):
            codec.drop_prior()
            with torch.no_grad():
                decoder.bias.copy_(bias)
        run.advance()


def _root_mean_square(latents: Tensor) -> float:
    """Of latents [n, d_h] around their mean."""
    return float((latents - latents.mean(0)).square().mean().sqrt())


def _visits(config: TextFitConfig, split: TextSplit) -> int:
    """Labels of the prior's first stage, counted as often as they are seen."""
    return DEFAULT_VISITS if config.epochs is None else config.epochs * len(split.labels)


@torch.no_grad()
def _codebooks(codec: TokenVqae, split: TextSplit, latents: Tensor, metric: Tensor, seed: int) -> Tensor:
    """[m, k, d_h] residual k-means of the latents' distances from the prior, in the metric."""
    root, generator = metric_root(metric), torch.Generator().manual_seed(seed)
    distance = (latents - codec.decoder.predict(split.documents)) @ root
    books = fit_codebooks(
        distance,
        codec.config.slots,
        codec.config.codebook_size,
        "residual",
        generator,
        label_weights(split.labels, codec.decoder.out),
    )
    vectors: Tensor = books @ torch.linalg.inv(root)
    return vectors


def choose_all(codec: TokenVqae, split: TextSplit, progress: Progress) -> Choices:
    """All choices of codes and ids for the labels of a split."""
    groups = list(split.documents.groups(np.arange(len(split.documents)), 2048))
    parts = []
    for done, index in enumerate(groups):
        part, _ = split.take(index)
        parts.append(codec.choices(part.labels, part.documents))
        progress("choosing codes", done + 1, len(groups), {})
    return Choices.join(parts)
