"""Documents and labels that students of language models learn from and are judged on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqlabel.codecs.hidden_labels import HiddenLabels
from vqlabel.labels.text.documents import Documents
from vqlabel.progress import Progress, silent
from vqlabel.report.text.student import ProbsOf, StudentSchedule, StudentScores, judge, train
from vqlabel.report.text.student_network import CausalStudent


@dataclass(frozen=True)
class StudentCorpus:
    """Documents and the teacher's labels of their rows."""

    documents: Documents
    labels: HiddenLabels

    def hard(self, rows: Tensor) -> Tensor:
        """[b] -> [b, V]: probability 1 of the token that follows in the text."""
        gold = torch.from_numpy(self.documents.next_tokens)[rows]
        return torch.zeros(len(rows), self.labels.shape[1]).scatter_(1, gold[:, None], 1.0)

    def dense(self, rows: Tensor) -> Tensor:
        """[b] -> [b, V]: the teacher's probabilities."""
        return self.labels.probs(rows)

    def cut(self, tokens: int) -> "StudentCorpus":
        """The documents in pieces of at most so many tokens, with the same labels in the same order: the last token of
        a piece is the first of the next one.
        """
        pieces = [piece for document in self._texts() for piece in _pieces(document, tokens)]
        return StudentCorpus(Documents.of(pieces), self.labels)

    def _texts(self) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
        return np.split(self.documents.tokens, np.cumsum(self.documents.lengths)[:-1])


def train_and_judge(
    student: CausalStudent,
    learn: StudentCorpus,
    held_out: StudentCorpus,
    labels: ProbsOf,
    schedule: StudentSchedule,
    *,
    progress: Progress = silent,
) -> tuple[StudentScores, list[float]]:
    """Train a student in place from labels of `learn`. Returns its scores on `held_out`, and the loss of each step."""
    losses = train(student, learn.documents, labels, schedule, progress=progress)
    return judge(student, held_out.documents, held_out.dense), losses


def _pieces(
    document: "np.ndarray[tuple[int], np.dtype[np.int64]]", tokens: int
) -> list["np.ndarray[tuple[int], np.dtype[np.int64]]"]:
    last = max(1, len(document) - 1)
    return [document[start : start + tokens] for start in range(0, last, tokens - 1)]
