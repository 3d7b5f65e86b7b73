"""Training of a decoder on the labels of documents, by KL or by squared error in the latent."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqlabel.codecs.hidden_labels import HiddenLabels
from vqlabel.codecs.token_vqae.decoder import TokenDecoder
from vqlabel.codecs.token_vqae.sample import TextSplit
from vqlabel.metrics.factored import chunk_rows, factored_kl
from vqlabel.progress import Progress

MAX_BATCH, MIN_BATCH = 512, 64  # tokens of a training step
MIN_STEPS = 60  # steps per epoch before batches grow beyond MIN_BATCH
MAX_EPOCHS = 20
HELD_OUT_LABELS = 4096  # on which the weights of an epoch are judged
LEARNING_RATE = 2e-3  # the highest one; of weights that make latents, per unit of latents
CODE_RATE = 0.05  # the same of codebooks, relative to the root mean square of each slot's vectors
WARM_UP = 30  # steps
MAKE_LATENTS = ("prior.outside", "prior.gate")  # weights whose output is a latent
REPORT_STEPS = 20
MIN_WEIGHT = 1e-4  # of a label, relative to the mean


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training.

    Attributes:
        name: for progress.
        visits: labels that are trained on, counted as often as they are.
        seed: of the order and of the numbers of codes.
        parts: top-level names of the decoder's weights that are trained.
        unit: root mean square of the latents, in which learning rates are measured: latents of one teacher may be a
            hundred times those of another.
        rate: factor on the learning rates.
        codes: [n, m] of the labels; None: the prior alone is trained.
        counts: [n] numbers of codes that are decoded; None: a random number at every step.
        metric: [d_h, d_h] and `target` [n, d_h]: the loss is the squared error to the target in this metric; None: KL.
    """

    name: str
    visits: int
    seed: int
    parts: Sequence[str]
    unit: float
    rate: float = 1.0
    codes: Tensor | None = None
    counts: Tensor | None = None
    metric: Tensor | None = None
    target: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Saving:
    """How a training is saved: `save` stores its state, `resumed` is that of an interrupted one."""

    save: Callable[[dict[str, Any]], None] = lambda _: None
    resumed: dict[str, Any] | None = None


