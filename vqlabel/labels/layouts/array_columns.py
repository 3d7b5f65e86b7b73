"""Arrays beside labels -> columns of the records: image, crop, flip, mixing, epoch and batch."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels.layouts.axes import ArrayLayout
from vqlabel.labels.schema import COLUMNS, MAX_IMAGES

RECORD_COLUMNS = {  # name -> numbers of one record: () or (fields,)
    name: () if column.fields == 1 or column.kind == "lambda" else (column.fields,)
    for name, column in COLUMNS.items()
    if column.of and column.repeats == 1 and name != "seed"
}
PLACES = ("epoch", "batch")  # which batch of the training run a record belongs to
MIXED = ("mix_index", "mix_lam", "mix_box")  # refer to a batch
GENERIC = ("image", *PLACES)  # also names of other things, such as pixels: columns only if they are integers per record
_INTEGERS = ("int", "uint", "I", "U")


def is_column(name: str, shape: tuple[int, ...], dtype: str) -> bool:
    """Whether an array beside labels is a column of the records, by its name and, for common names, its type."""
    if name in GENERIC:
        return dtype.startswith(_INTEGERS) and 1 <= len(shape) <= 2
    return name in RECORD_COLUMNS


def arrange(path: Path, arrays: Mapping[str, NDArray[Any]], layout: ArrayLayout) -> dict[str, NDArray[Any]]:
    """Columns as [epochs, images, ...], in the order in which labels are read.

    Args:
        arrays: by name, as stored: a row for each label; `image` may also have one for each image of all epochs.
        layout: of the labels.

    Raises:
        BadLabels: an array has another shape, a value is out of its range, or a column lacks another one.
    """
    _check_company(path, arrays)
    return {name: _arranged(path, name, array, layout) for name, array in arrays.items()}


def _check_company(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raises BadLabels if a column cannot be understood without another one."""
    mixed = [name for name in MIXED if name in arrays]
    if mixed and "batch" not in arrays:
        raise BadLabels(
            f"{path}: {mixed[0]!r} is a property of a batch; add 'batch', the number of each label's batch in its epoch, or leave it out"
        )
    if {"mix_lam", "mix_box"} & arrays.keys() and not {"mix_index", "partner_image"} & arrays.keys():
        raise BadLabels(
            f"{path}: {mixed[-1]!r} without 'mix_index' (position in the batch of the view mixed in) or 'partner_image'; add one of them"
        )


def _arranged(path: Path, name: str, array: NDArray[Any], layout: ArrayLayout) -> NDArray[Any]:
    lead, tail = layout.stored[:-1], RECORD_COLUMNS.get(name, ())
    if name == "image" and len(lead) == 2 and array.shape == (layout.images,):  # the same images in every epoch
        array = np.broadcast_to(array if not layout.images_first else array[:, None], lead)
    if _without_ones(array.shape) != _without_ones((*lead, *tail)):
        raise BadLabels(
            f"{path}: {name!r} has shape {list(array.shape)}; beside labels {list(layout.stored)} it must be {[*lead, *tail]}, a row for "
            "each label; give it another name if it is not a column (docs/inputs.md)"
        )
    array = array.reshape(*lead, *tail)
    if layout.images_first:
        array = array.swapaxes(0, 1)
    return _checked(path, name, array.reshape(layout.epochs, layout.images, *tail))


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [side for side in shape if side != 1]


def _checked(path: Path, name: str, array: NDArray[Any]) -> NDArray[Any]:
    """The column in the type that batches have; raises BadLabels for values of another type or out of range."""
    kind = "integer" if name in PLACES else COLUMNS[name].kind
    types = {"integer": "iub", "float": "fiu", "lambda": "fiu"}[kind]
    if name == "mix_box":
        types = "iu"
    if array.dtype.kind not in types:
        needed = "integers" if "f" not in types else "float16, float32 or float64"
        raise BadLabels(f"{path}: {name!r} is {array.dtype}; it must be {needed}")
    low, high, remedy = _range(name)
    values = array.astype({"integer": np.int64, "float": np.float32, "lambda": np.float64}[kind])
    bad = ~((values >= low) & (values <= high))  # true for NaN, too
    if bad.any():
        row = int(bad.reshape(-1, max(1, math.prod(bad.shape[2:]))).any(1).argmax())
        raise BadLabels(f"{path}: {name!r} is {values[bad][0]} at label {row}; it must be {low}..{high}{remedy}")
    return values.astype(bool) if name.endswith("flip") else values


def _range(name: str) -> tuple[float, float, str]:
    """(smallest value, largest value, remedy) of a column."""
    if name.endswith("flip"):
        return 0, 1, ""
    if name.endswith("crop"):
        return 0, 1, ": top, left, height and width as fractions; divide pixels by the height and width of the image"
    if name == "mix_lam":
        return 0, 1, ": the share of the first image"
    if name == "cutout":
        return -1e9, 1e9, ""
    if name.endswith("image"):
        return 0, MAX_IMAGES - 1, ": the index of the image in the sorted list of images"
    return 0, (1 << 32) - 1, ""


def records_of_batch(path: Path, columns: Mapping[str, NDArray[Any]], epoch: int, start: int, stop: int) -> dict[str, Any]:
    """The arguments of `LabelBatch` for records start:stop of an epoch.

    Raises:
        BadLabels: lambda or box differ within the batch, or a position is outside it.
    """
    found: dict[str, Any] = {name: array[epoch, start:stop] for name, array in columns.items() if name not in PLACES}
    where = f"{path}, labels {start} to {stop - 1} of epoch {epoch}"
    for name in ("mix_lam", "mix_box"):
        if name in found:
            rows = found[name]
            if (rows != rows[0]).any():
                raise BadLabels(f"{where}: {name!r} differs within a batch; a batch has one: check 'batch'")
            found[name] = float(rows[0]) if name == "mix_lam" else tuple(rows[0].tolist())
    if "mix_index" in found and int(found["mix_index"].max()) >= stop - start:
        raise BadLabels(
            f"{where}: 'mix_index' is {int(found['mix_index'].max())}; it must be below {stop - start}, a position in the batch: check 'batch'"
        )
    return found
