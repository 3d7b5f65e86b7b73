""".npy, .npz and .safetensors <-> labels, read by rows and never more of them than a batch. No pickle is ever loaded."""

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
from vqlabel.labels.layouts.choose import Selection, Stored, choose
from vqlabel.labels.layouts.rows import BF16, DEFLATE_MOST, Rows
from vqlabel.labels.source import About, LabelBatch, LabelWriter

FORMS = ("npy", "safetensors")  # that are written
HEADER = 256  # bytes of a written file's header: labels are streamed behind it before their number is known
SKIP_BYTES = 1 << 20
NPY_HEADER_MOST = 1 << 16
_SAFETENSORS = {"F16": np.dtype("<f2"), "BF16": BF16, "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


class FlatRows(Rows):
    """Row after row at one place of a file, which is read rather than mapped: a file that is cut meanwhile is an error then, not a crash."""

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        start: int,
        domain: str | None,
        how: Selection,
        note: str | None,
    ) -> None:
        super().__init__(str(path), shape, dtype, domain, how.axes, note)
        self._path, self._start = path, start

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        width = self.layout.classes * self.type.itemsize
        with self._path.open("rb") as file:
            file.seek(self._start + start * width)
            data = file.read((stop - start) * width)
        if len(data) != (stop - start) * width:
            raise BadLabels(f"{self.name}: truncated, {len(data)} of {(stop - start) * width} bytes at row {start}")
        return np.frombuffer(data, self.type).reshape(-1, self.layout.classes)


class ColumnOrderRows(Rows):
    """Of a .npy in column order, mapped anew for every read: a map keeps its file open, and a dump may have thousands."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], how: Selection) -> None:
        super().__init__(str(path), shape, dtype, axes=how.axes)
        self._path = path

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        stored = self.layout.stored
        array: NDArray[Any] = _map_npy(self._path).reshape(stored)
        if len(stored) == 2:
            return array[start:stop]
        if self.layout.images_first:
            return array[start // stored[1] : stop // stored[1]].reshape(-1, stored[2])
        epoch: NDArray[Any] = array[start // stored[1]]
        return epoch[start % stored[1] :][: stop - start]


class NpzRows(Rows):
    """Of one array in a .npz, read in order; going back reads the member again from its start."""

    _stream: IO[bytes] | None

    def __init__(self, path: Path, member: str, domain: str | None, how: Selection, note: str | None) -> None:
        self._path, self._member, self._stream, self._at = path, member, None, 0
        with zipfile.ZipFile(path) as archive:
            shape, fortran, dtype, self._header = npz_header(archive, member)
        if fortran:
            raise BadLabels(f"{path}: {member} is in column order; save it with np.ascontiguousarray")
        super().__init__(str(path), shape, dtype, domain, how.axes, note)

    def _open(self) -> IO[bytes]:
        self._close()
        with zipfile.ZipFile(self._path) as archive:  # the file stays open until the member is closed
            self._stream, self._at = archive.open(self._member), 0
        self._stream.seek(self._header)
        return self._stream

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        try:
            return self._stream_on(start, stop)
        except Exception:
            self._close()  # it stands nobody knows where
            raise

    def _stream_on(self, start: int, stop: int) -> NDArray[Any]:
        stream = self._open() if self._stream is None or start < self._at else self._stream
        width = self.layout.classes * self.type.itemsize
        while self._at < start:
            self._at += len(self._take(stream, min(start - self._at, max(1, SKIP_BYTES // width)) * width)) // width
        data = self._take(stream, (stop - start) * width)
        self._at = stop
        if stop == self.layout.epochs * self.layout.images:
            self._close()
        return np.frombuffer(data, self.type).reshape(stop - start, self.layout.classes)

    def _take(self, stream: IO[bytes], size: int) -> bytes:
        data = stream.read(size)
        if len(data) != size:
            raise BadLabels(f"{self.name}: truncated, {len(data)} of {size} bytes at row {self._at}")
        return data


def open_npy(path: Path, how: Selection) -> Rows:
    """A .npy file.

    Raises:
        UsageError: `how` names an array, and it has no names.
    """
    _refuse_name(path, how)
    array = _map_npy(path)  # checks that the shape fits the file
    if not array.flags.c_contiguous:
        return _noted(ColumnOrderRows(path, array.shape, array.dtype, how))
    return _noted(FlatRows(path, array.shape, array.dtype, array.offset, None, how, None))


def open_npz(path: Path, how: Selection) -> Rows:
    """One array of a .npz."""
    with zipfile.ZipFile(path) as archive:
        found = {}
        for name in archive.namelist():
            if name.endswith(".npy"):
                shape, _, dtype, _ = npz_header(archive, name)
                found[name.removesuffix(".npy")] = Stored.of(shape, dtype)
    chosen = choose(found, how.array, path)
    return _noted(NpzRows(path, chosen.name + ".npy", chosen.domain, how, chosen.note))


def _noted(rows: Rows) -> Rows:
    """NumPy saves a bfloat16 array, a type that it does not have, as two bytes without a meaning."""
    if rows.type == BF16:
        rows.notes["type"] = f"{rows.name}: type {rows.type} is read as bfloat16"
    return rows


def npz_header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether columns stand together, type, and where the numbers begin; held against the size of the file.

    Raises:
        BadLabels: it is larger than it can be, or compressed as NumPy never does.
    """
    info, path = archive.getinfo(member), Path(str(archive.filename))
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others expand without bound
        raise BadLabels(
            f"{path}: {member} is compressed by method {info.compress_type}, which NumPy does not use; save it with np.savez"
        )
    room = min(info.file_size, DEFLATE_MOST * path.stat().st_size)
    with archive.open(member) as stream:
        shape, fortran, dtype, start = npy_header(stream.read(NPY_HEADER_MOST))
    if (need := math.prod(shape) * dtype.itemsize) > room:
        raise BadLabels(f"{path}: shape {list(shape)} needs {need} bytes, {member} has {room}; truncated or forged")
    return shape, fortran, dtype, start


