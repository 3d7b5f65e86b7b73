"""The state of an unfinished fit, beside its codec file: an interrupted fit goes on from it to the same bytes."""

import hashlib
import io
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqlabel.codecs import LabelSample
from vqlabel.config import FitConfig
from vqlabel.errors import TargetExists, UsageError, VqlabelError, VqlabelWarning
from vqlabel.storage.formats import INTERNAL
from vqlabel.storage.targets import atomic_target

STATE = 3  # version of the state; raised where the same options make other steps, or sizes
SUM = 32  # bytes of a state's sha256, which stands at its end


def state_of(out: str | PathLike[str]) -> Path:
    return Path(out).with_name(Path(out).name + ".state")


def state_mark(config: FitConfig, sample: LabelSample) -> str:
    """By which a state is known to be of this configuration and these labels."""
    mark = hashlib.sha256(f"{STATE} {config.to_json()}".encode())
    mark.update(np.ascontiguousarray(sample.seen.numpy()).data)
    return mark.hexdigest()


class StateKeeper:
    """Saves the state of a fit. Where that fails, as on a full disk, the fit goes on without: a state is a convenience."""

    def __init__(self, path: Path, mark: str) -> None:
        self._path, self._mark, self._failed = path, mark, False

    def __call__(self, values: dict[str, Any]) -> None:
        try:
            _save_state(self._path, {"mark": self._mark, "fit": values})
        except VqlabelError as error:
            if not self._failed:
                warnings.warn(f"{error}; the fit goes on, and cannot be resumed from here", VqlabelWarning, stacklevel=2)
            self._failed = True


def _save_state(path: Path, state: dict[str, Any]) -> None:
    """torch.save, and the sha256 of that behind it."""
    torch.save(state, data := io.BytesIO())
    if path.is_symlink():  # the target's owner may link it elsewhere; a state is ours, and goes nowhere else
        path.unlink()
    with atomic_target(path, INTERNAL, overwrite=True) as partial:
        partial.write_bytes(data.getvalue() + hashlib.sha256(data.getvalue()).digest())


def _read_state(path: Path) -> bytes | None:
    """What `_save_state` saved; None where a file is something else, or damaged."""
    data = path.read_bytes()
    return data[:-SUM] if hashlib.sha256(data[:-SUM]).digest() == data[-SUM:] else None


def load_state(path: Path, mark: str) -> dict[str, Any]:
    data = _read_state(path)
    if data is None:
        raise UsageError(f"{path}: no readable state of a fit (its sha256 does not fit); delete it and run without --resume")
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if state["mark"] != mark:
        raise UsageError(f"{path}: is of another dump or another configuration; give the same flags, or run without --resume")
    return dict(state["fit"])


def refuse_other_state(path: Path) -> None:
    """Raises TargetExists where a fit would replace something that no fit left."""
    if path.exists() and (path.is_dir() or _read_state(path) is None):
        raise TargetExists(
            f"{path}: is no state that this vqlabel's fit left, and a fit keeps its own there; delete it, or name another codec file"
        )
