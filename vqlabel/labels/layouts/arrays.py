""".npy, .npz and .safetensors <-> labels, read a batch of rows at a time. No pickle is ever loaded."""

import io
import json
import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.config import DOMAINS
from vqlabel.errors import BadLabels, require
from vqlabel.labels.batch import LabelBatch
from vqlabel.labels.layouts.array_columns import arrange
from vqlabel.labels.layouts.label_dtypes import BF16, NUMPY_TYPES
from vqlabel.labels.layouts.rows import MAX_DEFLATE_RATIO, Rows
from vqlabel.labels.layouts.select_array import UNNAMED, ArrayInfo, SelectedArray, Selection, select_array
from vqlabel.labels.source import About
from vqlabel.labels.sparse import as_dense
from vqlabel.labels.writer import LabelWriter

FORMS = ("npy", "safetensors")  # the forms that are written
HEADER_BYTES = 256  # of a written file: the labels are streamed behind it before their number is known
SKIP_BYTES = 1 << 20  # decompressed at a time to skip rows of a .npz
MAX_NPY_HEADER = 1 << 16  # bytes


class ContiguousRows(Rows):
    """Rows at consecutive places in a file.

    It is read, not memory-mapped: truncation meanwhile is then an error instead of a crash.
    """

    def __init__(
        self,
        path: Path,
        labels: SelectedArray,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        axes: tuple[str, ...] | None,
        offset: int,
    ) -> None:
        super().__init__(path, labels, shape, dtype, axes)
        self._offset = offset  # bytes of the file before the first row

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        width = self.layout.classes * self.type.itemsize
        with self.path.open("rb") as file:
            file.seek(self._offset + start * width)
            data = file.read((stop - start) * width)
        if len(data) != (stop - start) * width:
            raise BadLabels(f"{self.path}: truncated, {len(data)} of {(stop - start) * width} bytes at row {start}")
        return np.frombuffer(data, self.type).reshape(-1, self.layout.classes)


