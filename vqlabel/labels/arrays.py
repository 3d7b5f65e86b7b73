""".npy, .npz, .safetensors and directories of such shards -> label batches, memory-mapped.

An array is [n, C] (records in order) or [epochs, n, C] (row i of every epoch is image i).
"""

import io
import json
import math
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, require
from vqlabel.filetypes import mistaken, require_regular
from vqlabel.labels.source import About, LabelBatch, LabelSource, LabelWriter, Place

SUFFIXES = (".npy", ".npz", ".safetensors")
FORMS = ("npy", "safetensors")  # that are written
HEADER = 256  # bytes of a written file's header: labels are streamed behind it before their number is known
NAMES = {"logits": "logits", "labels": None, "soft_labels": None, "probs": "probs", "probabilities": "probs"}
BATCH_RECORDS, BATCH_BYTES = 4096, 16 << 20
SKIP_BYTES = 1 << 20
CLASSES_MOST = 1 << 20  # so that a forged shape cannot ask for a row that fills the memory
DEFLATE_MOST = 1032  # bytes that one byte of a .npz can expand to
NPY_HEADER_MOST = 1 << 16
_NUMPY: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F32": np.dtype("<f4")}


class Rows(ABC):
    """An array on disk, read by rows."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: str, domain: str | None) -> None:
        self.name, self.dtype, self.domain = name, dtype, domain
        if len(shape) not in (2, 3) or min(shape) < 1 or not 2 <= shape[-1] <= CLASSES_MOST:
            raise BadLabels(
                f"{name}: shape {list(shape)}; labels are [n, C] or [epochs, n, C] with C in 2..{CLASSES_MOST} and nothing empty"
            )
        self.epochs = shape[0] if len(shape) == 3 else 1
        self.by_image = len(shape) == 3
        self.each, self.classes = shape[-2], shape[-1]

    def read(self, start: int, stop: int) -> NDArray[np.floating]:
        """Rows start:stop of [epochs * n, C], all of one epoch; bf16 widened to float32."""
        try:
            rows = np.array(self._read(start, stop), order="C")
        except BadLabels:
            raise
        except Exception as error:  # zipfile and its decompressors raise nearly anything on damaged bytes
            raise BadLabels(
                f"{self.name}: unreadable at row {start} ({str(error)[:200]}); it is damaged or changed meanwhile"
            ) from None
        return (rows.astype(np.uint32) << 16).view(np.float32) if self.dtype == "BF16" else rows

    @abstractmethod
    def _read(self, start: int, stop: int) -> NDArray[Any]: ...


class MappedRows(Rows):
    """Of a .npy or .safetensors, mapped anew for every read: a map keeps its file open, and a dump may have thousands."""

    def __init__(
        self, name: str, shape: tuple[int, ...], map_file: Callable[[], NDArray[Any]], dtype: str, domain: str | None
    ) -> None:
        super().__init__(name, shape, dtype, domain)
        self._map = map_file

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        part = self._map()[start // self.each] if self.by_image else self._map()
        first = start % self.each
        return part[first : first + stop - start]


class NpzRows(Rows):
    """Of one array in a .npz, read in order; going back reads the member again from its start."""

    def __init__(self, name: str, path: Path, member: str, domain: str | None) -> None:
        self._path, self._member, self._stream, self._at = path, member, None, 0
        shape, self._type = self._open()
        self._close()
        super().__init__(name, shape, _dtype_name(self._type, name), domain)

    _stream: IO[bytes] | None

    def _open(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        self._close()
        with zipfile.ZipFile(self._path) as archive:  # the file stays open until the member is closed
            self._stream, self._at = archive.open(self._member), 0
            room = min(archive.getinfo(self._member).file_size, DEFLATE_MOST * self._path.stat().st_size)
        head = io.BytesIO(self._stream.read(NPY_HEADER_MOST))
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(head)
        self._stream.seek(head.tell())
        if fortran:
            raise BadLabels(f"{self._path}: {self._member} is in column order; save it with np.ascontiguousarray")
        if (need := math.prod(shape) * dtype.itemsize) > room:
            raise BadLabels(f"{self._path}: shape {list(shape)} needs {need} bytes, {self._member} has {room}; truncated or forged")
        return shape, dtype

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        if self._stream is None or start < self._at:
            self._open()
        assert self._stream is not None
        width = self.classes * self._type.itemsize
        while self._at < start:
            self._at += len(self._take(min(start - self._at, max(1, SKIP_BYTES // width)) * width)) // width
        data = self._take((stop - start) * width)
        self._at = stop
        if stop == self.epochs * self.each:
            self._close()
        return np.frombuffer(data, self._type).reshape(stop - start, self.classes)

    def _take(self, size: int) -> bytes:
        assert self._stream is not None
        data = self._stream.read(size)
        if len(data) != size:
            raise BadLabels(f"{self.name}: truncated, {len(data)} of {size} bytes at row {self._at}")
        return data


def _dtype_name(dtype: np.dtype[Any], name: str) -> str:
    for known in ("F16", "F32"):
        if dtype == _NUMPY[known]:
            return known
    raise BadLabels(f"{name}: type {dtype}; labels are float16, bfloat16 or float32: convert them first")


def open_rows(path: Path) -> Rows:
    """One file's array.

    Raises:
        BadLabels: the file is malformed, or has no array that can be labels, or more than one.
    """
    try:
        require_regular(path)
        if path.suffix == ".npy":
            array = _map_npy(path)
            return MappedRows(str(path), array.shape, partial(_map_npy, path), _dtype_name(array.dtype, str(path)), None)
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                member, domain = _choose([n.removesuffix(".npy") for n in archive.namelist()], path)
            return NpzRows(str(path), path, member + ".npy", domain)
        return _safetensors_rows(path)
    except BadLabels:
        raise
    except Exception as error:  # NumPy's header parser and zipfile raise nearly anything on damaged bytes
        raise BadLabels(
            mistaken(path, f"a {path.suffix} file")
            or f"{path}: no readable {path.suffix} file ({str(error)[:200]}); it may be truncated or of another format"
        ) from None


def _map_npy(path: Path) -> NDArray[Any]:
    return np.lib.format.open_memmap(path, mode="r")  # unlike np.load: no zip under another name, and never a pickle


def _safetensors_rows(path: Path) -> Rows:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:  # checks the header, so that the offsets below are sound
            name, domain = _choose(list(file.keys()), path)
            domain = (file.metadata() or {}).get("domain", domain)
            part = file.get_slice(name)
            dtype, shape = part.get_dtype(), tuple(part.get_shape())
    except SafetensorError as error:
        raise BadLabels(
            mistaken(path, "a .safetensors file")
            or f"{path}: no readable .safetensors file ({error}); it may be truncated or of another format"
        ) from None
    if dtype not in _NUMPY:
        raise BadLabels(f"{path}: tensor {name!r} is {dtype}; labels are F16, BF16 or F32")
    if domain not in (None, "logits", "probs"):
        raise BadLabels(f"{path}: metadata says domain {domain!r}; it must be logits or probs")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        start = 8 + size + json.loads(file.read(size))[name]["data_offsets"][0]
    return MappedRows(str(path), shape, partial(np.memmap, path, _NUMPY[dtype], "r", start, shape), dtype, domain)


def _choose(names: list[str], path: Path) -> tuple[str, str | None]:
    """The array that holds the labels, and the domain that its name tells."""
    known = [n for n in names if n in NAMES]
    if len(known) == 1:
        return known[0], NAMES[known[0]]
    if len(names) == 1:
        return names[0], None
    raise BadLabels(f"{path}: holds the arrays {sorted(names)[:8]}; name the labels one of {sorted(NAMES)}")


class ArraySource(LabelSource):
    """One array file, or a directory of them in numeric order; shards are consecutive records or epochs."""

    layout = "arrays"

    def __init__(self, path: Path, domain: str | None) -> None:
        files = sorted((f for f in path.iterdir() if f.suffix in SUFFIXES), key=in_numeric_order) if path.is_dir() else [path]
        if not files:
            raise BadLabels(f"{path}: holds none of {', '.join(SUFFIXES)}; a dump has at least one shard")
        self.path, self._shards = path, [open_rows(f) for f in files]
        first = self._shards[0]
        for shard in self._shards:
            if shard.classes != first.classes:
                raise BadLabels(
                    f"{shard.name}: {shard.classes} classes; {first.name} has {first.classes}: one dump has one teacher"
                )
            if (shard.dtype, shard.by_image) != (first.dtype, first.by_image):
                raise BadLabels(
                    f"{shard.name}: {shard.dtype}, {'[epochs, n, C]' if shard.by_image else '[n, C]'}, unlike {first.name}"
                )
        self.classes, self.dtype = first.classes, first.dtype
        self.domain = domain or first.domain or "logits"
        self.order = "rows" if first.by_image else "none"
        step = max(1, min(BATCH_RECORDS, BATCH_BYTES // (4 * self.classes)))
        places: list[Place] = []
        self._spans: list[tuple[Rows, int, int]] = []
        epoch = batch = 0
        for shard in self._shards:
            for part in range(shard.epochs):
                batch = 0 if shard.by_image else batch
                for start in range(0, shard.each, step):
                    offset = part * shard.each
                    self._spans.append((shard, offset + start, offset + min(start + step, shard.each)))
                    places.append(Place(epoch, batch))
                    batch += 1
                epoch += shard.by_image
        self.places = places

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        shard, start, stop = self._spans[at]
        image = np.arange(start % shard.each, start % shard.each + stop - start, dtype=np.int64) if shard.by_image else None
        name = f"{shard.name}, rows from {start}" if start else shard.name
        return LabelBatch(labels=shard.read(start, stop), place=self.places[at], image=image), name


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


def in_numeric_order(path: Path) -> list[tuple[int, int | str]]:
    """Sort key by which batch_10 comes after batch_9."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", path.name) if part]
