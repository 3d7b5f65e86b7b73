"""(epoch, batch) of many batches, held as two arrays: a tuple for each would take thirty times the memory."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from vqlabel.labels.source import Place

_PIECE = 1 << 16  # places made at a time


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
    def __getitem__(self, at: int) -> Place: ...
    @overload
    def __getitem__(self, at: slice) -> "Places": ...
    def __getitem__(self, at: Any) -> Any:
        return self.take(at) if isinstance(at, slice) else Place(int(self.epoch[at]), int(self.batch[at]))

    def take(self, at: slice | NDArray[np.integer]) -> "Places":
        """Those at `at`."""
        return Places(self.epoch[at], self.batch[at])

    def __iter__(self) -> Iterator[Place]:
        for at in range(0, len(self), _PIECE):
            yield from map(Place, self.epoch[at : at + _PIECE].tolist(), self.batch[at : at + _PIECE].tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]
