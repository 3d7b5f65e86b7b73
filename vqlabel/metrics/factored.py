"""KL between a teacher and a model whose logits are hidden states times an output map, without [n, V] of all rows."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 32 << 20  # of one [rows, V] float32 matrix


def chunk_rows(vocabulary: int) -> int:
    """Rows of a chunk whose logits take CHUNK_BYTES."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def factored_kl(hidden: Tensor, out: Tensor, bias: Tensor, teacher: Callable[[slice], Tensor]) -> Tensor:
    """Mean KL(teacher || softmax(hidden @ out + bias)); differentiable in hidden, out and bias.

    Args:
        hidden: [n, d]; out: [d, V]; bias: [V].
        teacher: rows -> their probabilities [rows, V].
    """
    loss: Tensor = _FactoredKl.apply(hidden, out, bias, teacher)  # type: ignore[no-untyped-call]
    return loss


class _FactoredKl(torch.autograd.Function):
    """Forms the gradient (q - p) out of a chunk in the forward pass, and keeps none of its logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, out: Tensor, bias: Tensor, teacher: Callable[[slice], Tensor]) -> Tensor:
        n, total = len(hidden), hidden.new_zeros((), dtype=torch.float64)
        grads = [
            torch.zeros_like(x) if needed else None for x, needed in zip((hidden, out, bias), ctx.needs_input_grad, strict=False)
        ]
        for start in range(0, n, size := chunk_rows(out.shape[1])):
            rows = slice(start, min(start + size, n))
            p = teacher(rows)
            log_q = F.log_softmax(torch.addmm(bias, hidden[rows], out), 1)
            total += torch.special.xlogy(p, p).sum(dtype=torch.float64) - torch.dot(p.flatten(), log_q.flatten()).double()
            error = log_q.exp_().sub_(p).div_(n)
            if grads[0] is not None:
                torch.mm(error, out.T, out=grads[0][rows])
            if grads[1] is not None:
                grads[1].addmm_(hidden[rows].T, error)
            if grads[2] is not None:
                grads[2] += error.sum(0)
        ctx.grads = grads
        return (total / max(1, n)).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None if g is None else g * grad[0] for g in ctx.grads), None)
