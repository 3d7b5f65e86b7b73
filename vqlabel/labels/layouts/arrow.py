"""Columns of .parquet, .arrow and .feather files -> labels: a list of C floats per row.

The datasets library and pandas write such files. Their chunks (row groups of Parquet, record batches of Arrow) are
decoded in order, a piece of a column at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, MissingExtra
from vqlabel.labels.layouts.rows import Rows, check_count
from vqlabel.labels.layouts.select_array import ArrayInfo, SelectedArray, Selection, select_array

PARQUET, ARROW = (".parquet", ".pq"), (".arrow", ".feather", ".ipc")
SUFFIXES = (*PARQUET, *ARROW)
PIECE_BYTES = 4 << 20  # of a column, decoded at a time


class Table(ABC):
    """A file of columns.

    Attributes:
        schema: pyarrow's schema.
        rows: number of rows of every chunk.
    """

    schema: Any
    rows: list[int]

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def pieces(self, column: str, chunk: int, size: int) -> Iterator[Any]:
        """The Arrow arrays of a column, with at most `size` rows each, from the beginning of a chunk on."""


class ParquetTable(Table):
    """A Parquet file; its chunks are row groups."""

    def __init__(self, path: Path) -> None:
        from pyarrow.parquet import ParquetFile

        super().__init__(path)
        self._file = ParquetFile(path, buffer_size=1 << 16, pre_buffer=False)
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        self.rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def pieces(self, column: str, chunk: int, size: int) -> Iterator[Any]:
        groups = list(range(chunk, len(self.rows)))
        for batch in self._file.iter_batches(batch_size=size, row_groups=groups, columns=[column], use_threads=False):
            yield batch.column(0)


class ArrowTable(Table):
    """An Arrow IPC file (Feather 2), or the stream that the datasets library writes; its chunks are record batches."""

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
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            yield from reader

    def pieces(self, column: str, chunk: int, size: int) -> Iterator[Any]:
        import pyarrow as pa

        with pa.memory_map(str(self.path)) as source:
            for number, batch in enumerate(self._batches(self._open(source))):
                if number >= chunk:
                    array = batch.column(batch.schema.get_field_index(column))
                    array.validate(full=True)  # offsets and lengths come from the file, and are checked nowhere else
                    yield from (array.slice(start, size) for start in range(0, len(array), size))


class ColumnRows(Rows):
    """The rows of one column, decoded in order; going back starts again at the chunk that contains the row."""

    def __init__(
        self, path: Path, labels: SelectedArray, shape: tuple[int, ...], dtype: np.dtype[Any], axes: tuple[str, ...] | None
    ) -> None:
        super().__init__(path, labels, shape, dtype, axes)
        self._row_shape = shape[1:]
        self._labels_per_row = int(np.prod(self._row_shape[:-1], dtype=np.int64))
        self._chunk_ends = np.cumsum(_open(path).rows)
        self._piece_rows = max(1, PIECE_BYTES // (dtype.itemsize * int(np.prod(self._row_shape))))
        self._pieces: Iterator[Any] | None = None
        self._row = 0  # index of the first row in `_decoded`
        self._decoded = np.empty((0, *self._row_shape), dtype)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        first, last = start // self._labels_per_row, -(-stop // self._labels_per_row)
        self._seek(first)
        parts: list[NDArray[Any]] = []
        while self._row + len(self._decoded) < last:
            self._take(parts, first)
            assert self._pieces is not None
            try:
                self._decoded = _decode(next(self._pieces, None), self._row_shape, self.type, self.path, self._row)
            except BadLabels:
                self._pieces = None  # the next read starts again and raises the same error
                raise
        self._take(parts, first, last)
        if last == self._chunk_ends[-1]:
            self._pieces = None
        rows = np.concatenate(parts).reshape(-1, self.layout.classes)
        return rows[start - first * self._labels_per_row :][: stop - start]

    def _seek(self, row: int) -> None:
        """Start again at the chunk of a row, if the row is behind or that chunk lies beyond what is decoded."""
        chunk = int(np.searchsorted(self._chunk_ends, row, side="right"))
        chunk_start = int(self._chunk_ends[chunk - 1]) if chunk else 0
        if self._pieces is None or row < self._row or chunk_start > self._row + len(self._decoded):
            self._pieces, self._row = _open(self.path).pieces(self.array, chunk, self._piece_rows), chunk_start
            self._decoded = self._decoded[:0]

    def _take(self, parts: list[NDArray[Any]], first: int, last: int | None = None) -> None:
        """Move the decoded rows first:last to `parts`, and drop the rows before them."""
        stop = len(self._decoded) if last is None else last - self._row
        parts.append(self._decoded[max(0, first - self._row) : stop])
        self._row, self._decoded = self._row + stop, self._decoded[stop:]


def open_column(path: Path, selection: Selection) -> Rows:
    """The column of labels of one file; a row is one label [C], or the labels [views, C] of one image.

    Raises:
        MissingExtra: pyarrow is not installed.
        UsageError: there is no column of the name in `selection`.
        BadLabels: no column holds labels, or several may.
    """
    table = _open(path)
    total = sum(table.rows)
    check_count(total, path)
    columns = {field.name: _describe_column(table, field.name, field.type, total) for field in table.schema}
    labels = select_array(columns, selection.array, path)
    shape, dtype, is_float = columns[labels.name]
    if not is_float or len(shape) < 2:
        raise BadLabels(f"{path}: column {labels.name!r} is {dtype}; labels must be a column of lists of C floats")
    axes = ("images", "epochs", "classes") if len(shape) == 3 and selection.axes is None else selection.axes
    return ColumnRows(path, labels, shape, np.dtype(dtype), axes)


def _open(path: Path) -> Table:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingExtra("pyarrow", "parquet") from None
    return ParquetTable(path) if path.suffix in PARQUET else ArrowTable(path)


def _describe_column(table: Table, name: str, kind: Any, total: int) -> ArrayInfo:
    """Shape and type of a column; the lengths of its lists are those of the first row."""
    import pyarrow as pa

    depth, inner = 0, kind
    while isinstance(inner, pa.BaseExtensionType) or _is_list(inner):
        depth += _is_list(inner)
        inner = inner.value_type if _is_list(inner) else inner.storage_type
    if not depth or not pa.types.is_floating(inner) or not total:
        return ArrayInfo((total,), str(kind), pa.types.is_floating(inner))
    row, row_shape = next(table.pieces(name, 0, 1)), []
    for _ in range(depth):
        row = _storage_of(row)
        row_shape.append(int(row.value_lengths()[0].as_py() or 0))
        row = row.flatten()
    return ArrayInfo.of((total, *row_shape), np.dtype(inner.to_pandas_dtype()))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _storage_of(array: Any) -> Any:
    """The plain array inside one of an extension type, such as the datasets library defines."""
    return getattr(array, "storage", array)


def _decode(piece: Any, row_shape: tuple[int, ...], dtype: np.dtype[Any], path: Path, first_row: int) -> NDArray[Any]:
    """An Arrow array of lists -> [rows, *row_shape].

    Args:
        piece: None if the file ended before all declared rows were read.
        path: of the file, for messages.
        first_row: index in the file of the first row of the piece, for messages.

    Raises:
        BadLabels: the file is truncated, or a row has another shape or a null value.
    """
    if piece is None:
        raise BadLabels(f"{path}: ends at row {first_row}, before the number of rows in its header; it is truncated or forged")
    rows = len(piece)
    for depth, expected in enumerate(row_shape):
        piece = _storage_of(piece)
        lengths = piece.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(lengths != expected)
        if len(wrong):
            row = first_row + int(wrong[0]) // max(1, len(lengths) // max(1, rows))
            raise BadLabels(
                f"{path}: row {row} has a list of {lengths[wrong[0]]}; row 0 has {'lists' if depth else 'a list'} of {expected}"
            )
        piece = piece.flatten()
    if piece.null_count:
        raise BadLabels(f"{path}: at or after row {first_row} a value is null; every label must have C numbers")
    return np.asarray(piece.to_numpy(zero_copy_only=False), dtype).reshape(rows, *row_shape)
