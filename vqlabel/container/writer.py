"""Streams and tensors -> one `.vql` file: streamed, header last, sealed, published by one rename.

Source: docs/format.md, "Writing".
"""

import hashlib
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from vqlabel.bitstream import FIXED, ZSTD, Coding
from vqlabel.container.chunks import Chunk, to_table
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
    SEAL_BYTES,
    VERSION,
)
from vqlabel.container.overhead import CHUNK_ROWS
from vqlabel.container.stream import Stream, chunk_padding
from vqlabel.container.strict_json import canonical
from vqlabel.errors import VqlabelError
from vqlabel.storage.formats import VQL
from vqlabel.storage.targets import AtomicTarget, unwritable

CHUNK_BYTES = 8 << 20  # of a chunk of wide rows before compression; readers decode a whole chunk to return one row of it
COPY_BYTES = 1 << 20  # moved at a time if the header outgrows its area


class ContainerWriter:
    """Writes a file beside the target, and renames it when `finish` has sealed it; any exception removes it.

        with ContainerWriter("out.vql") as writer:
            writer.begin("codes", [8] * 16)
            writer.append(rows)                 # any number of times
            writer.end()
            writer.tensor("codec.bias", "F16", array)
            writer.finish(metadata)

    Attributes:
        streams: those that were ended, by name.

    Raises:
        TargetExists, UsageError, VqlabelError: see `AtomicTarget`.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self._target = AtomicTarget(self.path, VQL, overwrite=overwrite)
        self._tensors: dict[str, dict[str, Any]] = {}
        self._small: dict[str, tuple[str, NDArray[Any]]] = {}
        self._sums: dict[str, str] = {}
        self.streams: dict[str, Stream] = {}
        self._area = HEADER_RESERVED
        try:
            self._file: IO[bytes] = self._target.path.open("x+b")
        except OSError as error:
            self._target.close()
            raise unwritable(self.path, error) from error
        self._file.seek(self._area)
        self._end = 0  # bytes of the buffer so far
        self._open: _OpenStream | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError as closing:  # the disk is full and the buffer could not be flushed
            error = error or closing
        self._target.close()
        if isinstance(error, OSError):
            raise unwritable(self.path, error) from error

    def begin(
        self, name: str, bits: Iterable[int], codings: Sequence[Coding] = (FIXED, ZSTD), chunk_rows: int | None = None
    ) -> None:
        """Start a stream.

        Args:
            bits: width of every field of a row in bits, 1..32.
            codings: candidates; the one that makes the first chunk smallest is used for all chunks.
            chunk_rows: maximum rows of a chunk, a multiple of 8; None: CHUNK_ROWS. Longer chunks make a smaller table,
                which matters for rows of few bits.
        """
        assert self._open is None and name not in self._tensors, name
        self._open = _OpenStream(name, tuple(bits), tuple(codings), chunk_rows or CHUNK_ROWS)

    def append(self, rows: NDArray[np.unsignedinteger]) -> None:
        """Add rows [n, fields] to the stream that `begin` started.

        Raises:
            CodeOutOfRange: a value does not fit its field; found when its chunk is full.
        """
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
        self.tensor(stream.name + CHUNKS, "U64", to_table(stream.chunks))
        return done

    def _write_chunk(self, stream: "_OpenStream", rows: NDArray[np.unsignedinteger]) -> None:
        packed = [(coding, coding.pack(rows, stream.bits)) for coding in stream.codings]
        coding, data = min(packed, key=lambda pair: len(pair[1]))
        stream.codings = (coding,)
        raw = coding.raw_size(len(rows), stream.bits)
        assert raw <= MAX_CHUNK_BYTES
        stream.chunks.append(Chunk(stream.size, len(data), raw, stream.written, len(rows), zlib.crc32(data)))
        self._put(stream, data + bytes(chunk_padding(coding, len(data))))
        stream.written += len(rows)

    def _put(self, stream: "_OpenStream", data: bytes) -> None:
        self._file.write(data)
        stream.sum.update(data)
        stream.size += len(data)

    def tensor(self, name: str, dtype: str, array: NDArray[Any]) -> None:
        """Keep one small tensor until `finish` writes it.

        Args:
            dtype: one of ITEM_BYTES.
            array: of that type, little endian; bf16 as uint16.
        """
        assert self._open is None and name not in self._tensors and name not in self._small, name
        assert array.itemsize == ITEM_BYTES[dtype]
        self._small[name] = dtype, array

    def _write_small(self) -> None:
        """Write all small tensors, the widest items first, so that each one starts at a multiple of its item's size."""
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
        """Write header and seal, make them durable, and publish.

        Args:
            metadata: strings by key.
            requires: features that a reader must support to read the file.

        Returns:
            the file's size in bytes.

        Raises:
            VqlabelError: the header exceeds MAX_HEADER_BYTES, or the disk is full.
            TargetExists: another run published first, and `overwrite` is false.
        """
        assert self._open is None
        self._write_small()
        front = self._front(metadata, requires)
        self._file.seek(len(front) + self._end - SEAL_BYTES)
        self._write_durably(hashlib.sha256(front).digest())
        self._file.seek(0)
        self._write_durably(front)
        size = os.fstat(self._file.fileno()).st_size
        self._target.publish()
        return size

    def _front(self, metadata: Mapping[str, str], requires: Iterable[str]) -> bytes:
        """The header area; the buffer is moved behind it."""
        whole = {
            **metadata,
            "format": FORMAT,
            "vql.version": ".".join(map(str, VERSION)),
            "vql.requires": canonical(sorted(requires)),
            "vql.streams": canonical({name: stream.to_json() for name, stream in self.streams.items()}),
            "vql.sums": canonical(self._sums),
        }
        self._enter(SEAL, "U8", [SEAL_BYTES], SEAL_BYTES, "")
        header = canonical({"__metadata__": whole, **self._tensors}).encode()
        area = max(HEADER_RESERVED, -(-(8 + len(header)) // HEADER_STEP) * HEADER_STEP)
        if area > MAX_HEADER_BYTES:
            raise VqlabelError(
                f"{self.path}: the header needs {area} bytes; the format allows {MAX_HEADER_BYTES}: fewer or smaller tensors"
            )
        self._move_buffer(area)
        return (area - 8).to_bytes(8, "little") + header.ljust(area - 8)

    def _write_durably(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _move_buffer(self, area: int) -> None:
        """Move the buffer to the end of a larger header area, from its back to its front, COPY_BYTES at a time."""
        by, self._area = area - self._area, area
        rest = self._end - SEAL_BYTES if by else 0
        while rest > 0:
            size = min(COPY_BYTES, rest)
            rest -= size
            self._file.seek(area - by + rest)
            data = self._file.read(size)
            self._file.seek(area + rest)
            self._file.write(data)


class _OpenStream:
    """A stream while it is written."""

    def __init__(self, name: str, bits: tuple[int, ...], codings: tuple[Coding, ...], chunk_rows: int) -> None:
        self.name, self.bits, self.codings = name, bits, codings
        row_bytes = sum(-(-width // 8) for width in bits)
        self.chunk_rows = max(8, min(chunk_rows, CHUNK_BYTES // row_bytes // 8 * 8))
        self.waiting: list[NDArray[np.unsignedinteger]] = []
        self.chunks: list[Chunk] = []
        self.rows = self.written = self.size = 0
        self.sum = hashlib.sha256()
