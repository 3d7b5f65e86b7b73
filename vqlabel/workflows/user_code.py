"""Names of a user's functions and of optional libraries -> objects; and what identifies the weights of a network."""

import hashlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from vqlabel.errors import MissingExtra, UsageError


def user_object(name: str, make: Callable[[Any], Any], forms: str) -> Any:
    """What `make` makes of the object "module:object"; modules are also searched in the current folder.

    Args:
        forms: of a teacher's name, for messages.

    Raises:
        UsageError: there is no such object, or it raises an exception.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with _without_arguments():
            return make(getattr(importlib.import_module(module), attribute))
    except SystemExit as error:
        raise UsageError(
            f"--teacher {name}: ends the program (SystemExit {error.code}) when it is imported or called, like a script that parses its command "
            "line; move the function to a module without a script, or set sys.argv in it"
        ) from error
    except Exception as error:  # the user's code may raise anything
        raise UsageError(f"--teacher {name}: {type(error).__name__}: {str(error)[:300]}; name {forms}") from error


@contextmanager
def _without_arguments() -> Iterator[None]:
    """Hide the arguments of vqlabel from modules that parse the command line when they are imported."""
    argv = sys.argv
    sys.argv = argv[:1]
    try:
        yield
    finally:
        sys.argv = argv


def import_library(library: str, name: str) -> Any:
    """Import an optional library of the extra `teachers`.

    Args:
        name: of the teacher that needs it, for messages.

    Raises:
        MissingExtra: it is not installed.
        UsageError: it cannot be imported.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == library:
            raise MissingExtra(library, extra="teachers") from None
        raise UsageError(f"{name}: {library} is installed, but cannot be imported ({one_line(error)})") from None
    except Exception as error:  # such as a library that was built for another version of torch
        raise UsageError(
            f"{name}: {library} is installed, but cannot be imported ({one_line(error)}); install a version that supports torch {torch.__version__}"
        ) from None


def one_line(error: BaseException) -> str:
    """The message of an exception as one line of at most 300 characters, cut between words."""
    words = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
    return words if len(words) <= 300 else words[:300].rpartition(" ")[0] + " ..."


def sha256_of(tensors: Mapping[str, Any]) -> str:
    """sha256 of the names and bytes of tensors, or of other values of a state dict, sorted by name."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode())
        if isinstance(tensor, torch.Tensor) and not tensor.is_quantized:
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:  # weights of a quantised network, or extra state of a module
            torch.save(tensor, data := io.BytesIO())
            total.update(data.getvalue())
    return total.hexdigest()
