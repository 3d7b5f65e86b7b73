"""Values -> values of the annotated type, or WrongType: checks of arguments and dataclass fields. Standard library
only.
"""

import collections.abc
import dataclasses
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from vqlabel.errors import WrongType

P = ParamSpec("P")
R = TypeVar("R")
MAX_ITEMS = 1 << 16  # items of a sequence that are checked; a longer sequence is data, which the function itself checks
_WORDS = {  # annotations as messages name them
    "str": "text", "int": "a whole number", "float": "a number", "bool": "True or False", "PathLike": "a path",
    "FitConfig": "a FitConfig, such as FitConfig(bits=64)", "LabelCodec": "a codec, such as load_codec(path)[0]",
    "Corpus": "a corpus, such as open_corpus(path)", "TextTeacher": "a teacher, such as load_text_teacher(name)",
    "LabelSource": "a dump, such as open_labels(path)", "ArrayLike": "an array or a tensor", "Mapping": "a mapping of arrays",
    "TeacherSource": "a vqlabel.workflows.teacher_source.TeacherSource",
}  # fmt: skip


def check_type(name: str, value: Any, hint: Any) -> Any:
    """Check a value against an annotation. Booleans are not numbers, whole numbers are accepted as floats, lists as
    tuples.

    Args:
        name: of the argument or field, for the message.
        hint: the annotation.

    Returns:
        an int or float for a number of NumPy, a tuple if the annotation is one; else `value` itself.

    Raises:
        WrongType: the value is of another type; the message has the name, the value and the type.
    """
    for converted in _conversions(value, hint):
        return converted
    raise WrongType(f"{name} is {_shown(value)}; it must be {_in_words(hint)}{_remedy(value, hint)}")


def check_field_types(instance: Any) -> None:
    """Check every field of a dataclass against its annotation; for `__post_init__`, of frozen ones too.

    Raises:
        WrongType: see `check_type`.
    """
    hints = _hints(type(instance))  # type: ignore[arg-type]
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        converted = check_type(field.name, value, hints[field.name])
        if converted is not value:
            object.__setattr__(instance, field.name, converted)


def check_argument_types(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: check every argument of a call against its annotation.

    Raises:
        WrongType: see `check_type`; or an argument is missing or unknown. (Raised by the decorated function.)
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **options)
        except TypeError as error:
            names = ", ".join(name for name in signature.parameters if name != "self")
            raise WrongType(f"{function.__qualname__}: {error}; its arguments are {names}") from None
        hints = _hints(function)
        for name, value in bound.arguments.items():
            if name in hints and signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = check_type(name, value, hints[name])
        return function(*bound.args, **bound.kwargs)

    return checked


@functools.cache
def _hints(annotated: Any) -> dict[str, Any]:
    return typing.get_type_hints(annotated)


def _conversions(value: Any, hint: Any) -> Iterator[Any]:
    """`value` converted to the annotated type, once for every way in which it matches; nothing if it does not match."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        yield value
    elif origin in (typing.Union, types.UnionType):
        for part in parts:
            yield from _conversions(value, part)
    elif hint is None or hint is type(None):
        if value is None:
            yield value
    elif origin is tuple:
        yield from _as_tuple(value, parts)
    elif origin is collections.abc.Sequence:
        if _is_list(value) and (len(value) > MAX_ITEMS or all(any(True for _ in _conversions(v, parts[0])) for v in value)):
            yield value
    elif origin is collections.abc.Callable:
        if callable(value):
            yield value
    elif getattr(origin, "__name__", "") == "ndarray":
        if isinstance(value, origin) and _same_kind(value.dtype.type, parts[1]):
            yield value
    elif hint in (int, float):
        number = numbers.Integral if hint is int else numbers.Real
        if isinstance(value, number) and not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
            if type(value) is hint:
                yield value
            elif hint is int or not isinstance(value, int) or abs(value) < 1 << 53:  # larger ones are not exact as floats
                yield hint(value)
    elif isinstance(value, origin or hint):
        yield value


def _as_tuple(value: Any, parts: tuple[Any, ...]) -> Iterator[Any]:
    if not _is_list(value):
        return
    hints = parts[:1] * len(value) if len(parts) == 2 and parts[1] is Ellipsis else parts
    if not len(value) == len(hints) <= MAX_ITEMS:
        return
    items = [next(_conversions(item, hint), _NO_MATCH) for item, hint in zip(value, hints, strict=True)]
    if not any(item is _NO_MATCH for item in items):
        unchanged = isinstance(value, tuple) and all(a is b for a, b in zip(items, value, strict=True))
        yield value if unchanged else tuple(items)


_NO_MATCH = object()


def _is_list(value: Any) -> bool:
    """Whether it has a length and items by index: lists, tuples, ranges, vectors of NumPy and torch; not text or
    dictionaries.
    """
    return (
        hasattr(value, "__len__")
        and hasattr(value, "__getitem__")
        and not isinstance(value, str | bytes | collections.abc.Mapping)
        and getattr(value, "ndim", 1) == 1
    )


def _same_kind(scalar: Any, annotated: Any) -> bool:
    """Whether a NumPy scalar type is of the kind of an annotation's dtype[...]: integers of any width are one kind."""
    kinds = ("integer", "floating", "bool", "bool_")
    names = {
        kind.__name__
        for part in typing.get_args(annotated)
        if isinstance(part, type)
        for kind in part.__mro__
        if kind.__name__ in kinds
    }
    return not names or any(kind.__name__ in names for kind in scalar.__mro__)


def _shown(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"{type(value).__name__} {list(value.shape)}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _in_words(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        named = [_in_words(part) for part in parts if part is not type(None)]
        paths = _WORDS["PathLike"] in named  # a path may be given as text, too
        words = list(dict.fromkeys(word for word in named if not (paths and word == _WORDS["str"])))
        return " or ".join([*words, "None"] if type(None) in parts else words)
    if origin is tuple:
        if parts[-1] is Ellipsis:
            return f"a list of items that are each {_in_words(parts[0])}, such as (1.0,)" if parts[0] is float else "a list"
        return f"a list of {len(parts)} items that are each {_in_words(parts[0])}"
    if origin is collections.abc.Sequence:
        return f"a list of items that are each {_in_words(parts[0])}"
    if origin is collections.abc.Callable:
        return "a function"
    if getattr(origin, "__name__", "") == "ndarray":
        return "a NumPy array of " + ", ".join(part.__name__ for part in typing.get_args(parts[1]) if isinstance(part, type))
    name = getattr(origin or hint, "__name__", str(hint))
    return _WORDS.get(name, f"a {name}")


def _remedy(value: Any, hint: Any) -> str:
    """A remedy for likely mistakes: labels in memory in the place of a file, and the pair that `fit` and `load_codec`
    return.
    """
    words = _in_words(hint)
    if hasattr(value, "shape") and _WORDS["PathLike"] in words and _WORDS["ArrayLike"] not in words:
        return ": save it, with numpy.save for example, and pass the path of the file"
    if isinstance(value, tuple) and len(value) == 2 and _WORDS["LabelCodec"] in words:
        return ": fit and load_codec return a codec and its report; pass the first of them"
    return ""
