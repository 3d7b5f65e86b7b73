"""The state of an unfinished run, in a file beside its output: the same command continues, to the same bytes."""

import hashlib
import io
import json
import time
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from vqlabel.codecs.base import StoredCodec
from vqlabel.codecs.file import build_codec
from vqlabel.codecs.fitted_on import FittedOn
from vqlabel.codecs.sample import FitHooks
from vqlabel.errors import TargetExists, UsageError, VqlabelError, VqlabelWarning
from vqlabel.progress import Progress
from vqlabel.storage.formats import INTERNAL
from vqlabel.storage.journal import differences
from vqlabel.storage.targets import atomic_target
from vqlabel.version import __version__

STATE = 5  # version of the state; increased when the same options lead to other training steps or other sizes
SUM = 32  # bytes of the sha256 at the end of a state file
SAVE_SHARE = 0.05  # of the time of a fit that saving may take; a killed run loses at most the work since the last save


def state_path(out: str | PathLike[str]) -> Path:
    """Path of the state of a run that writes `out`."""
    return Path(out).with_name(Path(out).name + ".state")


class RunState:
    """Results of an unfinished run, and the state of the fit that it is in: kept in `<out>.state`, loaded from there.

    `begin` comes before everything else. A state that cannot be written, as on a full disk, costs one warning.

    Args:
        out: the output of the run; None: nothing is kept.
        restart: discards the state of an interrupted run.

    Attributes:
        begun: whether `begin` was called.

    Raises:
        TargetExists: another file has the name of the state.
    """

    def __init__(self, out: str | PathLike[str] | None, *, restart: bool = False) -> None:
        self.path = None if out is None else state_path(out)
        self.begun, self._restart, self._failed = False, restart, False
        self._settings, self._results = dict[str, Any](), dict[str, Any]()
        self._fit: dict[str, Any] | None = None
        self._started, self._before, self._next_save = time.monotonic(), 0.0, 0.0
        self._stored = None if self.path is None or not self.path.exists() else _read(self.path)

    @property
    def seconds(self) -> float:
        """Duration of the run so far, that of the interrupted ones up to their last save included."""
        return self._before + time.monotonic() - self._started

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Continue the interrupted run, or begin a new one.

        Args:
            settings: all that the results depend on, JSON-compatible.

        Raises:
            UsageError: the interrupted run had other settings.
        """
        version = {"vqlabel": f"{__version__}, state {STATE}"}
        self._settings, self.begun = {**json.loads(json.dumps(dict(settings))), **version}, True
        if self.path is None or self._stored is None:
            return
        stored, self._stored = self._stored, None
        if self._restart:
            self.path.unlink()
            return
        if stored["settings"] != self._settings:
            raise UsageError(
                f"{self.path}: is the state of an interrupted run with other settings{differences(stored['settings'], self._settings)}; "
                "repeat those settings to continue that run, or discard it with --restart (restart=True)"
            )
        self._results, self._fit, self._before = stored["results"], stored["fit"], stored["seconds"]
        warnings.warn(f"{self.path}: continues the interrupted run (--restart begins anew)", VqlabelWarning, stacklevel=3)

    def result(self, name: str) -> Any:
        """What `keep` kept; None: nothing."""
        return self._results.get(name)

    def keep(self, name: str, value: Any) -> None:
        """Keep a result: numbers, strings, tensors, and lists and dictionaries of them. The state of a fit that led to
        it is dropped.
        """
        self._results[name], self._fit = value, None
        self._save(None)

    def fit_hooks(self, progress: Progress) -> FitHooks:
        """For the fit that the run does next."""
        resumed, self._fit = self._fit, None
        return FitHooks(progress=progress, save=self._save_fit, resumed=resumed)

    def keep_codec(self, codec: StoredCodec, report: Mapping[str, Any]) -> None:
        """Keep a fitted codec and the report of its fit."""
        if self.path is not None:
            self.keep("codec", codec_to_state(codec, report))

    def codec(self) -> tuple[Any, dict[str, Any]] | None:
        """The codec that `keep_codec` kept, and its report; None: none."""
        kept = self.result("codec")
        return None if kept is None else codec_from_state(kept)

    def remove(self) -> None:
        """Delete the state: the run is complete."""
        if self.path is not None and self.begun:
            self.path.unlink(missing_ok=True)

    def _save_fit(self, values: dict[str, Any]) -> None:
        """Save the state of a fit, unless that would take more than SAVE_SHARE of the time since the last save."""
        if time.monotonic() >= self._next_save:
            self._save(values)

    def _save(self, fit: dict[str, Any] | None) -> None:
        if self.path is None:
            return
        start = time.monotonic()
        try:
            _write(self.path, {"settings": self._settings, "results": self._results, "fit": fit, "seconds": self.seconds})
        except VqlabelError as error:
            if not self._failed:
                warnings.warn(f"{error}; the run continues, and cannot be resumed from here", VqlabelWarning, stacklevel=4)
            self._failed = True
        self._next_save = time.monotonic() + (time.monotonic() - start) / SAVE_SHARE


def codec_to_state(codec: StoredCodec, report: Mapping[str, Any]) -> dict[str, Any]:
    """A codec and the report of its fit as a value for `RunState.keep`."""
    state = {"kind": codec.kind, "config": codec.config.to_dict(), "tensors": codec.file_tensors()}
    return {**state, "fitted_on": codec.fitted_on.to_dict(), "report": _plain(report)}


def codec_from_state(state: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Inverse of `codec_to_state`."""
    codec = build_codec(state["kind"], state["config"], state["tensors"])
    codec.fitted_on = FittedOn.from_dict(state["fitted_on"], "a state")
    return codec, dict(state["report"])


def _write(path: Path, state: dict[str, Any]) -> None:
    """Write the bytes of torch.save, then their sha256."""
    torch.save(state, data := io.BytesIO())
    if path.is_symlink():  # replace the link: a state is never written through it to another place
        path.unlink()
    with atomic_target(path, INTERNAL, overwrite=True) as partial:
        partial.write_bytes(data.getvalue() + hashlib.sha256(data.getvalue()).digest())


def _read(path: Path) -> dict[str, Any]:
    """The state in a file. Raises TargetExists if there is none in it."""
    data = b"" if path.is_dir() else path.read_bytes()
    if hashlib.sha256(data[:-SUM]).digest() == data[-SUM:]:
        state = torch.load(io.BytesIO(data[:-SUM]), map_location="cpu", weights_only=True)
        return {"settings": None, **state}
    raise TargetExists(
        f"{path}: a run stores its state under this name, and this is not a readable state (its sha256 does not match); delete it, or "
        "name another output"
    )


def _plain(value: Any) -> Any:
    """A report in Python's own types, which are all that `weights_only` loads."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return float(value) if isinstance(value, float) else value
