"""A class map (JSON: class folder -> class of the teacher) -> the teacher's class of each of a list of folders."""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import UsageError
from vqlabel.storage.filetypes import read_text


def read_class_map(file: str | PathLike[str], folders: Sequence[str], classes: int) -> NDArray[np.int64]:
    """The teacher's class of each folder, from a file such as {"n01440764": 0, "n01443537": 1}.

    Args:
        file: the class map. It may contain more folders than `folders`.
        folders: names of class folders.
        classes: C, the teacher's number of classes.

    Returns:
        [len(folders)] classes in 0..C-1; two folders may share a class.

    Raises:
        UsageError: the file is not readable JSON; or a folder is missing in it, or its class is not an integer in
            0..C-1.
    """
    try:
        class_map: Any = json.loads(read_text(Path(file)))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{file}: not readable as JSON ({error}); a class map is an object {{folder: class of the teacher}}"
        ) from None
    if not isinstance(class_map, dict):
        raise UsageError(f"{file}: contains {type(class_map).__name__}; a class map is an object {{folder: class of the teacher}}")
    for folder in folders:
        if folder not in class_map:
            raise UsageError(f"{file}: folder {folder!r} is missing; a class map gives every folder a class in 0..{classes - 1}")
        value = class_map[folder]
        if type(value) is not int or not 0 <= value < classes:  # True is an int, and not a class
            raise UsageError(f"{file}: folder {folder!r} has class {str(value)[:80]}; it must be an integer in 0..{classes - 1}")
    return np.array([class_map[folder] for folder in folders], np.int64)


def teacher_classes(
    top: str | PathLike[str],
    folders: Sequence[str],
    class_map: str | PathLike[str] | None,
    classes: int,
    option: str = "--class-map",
) -> NDArray[np.int64]:
    """The teacher's class of each class folder of `top`: from `class_map` or, without one, i for the i-th folder.

    Args:
        top: the folder of images, for messages.
        folders: names of its class folders, sorted.
        class_map: see `read_class_map`; None: there must be as many folders as classes.
        classes: C, the teacher's number of classes.
        option: where a user gives the class map, for messages.

    Returns:
        [len(folders)] classes in 0..C-1.

    Raises:
        UsageError: there is no class map and the number of folders is not C; see `read_class_map`.
    """
    if class_map is not None:
        return read_class_map(class_map, folders, classes)
    if len(folders) != classes:
        raise UsageError(
            f"{top}: {len(folders)} folders, but the labels have {classes} classes; map folders to classes with {option}"
        )
    return np.arange(classes)
