"""A model's file or folder -> its output head, read from disk as it is needed, and the norm in front of it."""

import hashlib
import json
import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadInput, NoSuchFile, UsageError, require
from vqlabel.labels.text.head_config import read_norm_form, read_scale, read_soft_cap, text_config
from vqlabel.labels.text.norm import FinalNorm
from vqlabel.labels.text.stored_array import FLOATS, Arrays, StoredArray, read_arrays
from vqlabel.storage.filetypes import require_regular
from vqlabel.type_checks import check_argument_types

OUTPUTS = ("lm_head.weight", "embed_out.weight", "output_layer.weight", "lm_head.linear.weight")
ONLY_AT_TOP = ("output.weight", "head.weight")  # inside a model these are names of other layers
EMBEDDINGS = (
    "embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "embeddings.weight", "tok_embeddings.weight",
    "tokens_embed.weight", "emb.weight", "shared.weight",
)  # fmt: skip
NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "final_norm", "embedding_norm", "ln_out", "nf")
MAX_CONFIG_BYTES, MAX_INDEX_BYTES = 1 << 20, 64 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredHead:
    """A `Head` in a file.

    Attributes:
        path: that the user passed, without the name of a tensor.
        stored: place of the weight [rows, d].
        stored_bias: place of the bias [rows]; None: there is none.
        vocabulary, scale, soft_cap, norm, notes: see `Head`.
    """

    path: Path
    stored: StoredArray
    stored_bias: StoredArray | None
    vocabulary: int
    scale: float = 1.0
    soft_cap: float | None = None
    norm: FinalNorm | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the weight, in the model's file."""
        return self.stored.name

    @property
    def width(self) -> int:
        """d."""
        return self.stored.shape[1]

    @property
    def dtype(self) -> str:
        """safetensors' name of the stored type."""
        return self.stored.dtype

    @cached_property
    def weight(self) -> NDArray[Any]:
        """[V, d] as stored, read-only and memory-mapped; of bf16, its bits as uint16: `rows` gives numbers."""
        return self.stored.map()[: self.vocabulary]

    @cached_property
    def bias(self) -> NDArray[np.float32] | None:
        """[V]; None: 0."""
        return None if self.stored_bias is None else self.stored_bias.read(0, self.vocabulary).astype(np.float32)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """[stop - start, d] rows of the weight; bf16 is widened exactly."""
        return self.stored.widened(self.weight[start:stop]).astype(np.float32, copy=False)

    @cached_property
    def sha256(self) -> str:
        """See `Head`."""
        digest = hashlib.sha256()
        for part, array in (("weight", self.stored), ("bias", self.stored_bias)):
            if array is not None:
                digest.update(f"{part} {array.dtype} {list(array.shape)}\n".encode())
                for data in array.blocks():
                    digest.update(data)
        return digest.hexdigest()


@check_argument_types
def open_head(
    path: str | PathLike[str], *, vocab: int | None = None, scale: float | None = None, soft_cap: float | None = None
) -> StoredHead:
    """Open the output head of a model.

    Args:
        path: a .safetensors file, "FILE:TENSOR", or a folder of Hugging Face transformers, also "FOLDER:TENSOR".
        vocab: V of the tokenizer, if the head has more rows; None: as config.json says, else all rows.
        scale: factor on the logits; None: as config.json says, else 1.
        soft_cap: limit of the logits' magnitude; None: as config.json says, else none.

    Raises:
        UsageError: there is no such path or tensor, or `vocab` is larger than the head.
        BadInput: a file is damaged, has no head or several, or has a scale of unknown meaning.
    """
    model, requested = _split(Path(path))
    tensors = _tensors(model)
    config, where = _config(model)
    stored = _named(tensors, requested, model) if requested else _find(tensors, config, model)
    if len(stored.shape) != 2 or stored.dtype not in FLOATS:
        raise BadInput(f"{model}: {stored} is no output head; a head is [V, d] of {', '.join(FLOATS)}: save it unquantised")
    bias = tensors.get(stored.name.removesuffix("weight") + "bias")
    if bias is not None and (bias.shape != stored.shape[:1] or bias.dtype not in FLOATS):
        raise BadInput(f"{model}: {bias} does not fit {stored}; a bias is [V]")
    vocabulary, notes = _vocabulary(stored, config, vocab, model)
    require(scale is None or scale > 0, "scale", scale, "must be a positive number")
    require(soft_cap is None or soft_cap > 0, "soft_cap", soft_cap, "must be a positive number")
    return StoredHead(
        path=model,
        stored=stored,
        stored_bias=bias,
        vocabulary=vocabulary,
        scale=read_scale(config, where) if scale is None else scale,
        soft_cap=read_soft_cap(config, where) if soft_cap is None else soft_cap,
        norm=_norm(tensors, stored.shape[1], config, where),
        notes=notes,
    )


