"""A folder of .safetensors files -> documents: a file for each request, or shards of stacked sequences.

vLLM's `extract_hidden_states` and the tools on top of it write a file per request:

    token_ids       int64 [L]
    hidden_states   in the model's type, [L, layers, d]: a state for each token, of the layers that were asked for

Nothing else is in such a file, and beside it a NAME.safetensors.lock may lie. The state of the last token predicts a
token that is not in the file, and is dropped. The states of the last layer (an id of num_hidden_layers) are those
before the final norm: see `labels.text.norm`. Files of other names and shapes are described in `array_groups`.
"""

from pathlib import Path

from vqlabel.errors import BadLabels
from vqlabel.labels.layouts.shards import in_numeric_order
from vqlabel.labels.text.layouts.array_groups import group_arrays
from vqlabel.labels.text.layouts.array_source import ArraySource
from vqlabel.labels.text.layouts.layout import TextLayout, TextOptions
from vqlabel.labels.text.stored_array import read_arrays

SUFFIX = ".safetensors"


def open_hidden(path: Path, options: TextOptions) -> ArraySource:
    """The files of a folder in numeric order, or one file.

    Raises:
        UsageError: an option does not fit the dump.
        BadLabels: there is no such file; or one is malformed, or of another dump than the first.
    """
    files = tensor_files(path) if path.is_dir() else [path]
    if not files:
        raise BadLabels(f"{path}: contains no {SUFFIX} file; a dump has one for each request, or shards")
    groups, metadata = [], []
    for file in files:
        arrays, texts = read_arrays(file)
        groups.append(group_arrays(arrays, file, options.array))
        metadata.append(texts)
    return ArraySource(path, "hidden", groups, metadata, options)


def tensor_files(folder: Path) -> list[Path]:
    """The .safetensors files of a folder in numeric order; hidden files are left out."""
    files = [file for file in folder.iterdir() if file.suffix == SUFFIX and not file.name.startswith(".")]
    return sorted(files, key=in_numeric_order)


LAYOUT = TextLayout(
    source=open_hidden,
    detect=lambda path: path.is_dir() and bool(tensor_files(path)),
    options=frozenset({"layer", "array"}),
)