class ColumnOrderRows(Rows):
    """Rows of a .npy in column-major order.

    It is mapped anew for every read: a map keeps its file open, and a dump may have thousands of files.
    """

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        stored = self.layout.stored
        array: NDArray[Any] = _map_npy(self.path).reshape(stored)
        if len(stored) == 2:
            return array[start:stop]
        if self.layout.images_first:
            return array[start // stored[1] : stop // stored[1]].reshape(-1, stored[2])
        epoch: NDArray[Any] = array[start // stored[1]]
        return epoch[start % stored[1] :][: stop - start]


class NpzRows(Rows):
    """Rows of one array in a .npz, decompressed in order; going back starts again at the beginning of the array.

    Raises:
        BadLabels: the array is in column-major order.
    """

    _stream: IO[bytes] | None

    def __init__(self, path: Path, labels: SelectedArray, axes: tuple[str, ...] | None) -> None:
        self._member, self._stream, self._row = labels.name + ".npy", None, 0
        with zipfile.ZipFile(path) as archive:
            shape, column_major, dtype, self._header_bytes = npz_header(archive, self._member)
        if column_major:
            raise BadLabels(f"{path}: {self._member} is in column-major order; save it with np.ascontiguousarray")
        super().__init__(path, labels, shape, dtype, axes)

    def _open(self) -> IO[bytes]:
        self._close()
        with zipfile.ZipFile(self.path) as archive:  # the file stays open until the member is closed
            self._stream, self._row = archive.open(self._member), 0
        self._stream.seek(self._header_bytes)
        return self._stream

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        try:
            return self._read_on(start, stop)
        except Exception:
            self._close()  # its position is unknown after an error
            raise

    def _read_on(self, start: int, stop: int) -> NDArray[Any]:
        stream = self._open() if self._stream is None or start < self._row else self._stream
        width = self.layout.classes * self.type.itemsize
        while self._row < start:
            rows = min(start - self._row, max(1, SKIP_BYTES // width))
            self._row += len(self._read_exactly(stream, rows * width)) // width
        data = self._read_exactly(stream, (stop - start) * width)
        self._row = stop
        if stop == self.layout.epochs * self.layout.images:
            self._close()
        return np.frombuffer(data, self.type).reshape(stop - start, self.layout.classes)

    def _read_exactly(self, stream: IO[bytes], size: int) -> bytes:
        data = stream.read(size)
        if len(data) != size:
            raise BadLabels(f"{self.path}: truncated, {len(data)} of {size} bytes at row {self._row}")
        return data


def open_npy(path: Path, selection: Selection) -> Rows:
    """The array of a .npy file.

    Raises:
        UsageError: `selection` names an array: the only one has no name.
    """
    require(selection.array is None, "array", selection.array, f"must be left out: {path} is a single array without a name")
    array = _map_npy(path)  # checks that the shape fits the file
    if not array.flags.c_contiguous:
        return _noting_bf16(ColumnOrderRows(path, UNNAMED, array.shape, array.dtype, selection.axes))
    return _noting_bf16(ContiguousRows(path, UNNAMED, array.shape, array.dtype, selection.axes, array.offset))


def open_npz(path: Path, selection: Selection) -> Rows:
    """The array of labels of a .npz file; errors as of `select_array`."""
    with zipfile.ZipFile(path) as archive:
        arrays = {}
        for name in archive.namelist():
            if name.endswith(".npy"):
                shape, _, dtype, _ = npz_header(archive, name)
                arrays[name.removesuffix(".npy")] = ArrayInfo.of(shape, dtype)
    labels = select_array(arrays, selection.array, path, with_columns=True)
    rows = _noting_bf16(NpzRows(path, labels, selection.axes))
    rows.columns = arrange(path, {name: _read_member(path, name) for name in labels.columns}, rows.layout)
    return rows


def _read_member(path: Path, name: str) -> NDArray[Any]:
    """A whole array of a .npz, whose header was checked."""
    with zipfile.ZipFile(path) as archive, archive.open(name + ".npy") as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _noting_bf16(rows: Rows) -> Rows:
    """The rows, with a note if their type is two bytes without a meaning, which is how NumPy saves bfloat16."""
    if rows.type == BF16:
        rows.notes["type"] = f"{rows.path}: type {rows.type} is read as bfloat16"
    return rows


def npz_header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """The header of an array in a .npz: shape, whether column-major, type, offset of the values in bytes.

    Raises:
        BadLabels: the array is larger than its file can hold, or compressed by a method that NumPy never uses.
    """
    info, path = archive.getinfo(member), Path(str(archive.filename))
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # other methods expand without a bound
        raise BadLabels(
            f"{path}: {member} is compressed by method {info.compress_type}, which NumPy does not use; save it with np.savez"
        )
    max_size = min(info.file_size, MAX_DEFLATE_RATIO * path.stat().st_size)
    with archive.open(member) as stream:
        shape, column_major, dtype, offset = npy_header(stream.read(MAX_NPY_HEADER))
    if (size := math.prod(shape) * dtype.itemsize) > max_size:
        raise BadLabels(f"{path}: shape {list(shape)} needs {size} bytes, but {member} has {max_size}; truncated or forged")
    return shape, column_major, dtype, offset


def npy_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """The header of a .npy that begins with `data`: shape, whether column-major, type, offset of the values in bytes.

    Raises:
        ValueError, and nearly anything: it is damaged.
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, column_major, dtype = read(stream)
    return shape, column_major, dtype, stream.tell()


def _map_npy(path: Path) -> np.memmap[Any, Any]:
    return np.lib.format.open_memmap(path, mode="r")  # unlike np.load it opens no zip archive of that name, and never a pickle


def open_safetensors(path: Path, selection: Selection) -> Rows:
    """The tensor of labels of a .safetensors file, whose metadata may declare the domain; errors as of `select_array`.

    Raises:
        BadLabels: the tensor is of another type, or the metadata declares an unknown domain.
    """
    from safetensors import safe_open

    with safe_open(path, "np") as file:  # checks the header, so the offsets below are valid
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        metadata = file.metadata() or {}
    arrays = {
        name: ArrayInfo(tuple(part.get_shape()), part.get_dtype(), part.get_dtype() in NUMPY_TYPES) for name, part in slices.items()
    }
    labels = select_array(arrays, selection.array, path, with_columns=True)
    shape, dtype, _ = arrays[labels.name]
    if dtype not in NUMPY_TYPES:
        raise BadLabels(f"{path}: tensor {labels.name!r} is {dtype}; labels must be {', '.join(NUMPY_TYPES)}")
    domain = metadata.get("domain", labels.domain)
    require(
        domain in (None, *DOMAINS), f"{path}: domain in the metadata", domain, f"must be one of {', '.join(DOMAINS)}", BadLabels
    )
    with path.open("rb") as raw:
        size = int.from_bytes(raw.read(8), "little")
        offset = 8 + size + json.loads(raw.read(size))[labels.name]["data_offsets"][0]
    rows = ContiguousRows(path, labels._replace(domain=domain), shape, NUMPY_TYPES[dtype], selection.axes, offset)
    with safe_open(path, "np") as file:
        rows.columns = arrange(path, {name: file.get_tensor(name) for name in labels.columns}, rows.layout)
    return rows


class ArrayWriter(LabelWriter):
    """Labels [n, C] alone, in record order, as one .npy or .safetensors file (tensor "logits" or "probs").

    The header is written last.

    Args:
        form: "npy" or "safetensors".

    Attributes:
        rows: labels written so far.

    Raises:
        UsageError: another form; or bf16 labels as .npy.
    """

    def __init__(self, out: Path, about: About, form: str | None = None) -> None:
        require(form in FORMS, "layout", f"arrays:{form or ''}", f"must be arrays:{' or arrays:'.join(FORMS)}")
        require(
            form != "npy" or about.dtype != "BF16",
            "dtype", "bf16", "cannot be written to .npy, which has no such type; use .safetensors or --dtype f32",
        )  # fmt: skip
        self._about, self._form, self.rows = about, form, 0
        self._width = about.classes * (4 if about.dtype == "F32" else 2)
        self._file = out.open("wb")
        self._file.write(bytes(HEADER_BYTES))

    def add(self, batch: LabelBatch) -> None:
        labels = np.ascontiguousarray(as_dense(batch.labels))
        if self._about.dtype == "BF16":
            labels = (labels.view(np.uint32) >> 16).astype(np.uint16)
        if len(labels):  # a view of no bytes cannot be cast
            self.append(labels.data.cast("B"))

    def append(self, data: memoryview) -> None:
        """Add whole labels as the bytes of the file."""
        self._file.write(data)
        self.rows += len(data) // self._width

    def finish(self) -> None:
        self._file.seek(0)
        self._file.write(self._header())
        self.close()

    def close(self) -> None:
        self._file.close()

    def _header(self) -> bytes:
        shape, about = (self.rows, self._about.classes), self._about
        if self._form == "npy":
            descr = "<f2" if about.dtype == "F16" else "<f4"
            text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(HEADER_BYTES - 11) + "\n"
            return np.lib.format.magic(1, 0) + (HEADER_BYTES - 10).to_bytes(2, "little") + text.encode()
        tensor = {"dtype": about.dtype, "shape": list(shape), "data_offsets": [0, self.rows * self._width]}
        text = json.dumps({"__metadata__": {"domain": about.domain}, about.domain: tensor}).ljust(HEADER_BYTES - 8)
        return (HEADER_BYTES - 8).to_bytes(8, "little") + text.encode()


def array_form(path: Path) -> str | None:
    """The form of "arrays" that a file of this name is written in; None: it is not one."""
    return path.suffix[1:] if path.suffix[1:] in FORMS else None
