"""Fit the VQAE for tokens in stages: the prior, by squared error and then by KL; codebooks, by residual k-means of the
distance from the prior; then twice, codes by exact KL and training on them; at the end all weights together.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel.codecs.precision import cpu_by_default, float32_arithmetic
from vqlabel.codecs.sample import FitHooks
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.codecs.token_vqae.config import TokenPriorConfig, TokenVqaeConfig
from vqlabel.codecs.token_vqae.fit.stages import Stage, mean_fisher, train
from vqlabel.codecs.token_vqae.sample import TextSample, TextSplit
from vqlabel.codecs.vqae.fit.kmeans import fit_codebooks
from vqlabel.codecs.weights import rounded
from vqlabel.config import TextFitConfig
from vqlabel.progress import Progress
from vqlabel.threads import small_operations

METRIC_LABELS = 4096  # whose Fisher matrices are averaged
CODEBOOK_LABELS = 32_768  # that codebooks are initialized and first trained on
RIDGE = 1e-4  # of the metric, relative to its mean eigenvalue
HEADS = 4


def fit(sample: TextSample, config: TextFitConfig, hooks: FitHooks) -> TokenVqae:
    """Fit a codec to `sample.train`, at the price that gives `config.bits` on `sample.held_out`."""
    device = torch.device(config.device)
    with small_operations(), torch.inference_mode(False), torch.enable_grad(), cpu_by_default(), float32_arithmetic(device):
        codec = _new_codec(sample.train, config)
        _fit_stages(codec, sample.train, config, hooks.progress)
        codec.round()
        return codec.eval()


def _new_codec(split: TextSplit, config: TextFitConfig) -> TokenVqae:
    head = split.labels.head
    prior = TokenPriorConfig(width=config.width, layers=config.layers, heads=HEADS, window=config.window, future=config.future)
    resolved = TokenVqaeConfig(
        classes=head.vocabulary, domain="hidden", latent=head.weight.shape[1], slots=config.slots, codebook_size=config.codebook_size,
        ids=min(config.ids, head.vocabulary - 1), weight_bits=config.weight_bits, prior=prior if config.prior else None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # layers draw their initial weights from the global generator
        torch.default_generator.manual_seed(config.seed)
        codec = TokenVqae(resolved)
    codec.decoder.out.data = rounded(head.weight.T.contiguous() * head.scale, config.weight_bits)
    if head.bias is not None:
        codec.decoder.bias.data = head.bias * head.scale
    return codec


def _fit_stages(codec: TokenVqae, split: TextSplit, config: TextFitConfig, progress: Progress) -> None:
    decoder, seed = codec.decoder, config.seed
    metric = mean_fisher(split.labels[:: max(1, len(split.labels) // METRIC_LABELS)], decoder.out.data)
    latents = split.labels.hidden.float()
    if decoder.prior is not None:
        stage = Stage(name="prior", epochs=1, seed=seed, parts=("prior",), metric=metric, target=latents)
        train(decoder, split, stage, progress)
        train(decoder, split, Stage(name="prior, KL", epochs=2, seed=seed + 1, parts=("prior", "bias")), progress)
    if not config.slots:
        return
    subset, _ = split.take(_some(split, CODEBOOK_LABELS, seed))
    decoder.codebook.data = _codebooks(codec, subset, metric, seed)
    for turn, rate in enumerate((1.0, 0.125)):
        codes = choose_codes(codec, subset, progress)
        train(
            decoder,
            subset,
            Stage(name="codebooks", epochs=3, seed=seed + 2 + turn, parts=("codebook",), rate=rate, codes=codes),
            progress,
        )
    codes = choose_codes(codec, split, progress)
    train(
        decoder,
        split,
        Stage(name="all weights", epochs=1, seed=seed + 4, parts=("prior", "codebook", "bias"), rate=0.3, codes=codes),
        progress,
    )


def _some(split: TextSplit, labels: int, seed: int) -> NDArray[np.int64]:
    """Indices of random documents that have about so many labels."""
    order = np.random.default_rng(seed).permutation(len(split.documents))
    return order[: max(1, int(np.searchsorted(np.cumsum(split.documents.lengths[order] - 1), labels)))]


@torch.no_grad()
def _codebooks(codec: TokenVqae, split: TextSplit, metric: Tensor, seed: int) -> Tensor:
    """[m, k, d_h] residual k-means of the latents' distances from the prior, in the metric."""
    size = len(metric)
    root = torch.linalg.cholesky(metric + RIDGE * metric.trace() / size * torch.eye(size))
    distance = split.labels.hidden.float() - codec.decoder.predict(split.documents)
    books = fit_codebooks(
        distance @ root, codec.config.slots, codec.config.codebook_size, "residual", torch.Generator().manual_seed(seed)
    )
    vectors: Tensor = books @ torch.linalg.inv(root)
    return vectors


def choose_codes(codec: TokenVqae, split: TextSplit, progress: Progress) -> Tensor:
    """[n, m] codes of all slots for the labels of a split."""
    plain = codec.with_config(replace(codec.config, ids=0))
    groups = list(split.documents.groups(np.arange(len(split.documents)), 4096))
    codes = []
    for done, index in enumerate(groups):
        part, _ = split.take(index)
        codes.append(plain.choices(part.labels, part.documents).codes)
        progress("choosing codes", done + 1, len(groups), {})
    return torch.cat(codes)
