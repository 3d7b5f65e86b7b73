"""The state of an unfinished fit, beside its codec file: a resumed fit gives the bytes of an uninterrupted one."""

import hashlib
import io
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from vqlabel.codecs import LabelSample
from vqlabel.config import FitConfig
from vqlabel.errors import TargetExists, UsageError, VqlabelError, VqlabelWarning
from vqlabel.labels.sparse import SparseLabels, hash_labels
from vqlabel.storage.formats import INTERNAL
from vqlabel.storage.targets import atomic_target

STATE = 4  # version of the state; increased when the same options lead to other training steps or other sizes
SUM = 32  # bytes of the sha256 at the end of a state file


def state_of(out: str | PathLike[str]) -> Path:
    """Path of the state of a fit whose codec file is `out`."""
    return Path(out).with_name(Path(out).name + ".state")


def state_mark(config: FitConfig, sample: LabelSample) -> str:
    """sha256 of the configuration and the training split; a state with another mark is of another fit."""
    mark = hashlib.sha256(f"{STATE} {config.to_json()}".encode())
    train = sample.train
    hash_labels(mark, train.map(torch.Tensor.numpy) if isinstance(train, SparseLabels) else train.numpy())
    return mark.hexdigest()


class StateKeeper:
    """Saves the state of a fit. If that fails, as on a full disk, it warns once and the fit continues without."""

    def __init__(self, path: Path, mark: str) -> None:
        self._path, self._mark, self._failed = path, mark, False

    def __call__(self, values: dict[str, Any]) -> None:
        try:
            _save_state(self._path, {"mark": self._mark, "fit": values})
        except VqlabelError as error:
            if not self._failed:
                warnings.warn(f"{error}; the fit continues, and cannot be resumed from here", VqlabelWarning, stacklevel=2)
            self._failed = True


def _save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the bytes of torch.save, then their sha256."""
    torch.save(state, data := io.BytesIO())
    if path.is_symlink():  # replace the link: a state is never written through it to another place
        path.unlink()
    with atomic_target(path, INTERNAL, overwrite=True) as partial:
        partial.write_bytes(data.getvalue() + hashlib.sha256(data.getvalue()).digest())


def _read_state(path: Path) -> bytes | None:
    """The bytes that `_save_state` got from torch.save; None if the sha256 does not match."""
    data = path.read_bytes()
    return data[:-SUM] if hashlib.sha256(data[:-SUM]).digest() == data[-SUM:] else None


def load_state(path: Path, mark: str) -> dict[str, Any]:
    """The values that `StateKeeper` saved.

    Raises:
        UsageError: the file is not a state, is damaged, or has another mark.
    """
    data = _read_state(path)
    if data is None:
        raise UsageError(
            f"{path}: is not a readable state of a fit (its sha256 does not match); delete it and run without --resume"
        )
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if state["mark"] != mark:
        raise UsageError(f"{path}: is of another dump or another configuration; give the same flags, or run without --resume")
    return dict(state["fit"])


def refuse_other_state(path: Path) -> None:
    """Raises TargetExists if a fit would replace a file that is not the state of a fit."""
    if path.exists() and (path.is_dir() or _read_state(path) is None):
        raise TargetExists(
            f"{path}: is not the state of a fit, and a fit stores its state under this name; delete it, or choose another codec file"
        )
