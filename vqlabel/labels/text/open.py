"""A path -> the documents of a language model's dump. Its layout is detected, or named by the user."""

import os
from os import PathLike
from pathlib import Path

from vqlabel.errors import BadLabels, NoSuchFile, UsageError, VqlabelError, require
from vqlabel.labels.text.layouts.array_groups import TOKENS
from vqlabel.labels.text.layouts.layout import TextOptions
from vqlabel.labels.text.layouts.registry import TEXT_LAYOUTS
from vqlabel.labels.text.source import TextSource
from vqlabel.labels.text.stored_array import read_arrays
from vqlabel.storage.filetypes import require_regular
from vqlabel.type_checks import check_argument_types

TOKEN_FILES = (".safetensors", ".npz", ".jsonl", ".parquet")  # that may hold tokens
DISTILLKIT = ("compressed_logprobs", "bytepacked_indices", "top_values")  # columns
_FORMS = (
    "a folder of .safetensors files with token_ids and hidden_states, of tokens.npy and hidden.npy or logits.npy, DistillKit's .parquet, or "
    ".jsonl with prompt_logprobs"
)
_REMEDIES = {  # suffix -> what to do with such files
    ".zst": "decompress them first: zstd -d --rm",
    ".gz": "decompress them first: gunzip",
    **dict.fromkeys((".pt", ".pth", ".ckpt"), "save their tensors with safetensors: unpickling runs what the file says"),
    ".vql": "they are compressed already",
    ".bin": "they record neither shape nor type",
}


@check_argument_types
def open_text_labels(
    path: str | PathLike[str],
    layout: str | None = None,
    *,
    layer: int | None = None,
    vocab: int | None = None,
    array: str | None = None,
    k: int | None = None,
    rest: str | None = None,
    compression: str | PathLike[str] | None = None,
) -> TextSource:
    """Open a dump of a language model's labels.

    Args:
        path: a folder or file of a layout; docs/inputs.md lists all.
        layout: one of TEXT_LAYOUTS; None: detected.
        layer: of hidden states of several layers, the one to read, from 0, or from the end if negative; None: the last.
        vocab: V of the tokenizer; None: as the dump records it. Logits of padded vocabularies are cut to it. Top-k
            labels need it if the dump does not record it.
        array: name of the array of hidden states or logits; None: hidden_states, hidden, last_hidden_state, logits ...
        k: of top-k labels, the tokens of a row to read, likeliest first; None: all that are stored.
        rest: of top-k labels, what the other tokens have: "uniform" (also None), equal shares of the remaining
            probability, or "zero".
        compression: YAML or JSON of DistillKit's compression; None: compression_config.yaml beside the .parquet files.

    Raises:
        UsageError: there is no such path or layout, or an option does not apply to the layout or the dump.
        BadLabels: the dump is empty or malformed.
        MissingExtra: the reader of such files is not installed.
    """
    path = Path(path)
    require(layout is None or layout in TEXT_LAYOUTS, "layout", layout, f"must be one of {', '.join(TEXT_LAYOUTS)}")
    if not os.path.exists(path):
        raise NoSuchFile(f"{path}: no such file or directory; pass {_FORMS}")
    layout = layout or _detect(path)
    given = {"layer": layer, "array": array, "k": k, "rest": rest, "compression": compression}
    for name, value in given.items():
        applies = value is None or name in TEXT_LAYOUTS[layout].options
        require(applies, name, str(value), f"must be left out: it does not apply to the layout {layout}")
    options = TextOptions(
        layer=layer, vocab=vocab, array=array, k=k, rest=rest, compression=None if compression is None else Path(compression)
    )
    source = TEXT_LAYOUTS[layout].source(path, options)
    if not len(source):
        raise BadLabels(f"{path}: contains no documents; a dump has at least one")
    return source


def refuse_topk(dump: str | PathLike[str] | TextSource) -> None:
    """Raises UsageError if a dump has top-k labels."""
    if isinstance(dump, TextSource):
        path, is_topk = dump.path, dump.about.domain == "topk"
    else:
        path = Path(dump)
        is_topk = path.exists() and "k" in TEXT_LAYOUTS[_detect(path)].options
    if is_topk:
        raise UsageError(
            f"{path}: holds top-k labels; this command needs hidden states or logits (fit and pack take top-k labels too)"
        )


def is_text_dump(path: str | PathLike[str]) -> bool:
    """Whether a path is certainly a dump of a language model: it has arrays, columns or lines of tokens.

    Dumps of images have files of the same types, so what is in the first file decides.
    """
    path = Path(path)
    if path.is_dir():
        if any((path / f"{name}.npy").exists() for name in TOKENS):
            return True
        names = (name for name in os.listdir(path) if name.endswith(TOKEN_FILES) and not name.startswith("."))
        path = path / min(names, default="")  # names alone: dumps of images may have a million files
    return path.is_file() and path.suffix in TOKEN_FILES and _has_tokens(path)


def _has_tokens(file: Path) -> bool:
    """Whether a file has an array or a column of tokens."""
    if file.suffix == ".jsonl":
        return True
    if file.suffix == ".parquet":
        try:
            from pyarrow.parquet import read_schema

            names = set(read_schema(file).names)
        except (ImportError, OSError, ValueError):
            return False
        return bool(names & set(DISTILLKIT)) and bool(names & set(TOKENS))
    try:
        return bool(set(read_arrays(file)[0]) & set(TOKENS))
    except VqlabelError:
        return False


def _detect(path: Path) -> str:
    """The layout of a path; raises BadLabels with the remedy if it is not a dump."""
    if not path.is_dir():
        require_regular(path)
    elif (path / "config.json").exists() and not any(path.glob("*.parquet")):
        raise BadLabels(
            f"{path}: contains config.json, so it is a model, not a dump of its outputs; the model of a head is passed as head"
        )
    for name, layout in TEXT_LAYOUTS.items():
        if layout.detect(path):
            return name
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    below = [] if path.is_file() else sorted(folder for folder in path.iterdir() if folder.is_dir() and _holds_dump(folder))
    if below:
        raise BadLabels(
            f"{path}: the dump is {below[0]}: pass that folder" + (f"; {len(below) - 1} more are beside it" if below[1:] else "")
        )
    remedy = next((f"for {file.suffix} files: {_REMEDIES[file.suffix]}" for file in files if file.suffix in _REMEDIES), "")
    raise BadLabels(f"{path}: is not a dump of a language model; it must be {_FORMS}" + (f"; {remedy}" if remedy else ""))


def _holds_dump(folder: Path) -> bool:
    return any(layout.detect(folder) for layout in TEXT_LAYOUTS.values())
