"""A `.vql` file -> checked streams and tensors. Strict, bounded, random access; nothing is trusted before it is checked."""

import hashlib
import json
import os
import weakref
import zlib
from collections import OrderedDict
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.bitstream import narrowest_dtype, unpack_ans, unpack_fixed, unpack_planes
from vqlabel.container.layout import (
    ALIGN,
    CHUNK_FIELDS,
    CHUNKS,
    CODEC_FILE,
    FEATURES,
    FORMAT,
    HEADER_STEP,
    INTEGER_MOST,
    ITEM_BYTES,
    MAX_FILE_FIELDS,
    MAX_HEADER_BYTES,
    MAX_JSON_DEPTH,
    MAX_RANK,
    MAX_TENSORS,
    NAME,
    SEAL,
    VERSION,
    Stream,
)
from vqlabel.errors import BadContainer, CodeOutOfRange, NoSuchFile, UsageError
from vqlabel.storage.filetypes import HEAD_BYTES, identify

_CACHE_BYTES = 256 << 20
_READ = 1 << 22
_UNPACK = {"fixed": unpack_fixed, "zstd": unpack_planes, "ans": unpack_ans}


class Section(NamedTuple):
    """Where a tensor lies: `start` and `stop` in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class ContainerReader:
    """Opens, checks the header and its seal, and reads streams by rows and small tensors by name; from any number of threads.

    A reader pickles to its path and the seal: opened again, in another process or after `close`, it must be the same file.

    Args:
        seal: last 32 bytes of the file that is meant; None: whichever file has this path.

    Raises:
        UsageError: no such file; later, that it is gone, or another one has taken its place.
        BadContainer: the file breaks docs/format.md anywhere that was looked at.
    """

    def __init__(self, path: str | PathLike[str], seal: bytes | None = None) -> None:
        self.path, self.seal = Path(path), seal
        if self.path.is_dir():
            raise UsageError(f"{self.path}: is a folder, and a .vql is a file; `vqlabel pack` makes one of a dump")
        if not self.path.is_file():
            raise NoSuchFile(f"{self.path}: no such file; name a .vql file")
        self._handle: int | None = None
        self._forget()
        _READERS.add(self)
        self.size = os.fstat(self._descriptor()).st_size
        self.header_area, self.header_text, header = self._read_header()
        self.metadata, self.sections = _check_header(header, self.header_area, self.size, str(self.path))
        self._check_seal()
        self.requires: list[str] = _parse(self.metadata.get("vql.requires", "[]"), "vql.requires", str(self.path), list)
        self.sums = self.json_object("vql.sums")
        if set(self.sums) != set(self.sections) - {SEAL}:
            raise BadContainer(f"{self.path}: vql.sums names other tensors than the header; the file is damaged or forged")
        self.streams = self._read_streams()
        self._tables = {name: self._read_table(name, stream) for name, stream in self.streams.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "seal": self.seal}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the file handle back; the next read opens it again."""
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None:
            os.close(handle)

    def _forget(self) -> None:
        """Begin with a free lock and an empty cache: after a fork the lock may be one that no thread of this process will free."""
        self._lock = Lock()
        self._cache: OrderedDict[tuple[str, int], NDArray[np.unsignedinteger]] = OrderedDict()
        self._cached = 0  # bytes of the arrays in the cache

    def _descriptor(self) -> int:
        """The open file, shared by threads and by forked processes: reads name their position.

        Raises:
            UsageError: it cannot be opened, or is not the file that it was.
        """
        with self._lock:
            if self._handle is None:
                try:
                    self._handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                    size = os.fstat(self._handle).st_size
                    same = self.seal in (None, os.pread(self._handle, 32, max(0, size - 32)))
                except OSError as error:
                    raise UsageError(
                        f"{self.path}: cannot be opened ({error.strerror}); it was moved or removed, or may not be read"
                    ) from None
                if not same:
                    os.close(self._handle)
                    self._handle = None
                    raise UsageError(f"{self.path}: was replaced while it was open; open the new file from the start")
            return self._handle

    def _pread(self, start: int, size: int) -> bytes:
        handle, parts = self._descriptor(), []
        while size:
            try:
                part = os.pread(handle, min(size, _READ), start)
            except OSError as error:
                raise BadContainer(f"{self.path}: cannot be read at byte {start} ({error.strerror})") from None
            if not part:
                raise BadContainer(f"{self.path}: ends {size} bytes early, at byte {start}; the file is truncated: copy it again")
            parts.append(part)
            start, size = start + len(part), size - len(part)
        return b"".join(parts)

    def _read_header(self) -> tuple[int, bytes, dict[str, Any]]:
        least = HEADER_STEP + 32
        foreign = _what_else(self._pread(0, min(self.size, least)))
        if foreign is not None:
            raise BadContainer(f"{self.path}: not a .vql file but {foreign}")
        if self.size < least:
            raise BadContainer(f"{self.path}: {self.size} bytes; a .vql file has at least {least}: it is truncated or no .vql file")
        area = 8 + int.from_bytes(self._pread(0, 8), "little")
        if area % HEADER_STEP or not HEADER_STEP <= area <= MAX_HEADER_BYTES or area + 32 > self.size:
            raise BadContainer(
                f"{self.path}: no .vql file: a header of {area} bytes in a file of {self.size}, or the file is truncated"
            )
        text = self._pread(8, area - 8).rstrip(b" ")
        try:
            header = json.loads(text.decode("ascii"), object_pairs_hook=_no_duplicates)
            good = isinstance(header, dict) and _depth(header) <= MAX_JSON_DEPTH
        except (ValueError, RecursionError) as error:
            raise BadContainer(f"{self.path}: the header is no JSON ({str(error)[:80]}); no .vql file, or damaged") from None
        if not good:
            raise BadContainer(f"{self.path}: the header is no JSON object of at most {MAX_JSON_DEPTH} levels")
        return area, text, header

    def _check_seal(self) -> None:
        seal = self.sections.get(SEAL)
        if seal is None or seal.stop != self.size or seal.stop - seal.start != 32:
            raise BadContainer(f"{self.path}: not sealed: the last 32 bytes must be {SEAL}; it is truncated or was never finished")
        self.seal = self._pread(seal.start, 32)
        if hashlib.sha256(self._pread(0, self.header_area)).digest() != self.seal:
            raise BadContainer(f"{self.path}: the seal does not fit the header; the file is damaged: copy it again")

    def json_object(self, key: str) -> dict[str, Any]:
        """What the metadata `key` says, parsed.

        Raises:
            BadContainer: it is missing, no JSON object, too deep, or has a key twice.
        """
        found: dict[str, Any] = _parse(self.metadata.get(key, ""), key, str(self.path), dict)
        return found

    def tensor(self, name: str) -> NDArray[Any]:
        """One small tensor, its sha256 checked; bf16 comes as uint16. Writable.

        Raises:
            BadContainer: no such tensor, or its bytes were altered.
        """
        section = self.sections.get(name)
        if section is None or name not in self.sums:  # the seal has no sum
            raise BadContainer(f"{self.path}: has no tensor {name!r}")
        data = self._pread(section.start, section.stop - section.start)
        if hashlib.sha256(data).hexdigest() != self.sums[name]:
            raise BadContainer(f"{self.path}: tensor {name!r} does not fit its checksum; the file is damaged: copy it again")
        kinds = {"U8": "u1", "I8": "i1", "F16": "<f2", "BF16": "<u2", "F32": "<f4", "U64": "<u8"}
        return np.frombuffer(bytearray(data), kinds[section.dtype]).reshape(section.shape)

    def _read_streams(self) -> dict[str, Stream]:
        streams, fields = dict[str, Stream](), 0
        for name, value in self.json_object("vql.streams").items():
            try:
                streams[name] = Stream.from_json(name, value)
            except BadContainer as error:
                raise BadContainer(f"{self.path}: {error}") from None
            fields += len(streams[name].bits)
            if fields > MAX_FILE_FIELDS or name not in self.sums:
                raise BadContainer(
                    f"{self.path}: stream {name!r} has no payload, or all have over {MAX_FILE_FIELDS} fields; forged"
                )
        return streams

    def _read_table(self, name: str, stream: Stream) -> NDArray[np.uint64]:
        """The chunk table of a stream, checked to tile its rows and its bytes."""
        section, where = self.sections.get(name), f"{self.path}: stream {name!r}"
        if section is None or section.dtype != "U8" or len(section.shape) != 1:
            raise BadContainer(f"{where} has no payload of bytes")
        listed = self.sections.get(name + CHUNKS)
        if listed is None or listed.dtype != "U64" or listed.shape != (stream.chunks, CHUNK_FIELDS):
            raise BadContainer(f"{where}: its chunk table must be U64 [{stream.chunks}, {CHUNK_FIELDS}]")
        table = self.tensor(name + CHUNKS)
        offset, stored, raw, first, rows, _ = (table[:, i].tolist() for i in range(CHUNK_FIELDS))
        at = done = 0
        for i in range(stream.chunks):
            want = min(stream.chunk_rows, stream.rows - done)
            good = offset[i] == at and first[i] == done and rows[i] == want and raw[i] == stream.raw_size(want)
            good = good and (stored[i] == raw[i] if stream.coding == "fixed" else 0 < stored[i] <= raw[i] + (raw[i] >> 3) + 4096)
            if not good:
                raise BadContainer(f"{where}: chunk {i} does not tile rows and bytes ({table[i].tolist()}); damaged or forged")
            at, done = at + stored[i] + (-stored[i] % ALIGN if stream.coding != "fixed" else 0), done + want
        if at + -at % ALIGN != section.stop - section.start:
            raise BadContainer(f"{where}: its chunks end at byte {at} of {section.stop - section.start}; damaged or forged")
        return table

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.unsignedinteger]:
        """Rows start:stop of a stream: [n, fields] of uint8, uint16 or uint32; writable.

        Raises:
            UsageError: the range leaves the stream.
            BadContainer: a chunk in it is damaged.
        """
        stream = self._stream(name)
        stop = stream.rows if stop is None else stop
        if not 0 <= start <= stop <= stream.rows:
            raise UsageError(f"{self.path}: rows {start}:{stop} leave 0..{stream.rows} of {name!r}")
        size = stream.chunk_rows
        parts = [
            self._chunk(name, i)[max(0, start - i * size) : stop - i * size]
            for i in range(start // size, -(-stop // size) if stop > start else 0)
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(stream.bits)), narrowest_dtype(stream.bits))

    def take(self, name: str, index: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        """The rows of a stream at `index` [n], each in [0, rows): [n, fields]. Chunks are read once each and kept while memory allows.

        Raises:
            UsageError: an index leaves the stream.
            BadContainer: a chunk is damaged.
        """
        stream = self._stream(name)
        outside = index[(index < 0) | (index >= stream.rows)]
        if len(outside):
            raise UsageError(f"{self.path}: row {outside[0]} leaves 0..{stream.rows - 1} of {name!r}")
        out = np.empty((len(index), len(stream.bits)), narrowest_dtype(stream.bits))
        chunk = index // stream.chunk_rows
        for i in np.unique(chunk).tolist():
            here = chunk == i
            out[here] = self._chunk(name, i)[index[here] - i * stream.chunk_rows]
        return out

    def stored(self, name: str) -> int:
        """Bytes of a stream's chunks, the zeros between them not counted."""
        self._stream(name)
        return int(self._tables[name][:, 1].sum())

    def _stream(self, name: str) -> Stream:
        if name not in self.streams:
            raise BadContainer(f"{self.path}: has no stream {name!r}; it has {', '.join(self.streams)}")
        return self.streams[name]

    def _chunk(self, name: str, i: int) -> NDArray[np.unsignedinteger]:
        key = (name, i)
        with self._lock:
            rows = self._cache.get(key)
            if rows is not None:
                self._cache.move_to_end(key)
                return rows
        rows = self.read_chunk(name, i)
        with self._lock:
            if key not in self._cache:  # another thread may have read it meanwhile
                self._cache[key] = rows
                self._cached += rows.nbytes
            while self._cached > _CACHE_BYTES and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
        return rows

    def read_chunk(self, name: str, i: int) -> NDArray[np.unsignedinteger]:
        """Chunk i of a stream, past the cache: read, checksum, expand, check.

        Raises:
            BadContainer: any of its bytes was altered.
        """
        stream = self._stream(name)
        offset, stored, _, first, rows, crc = (int(v) for v in self._tables[name][i])
        where = f"{self.path}: stream {name!r}, chunk {i} (rows from {first})"
        section = self.sections[name]
        end = int(self._tables[name][i + 1, 0]) if i + 1 < stream.chunks else section.stop - section.start
        data = self._pread(section.start + offset, end - offset)
        if zlib.crc32(data[:stored]) != crc or data[stored:].strip(b"\0"):
            raise BadContainer(f"{where} does not fit its checksum; the file is damaged: copy it again")
        try:
            return _UNPACK[stream.coding](data[:stored], rows, stream.bits)
        except CodeOutOfRange as error:
            raise BadContainer(f"{where}: {error}") from None


_READERS: "weakref.WeakSet[ContainerReader]" = weakref.WeakSet()


def _forget_all() -> None:
    for reader in _READERS:
        reader._forget()


os.register_at_fork(after_in_child=_forget_all)


def verify(path: str | PathLike[str]) -> dict[str, int]:
    """Read and check every byte of a `.vql` file.

    Returns:
        bytes, tensors, streams and chunks that were checked.

    Raises:
        BadContainer: anything in it is damaged.
    """
    reader = ContainerReader(path)
    chunks = 0
    for name, section in reader.sections.items():
        if name in reader.streams:
            digest = hashlib.sha256()
            for at in range(section.start, section.stop, _READ):
                digest.update(reader._pread(at, min(_READ, section.stop - at)))
            if digest.hexdigest() != reader.sums[name]:
                raise BadContainer(f"{path}: stream {name!r} does not fit its sha256; the file is damaged: copy it again")
            for i in range(reader.streams[name].chunks):
                reader.read_chunk(name, i)
                chunks += 1
        elif name != SEAL:
            reader.tensor(name)
    return {"bytes": reader.size, "tensors": len(reader.sections), "streams": len(reader.streams), "chunks": chunks}


def is_codec_file(path: str | PathLike[str]) -> bool:
    """Whether a file begins as codec files do, for those who take a `.vql` or one of them."""
    file = Path(path)
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(8 + len(CODEC_FILE))[8:] == CODEC_FILE


def _what_else(start: bytes) -> str | None:
    """What a file that begins so is, where it is known and no `.vql`, and what to do with it."""
    if start[8:].startswith(CODEC_FILE):
        return "a codec file; `vqlabel info` shows it, `vqlabel pack --codec` encodes by it"
    found = identify(start[:HEAD_BYTES])
    if found is None or (found.what == "a .safetensors file" and b'"vql' in start):
        return None
    if found.what in ("a .npy file", "a zip archive", "a .safetensors file"):
        return f"{found.what}; `vqlabel pack` makes a .vql of labels in one"
    return f"{found.what}; {found.remedy}"


def _check_header(header: dict[str, Any], area: int, size: int, where: str) -> tuple[dict[str, str], dict[str, Section]]:
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()) or metadata.get("format") != FORMAT:
        raise BadContainer(f"{where}: a safetensors file, but no .vql file: its metadata has no format = {FORMAT}")
    version = metadata.get("vql.version", "").split(".")
    if (
        len(version) != 2
        or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in version)
        or int(version[0]) != VERSION[0]
    ):
        raise BadContainer(
            f"{where}: format version {metadata.get('vql.version')!r}; this vqlabel reads {VERSION[0]}.x: upgrade it"
        )
    required = _parse(metadata.get("vql.requires", "[]"), "vql.requires", where, list)
    unknown = [f for f in required if not isinstance(f, str) or f not in FEATURES]
    if unknown:
        raise BadContainer(f"{where}: needs the features {unknown}, which this vqlabel does not have: upgrade it")
    if len(header) > MAX_TENSORS:
        raise BadContainer(f"{where}: {len(header)} tensors; the format allows {MAX_TENSORS}")
    sections = {name: _section(name, value, area, where) for name, value in header.items()}
    at = area
    for name, section in sorted(sections.items(), key=lambda item: (item[1].start, item[1].stop)):
        if section.start != at:
            raise BadContainer(
                f"{where}: tensor {name!r} begins at byte {section.start}, the one before it ends at {at}: damaged or forged"
            )
        at = section.stop
    if at != size:
        raise BadContainer(f"{where}: the header describes {at} bytes, the file has {size}: it is truncated or has data behind it")
    return metadata, sections


