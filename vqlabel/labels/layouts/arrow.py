"""Columns of .parquet, .arrow and .feather files -> labels, as the datasets library and pandas write them: a list of C floats a row.

Chunks of rows (row groups, record batches) are read one after the other, and never more of a file than a piece of one.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, MissingExtra
from vqlabel.labels.layouts.choose import Selection, Stored, choose
from vqlabel.labels.layouts.rows import Rows, check_count

PARQUET, ARROW = (".parquet", ".pq"), (".arrow", ".feather", ".ipc")
SUFFIXES = (*PARQUET, *ARROW)
PIECE_BYTES = 4 << 20  # of a column that are decoded together


class Table(ABC):
    """A file of columns: how many rows each chunk has, and one column of them in order."""

    def __init__(self, path: Path) -> None:
        self.path = path

    schema: Any
    rows: list[int]  # of every chunk

    @abstractmethod
    def pieces(self, column: str, first: int, size: int) -> Iterator[Any]:
        """A column's Arrow arrays, of `size` rows at most, from the beginning of chunk `first` on."""


class ParquetTable(Table):
    def __init__(self, path: Path) -> None:
        from pyarrow.parquet import ParquetFile

        super().__init__(path)
        self._file = ParquetFile(path, buffer_size=1 << 16, pre_buffer=False)
        self.schema = self._file.schema_arrow
        groups = self._file.metadata
        self.rows = [groups.row_group(at).num_rows for at in range(groups.num_row_groups)]

    def pieces(self, column: str, first: int, size: int) -> Iterator[Any]:
        groups = list(range(first, len(self.rows)))
        for batch in self._file.iter_batches(batch_size=size, row_groups=groups, columns=[column], use_threads=False):
            yield batch.column(0)


