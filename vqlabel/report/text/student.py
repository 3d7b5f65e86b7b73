"""Labels of language models -> the scores of a small student that learns from them alone, on documents that it has not
seen.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqlabel.errors import UsageError, require
from vqlabel.labels.text.documents import Documents
from vqlabel.metrics.factored import chunk_rows, chunked_loss
from vqlabel.metrics.token_distortion import TINY
from vqlabel.progress import Progress, silent
from vqlabel.report.text.student_network import CausalStudent

BINS = 15  # of the confidence, equally wide, for the calibration error
JUDGED_DOCUMENTS = 16  # at a time
PROGRESS_STEPS = 20  # training steps between two reports of progress

ProbsOf = Callable[[Tensor], Tensor]  # [b] int64 indices of labels, over all documents in order -> [b, V] probabilities


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentSchedule:
    """How a student is trained; two students of one schedule see the same documents in the same order.

    Raises:
        UsageError: a number is out of range.
    """

    passes: int = 1  # over all documents
    batch: int = 16  # documents per step; those that fill no step are left out of a pass
    learning_rate: float = 1e-3  # after the warm-up; then it falls linearly to 0
    warmup: int = 8  # steps
    weight_decay: float = 0.0
    seed: int = 0  # of the order

    def __post_init__(self) -> None:
        for name in ("passes", "batch", "warmup"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "must be above 0")
        require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "must be 0 or above")


class StudentScores(NamedTuple):
    """Of a student, over all labels of the documents that it is judged on."""

    kl: float  # KL(teacher || student), nats
    ce: float  # cross entropy of the token that follows in the text, nats
    ece: float  # expected calibration error, percent: of the confidence in the likeliest token, in BINS bins
    top1: float  # percent of labels whose likeliest token is the one that follows in the text


def train(
    student: CausalStudent,
    documents: Documents,
    probs_of: ProbsOf,
    schedule: StudentSchedule | None = None,
    *,
    progress: Progress = silent,
) -> list[float]:
    """Train a student in place from labels: the loss is the cross entropy with them, the optimizer AdamW.

    The gradient is that of KL(label || student); the label's entropy, whose logarithms take a quarter of a step, is not
    computed. Logits and labels exist for a chunk of rows at a time.

    Args:
        probs_of: the labels; is called once a step for each chunk.

    Returns:
        The loss of each step, nats per label.

    Raises:
        UsageError: no document has two tokens, or a token is outside the student's vocabulary.
    """
    schedule = schedule or StudentSchedule()
    batches = _Batches(documents, student.config.vocabulary)
    per_pass = max(1, len(batches) // schedule.batch)
    steps, losses = schedule.passes * per_pass, list[float]()
    optimizer = torch.optim.AdamW(
        student.parameters(), schedule.learning_rate, betas=(0.9, 0.95), weight_decay=schedule.weight_decay, fused=True
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / schedule.warmup) * (1 - step / steps))
    for order in _orders(len(batches), schedule, per_pass):
        losses.append(_step(student, *batches(order), probs_of, optimizer))
        rate.step()
        if len(losses) % PROGRESS_STEPS == 0 or len(losses) == steps:
            progress("student", len(losses), steps, {"loss": losses[-1]})
    return losses


@torch.no_grad()
def judge(student: CausalStudent, documents: Documents, probs_of: ProbsOf) -> StudentScores:
    """Scores of a student on documents, with the teacher's probabilities.

    Raises:
        UsageError: as `train`.
    """
    batches, next_tokens = _Batches(documents, student.config.vocabulary), torch.from_numpy(documents.next_tokens)
    out = student.out.contiguous()
    kl = ce = 0.0
    confidence, correct = list[Tensor](), list[Tensor]()
    for group in torch.arange(len(batches)).split(JUDGED_DOCUMENTS):
        tokens, inside, rows = batches(group)
        hidden = student(tokens)[inside]
        for part, chunk in zip(hidden.split(size := chunk_rows(out.shape[1])), rows.split(size), strict=True):
            p, log_q, gold = probs_of(chunk), F.log_softmax(part @ out, 1), next_tokens[chunk]
            kl += float(torch.linalg.vecdot(p, p.clamp_min(TINY).log_().sub_(log_q)).double().sum())
            ce -= float(log_q.gather(1, gold[:, None]).double().sum())
            largest, likeliest = log_q.max(1)
            confidence.append(largest.exp())
            correct.append((likeliest == gold).float())
    hits = torch.cat(correct)
    ece = calibration_error(torch.cat(confidence), hits)
    return StudentScores(kl / len(hits), ce / len(hits), 100 * ece, 100 * float(hits.mean()))


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599), in BINS equally wide bins of the confidence.

    Args:
        confidence: [n] in 0..1; correct: [n] 0 or 1.
    """
    bins = (confidence * BINS).long().clamp_max(BINS - 1)
    gap = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, (confidence - correct).double())
    return float(gap.abs().sum()) / max(1, len(confidence))


def _orders(documents: int, schedule: StudentSchedule, per_pass: int) -> Iterator[Tensor]:
    """The documents of each step."""
    generator = torch.Generator().manual_seed(schedule.seed)
    for _ in range(schedule.passes):
        order = torch.randperm(documents, generator=generator)
        for step in range(per_pass):
            yield order[step * schedule.batch : (step + 1) * schedule.batch]


def _step(
    student: CausalStudent, tokens: Tensor, inside: Tensor, rows: Tensor, probs_of: ProbsOf, optimizer: torch.optim.Optimizer
) -> float:
    """One step of training; its loss before the step."""
    hidden = student(tokens)[inside]
    loss = chunked_loss(
        hidden, student.out.T, None, torch.arange(len(rows)), lambda part, logits: soft_cross_entropy(logits, probs_of(rows[part]))
    )
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def soft_cross_entropy(logits: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over rows of the cross entropy with labels that sum to 1, and its gradient in the logits, q - p.

    Args:
        logits: [n, V]; probs: [n, V].

    Returns:
        a scalar; [n, V].
    """
    log_q = F.log_softmax(logits, 1)
    loss = -torch.dot(probs.flatten(), log_q.flatten())
    return loss, log_q.exp_().sub_(probs)


class _Batches:
    """Documents of two tokens or more -> padded inputs, and the labels that belong to them."""

    def __init__(self, documents: Documents, vocabulary: int) -> None:
        tokens, lengths = documents.tokens, documents.lengths
        low, high = int(tokens.min(initial=0)), int(tokens.max(initial=0))
        if low < 0 or high >= vocabulary:
            raise UsageError(
                f"token {low if low < 0 else high} of the documents is outside 0..{vocabulary - 1}, the student's vocabulary"
            )
        used = np.flatnonzero(lengths > 1)
        if not len(used):
            raise UsageError("no document has two tokens, so none has a label: a student cannot learn from them")
        self.tokens, self.rows = torch.tensor(tokens), torch.from_numpy(lengths[used] - 1)
        self.first_token = torch.from_numpy((lengths.cumsum() - lengths)[used])
        self.first_row = torch.from_numpy(((lengths - 1).cumsum() - (lengths - 1))[used])

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, documents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[b] documents -> inputs [b, L], all tokens but the last, padded; [b, L] bool, False where padded; [r] indices
        of the labels.
        """
        rows = self.rows[documents]
        position = torch.arange(int(rows.max()))
        inside = position < rows[:, None]
        tokens = self.tokens[(self.first_token[documents, None] + position).clamp_max(len(self.tokens) - 1)]
        return tokens, inside, (self.first_row[documents, None] + position)[inside]
