"""A path that is no dump itself -> what it is and what to name instead: a folder above or below the dump, a file of another program."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from vqlabel.labels.layouts.hald import find_epochs
from vqlabel.labels.layouts.lpqld import BATCH_ORDER_FILE, find_flat
from vqlabel.labels.layouts.shards import SUFFIXES, shards_of
from vqlabel.labels.layouts.tinyvit import FOLDER
from vqlabel.labels.layouts.tree import find_batches

DEPTH, LOOKED = 3, 2000  # folders below the one that was named, and how many of them are looked at
SHOWN = 4
_SAVE = "save the array with numpy.save('labels.npy', labels), or torch.save(labels, 'labels.pt')"
_TEXT = f"text takes five times the bytes and is slow to read; load it once (numpy.loadtxt, pandas), and {_SAVE}"
_PICKLE = f"one that holds nothing but tensors, arrays and containers is read under the name .pt; load another where you trust it, and {_SAVE}"
_ARCHIVE = "unpack it, and name the folder or file that comes of it"
REMEDIES = {
    **dict.fromkeys((".txt", ".csv", ".tsv", ".json", ".jsonl", ".yaml"), _TEXT),
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".dill"), _PICKLE),
    **dict.fromkeys((".gz", ".tgz", ".zip", ".zst", ".xz", ".bz2", ".7z"), _ARCHIVE),
    ".vql": "it holds labels already: vqlabel info and stats show them, unpack and convert write them as a dump",
    ".mat": f"load it with scipy.io.loadmat, and {_SAVE}",
    ".tfrecord": f"read it with TensorFlow, and {_SAVE}",
    ".bin": f"it records neither shape nor type; read it with numpy.fromfile(...).reshape(n, C), and {_SAVE}",
    ".dat": f"it records neither shape nor type; read it with numpy.memmap(...), and {_SAVE}",
    ".memmap": f"it records neither shape nor type; read it with numpy.memmap(...), and {_SAVE}",
    ".lmdb": f"read it with the lmdb package, and {_SAVE}",
    ".zarr": f"read it with zarr.load, and {_SAVE}",
    ".onnx": "it is a network: vqlabel relabel makes labels with a teacher, which is a Python function, TorchScript or torch.export",
    ".tar": "it is one file of a dump of many (SRe2L's, LPQLD's, FKD's ...): name the folder of the dump",
}


def wrong_file(path: Path) -> str:
    """Why a file is no dump, and the remedy."""
    kind = path.suffix.lower()
    known = f"it must be one of {', '.join(SUFFIXES)}, a .tar of WebDataset's, or a folder"
    return f"{path}: {path.suffix or 'no suffix'} is not a format of labels; {REMEDIES.get(kind, f'{known}; {_SAVE}')}"


def too_low(path: Path) -> str | None:
    """What to name in place of a folder that is one epoch of a dump; None: it is none."""
    whole = path.resolve()
    is_epoch = re.fullmatch(r"epoch_\d{1,9}", whole.name) and find_flat(path) and not (path / BATCH_ORDER_FILE).exists()
    if is_epoch or re.fullmatch(FOLDER, whole.name):
        return f"{path}: is one epoch of a dump; name the folder that it lies in: {whole.parent}"
    return None


def too_high(path: Path) -> str | None:
    """What to name in place of a folder that has dumps of batches below it; None: it has none."""
    below = [folder for folder in _below(path) if _holds_batches(folder)]
    return _named(path, below) if below else None


def nothing_here(path: Path) -> str:
    """Why a folder without a file of labels is no dump, and where dumps lie below it."""
    below = [folder for folder in _below(path) if shards_of(folder)]
    if below:
        return _named(path, below)
    others = sorted({file.suffix.lower() for file in path.iterdir()} & REMEDIES.keys())
    remedy = f"; of {others[0]} files: {REMEDIES[others[0]]}" if others else ""
    return f"{path}: neither epoch_E/batch_B.tar nor {', '.join(SUFFIXES)} in it, nor another layout's files; see docs/inputs.md{remedy}"


def _named(path: Path, below: list[Path]) -> str:
    if len(below) == 1:
        return f"{path}: the dump is {below[0]}: name that folder"
    shown = ", ".join(str(folder.relative_to(path)) for folder in below[:SHOWN])
    many = f"{len(below)} dumps ({shown}{' ...' if len(below) > SHOWN else ''})"
    return (
        f"{path}: holds {many}, and one is read at a time: name one of them, such as {below[0]}. Trees that several ranks or teachers wrote are "
        "dumps of their own; epochs of one dump lie side by side as epoch_0, epoch_1 ..."
    )


def _holds_batches(folder: Path) -> bool:
    lpqld = (folder / BATCH_ORDER_FILE).exists() and find_flat(folder)
    return bool(find_batches(folder) or find_epochs(folder) or lpqld) or any(
        re.fullmatch(FOLDER, entry.name) for entry in folder.iterdir()
    )


def _below(path: Path) -> Iterator[Path]:
    """Folders below a folder, the upper ones first; none below one that is an epoch."""
    return islice(_walk(path), LOOKED)


def _walk(path: Path) -> Iterator[Path]:
    level = [path]
    for _ in range(DEPTH):
        level = [
            folder
            for above in level
            for folder in sorted(above.iterdir())
            if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith(".")
        ]
        yield from level
