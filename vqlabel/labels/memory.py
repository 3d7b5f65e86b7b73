"""Arrays and tensors in memory -> a label source of the layout "arrays", read like a file of them."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.layouts.label_dtypes import BF16
from vqlabel.labels.layouts.rows import RowsSource
from vqlabel.labels.layouts.select_array import Selection
from vqlabel.labels.layouts.tensor import IN_MEMORY, rows_of
from vqlabel.labels.source import LabelSource


@runtime_checkable
class ArrayLike(Protocol):
    """An array of NumPy, or what NumPy reads as one: a tensor of torch on any device, an array of JAX."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    def __array__(self, *args: Any, **options: Any) -> Any: ...


Dump = str | PathLike[str] | LabelSource | ArrayLike | Mapping[str, Any] | list[Any]


class MemorySource(RowsSource):
    """Labels in memory: an array [n, C] or [epochs, n, C], a mapping with columns beside them, or a list of batches.

    The arrays are not copied: they must not change while the source is used.

    Raises:
        BadLabels: labels or columns are malformed.
        UsageError: there are several arrays that may be labels, or none of the name in `selection`.
    """

    def __init__(
        self, arrays: ArrayLike | Mapping[str, Any] | list[Any], domain: str | None, selection: Selection = Selection()
    ) -> None:
        super().__init__(
            IN_MEMORY, [rows_of(IN_MEMORY, as_arrays(arrays), selection)], domain, axes_named=selection.axes is not None
        )

    def files_of(self, index: int) -> tuple[Path, ...]:
        return ()


def as_arrays(item: Any) -> Any:
    """Tensors as arrays of NumPy, bfloat16 as `label_dtypes.BF16`; in mappings, lists and tuples, too."""
    if isinstance(item, Mapping):
        return {name: as_arrays(part) for name, part in item.items()}
    if isinstance(item, list | tuple):
        return [as_arrays(part) for part in item]
    if isinstance(item, np.ndarray) or not isinstance(item, ArrayLike):
        return item
    return _of_tensor(item) if hasattr(item, "detach") else np.asarray(item)


def _of_tensor(item: Any) -> Any:
    import torch

    try:
        tensor = item.detach().cpu()
        return tensor.contiguous().view(torch.int16).numpy().view(BF16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise BadLabels(
            f"{IN_MEMORY}: a tensor of type {item.dtype} cannot be read ({error}); pass dense float16 or float32"
        ) from None


def open_memory(arrays: Any, selection: Selection, domain: str | None, layout: str | None, classes: int | None) -> MemorySource:
    """Raises UsageError for an option that arrays have no use for; see `MemorySource`."""
    if layout not in (None, "arrays"):
        raise UsageError(f"layout is {layout!r}; labels in memory are arrays: leave it out")
    if classes is not None:
        raise UsageError(f"classes is {classes}; the arrays have their number of classes: leave it out")
    return MemorySource(arrays, domain, selection)
