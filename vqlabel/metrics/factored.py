"""Losses of a student whose logits are hidden states times an output map, without the logits [n, V] of all rows.

A chunk of rows at a time, logits are multiplied out, a loss and its gradient in these logits are computed, and the
gradient is multiplied back, all in the forward pass: no logits are kept for the backward pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 32 << 20  # of one [rows, V] float32 matrix
LOWEST = torch.finfo(torch.float32).min  # stands for the logarithm of 0, because 0 * -inf is NaN

ChunkLoss = Callable[[slice, Tensor], tuple[Tensor, Tensor]]


def chunk_rows(vocabulary: int) -> int:
    """Rows of a chunk whose logits take CHUNK_BYTES."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def factored_kl(hidden: Tensor, out: Tensor, bias: Tensor, teacher: Callable[[slice], Tensor]) -> Tensor:
    """Mean KL(teacher || softmax(hidden @ out + bias)); differentiable in hidden, out and bias.

    Args:
        hidden: [n, d]; out: [d, V]; bias: [V].
        teacher: rows -> their probabilities [rows, V].
    """
    rows = torch.arange(len(hidden), device=hidden.device)
    return chunked_loss(hidden, out.T, bias, rows, lambda part, logits: forward_kl(logits, teacher(part).log()))


def forward_kl(logits: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over rows of KL(teacher || student), and its gradient in the student's logits.

    Args:
        logits: [n, V'], V' >= V. The teacher gives tokens V and above the probability 0.
        log_p: [n, V] the teacher's log-probabilities, -inf for 0; overwritten.

    Returns:
        a scalar; [n, V'].
    """
    classes, p = log_p.shape[1], log_p.exp()
    log_q = F.log_softmax(logits, 1).clamp_(min=LOWEST)
    log_ratio = log_p.clamp_(min=LOWEST).sub_(log_q[:, :classes])
    kl = log_ratio.mul_(p).sum()  # not torch.dot: on a CPU, it adds up a chunk with an error of 1e-4
    error = log_q.exp_()
    error[:, :classes] -= p
    return kl, error


def reverse_kl(logits: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over rows of KL(student || teacher), and its gradient in the student's logits.

    It would be infinite where the teacher has probability 0. Let m be the student's probability of all such tokens
    together, and q its distribution of the others; then the loss is KL(q || teacher) - log(1 - m). This is finite, and
    `forward_kl` is equal to KL(teacher || q) - log(1 - m), so m costs the same in both directions.

    Args:
        logits: [n, V'], V' >= V. The teacher gives tokens V and above the probability 0.
        log_p: [n, V] the teacher's log-probabilities, -inf for 0.

    Returns:
        a scalar; [n, V'].
    """
    classes = log_p.shape[1]
    possible = logits[:, :classes].masked_fill(log_p == -torch.inf, -torch.inf)
    log_q = F.log_softmax(possible, 1)
    q = log_q.exp()
    log_ratio = log_q.sub_(log_p).masked_fill_(q == 0, 0)
    kl = (q * log_ratio).sum(1, keepdim=True)
    outside = torch.logsumexp(logits, 1) - torch.logsumexp(possible, 1)  # -log(1 - m)
    error = F.log_softmax(logits, 1).exp_()
    error[:, :classes] += q.mul_(log_ratio.sub_(kl + 1))
    return (kl[:, 0] + outside).sum(), error


def cross_entropy(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over rows of the cross entropy with the true tokens, and its gradient in the logits.

    Args:
        logits: [n, V']; tokens: [n] int64.

    Returns:
        a scalar; [n, V'].
    """
    log_q = F.log_softmax(logits, 1)
    loss = -log_q.gather(1, tokens[:, None]).sum()
    rows = torch.arange(len(tokens), device=tokens.device)
    error = log_q.exp_()
    error[rows, tokens] -= 1
    return loss, error


def chunked_loss(student: Tensor, head: Tensor | None, bias: Tensor | None, rows: Tensor, loss: ChunkLoss) -> Tensor:
    """Mean over `rows` of a loss of logits; differentiable in student, head and bias.

    Products and sums are in float32, or in float64 if an input is. On another device than a CPU, the operands of
    products have the type of student and head, or that of autocast; gradients come back in the types of their inputs.

    Args:
        student: [m, d] hidden states; without a head, [m, V'] logits.
        head: [V', d]; bias: [V'], None: 0.
        rows: [n] int64, the rows of `student` that the loss is computed of.
        loss: a slice of `rows`, and their logits [r, V'] -> the sum of their losses, and its gradient [r, V'].

    Returns:
        a float32 or float64 scalar, 0 without rows.
    """
    inputs = [x if x is None or torch.is_grad_enabled() else x.detach() for x in (student, head, bias)]
    mean: Tensor = _ChunkedLoss.apply(*inputs, rows, loss)  # type: ignore[no-untyped-call]
    return mean


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, head: Tensor | None, bias: Tensor | None, rows: Tensor, loss: ChunkLoss) -> Tensor:
        inputs = (student, head, bias)
        operands, sums = _precision(student, head)
        gradients = _Gradients(inputs, ctx.needs_input_grad, sums)
        with torch.autocast(student.device.type, enabled=False):
            weight = None if head is None else head.to(operands)
            losses = []
            for start in range(0, len(rows), size := chunk_rows(student.shape[1] if head is None else len(head))):
                part = rows[start : start + size]
                x = student.index_select(0, part).to(operands)
                logits = x if weight is None else product(x, weight.T)
                if bias is not None:
                    logits += bias
                total, error = loss(slice(start, start + len(part)), logits)
                losses.append(total)
                gradients.add(part, x, weight, error)
        ctx.save_for_backward(*gradients.sums)
        ctx.count, ctx.dtypes = max(1, len(rows)), [None if x is None else x.dtype for x in inputs]
        return torch.stack(losses).sum() / ctx.count if losses else student.new_zeros((), dtype=sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factor = grad / ctx.count
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return (*(None if saved is None else _scaled(saved, factor, dtype) for saved, dtype in pairs), None, None)


class _Gradients:
    """Gradients of the sum of losses: those of the mean could vanish in float16 before the caller scales the loss.

    Those of hidden states, head and bias are in float32 or float64; those of logits, which are as many as the logits of
    all rows, in the type of these logits.
    """

    def __init__(self, inputs: Sequence[Tensor | None], needed: Sequence[bool], dtype: torch.dtype) -> None:
        student, head, _ = inputs
        dtypes = (student.dtype if student is not None and head is None else dtype, dtype, dtype)
        self.sums = [
            torch.zeros_like(x, dtype=own) if x is not None and wanted else None
            for x, wanted, own in zip(inputs, needed, dtypes, strict=False)
        ]

    def add(self, rows: Tensor, x: Tensor, weight: Tensor | None, error: Tensor) -> None:
        """Add a chunk's.

        Args:
            rows: [r] of the student; x: [r, d] hidden states; weight: [V', d]; error: [r, V'] gradient of the logits.
        """
        of_student, of_head, of_bias = self.sums
        if of_student is not None:
            gradient = error if weight is None else product(error.to(x.dtype), weight)
            of_student.index_add_(0, rows, gradient.to(of_student.dtype))
        if of_head is not None:
            add_product(of_head, error.to(x.dtype).T, x)
        if of_bias is not None:
            of_bias += error.sum(0)


def _precision(student: Tensor, head: Tensor | None) -> tuple[torch.dtype, torch.dtype]:
    """Types of the operands of products, and of their results and sums."""
    both = student.dtype if head is None else torch.promote_types(student.dtype, head.dtype)
    sums, device = torch.promote_types(both, torch.float32), student.device.type
    if head is None or sums == torch.float64 or device == "cpu":  # a CPU's product of bf16 would round its result to bf16
        return sums, sums
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else both, sums


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, or in float64 if they are; CUDA rounds no product of half-precision numbers to their type."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, for a float32 or float64 total."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.device.type == "cuda":
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient * factor, multiplied in the type of the factor, a chunk at a time."""
    scaled = torch.empty_like(gradient, dtype=dtype)
    size = chunk_rows(gradient.shape[1]) if gradient.dim() > 1 else len(gradient)
    for target, source in zip(scaled.split(size), gradient.split(size), strict=True):
        target.copy_(source.to(factor.dtype) * factor)
    return scaled
