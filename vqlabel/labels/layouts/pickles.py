"""A pickle of any protocol -> plain objects, by an allow-list. Nothing that a pickle names is imported or called.

The standard library's `pickletools` decodes the opcodes; here is the stack that they work on. What a pickle may name are NumPy's numbers and
arrays, containers, paths (which become strings), and what the caller adds to `own_names`. All other names become tokens that nothing is done
with, so that the whole pickle is seen before it is refused and the refusal can tell code from a foreign class.
"""

import pickletools
import re
import sys
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

ALONE = "save the labels alone, as dense tensors or NumPy arrays"
LEVELS_MOST = 5  # pickle protocols 0 to 5
COPIES = 8  # bytes of copies that a byte of the file may make: an honest array of NumPy's is copied three times
SET_BYTES, ITEM_BYTES = 216, 16  # of an empty set, which takes one byte of a pickle; of an item in a set or dict that is copied
_TYPES = r"b1|i1|i2|i4|i8|u1|u2|u4|u8|f2|f4|f8|[US]\d{1,6}"  # of NumPy: numbers and strings
_OBJECTS = "O8"


class Stream(Protocol):
    """What pickles are read from."""

    def read(self, count: int, /) -> bytes:
        """Up to `count` bytes."""
        ...

    def readline(self) -> bytes:
        """All up to the next line feed."""
        ...


class Refused(Exception):
    """A pickle that is whole and asks for something outside the allow-list; a sentence without its subject."""


class Token:
    """A name that a pickle may use, on the stack; `call`(machine, *arguments) stands in for it; None: it may be named, not called."""

    __slots__ = ("call", "name")

    def __init__(self, name: str, call: Callable[..., Any] | None = None) -> None:
        self.name, self.call = name, call


class Foreign:
    """What comes of a name outside the allow-list, and of anything that is done with it."""


_FOREIGN = Foreign()


