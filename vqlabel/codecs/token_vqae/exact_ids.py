"""Exact ids of labels: the tokens whose probabilities are stored, as log-odds against the decoded ones.

An exact id carries a level, by which its log-odds against all tokens that are not yet exact move from those that the
decoder has. Ids are stored as numbers: a rank among decoded probabilities would save bits, and name another token on
a machine that rounds otherwise.

Source: docs/format.md, "codec.*", `token_vqae`.
"""

import torch
from torch import Tensor

STEP = 0.5  # nats of log-odds per level
ZERO_LEVEL = 16  # stored level that leaves the log-odds unchanged
MAX_LEVEL = 15  # levels lie in -MAX_LEVEL .. MAX_LEVEL
MIN_REST = 1e-6  # probability of all tokens that are not exact
LOW, HIGH = 1e-7, 1 - 1e-5  # range of a probability, relative to the tokens that are not yet exact, before log-odds are taken


def exact_probabilities(decoded: Tensor, levels: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """The probabilities of exact ids, and the factor on those of all other tokens.

    Args:
        decoded: [n, M] probabilities of the ids before any is exact.
        levels: [n, M] integers, 0 for unchanged log-odds.
        used: [n, M] whether a label has the id; its ids come first.

    Returns:
        [n, M] probabilities, 0 where unused; [n] factor.
    """
    decoded = torch.where(used, decoded.double(), 0.0)
    stored = torch.zeros_like(decoded)
    before, after = decoded.new_zeros(len(decoded)), decoded.new_zeros(len(decoded))  # mass of ids made exact so far
    for i in range(decoded.shape[1]):
        odds = torch.logit(relative(decoded[:, i], before)) + STEP * levels[:, i]
        stored[:, i] = torch.where(used[:, i], torch.sigmoid(odds) * (1 - after).clamp_min(MIN_REST), 0.0)
        before, after = before + decoded[:, i], after + stored[:, i]
    return stored, (1 - after).clamp_min(MIN_REST) / (1 - before).clamp_min(MIN_REST)


def relative(probability: Tensor, exact: Tensor) -> Tensor:
    """[n] probabilities relative to the mass that `exact` leaves, within LOW .. HIGH."""
    return (probability / (1 - exact).clamp_min(MIN_REST)).clamp(LOW, HIGH)


def add_exact(logits: Tensor, ids: Tensor, levels: Tensor, counts: Tensor) -> Tensor:
    """Logits [n, V] with the exact ids at their stored log-odds; changed in place.

    Args:
        ids: [n, M] int64; levels: [n, M] as stored; counts: [n] ids of each label.
    """
    if not ids.shape[1]:
        return logits
    used = torch.arange(ids.shape[1], device=ids.device) < counts[:, None]
    ids = torch.where(used, ids, 0)
    decoded = (logits.gather(1, ids) - torch.logsumexp(logits, 1, keepdim=True)).double().exp()
    stored, factor = exact_probabilities(decoded, levels.long() - ZERO_LEVEL, used)
    change = (stored / decoded.clamp_min(1e-300) / factor[:, None]).clamp_min(1e-300).log()
    return logits.scatter_add_(1, ids, torch.where(used, change, 0.0).to(logits.dtype))


def choose_ids(teacher: Tensor, decoded: Tensor, divergence: Tensor, count: int, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose ids one after the other, each the candidate that removes most KL.

    Args:
        teacher: [n, c] probabilities of candidate ids under the teacher.
        decoded: [n, c] the same as decoded.
        divergence: [n] KL(teacher || decoded) over all tokens.
        count: M, ids to choose.
        allowed: [n, c] which candidates may be chosen; at least M of every label.

    Returns:
        [n, M + 1] KL with the first 0 .. M ids exact, rounding of levels included; [n, M] indices of the candidates
        chosen; [n, M] levels.
    """
    n, dtype = len(teacher), torch.float64
    teacher, decoded = teacher.to(dtype), decoded.to(dtype)
    log_ratio = teacher.clamp_min(1e-30).log() - decoded.clamp_min(1e-30).log()
    free = allowed
    zero = torch.zeros(n, dtype=dtype, device=teacher.device)
    teacher_mass, before, after, of_exact, gone = zero, zero, zero, zero, zero
    kl = divergence.to(dtype)[:, None].repeat(1, count + 1)
    chosen = torch.zeros(n, count, dtype=torch.long, device=teacher.device)
    levels = torch.zeros_like(chosen)
    for i in range(count):
        p, q = relative(teacher.T, teacher_mass).T, relative(decoded.T, before).T
        gain = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        best = torch.where(free, gain, -1.0).argmax(1, keepdim=True)
        free = free.scatter(1, best, False)
        odds = torch.logit(q.gather(1, best)[:, 0])
        level = ((torch.logit(p.gather(1, best)[:, 0]) - odds) / STEP).round().clamp(-MAX_LEVEL, MAX_LEVEL)
        stored = torch.sigmoid(odds + STEP * level) * (1 - after).clamp_min(MIN_REST)
        own = teacher.gather(1, best)[:, 0]
        of_exact = of_exact + own * (own.clamp_min(1e-30).log() - stored.log())
        gone = gone + own * log_ratio.gather(1, best)[:, 0]
        teacher_mass, before, after = teacher_mass + own, before + decoded.gather(1, best)[:, 0], after + stored
        factor = (1 - after).clamp_min(MIN_REST) / (1 - before).clamp_min(MIN_REST)
        kl[:, i + 1] = of_exact + (kl[:, 0] - gone) - (1 - teacher_mass).clamp_min(0) * factor.log()
        chosen[:, i], levels[:, i] = best[:, 0], level.long()
    return kl, chosen, levels
