"""torch.save files -> plain objects, without running a byte of them: tensors, numbers, lists and NumPy scalars only."""

import functools
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from vqlabel.errors import BadLabels


@functools.cache
def _numpy_globals() -> list[Any]:
    """What NumPy's own scalars and arrays need to be rebuilt; old dumps name numpy.core, new ones numpy._core."""
    from _codecs import encode

    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    safe: list[Any] = [encode, np.dtype, np.ndarray]
    for function in (multiarray.scalar, multiarray._reconstruct):
        safe += [function, (function, f"numpy.core.multiarray.{function.__name__}")]
    names = ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "Float16", "Float32", "Float64")
    return safe + [getattr(np.dtypes, f"{name}DType") for name in names]


def _refuse_bombs(path: Path) -> None:
    """torch.save stores its members as they are, so together they are no larger than their file; a compressed one may be."""
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile:
        return  # torch.save's older layout, or no such file at all: torch.load tells
    if total > path.stat().st_size:
        raise BadLabels(
            f"{path}: its members expand to {total} bytes in a file of {path.stat().st_size}; torch.save never does that"
        )


def unpickle(path: Path) -> Any:
    """Load a torch.save file of tensors, lists, numbers and NumPy scalars.

    Raises:
        BadLabels: the file is damaged, of another kind, or asks for anything else (which is never run).
    """
    import torch

    try:
        _refuse_bombs(path)
        with torch.serialization.safe_globals(_numpy_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, BadLabels):
        raise
    except pickle.UnpicklingError as error:
        reason = str(error)
        if "Unsupported" in reason or "GLOBAL" in reason or "allowed" in reason:
            what = next((line.strip() for line in reason.splitlines() if "GLOBAL" in line or "Unsupported" in line), reason[:200])
            raise BadLabels(f"{path}: the pickle wants more than tensors ({what}); it was not run. Do not use this dump") from None
        raise BadLabels(f"{path}: damaged pickle ({reason[:200]}); copy or regenerate the file") from None
    except (
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        zipfile.BadZipFile,
    ) as error:
        raise BadLabels(f"{path}: no readable torch.save file ({str(error)[:200]}); it may be truncated") from None
