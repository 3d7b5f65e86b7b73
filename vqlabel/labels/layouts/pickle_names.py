"""The names "module.name" that a pickle may use -> what stands in for them.

Nothing that a pickle names is imported or called.
Allowed are NumPy's numbers and arrays, containers, and paths (which become strings). The tensors of torch are in
`torch_tensors`.
"""

import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

REMEDY = "save the labels alone, as dense tensors or NumPy arrays"
MAX_COPIES = 8  # bytes of copies per byte of the file; an array as NumPy pickles it is copied three times
SET_BYTES, ITEM_BYTES = 216, 16  # memory of an empty set, which takes one byte of a pickle; of an item of a copied set or dict
_NUMPY_TYPES = r"b1|i1|i2|i4|i8|u1|u2|u4|u8|f2|f4|f8|[US]\d{1,6}"  # numbers and strings
_NUMPY_OBJECT = "O8"


class Refused(Exception):
    """A valid pickle that needs something not allowed; the message is a sentence without its subject, the file."""


class Token:
    """Stands in for an allowed name.

    Attributes:
        call: `call`(budget, *arguments) stands in for calling it; None: it must not be called.
    """

    __slots__ = ("call", "name")

    def __init__(self, name: str, call: Callable[..., Any] | None = None) -> None:
        self.name, self.call = name, call


class CopyBudget:
    """Limits the memory of copies, because a few opcodes can copy one string any number of times.

    Args:
        size: bytes of the file; all copies together may take MAX_COPIES times as many, and a MiB.
    """

    def __init__(self, size: int) -> None:
        self._bytes_left = MAX_COPIES * size + (1 << 20)

    def spend(self, size: int) -> None:
        """Count a copy of `size` bytes.

        Raises:
            ValueError: the limit is exceeded.
        """
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise ValueError("its objects are larger than the file")


class NumpyType:
    """Stands in for numpy.dtype, whose own __setstate__ crashes the process on a forged state."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or (code != _NUMPY_OBJECT and not re.fullmatch(_NUMPY_TYPES, code)):
            raise Refused(f"its pickle contains NumPy values of type {str(code)[:20]!r}, which are not supported; {REMEDY}")
        self.code = "|" + code

    def set_state(self, state: Any) -> None:
        """Set the byte order; all other fields of numpy.dtype's state are ignored."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|"):
            raise ValueError("a NumPy type without a byte order")
        self.code = state[1] + self.code[1:]


class NumpyArray:
    """Stands in for numpy.ndarray, whose own __setstate__ trusts any shape; `array` is None until the state is set."""

    array: NDArray[Any] | list[Any] | None = None

    def set_state(self, budget: CopyBudget, state: Any) -> None:
        """Set the array from numpy.ndarray's state."""
        _, shape, dtype, column_major, data = state
        self.array = build_array(budget, shape, dtype, data, "F" if column_major else "C")


def build_array(budget: CopyBudget, shape: Any, dtype: Any, data: Any, order: str) -> NDArray[Any] | list[Any]:
    """A writable array in native byte order; an array of objects becomes a list.

    Raises:
        ValueError: the arguments are not those of an array.
    """
    if not isinstance(dtype, NumpyType) or not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("a NumPy array without a shape or a type")
    if dtype.code[1:] == _NUMPY_OBJECT:
        if not isinstance(data, list) or shape != (len(data),):
            raise ValueError("a NumPy array of objects that is not a list of them")
        return data
    if not isinstance(data, bytes | bytearray):
        raise ValueError("a NumPy array without its bytes")
    budget.spend(len(data))
    flat = np.frombuffer(data, dtype.code)
    return flat.astype(flat.dtype.newbyteorder("=")).reshape(shape, order="F" if order == "F" else "C")


def unwrap(value: Any) -> Any:
    """The array of a `NumpyArray`; any other value unchanged.

    Raises:
        ValueError: the array has no state yet.
    """
    if not isinstance(value, NumpyArray):
        return value
    if value.array is None:
        raise ValueError("a NumPy array without its values")
    return value.array


# Classes of the standard library that only hold values, and functions that only rebuild an object: harmless in a file.
_HARMLESS = (
    r"argparse\.Namespace|types\.SimpleNamespace|datetime\.\w+|decimal\.Decimal|fractions\.Fraction|uuid\.UUID|enum\.\w+"
    r"|collections\.\w+|copyreg\._reconstructor|builtins\.(object|complex|slice|range|xrange|bytearray)|array\.\w+"
    r"|(torch|numpy|pandas|scipy|jax|sklearn)\b.*(rebuild|reconstruct|unpickle|ctor|new_block)\w*|builtins\.\w*Error"
)


