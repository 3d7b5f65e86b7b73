"""Training or held-out labels on the device of the fit, with soft targets, mean logits and prior inputs."""

import dataclasses

import torch
from torch import Tensor

from vqlabel.codecs.sample import LabelSample
from vqlabel.codecs.vqae.exact_top import mask, rest_mass
from vqlabel.codecs.vqae.prior import PriorInputs, read_prior_inputs
from vqlabel.codecs.vqae.single_rate import SingleRateVqae
from vqlabel.metrics.distortion import as_logits, logit_means, soft_target, temperature_weight
from vqlabel.metrics.sigmoid import binary_soft_target

CHUNK = 2048  # labels processed at a time; memory grows with it
# Limits of a label's mean logit, in standard deviations of a logit, below which the few bits of the output map hold it:
MAX_LEVEL_SPREAD = 0.25  # its standard deviation over labels
MAX_LEVEL_DISTANCE = 32.0  # the magnitude of its mean over labels


@dataclasses.dataclass
class Split:
    """Training or held-out labels.

    Attributes:
        labels: [n, C] in the dump's domain.
        target_fp16: [n, C] soft targets divided by `target_unit`, which scales the largest possible one to 2^15: fp16
            keeps probabilities down to 1e-12. None: computed from `labels` when needed.
        target_unit: soft target that a 1 of `target_fp16` stands for.
        mean_logit: [n] mean over classes, which softmax ignores; see `_mean_logit`.
        prior_inputs: None without a prior.
        exact_ids: [n, M] exact classes, which slots need not code; None without exact classes.
        rest_mass: [n] probability of the other classes; None without exact classes.
        codes: slots -> [n, slots] codes chosen with that many slots alone; at a variable rate [n, 1 + m].
        temperatures: of the loss, if `target_fp16` is None: sigmoid probabilities near 1 exceed the digits of fp16.
    """

    labels: Tensor
    target_fp16: Tensor | None
    target_unit: float
    mean_logit: Tensor
    prior_inputs: PriorInputs | None
    exact_ids: Tensor | None
    rest_mass: Tensor | None
    codes: dict[int, Tensor]
    temperatures: tuple[float, ...] = ()

    def target(self, index: Tensor) -> Tensor:
        """[b, C] float32 `Likelihood.soft_target` of the labels `index` [b]."""
        if self.target_fp16 is None:
            return binary_soft_target(self.labels[index].float(), self.temperatures)
        return self.target_fp16[index].float().mul_(self.target_unit)

    def without_exact(self, logits: Tensor, index: Tensor) -> Tensor:
        """Logits [b, C] of the labels `index` [b], their exact classes masked."""
        return logits if self.exact_ids is None else mask(logits, self.exact_ids[index])

    def chunks(self, limit: int | None = None) -> tuple[Tensor, ...]:
        """Indices of all labels, or of the first `limit`, CHUNK at a time."""
        count = len(self.labels) if limit is None else min(limit, len(self.labels))
        chunks: tuple[Tensor, ...] = torch.arange(count, device=self.labels.device).split(CHUNK)
        return chunks

    def no_codes(self, index: Tensor) -> Tensor:
        """[b, 0] codes for the labels `index` [b]."""
        return torch.empty(len(index), 0, dtype=torch.long, device=self.labels.device)


def make_split(codec: SingleRateVqae, sample: LabelSample, name: str, device: torch.device) -> Split:
    """The labels `name`, "train" (training) or "held_out" (held out), of `sample`, on `device` and without codes."""
    labels: Tensor = getattr(sample, name).to(device)
    config = codec.config
    inputs = None if config.prior is None else read_prior_inputs(config.prior, getattr(sample, name + "_context"), device)
    if config.domain == "sigmoid":
        return Split(labels, None, 1.0, _mean_logit(labels, config.domain), inputs, None, None, {}, config.temperature)
    unit = sum(temperature_weight(t) * t for t in config.temperature) / 2**15
    targets, exact_ids, masses = [], [], []
    for chunk in labels.split(CHUNK):
        logits = as_logits(chunk, config.domain)
        if config.head:
            exact_ids.append(logits.topk(config.head, 1).indices)
            masses.append(rest_mass(logits, exact_ids[-1], config.temperature))
            logits = mask(logits, exact_ids[-1])
        targets.append((soft_target(logits, config.temperature) / unit).half())
    ids, mass = (torch.cat(exact_ids), torch.cat(masses)) if config.head else (None, None)
    return Split(labels, torch.cat(targets), unit, _mean_logit(labels, config.domain), inputs, ids, mass, {})


def _mean_logit(labels: Tensor, domain: str) -> Tensor:
    """[n] `logit_means` that the decoder is trained to reproduce; one number for all labels if they exceed
    MAX_LEVEL_SPREAD or MAX_LEVEL_DISTANCE, because the output map's few bits would then hold little else.

    That number is their mean; beyond MAX_LEVEL_DISTANCE it is the level that puts a label's largest logit at 0 on
    average, where fp16 and bf16 are finest.
    """
    level = logit_means(labels, domain)
    level_std, logit_std = level_spread(labels, domain)
    near = float(level.mean().abs()) <= MAX_LEVEL_DISTANCE * logit_std
    if near and level_std <= MAX_LEVEL_SPREAD * logit_std:
        return level
    return torch.full_like(level, float(level.mean() if near else (level - labels.float().amax(1)).mean()))


def level_spread(labels: Tensor, domain: str) -> tuple[float, float]:
    """Standard deviation over labels of their mean logit, and that of a class's logit over the first CHUNK labels."""
    logit_std = as_logits(labels[:CHUNK], domain).std(0, correction=0).mean()
    return float(logit_means(labels, domain).std(correction=0)), float(logit_std)
