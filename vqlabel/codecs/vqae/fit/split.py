"""Seen or held-out labels of a sample, as fitting takes them: on its device, with what the loss needs of them."""

import dataclasses

import torch
from torch import Tensor

from vqlabel.codecs.sample import LabelSample
from vqlabel.codecs.vqae.exact_top import hide, rest_mass
from vqlabel.codecs.vqae.prior import PriorInputs, read_prior_inputs
from vqlabel.codecs.vqae.single_rate import SingleRateVqae
from vqlabel.metrics.binary import binary_soft_target
from vqlabel.metrics.distortion import as_logits, logit_means, soft_target, temperature_weight

CHUNK = 2048
MAX_LEVEL_SPREAD, MAX_LEVEL_DISTANCE = (
    0.25,
    32.0,
)  # of a label's mean over classes, in the usual spread of a logit: a map of few bits can say that


@dataclasses.dataclass
class Split:
    """Labels of the sample, seen or held out, as fitting takes them."""

    labels: Tensor  # [n, C] in the dump's domain
    halves: (
        Tensor | None
    )  # [n, C] `soft_target` over its largest possible value, times 2^15: fp16 keeps probabilities down to 1e-12
    unit: float  # what one of `halves` stands for
    level: Tensor  # [n] mean over classes, which softmax ignores: `_level`
    known: PriorInputs | None
    head: Tensor | None  # [n, M] classes that a head keeps exactly, and nothing else needs to say
    weight: Tensor | None  # [n] probability of the others
    # By rate: [n, j] codes of the first j slots, chosen for a codec that has no more; or [n, 1 + m], variable.
    codes: dict[int, Tensor]
    temperatures: tuple[
        float, ...
    ] = ()  # of the loss, where there are no halves: probabilities near 1 need more digits than these have

    def pull(self, at: Tensor) -> Tensor:
        """[b, C] float32 `Likelihood.soft_target` of the labels `at`."""
        if self.halves is None:
            return binary_soft_target(self.labels[at].float(), self.temperatures)
        return self.halves[at].float().mul_(self.unit)

    def visible(self, logits: Tensor, at: Tensor) -> Tensor:
        """Logits [b, C] of the labels `at`, without the classes that their heads keep."""
        return logits if self.head is None else hide(logits, self.head[at])

    def chunks(self, most: int | None = None) -> tuple[Tensor, ...]:
        """Indices of its labels, or of the first `most`, CHUNK at a time."""
        count = len(self.labels) if most is None else min(most, len(self.labels))
        chunks: tuple[Tensor, ...] = torch.arange(count, device=self.labels.device).split(CHUNK)
        return chunks

    def none(self, at: Tensor) -> Tensor:
        """No codes for the labels `at`: [n, 0]."""
        return torch.empty(len(at), 0, dtype=torch.long, device=self.labels.device)


def make_split(codec: SingleRateVqae, sample: LabelSample, name: str, device: torch.device) -> Split:
    """The part `name`, "seen" or "held", without codes."""
    labels: Tensor = getattr(sample, name).to(device)
    config = codec.config
    known = None if config.prior is None else read_prior_inputs(config.prior, getattr(sample, name + "_context"), device)
    if config.domain == "sigmoid":
        return Split(labels, None, 1.0, _level(labels, config.domain), known, None, None, {}, config.temperature)
    unit = sum(temperature_weight(t) * t for t in config.temperature) / 2**15
    halves, heads, weights = [], [], []
    for x in labels.split(CHUNK):
        logits = as_logits(x, config.domain)
        if config.head:
            heads.append(logits.topk(config.head, 1).indices)
            weights.append(rest_mass(logits, heads[-1], config.temperature))
            logits = hide(logits, heads[-1])
        halves.append((soft_target(logits, config.temperature) / unit).half())
    head, weight = (torch.cat(heads), torch.cat(weights)) if config.head else (None, None)
    return Split(labels, torch.cat(halves), unit, _level(labels, config.domain), known, head, weight, {})


def _level(labels: Tensor, domain: str) -> Tensor:
    """[n] `logit_means`, or one number for all where they differ so much from label to label, or lie so far from 0, that the map's few bits would
    go into them: their mean, or what puts the largest logit of a label at 0 on average, where halves and bf16 are finest.
    """
    level = logit_means(labels, domain)
    varies, spread = level_spread(labels, domain)
    near = float(level.mean().abs()) <= MAX_LEVEL_DISTANCE * spread
    if near and varies <= MAX_LEVEL_SPREAD * spread:
        return level
    return torch.full_like(level, float(level.mean() if near else (level - labels.float().amax(1)).mean()))


def level_spread(labels: Tensor, domain: str) -> tuple[float, float]:
    """Standard deviation of labels' mean over classes, and the usual one of a class about it."""
    usual = as_logits(labels[:CHUNK], domain).std(0, correction=0).mean()
    return float(logit_means(labels, domain).std(correction=0)), float(usual)
