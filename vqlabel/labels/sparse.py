"""Labels of which k classes have values of their own: held as they are stored, [n, k], and never as [n, C]."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, WrongType

MAX_DENSE_NUMBERS = 1 << 30  # of one batch, 4.3 GB of float32: a forged class id in a small file must not exhaust the memory
BUFFER_BYTES = 1 << 18  # of the dense rows that are hashed at a time, if one row does not have more


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SparseLabels:
    """n labels of C classes: `values` at the classes `ids`, and one value, `rest`, at all others.

    The arrays are NumPy's, or tensors on one device.
    """

    ids: Any  # [n, k] int64; the classes of a label are different ones
    values: Any  # [n, k] floating
    rest: Any  # [n, 1] of the type of `values`: NOWHERE, 0, or an equal share of the remaining probability
    classes: int  # C

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, C), the shape of the dense labels."""
        return len(self.ids), self.classes

    @property
    def ndim(self) -> int:
        """2, as of dense labels."""
        return 2

    @property
    def dtype(self) -> Any:
        """Type of the values."""
        return self.values.dtype

    @property
    def device(self) -> Any:
        """Device of the tensors."""
        return self.values.device

    @property
    def others(self) -> int:
        """Number of classes of a label that have the value `rest`."""
        return self.classes - int(self.ids.shape[1])

    def __getitem__(self, rows: Any) -> Self:
        """The labels at a slice, an index array or a mask."""
        return self.map(lambda array: array[rows])

    def __array__(self, *_: Any, **__: Any) -> Any:
        """Raises WrongType: NumPy would otherwise make an array of objects."""
        raise WrongType("labels are sparse, ids and values [n, k]; labels.as_dense() is the array [n, C]")

    def map(self, function: Callable[[Any], Any]) -> Self:
        """The labels with a function applied to each of the three arrays."""
        return replace(self, ids=function(self.ids), values=function(self.values), rest=function(self.rest))

    def map_values(self, function: Callable[[Any], Any]) -> Self:
        """The labels with a function applied to the values, [n, k + 1] -> [n, k + 1]; the last column is `rest`."""
        values = function(_columns(self.values, self.rest))
        return replace(self, values=values[:, :-1], rest=values[:, -1:])

    @classmethod
    def concatenate(cls, parts: Sequence["SparseLabels"]) -> "SparseLabels":
        """The labels of several parts, which are arrays of NumPy with one k and C."""
        ids, values, rest = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "values", "rest"))
        return cls(ids=ids, values=values, rest=rest, classes=parts[0].classes)

    def as_dense(self) -> Any:
        """The labels as [n, C], an array or a tensor as `values`.

        Raises:
            BadLabels: they have more than MAX_DENSE_NUMBERS numbers.
        """
        if len(self) * self.classes > MAX_DENSE_NUMBERS:
            raise BadLabels(
                f"{len(self)} top-k labels of {self.classes} classes have {len(self) * self.classes} numbers as dense labels; the limit is "
                f"{MAX_DENSE_NUMBERS}: use codec sparse or topk, a layout that stores the k largest values, or smaller batches"
            )
        if not isinstance(self.values, np.ndarray):
            return self.rest.expand(-1, self.classes).scatter(1, self.ids, self.values)
        labels = np.empty(self.shape, self.dtype)
        self._fill(labels)
        return labels

    def dense_rows(self) -> Iterator[NDArray[np.floating]]:
        """Yield the labels as dense rows [m, C], in parts of about BUFFER_BYTES; a part is valid until the next one."""
        step = max(1, BUFFER_BYTES // (self.classes * self.dtype.itemsize))
        buffer = np.empty((min(step, len(self)), self.classes), self.dtype)
        for start in range(0, len(self), step):
            part = self[start : start + step]
            part._fill(buffer[: len(part)])
            yield buffer[: len(part)]

    def _fill(self, labels: NDArray[np.floating]) -> None:
        labels[:] = self.rest
        np.put_along_axis(labels, self.ids, self.values, 1)


Labels = NDArray[np.floating] | SparseLabels


def as_dense(labels: Labels) -> NDArray[np.floating]:
    """Labels of either form as [n, C]; raises BadLabels as `SparseLabels.as_dense`."""
    return labels.as_dense() if isinstance(labels, SparseLabels) else labels


def concatenate(parts: Sequence[Labels]) -> Labels:
    """The labels of batches of one dump, in their form."""
    sparse = [part for part in parts if isinstance(part, SparseLabels)]
    if sparse and len(sparse) == len(parts):
        return SparseLabels.concatenate(sparse)
    return np.concatenate([as_dense(part) for part in parts])


def every_value(labels: Any) -> Any:
    """All values that a label has: dense labels as they are, [n, C]; of sparse ones [n, k + 1], or [n, k] if k = C."""
    if not isinstance(labels, SparseLabels):
        return labels
    return _columns(labels.values, labels.rest) if labels.others else labels.values


def class_at(labels: Labels, row: int, column: int) -> int:
    """A class of label `row` that has the value in this column of `every_value`."""
    if not isinstance(labels, SparseLabels):
        return column
    ids = labels.ids[row]
    return int(ids[column]) if column < len(ids) else int(np.setdiff1d(np.arange(len(ids) + 1), ids)[0])


def row_sums(labels: Labels, dtype: Any) -> NDArray[Any]:
    """[n] the sum of every label over its C classes, in `dtype`."""
    if not isinstance(labels, SparseLabels):
        return np.asarray(labels.sum(1, dtype=dtype))
    sums: NDArray[Any] = labels.values.sum(1, dtype=dtype) + labels.others * labels.rest[:, 0].astype(dtype)
    return sums


def hash_labels(digest: Any, labels: Labels) -> None:
    """Update a digest of hashlib with the bytes of the dense labels, row by row: hashes do not depend on batches."""
    for rows in labels.dense_rows() if isinstance(labels, SparseLabels) else [np.ascontiguousarray(labels)]:
        digest.update(rows.data)


def _columns(values: Any, rest: Any) -> Any:
    if isinstance(values, np.ndarray):
        return np.concatenate([values, rest], 1)
    import torch

    return torch.cat([values, rest], 1)
