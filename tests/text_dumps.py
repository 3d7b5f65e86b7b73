"""Small dumps of language models in every layout, written as other systems write them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

V, D, K = 40, 6, 5
LENGTHS = (7, 1, 12, 5, 1, 9)
EQUAL = (8, 8, 8)  # of stacked sequences


class Dump(NamedTuple):
    """A dump on disk, what it holds, and the options that it needs."""

    path: Path
    tokens: list[NDArray[np.int64]]
    rows: list[NDArray[np.float32]]  # dense; of top-k layouts: probabilities
    options: Mapping[str, Any] = MappingProxyType({})


Draw = Callable[[Sequence[int], int], tuple[list[NDArray[np.int64]], list[NDArray[np.float32]]]]


def draw(lengths: Sequence[int], width: int, seed: int = 0) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float32]]]:
    """Tokens [L] and numbers [L, width] of documents; row L - 1 is of a token that no document has."""
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=(length, width)).astype(np.float16).astype(np.float32) for length in lengths]
    return [rng.integers(0, V, length) for length in lengths], rows


def tensor(values: Any, kind: Any = None) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(kind) if kind else torch.from_numpy(np.ascontiguousarray(values))


def save(path: Path, metadata: dict[str, str] | None = None, **arrays: Any) -> Path:
    """A .safetensors file of tensors and NumPy's arrays."""
    save_file({name: array if isinstance(array, torch.Tensor) else tensor(array) for name, array in arrays.items()}, path, metadata)
    return path


def without_last(rows: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    return [part[:-1] for part in rows]


def vllm(folder: Path, layers: int = 1, kind: torch.dtype = torch.float16, lengths: Sequence[int] = LENGTHS) -> Dump:
    """A file per request as vLLM's ExampleHiddenStatesConnector saves it; other layers hold other numbers."""
    tokens, rows = draw(lengths, D)
    for at, (ids, states) in enumerate(zip(tokens, rows, strict=True)):
        stacked = np.stack([states + layer - layers + 1 for layer in range(layers)], 1)
        file = folder / f"cmpl-{at}-0.safetensors"
        save_file({"hidden_states": tensor(stacked, kind), "token_ids": tensor(ids)}, file)
        (folder / f"{file.name}.lock").touch()
    return Dump(folder, tokens, without_last(rows))


def vllm_bf16(folder: Path) -> Dump:
    dump = vllm(folder, kind=torch.bfloat16)
    return dump._replace(rows=[tensor(part).bfloat16().float().numpy() for part in dump.rows])


def shards(folder: Path, name: str = "hidden", metadata: dict[str, str] | None = None, extra: int = 1) -> Dump:
    """Shards of stacked sequences; `extra`: 1 if they have a token more than rows, else 0."""
    tokens, rows = draw(EQUAL * 2, V if name == "logits" else D)
    for at in range(2):
        part = slice(at * len(EQUAL), (at + 1) * len(EQUAL))
        arrays = {
            "tokens": tensor(np.stack(tokens[part]), torch.int32),
            name: tensor(np.stack(rows[part])[:, : 8 - extra], torch.float16),
        }
        save_file(arrays, folder / f"shard-{at:05}.safetensors", metadata or {"vocabulary": str(V)})
    return Dump(folder, tokens, without_last(rows))


def flat_npy(folder: Path, extra: bool = False) -> Dump:
    """tokens.npy, hidden.npy and lengths.npy; `extra`: with a row for each token."""
    tokens, rows = draw(LENGTHS, D)
    np.save(folder / "tokens.npy", np.concatenate(tokens).astype(np.uint16))
    np.save(folder / "hidden.npy", np.concatenate(rows if extra else without_last(rows)).astype(np.float16))
    np.save(folder / "lengths.npy", np.array(LENGTHS))
    return Dump(folder, tokens, without_last(rows))


def flat_npy_with_unread_rows(folder: Path) -> Dump:
    return flat_npy(folder, extra=True)


def offsets_npz(folder: Path) -> Dump:
    tokens, rows = draw(LENGTHS, D)
    offsets = np.cumsum([0, *LENGTHS])
    np.savez(folder / "dump.npz", input_ids=np.concatenate(tokens), hidden=np.concatenate(rows), offsets=offsets)
    return Dump(folder / "dump.npz", tokens, without_last(rows))


def padded_safetensors(folder: Path) -> Dump:
    """Sequences padded on the left, as generation pads them, in one file of what a model of transformers returns."""
    tokens, rows = draw(LENGTHS, D)
    width = max(LENGTHS)
    ids, states, mask = np.zeros((len(LENGTHS), width), np.int64), np.zeros((len(LENGTHS), width, D), np.float32), []
    for at, length in enumerate(LENGTHS):
        ids[at, width - length :], states[at, width - length :] = tokens[at], rows[at]
        mask.append([0] * (width - length) + [1] * length)
    arrays = {"input_ids": tensor(ids), "attention_mask": torch.tensor(mask), "last_hidden_state": tensor(states)}
    save_file(arrays, folder / "batch.safetensors")
    return Dump(folder / "batch.safetensors", tokens, without_last(rows))


def logits_npy(folder: Path) -> Dump:
    tokens, rows = draw(EQUAL, V)
    rows = [np.where(part < -2, -np.inf, part) for part in rows]
    np.save(folder / "tokens.npy", np.stack(tokens))
    np.save(folder / "logits.npy", np.stack(rows)[:, :-1].astype(">f4"))
    return Dump(folder, tokens, without_last(rows))


def likeliest(logits: NDArray[np.float32], k: int = K) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids [n, k] and log-probabilities [n, k] of the likeliest tokens, in descending order."""
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    ids = np.argsort(-logprobs, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(logprobs, ids, 1)


def filled(logits: NDArray[np.float32], k: int = K) -> NDArray[np.float32]:
    """[n, V] the k largest probabilities, and equal shares of the rest."""
    ids, logprobs = likeliest(logits, k)
    probs = np.exp(logprobs.astype(np.float64))
    dense = np.repeat((1 - probs.sum(1, keepdims=True)) / (V - k), V, 1)
    np.put_along_axis(dense, ids, probs, 1)
    return dense.astype(np.float32)


def responses(
    k: int = K, lengths: Sequence[int] = LENGTHS
) -> tuple[list[dict[str, Any]], list[NDArray[np.int64]], list[NDArray[np.float32]]]:
    """What vLLM's server returns for prompt_logprobs = k: the token of the text comes first, then the likeliest."""
    tokens, rows = draw(lengths, V)
    lines = []
    for ids, logits in zip(tokens, rows, strict=True):
        entries: list[Any] = [None]
        for gold, row in zip(ids[1:].tolist(), logits[:-1], strict=True):
            order = np.argsort(-row, kind="stable").tolist()
            logprobs = row - np.log(np.exp(row).sum())
            listed = [gold, *(token for token in order[:k] if token != gold)]
            entries.append(
                {
                    str(token): {"logprob": float(logprobs[token]), "rank": order.index(token) + 1, "decoded_token": "a"}
                    for token in listed
                }
            )
        lines.append({"prompt_token_ids": ids.tolist(), "prompt_logprobs": entries})
    return lines, tokens, [filled(part) for part in without_last(rows)]


def write_lines(path: Path, lines: Sequence[Any]) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def jsonl(folder: Path) -> Dump:
    lines, tokens, rows = responses()
    nested = [{"id": "cmpl-0", "choices": [{"index": 0, "text": "", **line}]} for line in lines]
    return Dump(write_lines(folder / "responses.jsonl", [*lines[:2], *nested[2:]]), tokens, rows, {"vocab": V})


def write_table(path: Path, columns: dict[str, Any], rows: int = 2) -> Path:
    """A Parquet file, or an Arrow stream as the datasets library saves it, with chunks of `rows` rows."""
    pa = pytest.importorskip("pyarrow")
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=rows)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    return path