class _Dtype:
    """Stands in for numpy.dtype, whose own __setstate__ crashes the process on a forged state."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or (code != _OBJECTS and not re.fullmatch(_TYPES, code)):
            raise Refused(f"its pickle holds NumPy values of type {str(code)[:20]!r}, which are not read; {ALONE}")
        self.code = "|" + code

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|"):
            raise ValueError("a NumPy type without a byte order")
        self.code = state[1] + self.code[1:]


class _Array:
    """Stands in for numpy.ndarray, whose own __setstate__ believes whatever shape and type it is told. None: its state is still to come."""

    array: NDArray[Any] | list[Any] | None = None


class Machine:
    """The stack, the memo and the allow-list of one load.

    Args:
        size: bytes of the file. Copies take no more than COPIES times as many, and MiB: a few opcodes can copy a string any number of times.
        names: "module.name" -> what stands in for it: a token, or a value.
        persistent: what a persistent id stands for, such as a storage of torch's.
    """

    def __init__(self, size: int, names: Mapping[str, Any], persistent: Callable[[Any], Any] | None = None) -> None:
        self._room, self._persistent = COPIES * size + (1 << 20), persistent
        self._names = names
        self._foreign: list[str] = []

    def load(self, stream: Stream) -> Any:
        """The object that the next pickle in `stream` makes; the stream then stands behind it.

        Raises:
            Refused: the pickle names code, or a class that is not read.
            ValueError, and nearly anything: it is damaged.
        """
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # stacks below the marks
        self._memo: dict[int, Any] = {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]  # it calls these two alone
                if opcode.name in _LITERALS:
                    self._push(argument)
                elif opcode.name == "STOP":
                    (found,) = self._stack
                elif opcode.name in _OPCODES:
                    _OPCODES[opcode.name](self, argument)
                else:
                    raise ValueError(f"opcode {opcode.name}, which no label needs")
        except Refused:
            raise
        except Exception as error:
            if self._foreign:
                self._refuse()
            if isinstance(error, KeyError | IndexError | TypeError):
                raise ValueError(f"opcode {opcode.name} finds nothing that it could work on") from None
            raise
        if self._foreign:
            self._refuse()
        return _built(found)

    def _refuse(self) -> NoReturn:
        code = [name for name in self._foreign if is_code(name)]
        if code:
            raise Refused(f"its pickle asks for {code[0]}, which is code; it was not run. Do not use this dump")
        module, _, name = self._foreign[0].rpartition(".")
        raise Refused(f"its pickle asks for {name} of the module {module}, which is not read and was not run; {ALONE}")

    def spend(self, size: int) -> None:
        """Account for a copy of `size` bytes.

        Raises:
            ValueError: all copies together are too large for the file.
        """
        self._room -= size
        if self._room < 0:
            raise ValueError("its objects are larger than the file")

    def array(self, shape: Any, dtype: Any, data: Any, order: str) -> NDArray[Any] | list[Any]:
        """Writable and of this machine's byte order; objects as a list."""
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("a NumPy array without a shape or a type")
        if dtype.code[1:] == _OBJECTS:
            if not isinstance(data, list) or shape != (len(data),):
                raise ValueError("a NumPy array of objects that is no list of them")
            return data
        if not isinstance(data, bytes | bytearray):
            raise ValueError("a NumPy array without its bytes")
        self.spend(len(data))
        flat = np.frombuffer(data, dtype.code)
        return flat.astype(flat.dtype.newbyteorder("=")).reshape(shape, order="F" if order == "F" else "C")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _find(self, module: str, name: str) -> Any:
        """What stands in for a name; modules by their names of Python 3."""
        full = f"{IMPORT_MAPPING.get(module, module)}.{name}"
        if not re.fullmatch(r"[\w.<>]{1,200}", full):
            raise ValueError("a name that is none")
        found = self._names.get(full)
        if found is None:
            self._foreign.append(full)
        return found or _FOREIGN

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push(self._find(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is no string")
        self._push(self._find(module, name))

    def _call(self, what: Any, arguments: Any) -> None:
        if isinstance(what, Foreign):
            self._push(what)
            return
        if not isinstance(what, Token) or what.call is None or not isinstance(arguments, tuple):
            raise ValueError("a call of something that cannot be called")
        self._push(what.call(self, *arguments))

    def _reduce(self, _: Any) -> None:
        arguments, what = self._stack.pop(), self._stack.pop()
        self._call(what, arguments)

    def _new_with_keywords(self, _: Any) -> None:
        keywords = self._stack.pop()
        if keywords and not isinstance(self._stack[-2], Foreign):
            raise ValueError("a call with keywords")
        self._reduce(_)

    def _instance(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._call(self._find(module, name), tuple(self._pop_mark()))

    def _object(self, _: Any) -> None:
        what, *arguments = self._pop_mark()
        self._call(what, tuple(arguments))

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, _Dtype):
            target.set_state(state)
        elif isinstance(target, _Array) and target.array is None:
            _, shape, dtype, by_columns, data = state
            target.array = self.array(shape, dtype, data, "F" if by_columns else "C")
        elif not isinstance(target, dict | Foreign):  # of a dict: attributes of an OrderedDict, which no label needs
            raise ValueError("a state for something that has none")

    def _append(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], Foreign):
            target: list[Any] = self._stack[-1]
            if type(target) is not list:
                raise ValueError("items for something that is no list")
            target.extend(map(_built, items))

    def _set_items(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], Foreign):
            target: dict[Any, Any] = self._stack[-1]
            if type(target) is not dict or len(items) % 2:
                raise ValueError("keys for something that is no dict")
            target.update(zip(items[::2], map(_built, items[1::2]), strict=True))

    def _add_items(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], Foreign):
            target: set[Any] = self._stack[-1]
            target.update(items)

    def _dict_of_mark(self, _: Any) -> None:
        items = self._pop_mark()
        self._push({})
        self._set_items(items)

    def _tuple(self, count: int) -> None:
        items = self._stack[-count:]
        if len(items) != count:
            raise IndexError
        self._stack[-count:] = [tuple(map(_built, items))]

    def _put(self, at: int) -> None:
        self._memo[at] = self._stack[-1]

    def _get(self, at: int) -> None:
        self._push(self._memo[at])

    def _persist(self, _: Any) -> None:
        if self._persistent is None:
            raise ValueError("a persistent id, in a pickle that has none")
        self._push(self._persistent(self._stack.pop()))

    def _protocol(self, level: int) -> None:
        if level > LEVELS_MOST:
            raise ValueError(f"pickle protocol {level}; protocols up to {LEVELS_MOST} are read")


# Classes of the standard library that hold values only, and functions that only rebuild an object: of them a file is no more to be feared
_VALUES = (
    r"argparse\.Namespace|types\.SimpleNamespace|datetime\.\w+|decimal\.Decimal|fractions\.Fraction|uuid\.UUID|enum\.\w+"
    r"|collections\.\w+|copyreg\._reconstructor|builtins\.(object|complex|slice|range|xrange|bytearray)|array\.\w+"
    r"|(torch|numpy|pandas|scipy|jax|sklearn)\b.*(rebuild|reconstruct|unpickle|ctor|new_block)\w*|builtins\.\w*Error"
)


def is_code(name: str) -> bool:
    """Whether a name "module.name" is of something that a pickle could have run, rather than of a class whose objects it holds.

    Nothing is imported to find out: what the standard library has is code but for _VALUES; elsewhere classes are CapWords and functions are not.
    """
    if re.fullmatch(_VALUES, name):
        return False
    module, last = name.split(".")[0], name.rpartition(".")[2]
    return module in sys.stdlib_module_names or not last.lstrip("_")[:1].isupper()


