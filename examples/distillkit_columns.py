"""Labels of a language model as the columns that DistillKit's trainer reads: input_ids, token_ids, top_values.

    python examples/distillkit_columns.py

With datasets, `dataset.map(lambda example: labels.distillkit(example["input_ids"]), remove_columns=[...])` makes a set
for `distillkit` with `teacher: {kind: dataset}`; here the columns are checked by its loss, restated. DistillKit has k
tokens of each label, so its loss is below the KL to the whole label; `vqlabel.kd_loss` has them all.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from language_model import Student, V, dump_and_pack

import vqlabel

K = 32


def sparse_kl(logits, token_ids, top_values):
    """DistillKit's KL with symmetric_uniform: the tokens without a value are one more, in teacher and student."""
    log_q = logits.log_softmax(-1).gather(-1, token_ids)
    rest_p, rest_q = (torch.log1p(-x.exp().sum(-1).clamp(1e-8, 1 - 1e-8)) for x in (top_values, log_q))
    return ((top_values.exp() * (top_values - log_q)).sum(-1) + rest_p.exp() * (rest_p - rest_q)).mean()


def main(folder):
    documents = dump_and_pack(folder)
    labels = vqlabel.open_text(folder / "labels.vql")
    examples = [labels.distillkit(tokens, k=K) for tokens in documents]
    batch = {name: torch.from_numpy(np.stack([example[name] for example in examples[:8]])) for name in examples[0]}
    print({name: list(values.shape) for name, values in batch.items()})
    mass = batch["top_values"].exp().sum(-1).mean().item()
    print(f"the {K} likeliest of {V} tokens have {100 * mass:.1f} % of the probability")
    torch.manual_seed(0)
    student = Student()
    with torch.no_grad():
        hidden = student(batch["input_ids"])
        sparse = sparse_kl(student.lm_head(hidden), batch["token_ids"], batch["top_values"])
        whole = vqlabel.kd_loss(student(documents[:8]), student.lm_head.weight, labels.of(documents[:8]))
    print(f"KL of a new student to {K} tokens and the rest: {sparse.item():.3f}; to the whole labels: {whole.item():.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
