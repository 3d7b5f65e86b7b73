"""Counts of labels with one value for all classes.

A student learns nothing from such labels, and a codec cannot be evaluated on them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels.sparse import Labels, every_value

MAX_ZERO_SHARE = 0.01  # a dump with a larger share of all-zero rows is refused: its array was allocated, but never filled


@dataclass(kw_only=True)
class ConstantRows:
    """Counts of the labels of a dump that have one value for all classes."""

    path: Path  # of the dump, for messages
    rows: int = 0  # labels counted
    zero: int = 0  # all-zero labels, as in an array that was allocated and never filled
    constant: int = 0  # labels whose one value is not 0

    def add(self, labels: Labels) -> NDArray[np.bool_]:
        """Count the labels [n, C]; returns [n], True for each label whose classes differ in value."""
        values = every_value(labels)
        is_constant: NDArray[np.bool_] = (
            values[:, 0] == values[:, -1]
        )  # a cheap test first, then all classes of the few that pass it
        is_constant[is_constant] = (values[is_constant] == values[is_constant, :1]).all(1)
        zero = int((values[is_constant, 0] == 0).sum())
        self.rows += len(values)
        self.zero += zero
        self.constant += int(is_constant.sum()) - zero
        return ~is_constant

    def check(self) -> None:
        """Raises BadLabels if more than MAX_ZERO_SHARE of the rows are zero, or if every row is constant."""
        if self.rows and self.zero > MAX_ZERO_SHARE * self.rows:
            raise BadLabels(f"{self.path}: {self._zero_rows()} Label these images again, or leave them out")
        if self.rows and self.zero + self.constant == self.rows:
            raise BadLabels(
                f"{self.path}: all {self.rows:,} rows have the same value for all classes; such labels carry no information"
            )

    def notes(self) -> list[str]:
        """One sentence for each of the two kinds that occurs."""
        notes = [f"{self.path}: {self._zero_rows()}"] if self.zero else []
        if self.constant:
            notes.append(f"{self.path}: {self.constant:,} of {self.rows:,} rows have the same value for all classes")
        return notes

    def _zero_rows(self) -> str:
        return f"{self.zero:,} of {self.rows:,} rows are all zero: were these labels never written?"
