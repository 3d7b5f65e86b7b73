"""The (epoch, batch) of many batches in two arrays: a tuple per batch would take thirty times the memory."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from vqlabel.labels.batch import Place

_CHUNK = 1 << 16  # places converted to tuples at a time while iterating


class Places(Sequence[Place]):
    """A sequence of `Place`, equal to any other sequence of the same places.

    Args:
        epoch, batch: [B] integers.
    """

    def __init__(self, epoch: NDArray[np.integer], batch: NDArray[np.integer]) -> None:
        self.epoch, self.batch = epoch, batch

    def __len__(self) -> int:
        return len(self.epoch)

    @overload
    def __getitem__(self, index: int) -> Place: ...
    @overload
    def __getitem__(self, index: slice) -> "Places": ...
    def __getitem__(self, index: Any) -> Any:
        return self.take(index) if isinstance(index, slice) else Place(int(self.epoch[index]), int(self.batch[index]))

    def take(self, index: slice | NDArray[np.integer]) -> "Places":
        """The places at a slice or an array of indices."""
        return Places(self.epoch[index], self.batch[index])

    def __iter__(self) -> Iterator[Place]:
        for start in range(0, len(self), _CHUNK):
            epochs, batches = (column[start : start + _CHUNK].tolist() for column in (self.epoch, self.batch))
            yield from map(Place, epochs, batches)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]
