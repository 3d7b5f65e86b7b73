"""Hidden states of a language model -> a `.vql` -> a student that learns from it, in plain PyTorch.

    python examples/language_model.py

The teacher is made on the spot: hidden states that decay from token to token, and a random head. Its text and hidden
states are dumped as vLLM's `extract_hidden_states` writes them, a file for each document.
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import vqlabel

V, D, LENGTH = 150, 12, 40  # tokens of the vocabulary, numbers of a hidden state, tokens of a document
EMBEDDING, HEAD = 0.9 * torch.randn(2, V, D, generator=torch.Generator().manual_seed(0))  # of the teacher


def draw(documents, seed):
    """Documents [n, LENGTH] of the teacher's text, and its hidden states [n, LENGTH, D]."""
    generator, states = torch.Generator().manual_seed(seed), [torch.zeros(documents, D)]
    tokens = torch.randint(V, (documents, 1), generator=generator)
    for _ in range(LENGTH):
        states.append(0.6 * states[-1] + 0.9 * EMBEDDING[tokens[:, -1]])
        tokens = torch.cat([tokens, torch.multinomial((states[-1] @ HEAD.T).softmax(1), 1, generator=generator)], 1)
    return tokens[:, :LENGTH], torch.stack(states[1:], 1)


def dump_and_pack(folder, documents=100):
    """Write states/, model.safetensors and labels.vql into a folder. Returns the documents [n, LENGTH]."""
    tokens, states = draw(documents, seed=1)
    (folder / "states").mkdir(parents=True)
    save_file({"lm_head.weight": HEAD.clone()}, folder / "model.safetensors")
    for number, (ids, hidden) in enumerate(zip(tokens, states.half(), strict=True)):
        save_file({"token_ids": ids.clone(), "hidden_states": hidden[:, None].clone()}, folder / "states" / f"{number}.safetensors")
    config = vqlabel.TextFitConfig(bits=16, slots=2, codebook_size=64, ids=2, width=32, layers=1, window=8, epochs=4)
    vqlabel.pack_text(folder / "states", folder / "labels.vql", config, head=folder / "model.safetensors")
    return tokens


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body, self.lm_head = nn.Embedding(V, 32), nn.GRU(32, 32, batch_first=True), nn.Linear(32, V, bias=False)

    def forward(self, tokens):
        return self.body(self.embed(tokens))[0]


@torch.no_grad()
def kl_to_teacher(student):
    """Mean KL(teacher || student) in nats on new documents."""
    tokens, states = draw(32, seed=2)
    log_p, log_q = ((x @ head.T).log_softmax(-1) for x, head in ((states, HEAD), (student(tokens), student.lm_head.weight)))
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()


def main(folder):
    tokens = dump_and_pack(folder, documents=120)
    labels = vqlabel.open_text(folder / "labels.vql")
    rows, *sizes = labels.file.rows, *(sum(file.stat().st_size for file in folder.glob(name)) for name in ("states/*", "*.vql"))
    print(f"{rows:,} labels: {2 * rows * V:,} bytes as fp16 logits, {sizes[0]:,} as hidden states, {sizes[1]:,} packed")
    torch.manual_seed(0)
    student = Student()
    optimizer, before = torch.optim.AdamW(student.parameters(), 1e-2), kl_to_teacher(student)
    for step in range(60):
        batch = tokens[torch.arange(16 * step, 16 * step + 16) % len(tokens)]
        optimizer.zero_grad()
        vqlabel.kd_loss(student(batch), student.lm_head.weight, labels.of(batch), ce_weight=0.1).backward()
        optimizer.step()
    print(f"KL to the teacher on new documents: {before:.3f} -> {kl_to_teacher(student):.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
