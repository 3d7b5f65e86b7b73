"""Integers -> the bits that an entropy coder would take for them, by frequencies counted on training labels."""

import torch
from torch import Tensor

ESCAPE_BITS = 24  # of an integer outside its column's table, added to the bits of the escape symbol
MAX_TABLE = 4096  # integers in the table of a column, around their median
TABLE_BYTES, COLUMN_BYTES = 2, 8  # of one frequency; of the first and last integer of a column's table


class Frequencies:
    """A static model of d independent columns: each has a table of smoothed frequencies and an escape symbol.

    An integer counted n_i times in n costs -log2 (n_i + 1/2) / (n + (r + 1) / 2) bits, with r integers in the table
    (Krichevsky and Trofimov 1981). An arithmetic coder reaches this to within a hundredth of a bit per label.
    """

    def __init__(self, symbols: Tensor, span: tuple[int, int] | None = None) -> None:
        """Count integers [n, d].

        Args:
            span: first and last integer in the table of every column; None: the smallest and the largest that occur, at
                most MAX_TABLE.
        """
        n, d = symbols.shape
        if span is None:
            middle = symbols.median(0).values if n else symbols.new_zeros(d)
            low = torch.maximum(symbols.amin(0), middle - MAX_TABLE // 2) if n else middle
            high = torch.minimum(symbols.amax(0), middle + MAX_TABLE // 2 - 1) if n else middle
        else:
            low, high = (torch.full((d,), end, dtype=torch.long) for end in span)
        self.low, self.high = low, high
        size = high - low + 2  # the last entry is the escape symbol
        self.start = size.cumsum(0) - size
        self.count = torch.bincount(self.table_index(symbols).flatten(), minlength=int(size.sum()))
        total = torch.repeat_interleave(n + 0.5 * size, size)
        self.cost = (total / (self.count + 0.5)).log2()  # [sum of sizes] bits

    def table_index(self, symbols: Tensor) -> Tensor:
        """[n, d] integers -> [n, d] their indices in the concatenated tables."""
        inside = (symbols >= self.low) & (symbols <= self.high)
        return self.start + torch.where(inside, symbols - self.low, self.high - self.low + 1)

    def bits(self, symbols: Tensor) -> Tensor:
        """[n, d] integers -> [n, d] bits."""
        escaped = (symbols < self.low) | (symbols > self.high)
        return self.cost[self.table_index(symbols)] + ESCAPE_BITS * escaped

    @property
    def bytes(self) -> int:
        """Size of the tables."""
        return TABLE_BYTES * len(self.count) + COLUMN_BYTES * len(self.low)


def bits_of_distinct(ids: Tensor, model: Frequencies) -> Tensor:
    """[n, k] bits of ids that are distinct within a row: the probability of ids already coded is removed and the rest
    re-normalised.

    Args:
        ids: [n, k], in the order in which they are coded.
        model: of one column, whose table has every id.
    """
    plain = model.bits(ids.reshape(-1, 1)).reshape(ids.shape)
    share = (-plain).exp2()
    coded = share.cumsum(1) - share
    return (plain + (1 - coded).clamp_min(1e-9).log2()).clamp_min(0)
