"""Streams and tensors -> one `.vql` file: streamed, header last, sealed, published by one rename (docs/format.md, "Writing")."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from vqlabel.bitstream import pack_ans, pack_fixed, pack_planes
from vqlabel.container.layout import (
    ALIGN,
    CHUNKS,
    FORMAT,
    HEADER_RESERVED,
    HEADER_STEP,
    ITEM_BYTES,
    MAX_CHUNK_BYTES,
    MAX_HEADER_BYTES,
    NAME,
    SEAL,
    VERSION,
    Stream,
)
from vqlabel.errors import VqlabelError
from vqlabel.storage.formats import VQL
from vqlabel.storage.targets import AtomicTarget, unwritable

_CHUNK_ROWS, _CHUNK_BYTES = 4096, 8 << 20
_COPY = 1 << 20
_PACK = {"fixed": pack_fixed, "zstd": pack_planes, "ans": pack_ans}


class ContainerWriter:
    """Writes a file of its own beside the target and renames it when `finish` has sealed it; any exception removes it.

        with ContainerWriter("out.vql") as writer:
            writer.begin("codes", [8] * 16)
            writer.append(rows)                 # as often as wanted
            writer.end()
            writer.tensor("codec.bias", "F16", array)
            writer.finish(metadata)

    Raises:
        What `AtomicTarget` does.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self._partial = AtomicTarget(self.path, VQL, overwrite=overwrite)
        self._tensors: dict[str, dict[str, Any]] = {}
        self._small: dict[str, tuple[str, NDArray[Any]]] = {}
        self._sums: dict[str, str] = {}
        self.streams: dict[str, Stream] = {}
        self._area = HEADER_RESERVED
        try:
            self._file: IO[bytes] = self._partial.path.open("x+b")
        except OSError as error:
            self._partial.close()
            raise unwritable(self.path, error) from error
        self._file.seek(self._area)
        self._end = 0  # bytes in the buffer so far
        self._open: _OpenStream | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError as closing:  # the disk is full and the buffer could not be flushed
            error = error or closing
        self._partial.close()
        if isinstance(error, OSError):
            raise unwritable(self.path, error) from error

    def begin(
        self, name: str, bits: Iterable[int], codings: tuple[str, ...] = ("fixed", "zstd"), chunk_rows: int = _CHUNK_ROWS
    ) -> None:
        """Start a stream of rows whose fields have these widths.

        Args:
            codings: of "fixed", "zstd" and "ans"; the one that makes the first chunk smallest is taken.
            chunk_rows: at most, a multiple of 8: rows of a few bits in longer chunks make a smaller table.
        """
        assert self._open is None and name not in self._tensors, name
        self._open = _OpenStream(name, tuple(bits), codings, chunk_rows)

    def append(self, rows: NDArray[np.unsignedinteger]) -> None:
        """[n, fields] more rows of the stream that `begin` started."""
        stream = self._open
        assert stream is not None
        stream.waiting.append(rows)
        stream.rows += len(rows)
        while sum(map(len, stream.waiting)) >= stream.chunk_rows:
            joined = np.concatenate(stream.waiting)
            stream.waiting = [joined[stream.chunk_rows :]]
            self._write_chunk(stream, joined[: stream.chunk_rows])

    def end(self) -> Stream:
        """Close the stream and write its chunk table."""
        stream, self._open = self._open, None
        assert stream is not None
        if sum(map(len, stream.waiting)):
            self._write_chunk(stream, np.concatenate(stream.waiting))
        self._put(stream, bytes(-stream.size % ALIGN))
        self._enter(stream.name, "U8", [stream.size], stream.size, stream.sum.hexdigest())
        done = Stream(bits=stream.bits, rows=stream.rows, chunk_rows=stream.chunk_rows, coding=stream.codings[0])
        self.streams[stream.name] = done
        table = np.array(stream.table, "<u8").reshape(-1, 6)
        self.tensor(stream.name + CHUNKS, "U64", table)
        return done

    def _write_chunk(self, stream: "_OpenStream", rows: NDArray[np.unsignedinteger]) -> None:
        stored = {coding: _PACK[coding](rows, stream.bits) for coding in stream.codings}
        coding, data = min(stored.items(), key=lambda item: len(item[1]))
        stream.codings = (coding,)
        raw = Stream(bits=stream.bits, rows=len(rows), chunk_rows=8, coding=coding).raw_size(len(rows))
        assert raw <= MAX_CHUNK_BYTES
        stream.table.append((stream.size, len(data), raw, stream.written, len(rows), zlib.crc32(data)))
        if coding != "fixed":
            data += bytes(-len(data) % ALIGN)
        self._put(stream, data)
        stream.written += len(rows)

    def _put(self, stream: "_OpenStream", data: bytes) -> None:
        self._file.write(data)
        stream.sum.update(data)
        stream.size += len(data)

    def tensor(self, name: str, dtype: str, array: NDArray[Any]) -> None:
        """Keep one small tensor for `finish`; `array` holds the bytes of `dtype` (bf16 as uint16), little endian."""
        assert self._open is None and name not in self._tensors and name not in self._small, name
        assert array.itemsize == ITEM_BYTES[dtype]
        self._small[name] = dtype, array

    def _write_small(self) -> None:
        """All small tensors, the widest items first: payloads are multiples of 64, so each begins at a multiple of its item's size."""
        for name, (dtype, array) in sorted(self._small.items(), key=lambda item: -ITEM_BYTES[item[1][0]]):
            data = np.ascontiguousarray(array).tobytes()
            self._file.write(data)
            self._enter(name, dtype, list(array.shape), len(data), hashlib.sha256(data).hexdigest())

    def _enter(self, name: str, dtype: str, shape: list[int], size: int, digest: str) -> None:
        assert NAME.fullmatch(name), name
        self._tensors[name] = {"dtype": dtype, "shape": shape, "data_offsets": [self._end, self._end + size]}
        self._sums[name] = digest
        self._end += size

    def finish(self, metadata: Mapping[str, str], requires: Iterable[str] = ()) -> int:
        """Write header and seal, make them durable, and publish. Returns the file's size in bytes.

        Args:
            requires: features without which a reader must refuse the file.
        """
        assert self._open is None
        self._write_small()
        describe = {name: stream.to_json() for name, stream in self.streams.items()}
        whole = {
            **metadata,
            "format": FORMAT,
            "vql.version": ".".join(map(str, VERSION)),
            "vql.requires": canonical(sorted(requires)),
            "vql.streams": canonical(describe),
            "vql.sums": canonical(self._sums),
        }
        self._enter(SEAL, "U8", [32], 32, "")
        header = canonical({"__metadata__": whole, **self._tensors}).encode()
        area = max(HEADER_RESERVED, -(-(8 + len(header)) // HEADER_STEP) * HEADER_STEP)
        if area > MAX_HEADER_BYTES:
            raise VqlabelError(
                f"{self.path}: the header needs {area} bytes; the format allows {MAX_HEADER_BYTES}: fewer or smaller tensors"
            )
        self._move_buffer(area)
        front = (area - 8).to_bytes(8, "little") + header.ljust(area - 8)
        self._file.seek(area + self._end - 32)
        self._file.write(hashlib.sha256(front).digest())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.seek(0)
        self._file.write(front)
        self._file.flush()
        os.fsync(self._file.fileno())
        size = os.fstat(self._file.fileno()).st_size
        self._partial.publish()
        return size

    def _move_buffer(self, area: int) -> None:
        """Shift everything behind the header to where a larger header ends, from the back, a piece at a time."""
        by, self._area = area - self._area, area
        at = self._end - 32 if by else 0
        while at > 0:
            size = min(_COPY, at)
            at -= size
            self._file.seek(area - by + at)
            piece = self._file.read(size)
            self._file.seek(area + at)
            self._file.write(piece)


class _OpenStream:
    """A stream while it is written."""

    def __init__(self, name: str, bits: tuple[int, ...], codings: tuple[str, ...], chunk_rows: int) -> None:
        self.name, self.bits, self.codings = name, bits, codings
        row = sum(-(-width // 8) for width in bits)
        self.chunk_rows = max(8, min(chunk_rows, _CHUNK_BYTES // row // 8 * 8))
        self.waiting: list[NDArray[np.unsignedinteger]] = []
        self.table: list[tuple[int, ...]] = []
        self.rows = self.written = self.size = 0
        self.sum = hashlib.sha256()


def canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks: same input, same bytes. `__metadata__` sorts before all tensor names."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
