"""A pickle of any protocol -> plain objects, by an allow-list of names.

Nothing that a pickle names is imported or called.
The standard library's `pickletools` decodes the opcodes; this module is the stack machine that executes them. Names
outside the allow-list become placeholders without any effect, so that the whole pickle is read before it is refused,
and the message can tell code from an unsupported class.
"""

import pickletools
import re
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

from vqlabel.labels.layouts.pickle_names import REMEDY, CopyBudget, NumpyArray, NumpyType, Refused, Token, is_code, make_set, unwrap

MAX_PROTOCOL = 5


class Stream(Protocol):
    """What pickles are read from."""

    def read(self, count: int, /) -> bytes:
        """Up to `count` bytes."""
        ...

    def readline(self) -> bytes:
        """All bytes up to and including the next line feed."""
        ...


class Foreign:
    """The placeholder of a name outside the allow-list, and of any object made with it."""


_FOREIGN = Foreign()


class Machine(CopyBudget):
    """The stack, the memo and the allow-list for loading pickles.

    Args:
        size: bytes of the file, see `CopyBudget`.
        names: "module.name" -> what stands in for it: a token, or a value.
        persistent: a persistent id -> its object, such as a storage of torch; None: there must be none.
    """

    def __init__(self, size: int, names: Mapping[str, Any], persistent: Callable[[Any], Any] | None = None) -> None:
        super().__init__(size)
        self._names, self._persistent = names, persistent
        self._foreign: list[str] = []

    def load(self, stream: Stream) -> Any:
        """The object of the next pickle in `stream`; the stream is then positioned behind it.

        Raises:
            Refused: the pickle names code, or a class that is not supported.
            ValueError, and nearly anything: it is damaged.
        """
        self._stack: list[Any] = []
        self._lower_stacks: list[list[Any]] = []  # one per mark
        self._memo: dict[int, Any] = {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]  # it only calls read and readline
                if opcode.name in _LITERALS:
                    self._push(argument)
                elif opcode.name == "STOP":
                    (result,) = self._stack
                elif opcode.name in _OPCODES:
                    _OPCODES[opcode.name](self, argument)
                else:
                    raise ValueError(f"opcode {opcode.name}, which labels do not need")
        except Refused:
            raise
        except Exception as error:
            if self._foreign:
                self._refuse()
            if isinstance(error, KeyError | IndexError | TypeError):
                raise ValueError(f"opcode {opcode.name} has no valid operand") from None
            raise
        if self._foreign:
            self._refuse()
        return unwrap(result)

    def _refuse(self) -> NoReturn:
        code = [name for name in self._foreign if is_code(name)]
        if code:
            raise Refused(f"its pickle calls {code[0]}, which is code; it was not run. Do not use this dump")
        module, _, name = self._foreign[0].rpartition(".")
        raise Refused(f"its pickle uses {name} of the module {module}, which is not supported and was not run; {REMEDY}")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._lower_stacks.pop()
        return items

    def _mark(self, _: Any) -> None:
        self._lower_stacks.append(self._stack)
        self._stack = []

    def _find(self, module: str, name: str) -> Any:
        """What stands in for a name; Python 2's names of modules are translated to Python 3's."""
        full_name = f"{IMPORT_MAPPING.get(module, module)}.{name}"
        if not re.fullmatch(r"[\w.<>]{1,200}", full_name):
            raise ValueError("an invalid name")
        token = self._names.get(full_name)
        if token is None:
            self._foreign.append(full_name)
        return token or _FOREIGN

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push(self._find(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is not a string")
        self._push(self._find(module, name))

    def _call(self, function: Any, arguments: Any) -> None:
        if isinstance(function, Foreign):
            self._push(function)
            return
        if not isinstance(function, Token) or function.call is None or not isinstance(arguments, tuple):
            raise ValueError("a call of something that cannot be called")
        self._push(function.call(self, *arguments))

    def _reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._call(function, arguments)

    def _new_with_keywords(self, _: Any) -> None:
        keywords = self._stack.pop()
        if keywords and not isinstance(self._stack[-2], Foreign):
            raise ValueError("a call with keywords")
        self._reduce(_)

    def _instance(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._call(self._find(module, name), tuple(self._pop_mark()))

    def _object(self, _: Any) -> None:
        function, *arguments = self._pop_mark()
        self._call(function, tuple(arguments))

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, NumpyType):
            target.set_state(state)
        elif isinstance(target, NumpyArray) and target.array is None:
            target.set_state(self, state)
        elif not isinstance(
            target, dict | Foreign
        ):  # the state of a dict has attributes of an OrderedDict, which labels do not need
            raise ValueError("a state for an object without one")

    def _append(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], Foreign):
            target: list[Any] = self._stack[-1]
            if type(target) is not list:
                raise ValueError("items for something that is not a list")
            target.extend(map(unwrap, items))

    def _set_items(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], Foreign):
            target: dict[Any, Any] = self._stack[-1]
            if type(target) is not dict or len(items) % 2:
                raise ValueError("keys for something that is not a dict")
            target.update(zip(items[::2], map(unwrap, items[1::2]), strict=True))

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
        self._stack[-count:] = [tuple(map(unwrap, items))]

    def _put(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    def _get(self, key: int) -> None:
        self._push(self._memo[key])

    def _persist(self, _: Any) -> None:
        if self._persistent is None:
            raise ValueError("a persistent id, in a pickle without storages")
        self._push(self._persistent(self._stack.pop()))

    def _protocol(self, version: int) -> None:
        if version > MAX_PROTOCOL:
            raise ValueError(f"pickle protocol {version}; protocols up to {MAX_PROTOCOL} are supported")


_LITERALS = frozenset(  # opcodes that push their argument
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
    "EMPTY_SET": lambda machine, _: machine._push(make_set(machine)),
    "MARK": Machine._mark,
    "POP": lambda machine, _: machine._stack.pop(),
    "POP_MARK": lambda machine, _: machine._pop_mark(),
    "DUP": lambda machine, _: machine._push(machine._stack[-1]),
    "TUPLE": lambda machine, _: machine._push(tuple(map(unwrap, machine._pop_mark()))),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "LIST": lambda machine, _: machine._push(list(map(unwrap, machine._pop_mark()))),
    "DICT": Machine._dict_of_mark,
    "FROZENSET": lambda machine, _: machine._push(make_set(machine, machine._pop_mark())),
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
