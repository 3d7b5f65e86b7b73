"""The stages of a fit: train the prior, initialize the codebooks, choose codes, train all weights on them."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vqlabel.codecs.hidden_labels import HiddenLabels
from vqlabel.codecs.token_vqae.choose import Choices, TokenSearch, search_rows
from vqlabel.codecs.token_vqae.config import TokenVqaeConfig
from vqlabel.codecs.token_vqae.decoder import TokenDecoder
from vqlabel.codecs.vqae.fit.kmeans import fit_codebooks
from vqlabel.metrics.factored import chunk_rows, factored_kl

BATCH_TOKENS = 2048  # of a training step
LEARNING_RATE, CODE_RATE = 2e-3, 0.02  # peaks, of the prior and of the codebooks
WARM_UP = 30  # steps


class Documents(NamedTuple):
    """Documents one after the other."""

    tokens: Tensor  # [T] int64
    lengths: Tensor  # [D] int64 tokens of each

    @property
    def document(self) -> Tensor:
        """[T] index of the document of each token."""
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=self.tokens.device), self.lengths)

    @property
    def has_row(self) -> Tensor:
        """[T] whether a token is followed by one of its document, whose distribution is a label."""
        document = self.document
        return torch.cat([document[:-1] == document[1:], document.new_zeros(min(1, len(document)), dtype=torch.bool)])

    def take(self, index: Tensor) -> "tuple[Documents, Tensor]":
        """The documents `index`, and the indices of their labels among all labels."""
        ends = self.lengths.cumsum(0)
        spans = [torch.arange(int(ends[i] - self.lengths[i]), int(ends[i])) for i in index]
        first_label = ends - self.lengths - torch.arange(len(ends))
        labels = [int(first_label[i]) + torch.arange(int(self.lengths[i]) - 1) for i in index]
        return Documents(self.tokens[torch.cat(spans)], self.lengths[index]), torch.cat(labels)


def predict(decoder: TokenDecoder, documents: Documents) -> Tensor:
    """[n, d_h] latents of the prior for all labels of some documents; zeros without a prior."""
    if decoder.prior is None:
        return decoder.out.new_zeros(int(documents.has_row.sum()), len(decoder.out))
    document = documents.document
    latent: Tensor = decoder.prior(documents.tokens, document, decoder.out)
    return latent[documents.has_row[:-1]]


def batches(documents: Documents, order: Tensor, tokens: int = BATCH_TOKENS) -> Iterator[Tensor]:
    """Groups of document indices, in `order`, of about `tokens` tokens each."""
    group, size = [], 0
    for i in order.tolist():
        group.append(i)
        size += int(documents.lengths[i])
        if size >= tokens:
            yield torch.tensor(group)
            group, size = [], 0
    if group:
        yield torch.tensor(group)


def fisher(labels: HiddenLabels, out: Tensor) -> tuple[Tensor, Tensor]:
    """Mean Fisher matrix [d_h, d_h] of latents under the teacher, and the trace of the matrix of each label, [n]."""
    mean_p, moment, traces = out.new_zeros(out.shape[1]), out.new_zeros(len(out), len(out)), []
    square = out.square().sum(0)
    for start in range(0, len(labels), size := chunk_rows(out.shape[1])):
        p = labels.probs(slice(start, start + size))
        mean = p @ out.T
        mean_p += p.sum(0)
        moment += mean.T @ mean
        traces.append(p @ square - mean.square().sum(1))
    n = len(labels)
    return (out * (mean_p / n)) @ out.T - moment / n, torch.cat(traces)


Report = Callable[[str, int, int, float], None]  # stage, step, steps, loss


def train(
    decoder: TokenDecoder,
    documents: Documents,
    labels: HiddenLabels,
    *,
    epochs: int,
    seed: int,
    report: Report,
    stage: str,
    stored: Tensor | None = None,
    metric: Tensor | None = None,
    target: Tensor | None = None,
    rate: float = 1.0,
    parts: Sequence[str] = ("prior", "codebook", "bias"),
    prefix: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> None:
    """Minimise KL, or with `metric` the squared error to `target` [n, d_h], of the labels decoded from prior and codes.

    Args:
        stored: [n, m] codes; None: the prior alone.
        prefix: labels -> [b] codes of each that are decoded; default: a random number.
    """
    generator = torch.Generator().manual_seed(seed)
    named = {name: p for name, p in decoder.named_parameters() if name.split(".")[0] in parts}
    for name, p in decoder.named_parameters():
        p.requires_grad_(name in named)
    codes_group = [p for name, p in named.items() if name == "codebook"]
    others = [p for name, p in named.items() if name != "codebook"]
    groups = [{"params": others, "lr": rate * LEARNING_RATE}, {"params": codes_group, "lr": rate * CODE_RATE, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98), weight_decay=0.01)
    peaks = [group["lr"] for group in optimizer.param_groups]
    per_epoch = sum(1 for _ in batches(documents, torch.arange(len(documents.lengths))))
    steps, step = epochs * per_epoch, 0
    slots = len(decoder.codebook)
    for _ in range(epochs):
        running = []
        for index in batches(documents, torch.randperm(len(documents.lengths), generator=generator)):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * min(1, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * min(1, step / steps)))
            part, rows = documents.take(index)
            if "prior" in parts:
                z = predict(decoder, part)
            else:
                with torch.no_grad():
                    z = predict(decoder, part)
            own = labels[rows]
            if stored is not None:
                count = (
                    torch.randint(0, slots + 1, (len(rows),), generator=generator) if prefix is None else prefix(rows, generator)
                )
                z = z + decoder.code_latent(stored[rows], count)
            if metric is not None and target is not None:
                error = z - target[rows]
                loss = ((error @ metric) * error).sum(1).mean()
            else:
                loss = factored_kl(z, decoder.out, decoder.bias, own.probs)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(others, 1.0)
            optimizer.step()
            step += 1
            running.append(float(loss))
            if step % 20 == 0:
                report(stage, step, steps, sum(running[-20:]) / 20)


@torch.no_grad()
def choose(
    config: TokenVqaeConfig, decoder: TokenDecoder, documents: Documents, labels: HiddenLabels, report: Report, stage: str = "codes"
) -> Choices:
    """`TokenSearch` for all labels of documents."""
    search, parts, size = TokenSearch(config, decoder), [], search_rows(config.classes)
    groups = list(batches(documents, torch.arange(len(documents.lengths))))
    for done, index in enumerate(groups):
        part, rows = documents.take(index)
        z, own = predict(decoder, part), labels[rows]
        parts += [search(z[i : i + size], own.probs(slice(i, i + size))) for i in range(0, len(z), size)]
        if done % 20 == 0:
            report(stage, done, len(groups), float(parts[-1].kl[:, -1, 0].mean()))
    return Choices.join(parts)


@torch.no_grad()
def initialize_codebooks(decoder: TokenDecoder, documents: Documents, labels: HiddenLabels, latents: Tensor, seed: int) -> None:
    """Residual k-means of the latents' distances from the prior, in the mean Fisher metric."""
    metric, _ = fisher(labels, decoder.out)
    size = len(metric)
    root = torch.linalg.cholesky(metric + 1e-4 * metric.trace() / size * torch.eye(size))
    order = torch.arange(len(documents.lengths))
    predicted = torch.cat([predict(decoder, documents.take(index)[0]) for index in batches(documents, order)])
    books = fit_codebooks(
        (latents - predicted) @ root,
        len(decoder.codebook),
        decoder.codebook.shape[1],
        "residual",
        torch.Generator().manual_seed(seed),
    )
    decoder.codebook.data.copy_(books @ torch.linalg.inv(root))
