"""A codec that was fitted to a budget -> the codec of the k largest classes, where it has less KL in as many bytes.

A vqae has parts of a fixed size: with few labels, or at rates so high that a label's largest classes are nearly all of
it, the bytes are worth more as classes. Only probabilities are replaced: logits also serve students at T = 20, where k
of 1,000 classes have few percent of the probability, and students of squared error.
"""

import torch
from torch import Tensor

from vqlabel.codecs import LabelCodec, LabelSample, fit_codec
from vqlabel.codecs.budget import budget_of, code_bits_within
from vqlabel.codecs.topk.config import TopkConfig
from vqlabel.config import FitConfig
from vqlabel.metrics.distortion import as_logits, temperature_weight
from vqlabel.workflows.fit_report import CHUNK, measure

VALUE_BITS = 16  # of a kept class, besides its id
# Options of a fit that choose a codec: the codec itself, and all that top-k labels do not have.
CHOICES = (
    "codec", "bits", "slots", "variable_rate", "codebook_size", "code_width", "latent", "weight_bits", "prior", "image_width", "hidden",
    "exact_classes", "gain",
)  # fmt: skip


def topk_if_better(codec: LabelCodec, sample: LabelSample, config: FitConfig) -> tuple[LabelCodec, FitConfig, str] | None:
    """The codec of as many classes as fit into the budget, its configuration, and the reason in a sentence, if its
    held-out KL is lower.

    None: it is not; or the user chose the codec or an option of it, or has no budget; or the labels are not
    probabilities of all classes.
    """
    if any(getattr(config, name) != getattr(FitConfig(), name) for name in CHOICES):
        return None
    labels = sample.total or len(sample.train) + len(sample.held_out)
    budget = budget_of(config, labels, sample.classes)
    if budget is None or sample.domain != "probs" or sample.support is not None:
        return None
    class_bits = VALUE_BITS + TopkConfig(classes=sample.classes, domain=sample.domain, k=1).id_bits
    k = min(code_bits_within(budget, labels) // class_bits, sample.classes)
    if k < 1:
        return None
    temperatures = codec.config.temperatures
    figures = measure(codec.calibrated(), sample, "held_out", temperatures)
    kl = sum(temperature_weight(t) * figures[f"kl_T{t:g}"] for t in temperatures)
    kl_of_topk = sum(temperature_weight(t) * top_k_kl(sample, k, t) for t in temperatures)
    if kl_of_topk >= kl:
        return None
    reason = (
        f"--codec topk: the {k} largest classes of a label fit into the budget and have a held-out KL of {kl_of_topk:.3f}, a vqae has {kl:.3f} "
        "(--codec vqae stores it all the same)"
    )
    topk = FitConfig(codec="topk", slots=k, temperature=config.temperature, seed=config.seed, device=config.device)
    return fit_codec(sample, topk), topk, reason


@torch.inference_mode()
def top_k_kl(sample: LabelSample, k: int, temperature: float) -> float:
    """Mean KL of held-out labels to their k largest probabilities, in the worse of two directions; nats, times T^2.

    Students re-normalise over k classes, and KL(raw || decoded) is infinite. So it is computed with a flat tail, the
    best that a student could fill in; KL(decoded || raw) is -log of the probability of the k classes.
    """
    if k >= sample.classes:
        return 0.0
    totals = torch.zeros(2, dtype=torch.float64)
    for labels, _ in sample.steps("held_out", CHUNK):
        p = (as_logits(labels, sample.domain) / temperature).softmax(1)
        kept, tail = p.sort(1, descending=True).values.tensor_split([k], 1)
        flat_tail = _negative_entropy(tail) - _negative_entropy(tail.mean(1, keepdim=True)) * tail.shape[1]
        totals += torch.stack([flat_tail.sum(), -kept.sum(1).clamp(max=1).log().sum()])
    return temperature**2 * float(totals.max()) / max(1, len(sample.held_out))


def _negative_entropy(p: Tensor) -> Tensor:
    """[n, c] probabilities -> [n]: sum of p log p."""
    terms: Tensor = torch.special.xlogy(p, p)
    return terms.sum(1)
