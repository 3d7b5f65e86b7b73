"""Rows of nested lists in a Parquet or Arrow file, read one at a time.

Rows are decoded in order; to go back starts again at the chunk (row group, record batch) that holds the row.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, MissingExtra, VqlabelError
from vqlabel.labels.layouts.arrow import PARQUET, ArrowTable, ParquetTable, Table
from vqlabel.labels.layouts.rows import check_count
from vqlabel.storage.filetypes import foreign_file_message, require_regular

_PIECE_ROWS = 256  # rows of a column of ids that are decoded at a time for their lengths


class TableRows:
    """The rows of one file.

    Attributes:
        path: of the file.
        columns: their names.
        count: number of rows.

    Raises:
        MissingExtra: pyarrow is not installed.
        BadLabels: the file is damaged or of another type.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise MissingExtra("pyarrow", "text") from None
        require_regular(path)
        self.path = path
        table = self._guarded(lambda: ParquetTable(path) if path.suffix in PARQUET else ArrowTable(path))
        self.columns, self.count = table.schema.names, sum(table.rows)
        check_count(self.count, path)
        self._ends = np.cumsum(table.rows)
        self._pieces: dict[str, Iterator[Any]] = {}
        self._next: dict[str, int] = {}  # row that each iterator yields next

    def close(self) -> None:
        """Close the file; the next read opens it again, at the chunk of its row."""
        self._pieces.clear()
        self._next.clear()

    def integers(self, column: str) -> Iterator[NDArray[np.int64]]:
        """The list of integers in each row of a column.

        Raises:
            BadLabels: the file is damaged, or a row is no list of integers.
        """
        row = 0
        for piece in self._guarded_pieces(column, 0, _PIECE_ROWS):
            for at in range(len(piece)):
                yield self._integers(piece.slice(at, 1), column, row)
                row += 1
        if row != self.count:
            raise BadLabels(f"{self.path}: column {column!r} ends at row {row} of {self.count}; the file is truncated or forged")

    def read_integers(self, column: str, row: int) -> NDArray[np.int64]:
        """The list of integers in one row."""
        return self._integers(self._piece(column, row), column, row)

    def read_matrix(self, column: str, row: int) -> NDArray[Any]:
        """The list of lists in one row, [n, width] in the stored type.

        Raises:
            BadLabels: the file is damaged, or the row is no list of lists of numbers of one length.
        """
        inner = self._flat(self._piece(column, row), column, row)
        count = len(inner)
        values = self._flat(inner, column, row)
        widths = np.unique(self._guarded(lambda: inner.value_lengths().to_numpy(zero_copy_only=False)))
        if len(widths) > 1:
            raise BadLabels(
                f"{self.path}, row {row}: column {column!r} has lists of {widths[0]} to {widths[-1]} numbers; all must have as many"
            )
        return self._numbers(values, column, row).reshape(count, -1) if count else np.empty((0, 0))

    def _integers(self, piece: Any, column: str, row: int) -> NDArray[np.int64]:
        values = self._numbers(self._flat(piece, column, row), column, row)
        if values.dtype.kind not in "iub":
            raise BadLabels(f"{self.path}, row {row}: column {column!r} holds {values.dtype}; it must hold lists of integers")
        return values.astype(np.int64)

    def _flat(self, lists: Any, column: str, row: int) -> Any:
        """The items of all lists in an Arrow array."""
        if not hasattr(lists, "value_lengths"):
            raise BadLabels(f"{self.path}, row {row}: column {column!r} is {lists.type}; it must hold a list for each row")
        if lists.null_count:
            raise BadLabels(f"{self.path}, row {row}: column {column!r} has a null")
        return self._guarded(lists.flatten)

    def _numbers(self, values: Any, column: str, row: int) -> NDArray[Any]:
        import pyarrow as pa

        if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)):
            raise BadLabels(f"{self.path}, row {row}: column {column!r} holds {values.type}; it must hold numbers")
        if values.null_count:
            raise BadLabels(f"{self.path}, row {row}: column {column!r} has a null")
        return np.asarray(self._guarded(lambda: values.to_numpy(zero_copy_only=False)))

    def _piece(self, column: str, row: int) -> Any:
        """The Arrow array of one row of a column."""
        chunk = int(np.searchsorted(self._ends, row, side="right"))
        first = int(self._ends[chunk - 1]) if chunk else 0
        if not first <= self._next.get(column, -1) <= row:
            self._pieces[column], self._next[column] = self._guarded_pieces(column, chunk, 1), first
        piece = None
        while self._next[column] <= row:
            piece = next(self._pieces[column], None)
            if piece is None or not len(piece):
                self._next.pop(column)
                raise BadLabels(
                    f"{self.path}: column {column!r} ends before row {row} of {self.count}; the file is truncated or forged"
                )
            self._next[column] += 1
        return piece

    def _guarded_pieces(self, column: str, chunk: int, size: int) -> Iterator[Any]:
        """The pieces of a column from a chunk on; errors of the library become BadLabels."""
        table: Table = self._guarded(lambda: ParquetTable(self.path) if self.path.suffix in PARQUET else ArrowTable(self.path))
        pieces = table.pieces(column, chunk, size)
        while (piece := self._guarded(lambda: next(pieces, None))) is not None:
            yield getattr(piece, "storage", piece)

    def _guarded(self, read: Any) -> Any:
        try:
            return read()
        except VqlabelError:
            raise
        except Exception as error:  # pyarrow raises nearly anything on damaged bytes
            raise BadLabels(
                foreign_file_message(self.path, f"a {self.path.suffix} file")
                or f"{self.path}: cannot be read ({str(error)[:200]}); it is truncated, damaged or forged"
            ) from None


def need_columns(table: TableRows, choices: Sequence[Sequence[str]]) -> Sequence[str]:
    """The first of the choices of columns that a table has; raises BadLabels if it has none."""
    for names in choices:
        if set(names) <= set(table.columns):
            return names
    wanted = ", or ".join(" and ".join(names) for names in choices)
    raise BadLabels(f"{table.path}: has the columns {', '.join(table.columns)[:200]}; labels need {wanted}")
