"""A `.vql` file -> rows of its streams and its small tensors, by random access. Every byte is checked before use."""

import hashlib
import os
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.bitstream import narrowest_dtype
from vqlabel.container.chunks import check_tiling, chunk_at
from vqlabel.container.header import parse_metadata, read_header
from vqlabel.container.layout import CHUNK_FIELDS, CHUNKS
from vqlabel.container.stream import Stream
from vqlabel.dtypes import numpy_type
from vqlabel.errors import BadContainer, CodeOutOfRange, NoSuchFile, UsageError
from vqlabel.storage.bytes import LocalFile

CACHE_BYTES = 256 << 20  # of decoded chunks that a reader keeps; the cache always keeps one chunk


class ContainerReader:
    """Checks the header and its seal, then reads streams by rows and small tensors by name; from any number of threads.

    A reader pickles to its path and the seal: opened again, in another process or after `close`, it must be the same
    file.

    Args:
        seal: last 32 bytes of the intended file; None: any file.

    Attributes:
        path, seal: of the file.
        size: bytes of the file.
        header_area: bytes in front of the buffer.
        header_text: the header's JSON.
        metadata: strings by key.
        sections: type, shape and position of every tensor, by name.
        requires: features that a reader must support.
        sums: sha256 in hex of every tensor but the seal.
        streams: by name.

    Raises:
        UsageError: no such file; later, that it no longer exists or was replaced.
        BadContainer: the file breaks docs/format.md in a part that was read.
    """

    def __init__(self, path: str | PathLike[str], seal: bytes | None = None) -> None:
        self.path = Path(path).expanduser()
        if self.path.is_dir():
            raise UsageError(f"{self.path}: is a folder, and a .vql is a file; `vqlabel pack` makes one of a dump")
        if not self.path.is_file():
            raise NoSuchFile(f"{self.path}: no such file; name a .vql file")
        self._file = LocalFile(self.path, tail=seal, error=BadContainer)
        self._reset()
        _READERS.add(self)
        header = read_header(self._file)
        self.seal = self._file.tail = header.seal
        self.size, self.header_area, self.header_text = self._file.size, header.area, header.text
        self.metadata, self.sections, self.requires = header.metadata, header.sections, header.requires
        self.sums, self.streams = header.sums, header.streams
        self._tables = {name: self._read_table(name, stream) for name, stream in self.streams.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "seal": self.seal}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        self._file.close()

    def _reset(self) -> None:
        """A free lock and an empty cache, also after a fork: a thread that does not exist here may hold the lock."""
        self._lock = Lock()
        self._cache: OrderedDict[tuple[str, int], NDArray[np.unsignedinteger]] = OrderedDict()
        self._cached = 0  # bytes of the arrays in the cache
        self._file.reset_lock()

    def read_at(self, offset: int, count: int) -> bytes:
        """`count` bytes of the file from `offset` on, unchecked.

        Raises:
            UsageError: the file no longer exists or was replaced.
            BadContainer: it ends early or cannot be read.
        """
        return self._file.read_at(offset, count)

    def json_object(self, key: str, types: Mapping[str, type] | None = None) -> dict[str, Any]:
        """The JSON object in the metadata `key`.

        Args:
            types: name of a field that it must have -> the type of its value.

        Raises:
            BadContainer: it is missing, not a JSON object, too deep, or has a key twice; or a field is of another type.
        """
        value: dict[str, Any] = parse_metadata(self.metadata, key, dict, str(self.path))
        if any(type(value.get(name)) is not kind for name, kind in (types or {}).items()):
            raise BadContainer(f"{self.path}: metadata {key!r} is {str(value)[:80]}; damaged or forged")
        return value

    def tensor(self, name: str) -> NDArray[Any]:
        """One small tensor in its shape, its sha256 checked; bf16 as uint16. Writable.

        Raises:
            BadContainer: no such tensor, or its bytes were altered.
        """
        section = self.sections.get(name)
        if section is None or name not in self.sums:  # the seal has no sum
            raise BadContainer(f"{self.path}: has no tensor {name!r}")
        data = self.read_at(section.start, section.size)
        if hashlib.sha256(data).hexdigest() != self.sums[name]:
            raise BadContainer(f"{self.path}: tensor {name!r} does not match its checksum; the file is damaged: copy it again")
        return np.frombuffer(bytearray(data), numpy_type(section.dtype)).reshape(section.shape)

    def _read_table(self, name: str, stream: Stream) -> NDArray[np.uint64]:
        """The chunk table of a stream, checked."""
        payload, where = self.sections.get(name), f"{self.path}: stream {name!r}"
        if payload is None or payload.dtype != "U8" or len(payload.shape) != 1:
            raise BadContainer(f"{where} has no payload of bytes")
        section = self.sections.get(name + CHUNKS)
        if section is None or section.dtype != "U64" or section.shape != (stream.chunks, CHUNK_FIELDS):
            raise BadContainer(f"{where}: its chunk table must be U64 [{stream.chunks}, {CHUNK_FIELDS}]")
        table = self.tensor(name + CHUNKS)
        check_tiling(table, stream, payload.size, where)
        return table

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.unsignedinteger]:
        """Rows start:stop of a stream; stop None: to its end.

        Returns:
            [stop - start, fields] of uint8, uint16 or uint32; writable.

        Raises:
            UsageError: the range exceeds the stream.
            BadContainer: no such stream, or a chunk in the range is damaged.
        """
        stream = self._stream(name)
        stop = stream.rows if stop is None else stop
        if not 0 <= start <= stop <= stream.rows:
            raise UsageError(f"{self.path}: rows {start}:{stop} are out of range; {name!r} has rows 0:{stream.rows}")
        size = stream.chunk_rows
        parts = [
            self._chunk(name, i)[max(0, start - i * size) : stop - i * size]
            for i in range(start // size, -(-stop // size) if stop > start else 0)
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(stream.bits)), narrowest_dtype(stream.bits))

    def take(self, name: str, index: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        """Rows of a stream in any order. Each chunk is decoded once a call, and cached up to CACHE_BYTES.

        Args:
            index: [n], each in [0, rows).

        Returns:
            [n, fields] of uint8, uint16 or uint32; writable.

        Raises:
            UsageError: an index is out of range.
            BadContainer: no such stream, or a chunk is damaged.
        """
        stream = self._stream(name)
        outside = index[(index < 0) | (index >= stream.rows)]
        if len(outside):
            raise UsageError(f"{self.path}: row {outside[0]} is out of range; {name!r} has rows 0:{stream.rows}")
        out = np.empty((len(index), len(stream.bits)), narrowest_dtype(stream.bits))
        chunk = index // stream.chunk_rows
        for i in np.unique(chunk).tolist():
            inside = chunk == i
            out[inside] = self._chunk(name, i)[index[inside] - i * stream.chunk_rows]
        return out

    def stored(self, name: str) -> int:
        """Bytes of a stream's chunks as stored, without padding.

        Raises:
            BadContainer: no such stream.
        """
        self._stream(name)
        return int(self._tables[name][:, 1].sum())

    def _stream(self, name: str) -> Stream:
        if name not in self.streams:
            raise BadContainer(f"{self.path}: has no stream {name!r}; it has {', '.join(self.streams)}")
        return self.streams[name]

    def _chunk(self, name: str, number: int) -> NDArray[np.unsignedinteger]:
        """`read_chunk`, through the cache."""
        key = (name, number)
        with self._lock:
            rows = self._cache.get(key)
            if rows is not None:
                self._cache.move_to_end(key)
                return rows
        rows = self.read_chunk(name, number)
        with self._lock:
            if key not in self._cache:  # another thread may have read it meanwhile
                self._cache[key] = rows
                self._cached += rows.nbytes
            while self._cached > CACHE_BYTES and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
        return rows

    def read_chunk(self, name: str, number: int) -> NDArray[np.unsignedinteger]:
        """Read and decode one chunk of a stream, without the cache; its checksum, padding and values are checked.

        Returns:
            [rows of the chunk, fields] of uint8, uint16 or uint32; writable.

        Raises:
            BadContainer: any of its bytes was altered.
        """
        stream, payload = self._stream(name), self.sections[name]
        chunk = chunk_at(self._tables[name], number)
        where = f"{self.path}: stream {name!r}, chunk {number} (rows from {chunk.first})"
        end = chunk_at(self._tables[name], number + 1).offset if number + 1 < stream.chunks else payload.size
        data = self.read_at(payload.start + chunk.offset, end - chunk.offset)
        stored, padding = data[: chunk.stored], data[chunk.stored :]
        if zlib.crc32(stored) != chunk.crc32 or padding.strip(b"\0"):
            raise BadContainer(f"{where} does not match its checksum; the file is damaged: copy it again")
        try:
            return stream.coding.unpack(stored, chunk.rows, stream.bits)
        except CodeOutOfRange as error:
            raise BadContainer(f"{where}: {error}") from None


_READERS: "weakref.WeakSet[ContainerReader]" = weakref.WeakSet()


def _reset_all() -> None:
    for reader in _READERS:
        reader._reset()


os.register_at_fork(after_in_child=_reset_all)
