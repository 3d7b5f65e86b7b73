"""What a run writes: its formats, the suffixes that name each, and the check of a target's suffix."""

from pathlib import Path
from typing import NamedTuple

from vqlabel.errors import UsageError


class TargetFormat(NamedTuple):
    """What is written to a target: a description for messages, and the suffixes of its file names."""

    words: str
    suffixes: tuple[str, ...] = ()
    folder: bool = False


VQL = TargetFormat("a .vql file", (".vql",))
CODEC = TargetFormat("a codec file", (".safetensors", ".codec"))
NPY = TargetFormat("a NumPy array", (".npy",))
SAFETENSORS = TargetFormat("an array in a .safetensors file", (".safetensors",))
TENSOR = TargetFormat("a torch.save file", (".pt", ".pth"))
IMAGE = TargetFormat("an image", (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".eps", ".ps", ".tif", ".tiff", ".webp", ".gif"))
PAGE = TargetFormat("a web page", (".html", ".htm"))
TREE = TargetFormat("a folder", folder=True)
INTERNAL = TargetFormat("an internal file of vqlabel")  # beside a target: the target's name with another suffix behind it

_NEVER_WRITTEN = {
    "NumPy arrays": (".npz",),
    "a table": (".csv", ".tsv", ".parquet", ".arrow", ".feather", ".h5", ".hdf5"),
    "an archive": (".tar", ".zip", ".gz", ".tgz", ".xz", ".bz2", ".zst"),
    "text": (".txt", ".json", ".jsonl", ".yaml", ".md", ".py"),
    "a pickle": (".pkl", ".pickle"),
    "a network": (".pt2", ".onnx", ".ckpt"),
}
_NAMED_BY = {suffix: words for words, suffixes in _NEVER_WRITTEN.items() for suffix in suffixes} | {
    suffix: form.words for form in (CODEC, NPY, SAFETENSORS, TENSOR, IMAGE, PAGE, VQL) for suffix in form.suffixes
}


def check_suffix(target: Path, form: TargetFormat) -> None:
    """Refuse a target whose suffix names another format than the one that is written; unknown suffixes are accepted.

    Raises:
        UsageError: the suffix belongs to another format.
    """
    suffix = target.suffix.lower()
    if form is INTERNAL or suffix not in _NAMED_BY or suffix in form.suffixes:
        return
    remedy = f"end its name in {' or '.join(form.suffixes)}" if form.suffixes else f"leave {suffix} out of its name"
    raise UsageError(f"{target}: {suffix} is for {_NAMED_BY[suffix]}, and what would be written is {form.words}; {remedy}")
