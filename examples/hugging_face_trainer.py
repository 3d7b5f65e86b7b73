"""Labels of a language model in Hugging Face's Trainer: a column of the dataset that survives shuffling and packing.

    python examples/hugging_face_trainer.py

Needs transformers, accelerate and datasets. For TRL: `class KdTrainer(vqlabel.KdMixin, SFTTrainer)`.
The teacher, its text and the student are made on the spot: see language_model.py.
"""

import tempfile
from itertools import chain
from pathlib import Path

import torch
from language_model import HEAD, LENGTH, V, draw, dump_and_pack

import vqlabel

try:
    import datasets
    import transformers
except ImportError as error:
    raise SystemExit(f"this example needs transformers, accelerate and datasets: {error}") from None

BLOCK = 3 * LENGTH // 2  # tokens of a packed row: every second row begins in the middle of a document


class KdTrainer(vqlabel.KdMixin, transformers.Trainer):
    pass


def packed(batch):
    """Rows of BLOCK tokens, whatever documents they cut; all columns alike."""
    joined = {name: list(chain(*rows)) for name, rows in batch.items()}
    starts = range(0, len(joined["input_ids"]) - BLOCK + 1, BLOCK)
    columns = {name: [values[start : start + BLOCK] for start in starts] for name, values in joined.items()}
    return {**columns, "labels": columns["input_ids"]}


@torch.no_grad()
def kl_to_teacher(student):
    """Mean KL(teacher || student) in nats on new documents."""
    tokens, states = draw(32, seed=2)
    log_p, log_q = (states @ HEAD.T).log_softmax(-1), student.eval()(tokens).logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()


def main(folder):
    dataset = datasets.Dataset.from_dict({"input_ids": dump_and_pack(folder).tolist()})
    labels = vqlabel.open_text(folder / "labels.vql", corpus=dataset)
    rows = dataset.map(labels.attach).shuffle(seed=0).map(packed, batched=True)
    print(f"{len(rows)} rows of {BLOCK} tokens with the columns {', '.join(rows.column_names)}")
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    transformers.set_seed(0)
    student = transformers.LlamaForCausalLM(config)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "out"), learning_rate=1e-2, max_steps=60, per_device_train_batch_size=8, save_strategy="no",
        report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    collate, before = transformers.default_data_collator, kl_to_teacher(student)
    KdTrainer(student, arguments, train_dataset=rows, data_collator=collate, labels=labels, ce_weight=0.1).train()
    print(f"KL to the teacher on new documents: {before:.3f} -> {kl_to_teacher(student):.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
