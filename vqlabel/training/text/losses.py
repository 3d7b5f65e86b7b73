"""Losses of a student on labels of a language model, without [batch, length, V] in float32."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.errors import UsageError, require
from vqlabel.metrics.factored import chunked_loss, cross_entropy, forward_kl, reverse_kl
from vqlabel.training.loss_checks import check_argument_type, check_temperature
from vqlabel.training.text.labels import TokenLabels

DIVERGENCES = {"forward": forward_kl, "reverse": reverse_kl}


def kd_loss(
    student: Tensor,
    head: Tensor | None,
    labels: TokenLabels,
    *,
    temperature: float = 1.0,
    ce_weight: float = 0.0,
    direction: str = "forward",
    bias: Tensor | None = None,
) -> Tensor:
    """Mean over labels of (1 - ce_weight) * T^2 * KL + ce_weight * CE, in nats.

    KL compares softmax(teacher's logits / T) with softmax(student's logits / T). CE is the cross entropy of the
    student, at temperature 1, with the token that follows in the text. T^2 makes the gradient's scale independent of T,
    as in Hinton et al. (2015) and DistillKit; TRL's and Liger's distillation losses are without it, so divide their
    weight of KL by T^2 here. (1 - ce_weight) and ce_weight are the weights of Liger's soft and hard loss (`beta`).

    The student's logits are student @ head.T + bias. They exist for a chunk of labels at a time, and so do the
    teacher's; the gradient is computed in the forward pass. A student that scales its logits or caps them (Cohere,
    Gemma 2) gives its logits instead, with head=None.

    A student may have more logits than the teacher has tokens, V' > V: the teacher gives the padded rows of its
    vocabulary the probability 0. If the student gives m to all tokens of probability 0 together, padded or of teacher's
    logits -inf, and has the distribution q of the others, then KL is

        KL(teacher || q) - log(1 - m)  for direction="forward": equal to KL(teacher || student)
        KL(q || teacher) - log(1 - m)  for direction="reverse": equal to KL(student || teacher) if m = 0; else infinite

    so that in both directions the student learns, at the same price, to give these tokens nothing. CE is over all V'.

    Args:
        student: hidden states [..., d] of a batch, of any floating type; with head=None, logits [..., V'].
        head: [V', d], the weight of the student's output head, such as `model.lm_head.weight`.
        labels: of the batch; the student's rows are those at `labels.position`, others have no gradient.
        temperature: T, above 0.
        ce_weight: 0..1.
        direction: "forward", KL(teacher || student), or "reverse", KL(student || teacher).
        bias: [V'] of the student's output head.

    Returns:
        a float32 scalar (float64 if the student is); 0, with a gradient of 0, if the batch has no labels.

    Raises:
        UsageError: a shape does not match, V' < V, a position is outside the batch or a token outside the vocabulary,
            tensors are on several devices, or an option is out of range.
    """
    check_temperature("temperature", temperature)
    check_argument_type("ce_weight", ce_weight, float)
    require(0 <= ce_weight <= 1, "ce_weight", ce_weight, "must be 0..1")
    check_argument_type("direction", direction, str)
    require(direction in DIVERGENCES, "direction", direction, "must be forward or reverse")
    _check_student(student, head, bias, labels)
    rows = student.reshape(-1, student.shape[-1])
    _check_index(len(rows), student.shape[-1] if head is None else len(head), labels)
    return chunked_loss(rows, head, bias, labels.position, _Distillation(labels, float(temperature), float(ce_weight), direction))


@dataclass(frozen=True)
class _Distillation:
    """The loss of a chunk of labels: its sum, and its gradient in the student's logits."""

    labels: TokenLabels
    temperature: float
    ce_weight: float
    direction: str

    def __call__(self, rows: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        t, weight = self.temperature, self.ce_weight
        teacher = self.labels.logits(rows).to(logits.dtype)
        log_p = F.log_softmax(teacher if t == 1 else teacher / t, 1)
        kl, error = DIVERGENCES[self.direction](logits if t == 1 else logits / t, log_p)
        loss, error = (1 - weight) * t * t * kl, error.mul_((1 - weight) * t)
        if weight:
            ce, ce_error = cross_entropy(logits, self.labels.next_tokens[rows])
            loss, error = loss + weight * ce, error.add_(ce_error, alpha=weight)
        return loss, error


def _check_student(student: Tensor, head: Tensor | None, bias: Tensor | None, labels: TokenLabels) -> None:
    """Refuse tensors whose shapes do not match, or that are on several devices."""
    check_argument_type("student", student, Tensor)
    check_argument_type("labels", labels, TokenLabels)
    is_valid = student.is_floating_point() and student.dim() >= 1
    require(
        is_valid, "student", f"{student.dtype} {list(student.shape)}", "must be floating-point hidden states [..., d], or logits"
    )
    if head is None:
        if bias is not None:
            raise UsageError("bias is given without a head; add it to the logits")
        logits = student.shape[-1]
    else:
        check_argument_type("head", head, Tensor)
        require(head.dim() == 2, "shape of head", list(head.shape), "must be [V', d], the weight of the student's output head")
        if student.shape[-1] != head.shape[1]:
            shapes = f"student has {student.shape[-1]} numbers per token (shape {list(student.shape)}), and head {list(head.shape)}"
            raise UsageError(
                f"{shapes} is of {head.shape[1]}; give the hidden states that the head multiplies, or logits and head=None"
            )
        logits = len(head)
    if logits < labels.classes:
        raise UsageError(
            f"the student has {logits} logits per token, the labels are of {labels.classes} tokens; it needs the teacher's vocabulary: "
            "use its tokenizer, and resize the student's embeddings"
        )
    if bias is not None:
        check_argument_type("bias", bias, Tensor)
        require(bias.shape == (logits,), "shape of bias", list(bias.shape), f"must be [{logits}], as of the head")
    tensors = {"student": student, "head": head, "bias": bias, "labels": labels.position}
    devices = {name: str(x.device) for name, x in tensors.items() if x is not None}
    require(len(set(devices.values())) == 1, "devices", devices, "must be one device: open the labels with device=...")


def _check_index(positions: int, logits: int, labels: TokenLabels) -> None:
    """Refuse labels of another batch: on CUDA, an index out of range would end the process."""
    if not len(labels):
        return
    ends = torch.stack([*labels.position.aminmax(), *labels.next_tokens.aminmax()])
    first, last, low, high = ends.tolist()
    if first < 0 or last >= positions:
        raise UsageError(
            f"labels have positions {first}..{last}, and the student's batch 0..{positions - 1}; make the labels from the tokens of this batch"
        )
    require(low >= 0 and high < logits, "next_tokens", f"{low}..{high}", f"must be 0..{logits - 1}, the student's vocabulary")