def is_code(name: str) -> bool:
    """Whether "module.name" is something that unpickling would run, rather than a class whose objects the pickle holds.

    Judged by the name, since nothing is imported: names of the standard library are code except _HARMLESS; in other
    modules, CapWords are classes and everything else is code.
    """
    if re.fullmatch(_HARMLESS, name):
        return False
    module, last = name.split(".")[0], name.rpartition(".")[2]
    return module in sys.stdlib_module_names or not last.lstrip("_")[:1].isupper()


# --- what stands in for calls of the allowed names


def _encode(budget: CopyBudget, text: str, encoding: str) -> bytes:
    """Bytes, which protocol 2 stores as text."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an encoding other than latin1")
    budget.spend(len(text))
    return text.encode("latin1")


def _empty_bytes(budget: CopyBudget) -> bytes:
    """The bytes of an empty array in protocol 2."""
    return b""


def _dict(budget: CopyBudget, items: Any = None) -> dict[Any, Any]:
    if items is None or isinstance(items, dict):
        return {} if items is None else items
    budget.spend(ITEM_BYTES * len(items))
    return dict(items)


def _default_dict(budget: CopyBudget, factory: Any = None, items: Any = None) -> dict[Any, Any]:
    return _dict(budget, items)


def make_set(budget: CopyBudget, items: Any = ()) -> set[Any]:
    """A set of these items."""
    budget.spend(SET_BYTES + ITEM_BYTES * len(items))
    return set(items)


def _posix_path(budget: CopyBudget, *parts: str) -> str:
    budget.spend(sum(map(len, parts)))
    return str(PurePosixPath(*parts))


def _windows_path(budget: CopyBudget, *parts: str) -> str:
    budget.spend(sum(map(len, parts)))
    return str(PureWindowsPath(*parts))


def _dtype(budget: CopyBudget, code: Any, align: bool = False, copy: bool = False) -> NumpyType:
    return NumpyType(code)


def _scalar(budget: CopyBudget, dtype: NumpyType, data: bytes) -> Any:
    """A plain number or string."""
    (value,) = np.frombuffer(data, dtype.code).tolist()
    return value


def _reconstruct(budget: CopyBudget, kind: Any, shape: Any, code: Any) -> NumpyArray:
    if not isinstance(kind, Token) or kind.name != "numpy.ndarray":
        raise ValueError("a NumPy object that is not an array")
    return NumpyArray()


def _from_buffer(budget: CopyBudget, data: Any, dtype: Any, shape: Any, order: str, axes: Any = None) -> Any:
    """An array of protocol 5; with order "K", `axes` has the position of each axis in memory."""
    array = build_array(budget, shape, dtype, data, order)
    return array.transpose(axes) if order == "K" and axes is not None and isinstance(array, np.ndarray) else array


@cache
def allowed_names() -> dict[str, Token]:
    """NumPy's numbers and arrays, containers, and paths, by "module.name"."""
    calls: dict[str, Callable[..., Any] | None] = {
        "_codecs.encode": _encode,
        "numpy.dtype": _dtype,
        "numpy.ndarray": None,
        "collections.OrderedDict": _dict,
        "collections.Counter": _dict,
        "collections.defaultdict": _default_dict,
    }
    for core in ("core", "_core"):  # of NumPy 1 and 2
        for module in ("multiarray", "_multiarray_umath"):
            calls |= {f"numpy.{core}.{module}._reconstruct": _reconstruct, f"numpy.{core}.{module}.scalar": _scalar}
        calls[f"numpy.{core}.numeric._frombuffer"] = _from_buffer
    calls |= {f"builtins.{name}": None for name in ("list", "dict", "tuple", "int", "float", "str", "bool")}
    calls |= {"builtins.bytes": _empty_bytes, "builtins.set": make_set, "builtins.frozenset": make_set}
    for module in ("pathlib", "pathlib._local"):  # before Python 3.13, and since
        calls |= {f"{module}.{name}": _posix_path for name in ("PurePosixPath", "PosixPath", "PurePath", "Path")}
        calls |= {f"{module}.{name}": _windows_path for name in ("PureWindowsPath", "WindowsPath")}
    return {name: Token(name, call) for name, call in calls.items()}