def captured(k: int = K) -> tuple[dict[str, Any], list[NDArray[np.int64]], list[NDArray[np.float32]]]:
    tokens, rows = draw(LENGTHS, V)
    pairs = [likeliest(part, k) for part in without_last(rows)]
    columns = {
        "input_ids": [ids.tolist() for ids in tokens],
        "token_ids": [ids.tolist() for ids, _ in pairs],
        "top_values": [values.tolist() for _, values in pairs],
    }
    return columns, tokens, [filled(part, k) for part in without_last(rows)]


def distillkit_raw(folder: Path, suffix: str = ".parquet") -> Dump:
    columns, tokens, rows = captured()
    return Dump(write_table(folder / f"data_0{suffix}", columns), tokens, rows, {"vocab": V})


def distillkit_arrow(folder: Path) -> Dump:
    return distillkit_raw(folder, ".arrow")


EXACT = {
    "d": V,
    "k": K,
    "exact_k": K,
    "exact_dtype": "float32",
    "polynomial_terms": None,
    "residual_bins": [],
    "delta_encoding": False,
}


def packed(ids: NDArray[np.int64], bits: int) -> list[list[int]]:
    """Rows of ids -> rows of bytes, most significant bit first."""
    texts = ["".join(f"{token:0{bits}b}" for token in row) for row in ids.tolist()]
    return [[int(text[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(text), 8)] for text in texts]


def distillkit_compressed(folder: Path) -> Dump:
    """All k values exact, in two files, with the configuration as JSON."""
    columns, tokens, rows = captured()
    for at, part in enumerate((slice(0, 2), slice(2, None))):
        ids, values = columns["token_ids"][part], columns["top_values"][part]
        stored = {
            "input_ids": columns["input_ids"][part],
            "bytepacked_indices": [packed(np.array(document, np.int64).reshape(-1, K), 6) for document in ids],
            "compressed_logprobs": [[list(np.array(row, "<f4").tobytes()) for row in document] for document in values],
        }
        write_table(folder / f"data_{at}.parquet", stored)
    (folder / "compression_config.json").write_text(json.dumps(EXACT))
    return Dump(folder, tokens, rows)


LAYOUTS: dict[str, Callable[[Path], Dump]] = {
    "hidden": vllm,
    "hidden, bf16": vllm_bf16,
    "hidden, shards": shards,
    "hidden, logits": lambda folder: shards(folder, "logits"),
    "arrays, flat": flat_npy,
    "arrays, flat, all rows": flat_npy_with_unread_rows,
    "arrays, npz": offsets_npz,
    "arrays, padded": padded_safetensors,
    "arrays, logits": logits_npy,
    "distillkit, raw": distillkit_raw,
    "distillkit, arrow": distillkit_arrow,
    "distillkit, compressed": distillkit_compressed,
    "prompt_logprobs": jsonl,
}