def train(
    decoder: TokenDecoder,
    split: TextSplit,
    stage: Stage,
    progress: Progress,
    held_out: TextSplit | None = None,
    saving: Saving | None = None,
) -> None:
    """Train `decoder` in place.

    Args:
        saving: with a resumed state, `decoder` has the weights of that time.
        held_out: keeps the weights of the epoch with the least KL of the prior's labels on these documents; None: of
            the last epoch.
    """
    generator, order = torch.Generator().manual_seed(stage.seed), np.random.default_rng(stage.seed)
    weights = {name: weight for name, weight in decoder.named_parameters() if name.split(".")[0] in stage.parts}
    for name, weight in decoder.named_parameters():
        weight.requires_grad_(name in weights)
    optimizer = _Optimizer(weights, stage)
    documents, labels = split.documents, len(split.labels)
    epochs = max(1, min(MAX_EPOCHS, round(stage.visits / max(1, labels))))
    batch = max(MIN_BATCH, min(MAX_BATCH, labels // MIN_STEPS))
    steps = epochs * sum(1 for _ in documents.groups(np.arange(len(documents)), batch))
    saving, losses = saving or Saving(), deque[float](maxlen=REPORT_STEPS)
    best, step, done, judged = _Best(decoder, weights, held_out), 0, 0, 0
    if saving.resumed is not None:
        done, judged = saving.resumed["steps"], saving.resumed["epochs"]
        generator.set_state(saving.resumed["generator"])
        optimizer.load(saving.resumed["optimizer"])
        best.load(saving.resumed["best"])

    def save() -> None:
        state = {"steps": step, "epochs": judged, "generator": generator.get_state()}
        saving.save({**state, "optimizer": optimizer.state(), "best": best.state()})

    for epoch in range(epochs):
        for index in documents.groups(order.permutation(len(documents)), batch):
            step += 1
            if step <= done:
                continue
            loss = _loss(decoder, split, index, stage, generator)
            optimizer.step(loss, min(1, step / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * min(1, (step - 1) / steps))))
            losses.append(float(loss.detach()))
            if step % REPORT_STEPS == 0:
                save()
                progress(stage.name, step, steps, {"loss": float(np.mean(losses))})
        if epoch >= judged:
            best.keep()
            judged = epoch + 1
            save()
    best.restore()
    decoder.requires_grad_(False)


class _Optimizer:
    """AdamW, whose steps are in proportion to what a weight makes: latents, or the vectors of a slot."""

    def __init__(self, weights: Mapping[str, nn.Parameter], stage: Stage) -> None:
        self.codebook = weights.get("codebook")
        self.others = [weight for name, weight in weights.items() if name != "codebook"]
        latents = [weight for name, weight in weights.items() if name.startswith(MAKE_LATENTS)]
        inner = [weight for name, weight in weights.items() if name != "codebook" and not name.startswith(MAKE_LATENTS)]
        vectors = [] if self.codebook is None else [self.codebook]
        self.slot_rms = None if self.codebook is None else self.codebook.detach().square().mean((1, 2), keepdim=True).sqrt()
        self.rates = [stage.rate * LEARNING_RATE, stage.rate * LEARNING_RATE * stage.unit, stage.rate * CODE_RATE]
        groups: list[dict[str, Any]] = [{"params": inner}, {"params": latents}, {"params": vectors, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)

    def step(self, loss: Tensor, factor: float) -> None:
        """Take a step at `factor` of the learning rates."""
        for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
            group["lr"] = factor * rate
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.others, 1.0)
        if self.codebook is None or self.slot_rms is None:
            self.adam.step()
            return
        before = self.codebook.detach().clone()
        self.adam.step()
        with torch.no_grad():
            self.codebook.copy_(torch.lerp(before, self.codebook, self.slot_rms))

    def state(self) -> dict[str, Any]:
        """What `load` loads."""
        return {"adam": self.adam.state_dict(), "slot_rms": self.slot_rms}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.adam.load_state_dict(state["adam"])
        if self.codebook is not None:
            self.slot_rms = state["slot_rms"].to(self.codebook.device)


class _Best:
    """The trained weights of the best epoch by held-out KL, without codes."""

    def __init__(self, decoder: TokenDecoder, trained: Mapping[str, nn.Parameter], held_out: TextSplit | None) -> None:
        self.decoder, self.trained = decoder, trained
        self.split = None if held_out is None else first_documents(held_out, HELD_OUT_LABELS)
        self.least, self.copies = math.inf, dict[str, Tensor]()

    def keep(self) -> None:
        """Keep the present weights if they are the best."""
        if self.split is not None and (kl := prior_kl(self.decoder, self.split)) < self.least:
            self.least, self.copies = kl, {name: weight.detach().clone() for name, weight in self.trained.items()}

    def state(self) -> dict[str, Any]:
        """What `load` loads."""
        return {"least": self.least, "copies": self.copies}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.least, self.copies = state["least"], state["copies"]

    @torch.no_grad()
    def restore(self) -> None:
        """Return to the best weights."""
        for name, copy in self.copies.items():
            self.trained[name].copy_(copy)


def first_documents(split: TextSplit, labels: int) -> TextSplit:
    """The first documents, with about `labels` labels."""
    count = 1 + int(np.searchsorted(np.cumsum(split.documents.lengths - 1), labels))
    return split.take(np.arange(min(count, len(split.documents))))[0]


def random_documents(split: TextSplit, labels: int, seed: int) -> tuple[TextSplit, Tensor]:
    """Random documents, with about `labels` labels, and the indices of these among all labels."""
    order = np.random.default_rng(seed).permutation(len(split.documents))
    return split.take(order[: max(1, int(np.searchsorted(np.cumsum(split.documents.lengths[order] - 1), labels)))])


@torch.no_grad()
def prior_kl(decoder: TokenDecoder, split: TextSplit, latent: Tensor | None = None) -> float:
    """Mean KL of the labels that the prior predicts, or of those of one `latent` [d_h] for all."""
    z = decoder.predict(split.documents) if latent is None else latent.expand(len(split.labels), -1)
    return float(factored_kl(z, decoder.out, decoder.bias, split.labels.probs))


def _loss(
    decoder: TokenDecoder,
    split: TextSplit,
    index: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    stage: Stage,
    generator: torch.Generator,
) -> Tensor:
    """Mean loss of the labels of the documents `index`."""
    part, rows = split.take(index)
    with torch.set_grad_enabled("prior" in stage.parts):
        latent = decoder.predict(part.documents)
    if stage.codes is not None:
        slots = len(decoder.codebook)
        count = torch.randint(0, slots + 1, (len(rows),), generator=generator).to(rows.device)
        if stage.counts is not None:
            count = stage.counts[rows]
        latent = latent + decoder.code_latent(stage.codes[rows], count)
    if stage.metric is not None and stage.target is not None:
        error = latent - stage.target[rows]
        return ((error @ stage.metric) * error).sum(1).mean()
    return factored_kl(latent, decoder.out, decoder.bias, part.labels.probs)


@torch.no_grad()
def mean_fisher(labels: HiddenLabels, out: Tensor) -> Tensor:
    """[d_h, d_h] Fisher matrix of a label's latent under the teacher's distribution, averaged over labels.

    Squared error in this metric is twice the KL, to second order.

    Args:
        out: [d_h, V] output map.
    """
    mean_p, moment = out.new_zeros(out.shape[1]), out.new_zeros(len(out), len(out))
    for start in range(0, len(labels), size := chunk_rows(out.shape[1])):
        p = labels.probs(slice(start, start + size))
        mean = p @ out.T
        mean_p += p.sum(0)
        moment += mean.T @ mean
    return (out * (mean_p / len(labels))) @ out.T - moment / len(labels)


@torch.no_grad()
def label_weights(labels: HiddenLabels, out: Tensor) -> Tensor:
    """[n] trace of each label's Fisher matrix: how much KL an error in its latent costs, on average over directions."""
    square, traces = out.square().sum(0), []
    for start in range(0, len(labels), size := chunk_rows(out.shape[1])):
        p = labels.probs(slice(start, start + size))
        traces.append(p @ square - (p @ out.T).square().sum(1))
    trace = torch.cat(traces)
    return trace.clamp_min(MIN_WEIGHT * float(trace.mean()))