def _section(name: str, value: Any, area: int, where: str) -> Section:
    good = (
        NAME.fullmatch(name)
        and isinstance(value, dict)
        and set(value) == {"dtype", "shape", "data_offsets"}
        and isinstance(value["dtype"], str)
        and value["dtype"] in ITEM_BYTES
    )
    good = (
        good
        and _integers(value["shape"])
        and len(value["shape"]) <= MAX_RANK
        and _integers(value["data_offsets"])
        and len(value["data_offsets"]) == 2
    )
    if not good:
        raise BadContainer(
            f"{where}: tensor {name[:140]!r} is described by {str(value)[:120]}; damaged, forged or from a newer version"
        )
    start, stop = value["data_offsets"]
    count = ITEM_BYTES[value["dtype"]]
    for side in value["shape"]:
        count *= side
    if stop - start != count:
        raise BadContainer(
            f"{where}: tensor {name!r} is {value['dtype']} {value['shape']} in {stop - start} bytes; it needs {count}"
        )
    return Section(value["dtype"], tuple(value["shape"]), area + start, area + stop)


def _integers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < INTEGER_MOST for v in values)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _depth(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inside), default=0)


def _parse(text: str, key: str, where: str, kind: type) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates)
        if isinstance(value, kind) and _depth(value) <= MAX_JSON_DEPTH:
            return value
    except (ValueError, RecursionError):
        pass
    raise BadContainer(f"{where}: metadata {key!r} is {text[:80]!r}, no JSON {kind.__name__}; damaged or forged")