def npy_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Of a .npy that begins with `data`: shape, whether columns stand together, type, and where the numbers begin."""
    head = io.BytesIO(data)
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(head)
    return shape, fortran, dtype, head.tell()


def _map_npy(path: Path) -> np.memmap[Any, Any]:
    return np.lib.format.open_memmap(path, mode="r")  # unlike np.load: no zip under another name, and never a pickle


def _refuse_name(path: Path, how: Selection) -> None:
    require(how.array is None, "array", how.array, f"must be left out: {path} is one array, which has no name")


def open_safetensors(path: Path, how: Selection) -> Rows:
    """One tensor of a .safetensors file; its metadata may declare the domain."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:  # checks the header, so that the offsets below are sound
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
        metadata = file.metadata() or {}
    found = {
        name: Stored(tuple(part.get_shape()), part.get_dtype(), part.get_dtype() in _SAFETENSORS) for name, part in slices.items()
    }
    chosen = choose(found, how.array, path)
    shape, dtype, _ = found[chosen.name]
    if dtype not in _SAFETENSORS:
        raise BadLabels(f"{path}: tensor {chosen.name!r} is {dtype}; labels are F16, BF16, F32 or F64")
    domain = metadata.get("domain", chosen.domain)
    require(
        domain in (None, *DOMAINS), f"{path}: domain in the metadata", domain, f"must be one of {', '.join(DOMAINS)}", BadLabels
    )
    with path.open("rb") as raw:
        size = int.from_bytes(raw.read(8), "little")
        start = 8 + size + json.loads(raw.read(size))[chosen.name]["data_offsets"][0]
    return FlatRows(path, shape, _SAFETENSORS[dtype], start, domain, how, chosen.note)


class ArrayWriter(LabelWriter):
    """Labels [n, C] alone, in record order, into one .npy or .safetensors ("logits" or "probs"); the header is written last.

    Attributes:
        rows: labels written so far.
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
        self._file.write(bytes(HEADER))

    def add(self, batch: LabelBatch) -> None:
        labels = np.ascontiguousarray(batch.labels)
        if self._about.dtype == "BF16":
            labels = (labels.view(np.uint32) >> 16).astype(np.uint16)
        if len(labels):  # a view of nothing cannot be cast
            self.append(labels.data.cast("B"))

    def append(self, data: memoryview) -> None:
        """Whole labels, as the bytes that they will have."""
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
            text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(HEADER - 11) + "\n"
            return np.lib.format.magic(1, 0) + (HEADER - 10).to_bytes(2, "little") + text.encode()
        tensor = {"dtype": about.dtype, "shape": list(shape), "data_offsets": [0, self.rows * self._width]}
        text = json.dumps({"__metadata__": {"domain": about.domain}, about.domain: tensor}).ljust(HEADER - 8)
        return (HEADER - 8).to_bytes(8, "little") + text.encode()


def array_form(path: Path) -> str | None:
    """The form of "arrays" that a file of this name takes, or None."""
    return path.suffix[1:] if path.suffix[1:] in FORMS else None