def _built(value: Any) -> Any:
    """The array, of what stands in for one."""
    if not isinstance(value, _Array):
        return value
    if value.array is None:
        raise ValueError("a NumPy array without its numbers")
    return value.array


# --- what stands in for the names that a pickle may use


def _encode(machine: Machine, text: str, encoding: str) -> bytes:
    """Bytes, as protocol 2 spells them."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in another encoding than latin1")
    machine.spend(len(text))
    return text.encode("latin1")


def _no_bytes(machine: Machine) -> bytes:
    """Of an empty array, in protocol 2."""
    return b""


def _dict(machine: Machine, items: Any = None) -> dict[Any, Any]:
    if items is None or isinstance(items, dict):
        return {} if items is None else items
    machine.spend(ITEM_BYTES * len(items))
    return dict(items)


def _default_dict(machine: Machine, factory: Any = None, items: Any = None) -> dict[Any, Any]:
    return _dict(machine, items)


def _set(machine: Machine, items: Any = ()) -> set[Any]:
    machine.spend(SET_BYTES + ITEM_BYTES * len(items))
    return set(items)


def _posix_path(machine: Machine, *parts: str) -> str:
    machine.spend(sum(map(len, parts)))
    return str(PurePosixPath(*parts))


def _windows_path(machine: Machine, *parts: str) -> str:
    machine.spend(sum(map(len, parts)))
    return str(PureWindowsPath(*parts))


def _dtype(machine: Machine, code: Any, align: bool = False, copy: bool = False) -> _Dtype:
    return _Dtype(code)


def _scalar(machine: Machine, dtype: _Dtype, data: bytes) -> Any:
    """A plain number, or string."""
    (value,) = np.frombuffer(data, dtype.code).tolist()
    return value


def _reconstruct(machine: Machine, kind: Any, shape: Any, code: Any) -> _Array:
    if not isinstance(kind, Token) or kind.name != "numpy.ndarray":
        raise ValueError("a NumPy object that is no array")
    return _Array()


def _from_buffer(machine: Machine, data: Any, dtype: Any, shape: Any, order: str, axes: Any = None) -> Any:
    """An array of protocol 5; axes, with order "K": where each axis lies in memory."""
    array = machine.array(shape, dtype, data, order)
    return array.transpose(axes) if order == "K" and axes is not None and isinstance(array, np.ndarray) else array


@cache
def own_names() -> dict[str, Token]:
    """NumPy's numbers and arrays, containers, and paths."""
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
    calls |= {"builtins.bytes": _no_bytes, "builtins.set": _set, "builtins.frozenset": _set}
    for module in ("pathlib", "pathlib._local"):  # before Python 3.13, and from then on
        calls |= {f"{module}.{name}": _posix_path for name in ("PurePosixPath", "PosixPath", "PurePath", "Path")}
        calls |= {f"{module}.{name}": _windows_path for name in ("PureWindowsPath", "WindowsPath")}
    return {name: Token(name, call) for name, call in calls.items()}


# --- opcodes

_LITERALS = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
    ]
)
_OPCODES: dict[str, Callable[[Machine, Any], Any]] = {
    "PROTO": Machine._protocol,
    "FRAME": lambda machine, _: None,
    "NONE": lambda machine, _: machine._push(None),
    "NEWTRUE": lambda machine, _: machine._push(True),
    "NEWFALSE": lambda machine, _: machine._push(False),
    "EMPTY_LIST": lambda machine, _: machine._push([]),
    "EMPTY_DICT": lambda machine, _: machine._push({}),
    "EMPTY_TUPLE": lambda machine, _: machine._push(()),
    "EMPTY_SET": lambda machine, _: machine._push(_set(machine)),
    "MARK": Machine._mark,
    "POP": lambda machine, _: machine._stack.pop(),
    "POP_MARK": lambda machine, _: machine._pop_mark(),
    "DUP": lambda machine, _: machine._push(machine._stack[-1]),
    "TUPLE": lambda machine, _: machine._push(tuple(map(_built, machine._pop_mark()))),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "LIST": lambda machine, _: machine._push(list(map(_built, machine._pop_mark()))),
    "DICT": Machine._dict_of_mark,
    "FROZENSET": lambda machine, _: machine._push(_set(machine, machine._pop_mark())),
    "APPEND": lambda machine, _: machine._append([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._pop_mark()),
    "SETITEM": lambda machine, _: machine._set_items([machine._stack.pop(), machine._stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_mark()),
    "ADDITEMS": lambda machine, _: machine._add_items(machine._pop_mark()),
    "PUT": Machine._put,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "MEMOIZE": lambda machine, _: machine._put(len(machine._memo)),
    "GET": Machine._get,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._reduce,
    "NEWOBJ_EX": Machine._new_with_keywords,
    "INST": Machine._instance,
    "OBJ": Machine._object,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persist,
}
