"""Integers in columns -> the bits an entropy coder would take for them, by frequencies learned on other labels."""

import torch
from torch import Tensor

ESCAPE_BITS = 24  # of a number that stands outside its column's table, after the escape
MOST = 4096  # numbers that a column's table lists, around their median
TABLE_BYTES, COLUMN_BYTES = 2, 8  # a frequency; first and last number of a column's table


class Frequencies:
    """A static model of d independent columns: each has a table of smoothed frequencies, and an escape.

    A number that came n_i times in n costs -log2 (n_i + 1/2) / (n + (r + 1) / 2) bits, r numbers being in its table (Krichevsky and
    Trofimov 1981). An arithmetic coder reaches this to a hundredth of a bit per label.
    """

    def __init__(self, seen: Tensor, span: tuple[int, int] | None = None) -> None:
        """Count `seen`, integers [n, d]. `span`: first and last number that every column lists; None: those that came, MOST at most."""
        n, d = seen.shape
        if span is None:
            middle = seen.median(0).values if n else seen.new_zeros(d)
            low = torch.maximum(seen.amin(0), middle - MOST // 2) if n else middle
            high = torch.minimum(seen.amax(0), middle + MOST // 2 - 1) if n else middle
        else:
            low, high = (torch.full((d,), end, dtype=torch.long) for end in span)
        self.low, self.high = low, high
        size = high - low + 2  # the last entry is the escape
        self.start = size.cumsum(0) - size
        self.count = torch.bincount(self.places(seen).flatten(), minlength=int(size.sum()))
        total = torch.repeat_interleave(n + 0.5 * size, size)
        self.cost = (total / (self.count + 0.5)).log2()  # [sum of sizes] bits

    def places(self, symbols: Tensor) -> Tensor:
        """[n, d] integers -> where they stand in the joined tables."""
        inside = (symbols >= self.low) & (symbols <= self.high)
        return self.start + torch.where(inside, symbols - self.low, self.high - self.low + 1)

    def bits(self, symbols: Tensor) -> Tensor:
        """[n, d] integers -> [n, d] bits."""
        escaped = (symbols < self.low) | (symbols > self.high)
        return self.cost[self.places(symbols)] + ESCAPE_BITS * escaped

    @property
    def bytes(self) -> int:
        """Of the tables."""
        return TABLE_BYTES * len(self.count) + COLUMN_BYTES * len(self.low)


def bits_of_sets(ids: Tensor, model: Frequencies) -> Tensor:
    """[n, k] bits of ids of which none comes twice in a row: what the ones before have taken is no longer possible.

    Args:
        ids: [n, k], in the order in which they are coded.
        model: of one column, that lists every id.
    """
    plain = model.bits(ids.reshape(-1, 1)).reshape(ids.shape)
    share = (-plain).exp2()
    gone = share.cumsum(1) - share
    return (plain + (1 - gone).clamp_min(1e-9).log2()).clamp_min(0)
