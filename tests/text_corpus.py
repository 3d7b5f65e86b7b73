"""Small documents with hidden states that depend on their tokens, and a head, for tests of language models' labels."""

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from vqlabel.codecs.hidden_labels import HiddenLabels, OutputHead
from vqlabel.codecs.token_vqae.codec import OUTPUT, TokenVqae
from vqlabel.codecs.token_vqae.config import TokenPriorConfig, TokenVqaeConfig
from vqlabel.codecs.token_vqae.sample import TextSplit
from vqlabel.codecs.weights import rounded
from vqlabel.labels.text.documents import Documents, token_hash
from vqlabel.vql.text.writer import TextVqlWriter

VOCABULARY, WIDTH = 60, 8


def small_head(seed: int = 0) -> OutputHead:
    """A head [60, 8]."""
    weight = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(seed))
    return OutputHead(weight=weight)


def small_split(documents: int = 40, seed: int = 0, head: OutputHead | None = None) -> TextSplit:
    """Documents of 1 to 20 tokens. A hidden state depends on the tokens before and after it, and on noise."""
    numbers, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed + 1)
    lengths = [1 if i % 7 == 0 else int(numbers.integers(2, 21)) for i in range(documents)]
    texts = Documents.of([numbers.integers(0, VOCABULARY, length) for length in lengths])
    vectors, weight = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(7)), small_head().weight
    before, after = torch.from_numpy(texts.tokens[texts.position]), torch.from_numpy(texts.next_tokens)
    noise = torch.randn(texts.rows, WIDTH, generator=generator)
    hidden = 0.5 * vectors[before] + 0.6 * weight[after] + 0.5 * noise
    return TextSplit(documents=texts, labels=HiddenLabels(hidden=hidden.half(), head=head or small_head()))


def write_hidden_states(folder: Path, split: TextSplit, repeated: int = 0) -> Path:
    """A file a document, as vLLM writes them, with the state of the last token; the first `repeated` ones twice."""
    folder.mkdir()
    documents = [split.take(np.array([i]))[0] for i in [*range(len(split.documents)), *range(repeated)]]
    for i, one in enumerate(documents):
        states = torch.cat([one.labels.hidden, torch.zeros(1, WIDTH, dtype=torch.float16)])
        tokens = torch.from_numpy(one.documents.tokens.astype(np.int32))
        save_file({"token_ids": tokens, "hidden_states": states}, folder / f"{i:03d}.safetensors")
    return folder


def top_k(split: TextSplit, k: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """Tokens [L] of every document, and ids and log-probabilities [L - 1, k] of its likeliest tokens."""
    likeliest, starts = split.labels.logits().log_softmax(1).topk(k, 1), np.cumsum(split.documents.lengths - 1)[:-1]
    ids, values = (np.split(part.numpy(), starts) for part in (likeliest.indices, likeliest.values))
    texts = np.split(split.documents.tokens, np.cumsum(split.documents.lengths)[:-1])
    return list(zip(texts, ids, values, strict=True))


def write_prompt_logprobs(path: Path, split: TextSplit, k: int) -> Path:
    """Responses of vLLM with the k likeliest tokens, and the token of the text if it is another one."""
    logprobs, lines, row = split.labels.logits().log_softmax(1), [], 0
    for tokens, ids, _ in top_k(split, k):
        entries: list[object] = [None]
        for gold, likeliest in zip(tokens[1:].tolist(), ids.tolist(), strict=True):
            order = logprobs[row].argsort(descending=True).tolist()
            listed = dict.fromkeys([gold, *likeliest])
            entries.append({str(i): {"logprob": float(logprobs[row, i]), "rank": order.index(i) + 1} for i in listed})
            row += 1
        lines.append(json.dumps({"prompt_token_ids": tokens.tolist(), "prompt_logprobs": entries}))
    path.write_text("".join(line + "\n" for line in lines))
    return path


def write_logits(folder: Path, split: TextSplit, lowest: float | None = None) -> Path:
    """Dense logits of the documents in fp32; token 0 with this logit, if one is passed."""
    folder.mkdir()
    for i in range(len(split.documents)):
        one = split.take(np.array([i]))[0]
        logits = torch.cat([one.labels.logits(), torch.zeros(1, one.labels.shape[1])])
        if lowest is not None:
            logits[:, 0] = lowest
        tokens = torch.from_numpy(one.documents.tokens.astype(np.int32))
        save_file({"tokens": tokens, "logits": logits}, folder / f"{i:03d}.safetensors")
    return folder


def write_head(folder: Path, name: str = "model.safetensors", factor: float = 1.0, seed: int = 0) -> Path:
    """The head of `small_head`, times a factor."""
    save_file({"lm_head.weight": small_head(seed).weight.half() * factor}, folder / name)
    return folder / name


def small_config(**changes: object) -> TokenVqaeConfig:
    """3 slots of 8 codes, 3 ids, and a prior that sees 2 tokens on each side in each of 2 layers."""
    prior = TokenPriorConfig(width=16, layers=2, heads=2, window=2, future=True)
    values = {
        "classes": VOCABULARY, "domain": "hidden", "hidden": WIDTH, "latent": WIDTH, "slots": 3, "codebook_size": 8, "ids": 3,
        "weight_bits": 8, "prior": prior,
    }  # fmt: skip
    return TokenVqaeConfig(**{**values, **changes})  # type: ignore[arg-type]


def random_codec(seed: int = 3, **changes: object) -> TokenVqae:
    """A codec with random weights, rounded as stored, and the head of `small_head`."""
    torch.manual_seed(seed)
    codec = TokenVqae(small_config(**changes))
    for name, weight in codec.decoder.named_parameters():
        weight.requires_grad_(False)
        if name not in OUTPUT:
            weight.copy_(torch.randn(weight.shape) * 0.2)
    decoder, bits = codec.decoder, codec.config.weight_bits
    decoder.projection.copy_(rounded(torch.randn(decoder.projection.shape) * 0.4, bits))
    codec.attach(small_head())
    if codec.config.head == "embedded":
        decoder.out.data = rounded(decoder.out.data, bits)
    codec.round()
    return codec.eval()


def write_text_file(path: Path, codec: TokenVqae, split: TextSplit) -> list[NDArray[np.int64]]:
    """A `.vql` of the documents of a split, each once. Returns their tokens, also those of one token."""
    fields = codec.encode(split.labels, split.documents).numpy().view(np.uint32)
    documents, hashes = [], set[bytes]()
    with TextVqlWriter(path, codec.config) as writer:
        for index in range(len(split.documents)):
            document, rows = split.documents.take(np.array([index]))
            key = token_hash(document.tokens)
            if key not in hashes:
                documents.append(document.tokens)
                hashes.add(key)
                if len(rows):
                    writer.add(key, fields[rows])
        label = {"classes": codec.config.classes, "domain": "hidden", "dtype": "F16"}
        head = {"model": "model.safetensors", "tensor": "lm_head.weight", "sha256": "0" * 64, "vocabulary": codec.config.classes}
        text = {"tokenizer": {}, "teacher": {}, "head": head, "shift": 1}
        writer.finish(label, text, {name: tensor.numpy() for name, tensor in codec.decoder_tensors().items()})
    return documents