def _split(path: Path) -> tuple[Path, str | None]:
    """ "FILE:TENSOR" -> the file or folder, and the tensor's name."""
    model, colon, name = str(path).rpartition(":")
    if not os.path.exists(path) and colon and name and os.path.exists(model):
        return Path(model), name
    if not os.path.exists(path):
        raise NoSuchFile(
            f"{path}: no such file or directory; pass model.safetensors, model.safetensors:lm_head.weight or a model's folder"
        )
    return path, None


def _tensors(model: Path) -> Arrays:
    """The tensors of a file, or of the files of a model's folder, by name."""
    if not model.is_dir():
        if model.suffix != ".safetensors":
            raise BadInput(f"{model}: is not a .safetensors file; convert the model, or pass the folder that has it")
        return read_arrays(model)[0]
    index = model / "model.safetensors.index.json"
    if (model / "model.safetensors").exists():
        files = [model / "model.safetensors"]
    elif index.exists():
        files = _shards(index)
    else:
        files = [file for file in sorted(model.glob("*.safetensors")) if not file.name.startswith(".")]
        if len(files) != 1:
            raise BadInput(
                f"{model}: has neither model.safetensors nor {index.name}; if its weights are in .bin files, save it with safe_serialization=True"
            )
    return {name: array for file in files for name, array in read_arrays(file)[0].items()}


def _shards(index: Path) -> list[Path]:
    """The files that an index names, which must lie beside it."""
    names = _json(index, MAX_INDEX_BYTES).get("weight_map", {})
    files = set(names.values()) if isinstance(names, dict) else {None}
    for file in files:
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise BadInput(f"{index}: weight_map names {str(file)[:80]!r}; it must name .safetensors files beside it")
        if not (index.parent / file).exists():
            raise BadInput(f"{index}: names {file}, which is not there; download it again")
    return [index.parent / str(file) for file in sorted(map(str, files))]


def _config(model: Path) -> tuple[Mapping[str, Any], str]:
    """The fields of the language model in config.json, and its path for messages; {} if there is none."""
    file = model / "config.json"
    if not model.is_dir() or not file.exists():
        return {}, str(model)
    return text_config(_json(file, MAX_CONFIG_BYTES)), str(file)


def _json(file: Path, limit: int) -> dict[str, Any]:
    require_regular(file, BadInput)
    data = file.read_bytes() if file.stat().st_size <= limit else b""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadInput(f"{file}: is not a JSON object of at most {limit} bytes; it is damaged")
    return value


def _named(tensors: Arrays, name: str, model: Path) -> StoredArray:
    if name not in tensors:
        raise UsageError(
            f"{model}: has no tensor {name!r}; its output head may be {_listed(_candidates(tensors, OUTPUTS + EMBEDDINGS))}"
        )
    return tensors[name]


