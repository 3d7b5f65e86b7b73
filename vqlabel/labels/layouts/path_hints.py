"""A path that is not a dump (a folder above or below one, another program's file) -> what it is, and what to pass."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from vqlabel.labels.layouts.hald import find_epochs
from vqlabel.labels.layouts.lpqld import BATCH_ORDER_FILE, find_flat_batches
from vqlabel.labels.layouts.shards import SUFFIXES, shards_of
from vqlabel.labels.layouts.tinyvit import FOLDER
from vqlabel.labels.layouts.tree import find_batches

MAX_DEPTH, MAX_FOLDERS = 3, 2000  # of the search for dumps below the path
MAX_SHOWN = 4  # dumps that a message lists
_SAVE = "save the array with numpy.save('labels.npy', labels), or torch.save(labels, 'labels.pt')"
_TEXT = f"text takes five times the bytes and is slow to read; load it once (numpy.loadtxt, pandas), and {_SAVE}"
_PICKLE = f"if it contains only tensors, arrays and containers, rename it to .pt; otherwise load it where you trust it, and {_SAVE}"
_ARCHIVE = "unpack it, and pass the folder or file that it contains"
_NO_SHAPE = "it records neither shape nor type; read it with"
REMEDIES = {
    **dict.fromkeys((".txt", ".csv", ".tsv", ".json", ".jsonl", ".yaml"), _TEXT),
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".dill"), _PICKLE),
    **dict.fromkeys((".gz", ".tgz", ".zip", ".zst", ".xz", ".bz2", ".7z"), _ARCHIVE),
    ".vql": "it is compressed already: vqlabel info and stats describe it, unpack and convert write its labels as a dump",
    ".mat": f"load it with scipy.io.loadmat, and {_SAVE}",
    ".tfrecord": f"read it with TensorFlow, and {_SAVE}",
    ".bin": f"{_NO_SHAPE} numpy.fromfile(...).reshape(n, C), and {_SAVE}",
    ".dat": f"{_NO_SHAPE} numpy.memmap(...), and {_SAVE}",
    ".memmap": f"{_NO_SHAPE} numpy.memmap(...), and {_SAVE}",
    ".lmdb": f"read it with the lmdb package, and {_SAVE}",
    ".zarr": f"read it with zarr.load, and {_SAVE}",
    ".onnx": "it is a network: vqlabel relabel makes labels with a teacher, which is a Python function, TorchScript or torch.export",
    ".tar": "it is one of the many files of a dump (of SRe2L, LPQLD, FKD ...): pass the folder of the dump",
}


def wrong_file(path: Path) -> str:
    """The message for a file that is not a dump."""
    suffix = path.suffix.lower()
    supported = f"it must be one of {', '.join(SUFFIXES)}, a .tar of WebDataset, or a folder"
    return f"{path}: {path.suffix or 'no suffix'} is not a format of labels; {REMEDIES.get(suffix, f'{supported}; {_SAVE}')}"


def below_dump(path: Path) -> str | None:
    """The message for a folder that is one epoch of a dump; None for another folder."""
    folder = path.resolve()
    has_batches = re.fullmatch(r"epoch_\d{1,9}", folder.name) and find_flat_batches(path) and not (path / BATCH_ORDER_FILE).exists()
    if has_batches or re.fullmatch(FOLDER, folder.name):
        return f"{path}: is one epoch of a dump; pass the folder that contains it: {folder.parent}"
    return None


def above_dumps(path: Path) -> str | None:
    """The message for a folder that contains dumps of batches at some depth; None if it contains none."""
    dumps = [folder for folder in _folders_below(path) if _holds_batches(folder)]
    return _name_dumps(path, dumps) if dumps else None


def no_dump(path: Path) -> str:
    """The message for a folder without labels; names folders below it that contain files of labels."""
    dumps = [folder for folder in _folders_below(path) if shards_of(folder)]
    if dumps:
        return _name_dumps(path, dumps)
    suffixes = sorted({file.suffix.lower() for file in path.iterdir()} & REMEDIES.keys())
    remedy = f"; for {suffixes[0]} files: {REMEDIES[suffixes[0]]}" if suffixes else ""
    return f"{path}: contains neither epoch_E/batch_B.tar, nor {', '.join(SUFFIXES)}, nor files of another layout; see docs/inputs.md{remedy}"


def _name_dumps(path: Path, dumps: list[Path]) -> str:
    if len(dumps) == 1:
        return f"{path}: the dump is {dumps[0]}: pass that folder"
    shown = ", ".join(str(folder.relative_to(path)) for folder in dumps[:MAX_SHOWN])
    more = " ..." if len(dumps) > MAX_SHOWN else ""
    return (
        f"{path}: contains {len(dumps)} dumps ({shown}{more}), and one is read at a time: pass one of them, such as {dumps[0]}. The trees that "
        "different ranks or teachers wrote are separate dumps; the epochs of one dump must be in one folder, as epoch_0, epoch_1 ..."
    )


def _holds_batches(folder: Path) -> bool:
    is_lpqld = (folder / BATCH_ORDER_FILE).exists() and find_flat_batches(folder)
    return bool(find_batches(folder) or find_epochs(folder) or is_lpqld) or any(
        re.fullmatch(FOLDER, entry.name) for entry in folder.iterdir()
    )


def _folders_below(path: Path) -> Iterator[Path]:
    """The first MAX_FOLDERS folders below a folder, upper levels first, without hidden ones and symbolic links."""
    return islice(_walk(path), MAX_FOLDERS)


def _walk(path: Path) -> Iterator[Path]:
    level = [path]
    for _ in range(MAX_DEPTH):
        level = [
            folder
            for parent in level
            for folder in sorted(parent.iterdir())
            if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith(".")
        ]
        yield from level
