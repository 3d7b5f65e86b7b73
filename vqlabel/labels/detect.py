"""A path -> its label source: the layout is detected, or named."""

import os.path
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from vqlabel.config import DOMAINS
from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels.arrays import SUFFIXES, ArraySource
from vqlabel.labels.source import LabelSource
from vqlabel.labels.sre2l import Sre2lSource, find_batches

LAYOUTS: dict[str, Callable[[Path, str | None], LabelSource]] = {"arrays": ArraySource, "sre2l": Sre2lSource}


def open_labels(path: str | PathLike[str], layout: str | None = None, domain: str | None = None) -> LabelSource:
    """Open a dump of teacher labels.

    Args:
        path: a .npy, .npz or .safetensors file ([n, C] or [epochs, n, C]), a directory of such shards, or SRe2L's tree.
        layout: "arrays" or "sre2l"; None: detected.
        domain: "logits" or "probs"; None: as the file declares it, else logits. Every batch is checked against it.

    Raises:
        UsageError: no such path, or no such layout or domain.
        BadLabels: the dump is empty or malformed.
    """
    path = Path(path)
    require(domain is None or domain in DOMAINS, "domain", domain, f"must be one of {', '.join(DOMAINS)}")
    require(layout is None or layout in LAYOUTS, "layout", layout, f"must be one of {', '.join(LAYOUTS)}")
    if not os.path.exists(path):  # unlike Path.exists it takes a name that is too long
        raise UsageError(
            f"{path}: no such file or directory; name a dump of labels ({', '.join(SUFFIXES)}, a folder of them, or SRe2L's tree)"
        )
    return LAYOUTS[layout or _detect(path)](path, domain)


def _detect(path: Path) -> str:
    if path.is_file():
        if path.suffix in SUFFIXES:
            return "arrays"
        raise BadLabels(f"{path}: {path.suffix or 'no suffix'} is no label format; use {', '.join(SUFFIXES)}, or name a folder")
    if not path.is_dir():
        raise BadLabels(f"{path}: neither a file nor a folder; name a dump of labels")
    if not any(path.iterdir()):
        raise BadLabels(f"{path}: the folder is empty; a dump has at least one batch or shard")
    if find_batches(path):
        return "sre2l"
    if any(f.suffix in SUFFIXES for f in path.iterdir()):
        return "arrays"
    raise BadLabels(f"{path}: neither epoch_E/batch_B.tar nor {', '.join(SUFFIXES)} in it; a layout can be named with --layout")