def _find(tensors: Arrays, config: Mapping[str, Any], model: Path) -> StoredArray:
    """The only tensor that may be the head: an output layer, or else, where the two are tied, the embedding."""
    outputs, embeddings = _candidates(tensors, OUTPUTS), _candidates(tensors, EMBEDDINGS)
    outputs += [tensors[name] for name in ONLY_AT_TOP if name in tensors]
    found = outputs or embeddings
    if not found:
        raise BadInput(
            f"{model}: has no output head, a tensor [V, d] named {', '.join(OUTPUTS[:2])} or {', '.join(EMBEDDINGS[:2])} ...; name it: FILE:TENSOR"
        )
    if len(found) > 1:
        raise BadInput(
            f"{model}: several of its tensors may be the output head: {_listed(found)}; name one: {model}:{found[0].name}"
        )
    if not outputs and config.get("tie_word_embeddings") is False:
        raise BadInput(
            f"{model}: its configuration has tie_word_embeddings = false, but it has no output head, only {found[0]}; a file is missing"
        )
    tied = outputs and len(embeddings) == 1 and config.get("tie_word_embeddings") is True
    if tied and not _equal(outputs[0], embeddings[0]):
        raise BadInput(
            f"{model}: its configuration has tie_word_embeddings = true, but {_listed([outputs[0], embeddings[0]])} differ; name the head: "
            f"{model}:{outputs[0].name}"
        )
    return found[0]


def _candidates(tensors: Arrays, names: Sequence[str]) -> list[StoredArray]:
    """The matrices of these names outside of numbered layers, such as "model.embed_tokens.weight"."""
    return [array for name, array in tensors.items() if len(array.shape) == 2 and _ends_in(name, names)]


def _ends_in(name: str, ends: Sequence[str]) -> bool:
    """Whether a tensor has one of these names, or one behind the names of modules that are not numbered layers."""
    return f".{name}".endswith(tuple(f".{end}" for end in ends)) and not any(part.isdigit() for part in name.split("."))


def _norm(tensors: Arrays, width: int, config: Mapping[str, Any], where: str) -> FinalNorm | None:
    """The only norm outside of numbered layers that has the head's width, if its form is known."""
    found = [
        array
        for name, array in tensors.items()
        if _ends_in(name, [f"{norm}.weight" for norm in NORMS]) and array.shape == (width,) and array.dtype in FLOATS
    ]  # fmt: skip
    if len(found) != 1:
        return None
    stored_bias = tensors.get(found[0].name.removesuffix("weight") + "bias")
    has_bias = stored_bias is not None and stored_bias.shape == (width,) and stored_bias.dtype in FLOATS
    form = read_norm_form(config, has_bias, where)
    if form is None:
        return None
    weight = found[0].read(0, width).astype(np.float32) + np.float32(form.add_one)
    bias = stored_bias.read(0, width).astype(np.float32) if stored_bias is not None and has_bias else None
    return FinalNorm(name=found[0].name, kind=form.kind, weight=weight, bias=bias, eps=form.eps)


def _vocabulary(stored: StoredArray, config: Mapping[str, Any], vocab: int | None, model: Path) -> tuple[int, list[str]]:
    """V, and a note if the head has more rows."""
    rows = stored.shape[0]
    require(vocab is None or 2 <= vocab <= rows, "vocab", vocab, f"must be 2..{rows}, the rows of {stored.name} in {model}")
    recorded = config.get("unpadded_vocab_size") or config.get("vocab_size")
    known = recorded if type(recorded) is int and 2 <= recorded <= rows else rows
    used = known if vocab is None else vocab
    if used == rows:
        return rows, []
    return used, [
        f"{model}: {stored.name} has {rows} rows for a vocabulary of {used}; the last {rows - used} are padding, and are cut"
    ]


def _equal(first: StoredArray, second: StoredArray) -> bool:
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    return all(a == b for a, b in zip(first.blocks(), second.blocks(), strict=True))


def _listed(arrays: list[StoredArray]) -> str:
    return ", ".join(map(str, arrays[:6])) + (f" and {len(arrays) - 6} more" if len(arrays) > 6 else "")
