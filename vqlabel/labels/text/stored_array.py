"""Arrays in .safetensors, .npy and .npz files: their places in the file, read by rows. No pickle is ever loaded."""

import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.container.strict_json import parse
from vqlabel.errors import BadLabels, VqlabelError
from vqlabel.labels.layouts.arrays import MAX_NPY_HEADER, npy_header
from vqlabel.storage.filetypes import foreign_file_message, require_regular

MAX_SAFETENSORS_HEADER = 100_000_000  # bytes, as of the library
BLOCK_BYTES = 1 << 24
FLOATS = ("F16", "BF16", "F32")
INTEGERS = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "BOOL")
_TYPES = {  # safetensors' name -> NumPy's type; bf16, which NumPy lacks, as its bits
    "F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8", "BOOL": "?",
    "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8",
}  # fmt: skip
_NUMPY_NAMES = {np.dtype(code).str[1:]: name for name, code in _TYPES.items() if name != "BF16"} | {"V2": "BF16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredArray:
    """An array, row after row, at a place in a file that was checked to hold all of it.

    Attributes:
        path: of the file.
        name: in the file; "" if the file is a single array.
        shape: as stored.
        dtype: safetensors' name of its type, such as "BF16" or "I64"; a type that is not read keeps its name.
        offset: bytes of the file before it.
        swapped: whether its bytes are big-endian.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    swapped: bool = False

    def __str__(self) -> str:
        return f"{self.name or self.path.stem!s} {self.dtype} {list(self.shape)}"

    @property
    def type(self) -> np.dtype[Any]:
        """NumPy's type of the stored numbers; of bf16, that of its bits."""
        dtype = np.dtype(_TYPES[self.dtype])
        return dtype.newbyteorder(">") if self.swapped else dtype

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.type.itemsize

    def read(self, start: int, stop: int, joined: int = 1) -> NDArray[Any]:
        """Rows start:stop of the array whose first `joined` axes are one axis of rows.

        Returns:
            [stop - start, *shape[joined:]]: float16 or float32 (bf16 is widened exactly), or integers as stored.

        Raises:
            BadLabels: the file ends early: it was truncated since it was opened.
        """
        inner = self.shape[joined:]
        width = math.prod(inner) * self.type.itemsize
        with self.path.open("rb") as file:
            file.seek(self.offset + start * width)
            data = file.read((stop - start) * width)
        if len(data) != (stop - start) * width:
            raise BadLabels(f"{self.path}: truncated, {len(data)} of {(stop - start) * width} bytes at row {start}")
        return self.widened(np.frombuffer(data, self.type).reshape(stop - start, *inner))

    def blocks(self) -> Iterator[bytes]:
        """All its bytes, in blocks of BLOCK_BYTES.

        Raises:
            BadLabels: the file ends early: it was truncated since it was opened.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            left = self.size
            while left:
                data = file.read(min(left, BLOCK_BYTES))
                if not data:
                    raise BadLabels(f"{self.path}: truncated, {left} of {self.size} bytes of {self} are missing")
                left -= len(data)
                yield data

    def widened(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Stored numbers in a native type: bf16 as float32, all others as they are."""
        if self.dtype == "BF16":
            return (np.ascontiguousarray(stored).astype(np.uint32) << 16).view(np.float32)
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)

    def map(self) -> NDArray[Any]:
        """The stored numbers, read-only and memory-mapped; of bf16, their bits as uint16."""
        if not math.prod(self.shape):
            return np.empty(self.shape, self.type)
        return np.memmap(self.path, self.type, "r", self.offset, self.shape)


Arrays = dict[str, StoredArray]


