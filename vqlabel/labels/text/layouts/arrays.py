"""Arrays of tokens and of hidden states or logits -> documents: a folder of .npy files, a .npz or one .safetensors.

A folder has tokens.npy and hidden.npy or logits.npy, and lengths.npy or offsets.npy if the documents lie one after the
other; the other two have arrays of these names. See `array_groups` for names and shapes.
"""

from dataclasses import replace
from pathlib import Path

from vqlabel.errors import BadLabels
from vqlabel.labels.text.layouts.array_groups import TOKENS, group_arrays
from vqlabel.labels.text.layouts.array_source import ArraySource
from vqlabel.labels.text.layouts.layout import TextLayout, TextOptions
from vqlabel.labels.text.stored_array import Arrays, read_arrays


def open_arrays(path: Path, options: TextOptions) -> ArraySource:
    """The documents of one folder or file.

    Raises:
        UsageError: an option does not fit the dump.
        BadLabels: a file is malformed, or arrays are missing or do not fit each other.
    """
    arrays, metadata = (_of_folder(path), {}) if path.is_dir() else read_arrays(path)
    group = group_arrays(arrays, path, options.array)
    source = ArraySource(path, "arrays", [group], [metadata], options)
    if len(group.tokens.shape) == 1 and len(group.lengths) == 1 and path.suffix != ".safetensors":
        source.notes.append(
            f"{path}: its {group.tokens.shape[0]} tokens are read as one document; if they are several, store the array lengths"
        )
    return source


def _of_folder(folder: Path) -> Arrays:
    """The arrays of all .npy files by the names of the files; hidden files are left out."""
    files = sorted(file for file in folder.glob("*.npy") if not file.name.startswith("."))
    if not files:
        raise BadLabels(f"{folder}: contains no .npy file; a dump has tokens.npy, and hidden.npy or logits.npy")
    arrays = {}
    for file in files:
        (array,) = read_arrays(file)[0].values()
        arrays[file.stem] = replace(array, name=file.stem)
    return arrays


def _detect(path: Path) -> bool:
    if path.is_dir():
        return any((path / f"{name}.npy").exists() for name in TOKENS)
    return path.suffix in (".npz", ".safetensors")


LAYOUT = TextLayout(source=open_arrays, detect=_detect, options=frozenset({"layer", "array"}))
