"""Exact ids of labels: the tokens whose probabilities are stored, as log-odds against the decoded ones.

An exact id carries a level, by which its log-odds against all tokens that are not yet exact move from those that the
decoder has. Ids are stored as numbers: a rank among decoded probabilities would save bits, and name another token on
a machine that rounds otherwise.

Source: docs/format.md, "codec.*", `token_vqae`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

STEP = 0.5  # nats of log-odds per level
ZERO_LEVEL = 16  # stored level that leaves the log-odds unchanged
MAX_LEVEL = 15  # levels lie in -MAX_LEVEL .. MAX_LEVEL
LOW, HIGH = 1e-7, 1 - 1e-5  # range of a probability, relative to the tokens that are not yet exact, for the choice of ids
MIN_REST = 1e-9  # of the teacher's probability of all tokens that are not exact
MIN_WEIGHT = 1e-300


def add_exact(logits: Tensor, ids: Tensor, levels: Tensor, counts: Tensor) -> Tensor:
    """Logits [n, V] with the exact ids at their stored log-odds; changed in place. All other tokens keep their ratios.

    The log-odds of an id are against the tokens after it in the label's order and those that are not exact, so no
    probability is subtracted from another, which would lose its digits.

    Args:
        ids: [n, M] int64; levels: [n, M] as stored; counts: [n] ids of each label.
    """
    if not ids.shape[1]:
        return logits
    used = torch.arange(ids.shape[1], device=ids.device) < counts[:, None]
    row, column = used.nonzero(as_tuple=True)
    at = row, ids[row, column]
    own = torch.full(ids.shape, -torch.inf, dtype=logits.dtype, device=logits.device)
    own[row, column] = logits[at]
    logits[at] = -torch.inf
    rest = torch.logsumexp(logits, 1, keepdim=True)  # of the tokens that are not exact
    others = torch.cat([rest, own.flip(1)], 1).logcumsumexp(1)[:, :-1].flip(1)  # of these and the ids after each
    odds = own - others + STEP * (levels - ZERO_LEVEL)
    left = F.logsigmoid(-odds).cumsum(1)  # log share of the tokens that are not yet exact after each id
    exact = rest - left[:, -1:] + left - F.logsigmoid(-odds) + F.logsigmoid(odds)
    logits[at] = exact[row, column]
    return logits


def choose_ids(teacher: Tensor, weight: Tensor, tail: Tensor, divergence: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose ids one after the other, each the candidate that removes most KL.

    Weights are added and never subtracted, so that log-odds are exact where one token has nearly all probability.

    Args:
        teacher: [n, c] probabilities of candidate ids under the teacher.
        weight: [n, c] their decoded probabilities, up to a factor per label; 0 for a repeated candidate.
        tail: [n] the same of all tokens that are no candidates, together.
        divergence: [n] KL(teacher || decoded) over all tokens.
        count: M, ids to choose; at most the number of candidates that have a weight.

    Returns:
        [n, M + 1] KL with the first 0 .. M ids exact, rounding of levels included; [n, M] indices of the candidates
        chosen; [n, M] levels, -MAX_LEVEL .. MAX_LEVEL.
    """
    p_all, free = teacher.double(), weight.double().clamp_min(MIN_WEIGHT) * (weight > 0)
    tail, all_weight = tail.double().clamp_min(MIN_WEIGHT), (tail.double().clamp_min(MIN_WEIGHT) + free.sum(1))
    log_ratio = p_all.clamp_min(MIN_WEIGHT).log() - (free.clamp_min(MIN_WEIGHT).log() - all_weight.log()[:, None])
    teacher_rest, left, of_exact, gone = (tail.new_full(tail.shape, value) for value in (1.0, 0.0, 0.0, 0.0))
    kls, chosen, levels = [divergence.double()], [], []
    for _ in range(count):
        rest = tail + free.sum(1)
        best = _gain(p_all / teacher_rest[:, None], free / rest[:, None]).argmax(1, keepdim=True)
        p, own = p_all.gather(1, best)[:, 0], free.gather(1, best)[:, 0]
        free = free.scatter(1, best, 0.0)
        others = tail + free.sum(1)
        odds, target = own.log() - others.log(), torch.logit((p / teacher_rest).clamp(LOW, HIGH))
        level = ((target - odds) / STEP).round().clamp(-MAX_LEVEL, MAX_LEVEL)
        odds = odds + STEP * level
        of_exact = of_exact + p * (p.clamp_min(MIN_WEIGHT).log() - left - F.logsigmoid(odds))
        left = left + F.logsigmoid(-odds)
        gone = gone + p * log_ratio.gather(1, best)[:, 0]
        teacher_rest = (teacher_rest - p).clamp_min(MIN_REST)
        kls.append(of_exact + divergence - gone - teacher_rest * (left + all_weight.log() - others.log()))
        chosen.append(best[:, 0])
        levels.append(level.long())
    return torch.stack(kls, 1), torch.stack(chosen, 1), torch.stack(levels, 1)


def _gain(p: Tensor, q: Tensor) -> Tensor:
    """[n, c] KL that a candidate removes if its probability p under the teacher replaces q; -1 where q is 0."""
    p, q, taken = p.clamp(LOW, HIGH), q.clamp(LOW, HIGH), q <= 0
    gain: Tensor = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    return gain.masked_fill_(taken, -1.0)
