"""Labels of a language model in Liger's LigerFusedLinearKLDivLoss, a chunk of probabilities at a time.

    python examples/liger_loss.py

Needs liger-kernel with this loss (0.8.5 has it) and a GPU, or TRITON_INTERPRET=1. `vqlabel.kd_loss` does the same
without Liger; both are printed. The teacher, its text and the student are made on the spot: see language_model.py.
"""

import os
import tempfile
from pathlib import Path

import torch
from language_model import Student, dump_and_pack

import vqlabel

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    raise SystemExit("this example needs a GPU: Liger's kernels run on no CPU")
try:
    from liger_kernel.transformers.fused_linear_kl_div import LigerFusedLinearKLDivLoss
except ImportError as error:
    raise SystemExit(f"this example needs liger-kernel with LigerFusedLinearKLDivLoss: {error}") from None

CHUNK, T = 64, 2.0  # labels whose probabilities exist at a time; temperature


def liger_loss(hidden, head, labels):
    """Mean of T^2 KL(teacher || student), as `kd_loss` without CE."""
    fused, total = LigerFusedLinearKLDivLoss(reduction="sum", temperature=T), hidden.new_zeros(())
    rows = hidden.flatten(0, 1)[labels.position]
    for start in range(0, len(labels), CHUNK):
        part = slice(start, start + CHUNK)
        total = total + fused(rows[part], head, labels.probs(part, T))  # the target has the temperature already
    return T * T * total / len(labels)


def main(folder):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = dump_and_pack(folder)[:4].to(device)
    labels = vqlabel.open_text(folder / "labels.vql", device=device).of(tokens)
    student = Student().to(device)
    losses = {
        "Liger": lambda hidden, head: liger_loss(hidden, head, labels),
        "vqlabel": lambda hidden, head: vqlabel.kd_loss(hidden, head, labels, temperature=T),
    }
    for name, loss_of in losses.items():
        student.zero_grad()
        loss = loss_of(student(tokens), student.lm_head.weight)
        loss.backward()
        norm = torch.cat([weight.grad.flatten() for weight in student.parameters()]).norm()
        print(f"{name}: loss {loss.item():.4f}, norm of its gradient {norm.item():.4f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
