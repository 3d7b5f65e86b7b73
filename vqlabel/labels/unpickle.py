"""torch.save files -> plain objects, without running a byte of them: tensors, lists, numbers and arrays of them."""

import pickle
import warnings
import zipfile
from _codecs import encode
from pathlib import Path
from typing import Any

import numpy as np

from vqlabel.errors import BadLabels


class _Dtype:
    """Stands in for numpy.dtype, whose own __setstate__ crashes the process on a forged state."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if code not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
            raise ValueError(f"NumPy numbers of type {str(code)[:20]!r}, which no label needs")
        self.code = "|" + code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|"):
            raise ValueError("a NumPy type without a byte order")
        self.code = state[1] + self.code[1:]


def _scalar(dtype: _Dtype, data: bytes) -> bool | int | float:
    """Stands in for NumPy's: a plain number comes of it."""
    (value,) = np.frombuffer(data, dtype.code).tolist()
    return value  # type: ignore[no-any-return]


class _Array:
    """Stands in for numpy.ndarray, whose own __setstate__ believes whatever shape and type it is told."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError("a NumPy array without a shape or a type, or an empty one")
        flat = np.frombuffer(data, dtype.code)
        self.array = flat.astype(flat.dtype.newbyteorder("=")).reshape(shape, order="F" if by_columns else "C")


def _reconstruct(kind: type[_Array], shape: Any, code: Any) -> _Array:
    """Stands in for NumPy's: an array whose state is still to come."""
    if kind is not _Array:
        raise ValueError("a NumPy object that is no array")
    return kind()


def _safe_globals() -> list[Any]:
    """What NumPy's numbers and arrays are rebuilt from; old dumps name numpy.core, new ones numpy._core."""
    both = {"scalar": _scalar, "_reconstruct": _reconstruct}
    rebuild = [(stand_in, f"numpy.{core}.multiarray.{name}") for name, stand_in in both.items() for core in ("core", "_core")]
    return [encode, (_Dtype, "numpy.dtype"), (_Array, "numpy.ndarray"), *rebuild]


def _arrays(loaded: Any) -> Any:
    """NumPy's arrays in the place of those that stand in for them: of the object itself and of a list's items."""
    if isinstance(loaded, list):
        return [item.array if isinstance(item, _Array) else item for item in loaded]
    return loaded.array if isinstance(loaded, _Array) else loaded


def _refuse_bombs(path: Path) -> None:
    """torch.save stores its members as they are, so together they are no larger than their file; a compressed one may be."""
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile:
        with path.open("rb") as file:
            if file.read(4) == b"PK\3\4":  # torch.load would go on with its own, laxer reader
                raise
        return  # torch.save's older layout, or no such file at all: torch.load tells
    if total > path.stat().st_size:
        raise BadLabels(
            f"{path}: its members expand to {total} bytes in a file of {path.stat().st_size}; torch.save never does that"
        )


def unpickle(path: Path) -> Any:
    """Load a torch.save file of tensors, lists, numbers and NumPy's scalars and arrays, the latter writable and of this machine's byte order.

    Raises:
        BadLabels: the file is damaged, of another kind, or asks for anything else (which is never run).
    """
    import torch

    try:
        _refuse_bombs(path)
        quiet = warnings.catch_warnings(action="ignore")  # torch's of odd pickles, which are refused below in one line
        with torch.serialization.safe_globals(_safe_globals()), quiet:
            return _arrays(torch.load(path, map_location="cpu", weights_only=True))
    except BadLabels:
        raise
    except pickle.UnpicklingError as error:
        reason = str(error)
        if "Unsupported" in reason or "GLOBAL" in reason or "allowed" in reason:
            what = next((line.strip() for line in reason.splitlines() if "GLOBAL" in line or "Unsupported" in line), reason[:200])
            raise BadLabels(f"{path}: the pickle wants more than tensors ({what}); it was not run. Do not use this dump") from None
        raise BadLabels(f"{path}: damaged pickle ({reason[:200]}); copy or regenerate the file") from None
    except Exception as error:  # on foreign bytes torch.load raises nearly anything, MemoryError among it
        raise BadLabels(f"{path}: no readable torch.save file ({str(error)[:200]}); it may be truncated") from None