def read_arrays(path: Path) -> tuple[Arrays, Mapping[str, str]]:
    """The arrays of a .safetensors, .npz or .npy file by name (of a .npy: ""), and the metadata of a .safetensors file.

    Raises:
        BadLabels: the file is truncated, forged or of another type; or an array of it cannot be read by rows.
    """
    require_regular(path)
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz, ".npy": _read_npy}
    try:
        return readers[path.suffix](path)
    except VqlabelError:
        raise
    except Exception as error:  # NumPy's header parser and zipfile raise nearly anything on damaged bytes
        raise BadLabels(_unreadable(path, str(error)[:200])) from None


def _unreadable(path: Path, why: str) -> str:
    kind = f"a {path.suffix} file"
    return foreign_file_message(path, kind) or f"{path}: not readable as {kind} ({why}); it is truncated, damaged or forged"


def _read_safetensors(path: Path) -> tuple[Arrays, Mapping[str, str]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_SAFETENSORS_HEADER, size - 8):
            raise BadLabels(_unreadable(path, f"a header of {length} bytes in a file of {size}"))
        header = parse(file.read(length).decode())
    if not isinstance(header, dict):
        raise BadLabels(_unreadable(path, "its header is not a JSON object"))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadLabels(_unreadable(path, "its metadata are not texts"))
    return {name: _tensor(path, name, entry, 8 + length, size) for name, entry in header.items()}, metadata


def _tensor(path: Path, name: str, entry: Any, front: int, size: int) -> StoredArray:
    """The tensor of one entry of the header; nothing in it is believed before it is checked against the file's size."""
    shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
    numbers = (*shape, start, stop)
    if not isinstance(entry["dtype"], str) or not all(type(number) is int and number >= 0 for number in numbers):
        raise BadLabels(_unreadable(path, f"the entry of tensor {name[:80]!r} is malformed"))
    if not start <= stop <= size - front:
        raise BadLabels(f"{path}: tensor {name!r} lies at bytes {start}..{stop} of {size - front}; the file is truncated or forged")
    array = StoredArray(path=path, name=name, shape=shape, dtype=entry["dtype"], offset=front + start)
    if array.dtype in _TYPES and array.size != stop - start:
        raise BadLabels(f"{path}: tensor {array} needs {array.size} bytes, but has {stop - start}; the file is damaged or forged")
    return array


def _read_npy(path: Path) -> tuple[Arrays, Mapping[str, str]]:
    with path.open("rb") as file:
        header = npy_header(file.read(MAX_NPY_HEADER))
    return {"": _numpy_array(path, "", header, 0, path.stat().st_size)}, {}


def _read_npz(path: Path) -> tuple[Arrays, Mapping[str, str]]:
    arrays = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if info.compress_type != zipfile.ZIP_STORED:
                raise BadLabels(
                    f"{path}: {info.filename} is compressed, so that no document can be read without all before it; save it with np.savez"
                )
            file.seek(info.header_offset + 26)  # lengths of the name and of the extra field in the local header
            start = info.header_offset + 30 + sum(int.from_bytes(file.read(2), "little") for _ in range(2))
            file.seek(start)
            arrays[name] = _numpy_array(path, name, npy_header(file.read(MAX_NPY_HEADER)), start, start + info.file_size)
    return arrays, {}


def _numpy_array(
    path: Path, name: str, header: tuple[tuple[int, ...], bool, np.dtype[Any], int], start: int, stop: int
) -> StoredArray:
    """The array of a .npy whose bytes are start:stop of a file."""
    shape, column_major, dtype, front = header
    kind = _NUMPY_NAMES.get(dtype.str[1:], str(dtype))
    array = StoredArray(path=path, name=name, shape=shape, dtype=kind, offset=start + front, swapped=dtype.str[0] == ">")
    if column_major and sum(length > 1 for length in shape) > 1:
        raise BadLabels(f"{path}: {array} is in column-major order; save it with np.ascontiguousarray")
    stop = min(stop, path.stat().st_size)
    if kind in _TYPES and array.offset + array.size > stop:
        raise BadLabels(f"{path}: {array} needs {array.size} bytes, but {stop - array.offset} are stored; truncated or forged")
    return array