class ArrowTable(Table):
    """An Arrow IPC file (Feather 2), or a stream of record batches, which is what the datasets library keeps on disk."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        super().__init__(path)
        with path.open("rb") as file:
            self._open = pa.ipc.open_file if file.read(6) == b"ARROW1" else pa.ipc.open_stream
        with pa.memory_map(str(path)) as source:
            reader = self._open(source)
            self.schema = reader.schema
            self.rows = [batch.num_rows for batch in self._batches(reader)]

    def _batches(self, reader: Any) -> Iterator[Any]:
        if hasattr(reader, "num_record_batches"):
            yield from (reader.get_batch(at) for at in range(reader.num_record_batches))
        else:
            yield from reader

    def pieces(self, column: str, first: int, size: int) -> Iterator[Any]:
        import pyarrow as pa

        with pa.memory_map(str(self.path)) as source:
            for number, batch in enumerate(self._batches(self._open(source))):
                if number >= first:
                    whole = batch.column(batch.schema.get_field_index(column))
                    whole.validate(full=True)  # offsets and lengths come from the file, and nothing else looks at them
                    yield from (whole.slice(at, size) for at in range(0, len(whole), size))


class ColumnRows(Rows):
    """One column, read in order; going back begins again at the chunk that holds the row."""

    def __init__(
        self,
        path: Path,
        column: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        domain: str | None,
        how: Selection,
        note: str | None,
    ) -> None:
        super().__init__(str(path), shape, dtype, domain, how.axes, note)
        self._path, self._column = path, column
        self._width = shape[1:]  # of a row
        self._each = int(np.prod(self._width[:-1], dtype=np.int64))  # labels of a row
        self._ends = np.cumsum(_open(path).rows)
        self._size = max(1, PIECE_BYTES // (dtype.itemsize * int(np.prod(self._width))))
        self._pieces: Iterator[Any] | None = None
        self._at = 0  # row that `_rest` begins with
        self._rest = np.empty((0, *self._width), dtype)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        first, last = start // self._each, -(-stop // self._each)
        chunk = int(np.searchsorted(self._ends, first, side="right"))
        begins = int(self._ends[chunk - 1]) if chunk else 0
        if self._pieces is None or first < self._at or begins > self._at + len(self._rest):
            self._pieces, self._at = _open(self._path).pieces(self._column, chunk, self._size), begins
            self._rest = self._rest[:0]
        parts: list[NDArray[Any]] = []
        while self._at + len(self._rest) < last:
            self._keep(parts, first)
            try:
                self._rest = _values(next(self._pieces, None), self._width, self.type, self.name, self._at)
            except BadLabels:
                self._pieces = None  # whoever reads again is told the same
                raise
        self._keep(parts, first, last)
        if last == self._ends[-1]:
            self._pieces = None
        rows = np.concatenate(parts).reshape(-1, self.layout.classes)
        return rows[start - first * self._each :][: stop - start]

    def _keep(self, parts: list[NDArray[Any]], first: int, last: int | None = None) -> None:
        """Move rows first:last of what is decoded to `parts`, and forget what lies before."""
        stop = len(self._rest) if last is None else last - self._at
        parts.append(self._rest[max(0, first - self._at) : stop])
        self._at, self._rest = self._at + stop, self._rest[stop:]


def open_column(path: Path, how: Selection) -> Rows:
    """The column of labels of one file; a row is one label [C], or an image with labels [views, C].

    Raises:
        MissingExtra: pyarrow is not installed.
        UsageError: there is no column of the name that `how` gives.
        BadLabels: no column holds labels, or several may.
    """
    table = _open(path)
    total = sum(table.rows)
    check_count(total, path)
    found = {field.name: _described(table, field.name, field.type, total) for field in table.schema}
    chosen = choose(found, how.array, path)
    shape, kind, is_float = found[chosen.name]
    if not is_float or len(shape) < 2:
        raise BadLabels(f"{path}: column {chosen.name!r} is {kind}; labels are a column of lists of C floats")
    if len(shape) == 3 and how.axes is None:
        how = how._replace(axes=("images", "epochs", "classes"))
    return ColumnRows(path, chosen.name, shape, np.dtype(kind), chosen.domain, how, chosen.note)


def _open(path: Path) -> Table:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingExtra("pyarrow", "parquet") from None
    return ParquetTable(path) if path.suffix in PARQUET else ArrowTable(path)


def _described(table: Table, name: str, kind: Any, total: int) -> Stored:
    """A column, its shape as the first row has it."""
    import pyarrow as pa

    depth, inner = 0, kind
    while isinstance(inner, pa.BaseExtensionType) or _is_list(inner):
        depth += _is_list(inner)
        inner = inner.value_type if _is_list(inner) else inner.storage_type
    if not depth or not pa.types.is_floating(inner) or not total:
        return Stored((total,), str(kind), pa.types.is_floating(inner))
    row, width = next(table.pieces(name, 0, 1)), []
    for _ in range(depth):
        row = _unwrapped(row)
        width.append(int(row.value_lengths()[0].as_py() or 0))
        row = row.flatten()
    return Stored.of((total, *width), np.dtype(inner.to_pandas_dtype()))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _unwrapped(array: Any) -> Any:
    return getattr(array, "storage", array)  # of the datasets library's own types


def _values(piece: Any, width: tuple[int, ...], dtype: np.dtype[Any], name: str, at: int) -> NDArray[Any]:
    """An Arrow array of lists -> [rows, *width].

    Args:
        piece: None where the file ended too early.
        at: row that it begins with, for messages.
    """
    if piece is None:
        raise BadLabels(f"{name}: ends at row {at}, before the rows that its header declares; it is truncated or forged")
    rows = len(piece)
    for depth, expected in enumerate(width):
        piece = _unwrapped(piece)
        lengths = piece.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(lengths != expected)
        if len(wrong):
            row = at + int(wrong[0]) // max(1, len(lengths) // max(1, rows))
            raise BadLabels(
                f"{name}: row {row} has a list of {lengths[wrong[0]]}; row 0 has {'lists' if depth else 'a list'} of {expected}"
            )
        piece = piece.flatten()
    if piece.null_count:
        raise BadLabels(f"{name}: a value from row {at} on is null; labels are C numbers each")
    return np.asarray(piece.to_numpy(zero_copy_only=False), dtype).reshape(rows, *width)
