"""Whether hidden states and head of a teacher give its predictions, and whether the corpus is of its tokenizer."""

import torch
import torch.nn.functional as F

from vqlabel.codecs.hidden_labels import OutputHead
from vqlabel.errors import BadInput, UsageError
from vqlabel.labels.text.checks import MIN_ROWS, measure_alignment, settle_norm
from vqlabel.labels.text.source import TextSource
from vqlabel.workflows.text.teacher_source import TeacherTextSource

CHECKED_TOKENS = 128  # of the first document, whose logits are compared
MAX_KL = {"F32": 1e-4}  # nats between a model's logits and those of its head, by the type of its hidden states
MAX_ROUNDED_KL = 1e-2  # the same of 16-bit types: models round their logits to them


def checked_source(source: TeacherTextSource, head: OutputHead) -> TextSource:
    """A teacher's source after a check of its hidden states; with the final norm applied, if they are from before it.

    Args:
        head: the teacher's, in memory.

    Raises:
        UsageError: head and hidden states of a model do not give its logits.
        BadInput: the labels of a sample fit its tokens worse than a unigram model does.
    """
    if source.teacher.model is None:
        return settle_norm(source, source.teacher.head)
    _check_logits(source, head)
    figures = measure_alignment(source, source.teacher.head)
    if figures.rows >= MIN_ROWS and not figures.stored.next < figures.unigram:
        raise BadInput(
            f"{source.path}: the mean cross-entropy of its tokens under teacher {source.teacher.name} is {figures.stored.next:.2f} nats on "
            f"{figures.rows} rows of {figures.documents} documents, but {figures.unigram:.2f} under a unigram model of the same tokens: the corpus is "
            "of another tokenizer than the teacher"
        )
    return source


def _check_logits(source: TeacherTextSource, head: OutputHead) -> None:
    """Raises UsageError unless the logits of a document's beginning are those of the model."""
    teacher = source.teacher
    assert teacher.model is not None
    document = int(source.corpus.distinct[0])
    tokens = source.corpus.read(document)[:CHECKED_TOKENS]
    ids = torch.from_numpy(tokens)
    model = teacher.model.logits(ids.to(teacher.device))
    if model.shape[1] < head.vocabulary:
        raise UsageError(
            f"teacher {teacher.name}: returns logits of {model.shape[1]} ids, but its head {teacher.head.name} in {teacher.head.path} has a "
            f"vocabulary of {head.vocabulary}; pass the model's own head"
        )
    own = F.log_softmax(model[:, : head.vocabulary].double(), 1)
    by_head = F.log_softmax(head.logits(teacher([tokens])[0]).double(), 1)
    kl = float((own.exp() * (own - by_head)).sum(1).mean())
    if not kl <= MAX_KL.get(source.about.dtype, MAX_ROUNDED_KL):
        costs = [float(F.nll_loss(logits[:-1], ids[1:])) for logits in (by_head, own)]
        raise UsageError(
            f"teacher {teacher.name}: on {source.corpus.name(document)}, its head {teacher.head.name} in {teacher.head.path} gives the tokens a mean "
            f"cross-entropy of {costs[0]:.4f} nats, and its own logits {costs[1]:.4f} (KL between them {kl:.4f}): the head is of another model, or "
            "the model does more than its head with its hidden states; pass the right head with --head, or the model as module:function"
        )
