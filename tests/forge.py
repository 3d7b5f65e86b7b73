"""Damaged and forged files: a `.vql` with valid checksums, a flipped bit, a changed pickle in a torch.save file."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from vqlabel.bitstream import pack_fixed, packed_size, planes_size
from vqlabel.container import ContainerReader
from vqlabel.container.layout import ALIGN, CHUNKS, HEADER_STEP, ITEM_BYTES, SEAL, SEAL_BYTES

CHUNK_COLUMNS = ("offset", "stored", "raw", "first", "rows", "crc")


class Forge:
    """A `.vql` taken apart: change `metadata` (parsed), `header` (tensors) and `body`; `write` makes new checksums."""

    def __init__(self, path: Path) -> None:
        data, self.path = path.read_bytes(), path
        self.area = 8 + int.from_bytes(data[:8], "little")
        self.header: dict[str, Any] = json.loads(data[8 : self.area])
        self.body = bytearray(data[self.area : -SEAL_BYTES])
        texts = self.header.pop("__metadata__")
        self.metadata: dict[str, Any] = {key: json.loads(text) if text[:1] in "[{" else text for key, text in texts.items()}

    def rows(self, stream: str) -> NDArray[Any]:
        """A copy of the rows of a stream of the original file."""
        return ContainerReader(self.path).rows(stream).copy()

    def span(self, tensor: str) -> slice:
        """The bytes of a tensor in `body`."""
        return slice(*self.header[tensor]["data_offsets"])

    def tensor(self, name: str, dtype: str, shape: list[int], data: bytes) -> None:
        """Add a tensor, or replace one of the same name."""
        self._arrange({**self._tensors(), name: (dtype, shape, data)})

    def drop(self, stream: str) -> None:
        self.metadata["vql.streams"].pop(stream)
        self._arrange({name: tensor for name, tensor in self._tensors().items() if name not in (stream, stream + CHUNKS)})

    def _tensors(self) -> dict[str, tuple[str, list[int], bytes]]:
        """Dtype, shape and bytes of every tensor but the seal."""
        return {
            name: (tensor["dtype"], tensor["shape"], bytes(self.body[self.span(name)]))
            for name, tensor in self.header.items()
            if name != SEAL
        }

    def _arrange(self, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
        """Lay out payloads of streams first, then the other tensors, the widest items first: so all are aligned."""
        self.body, self.header, streams = bytearray(), {}, self.metadata["vql.streams"]
        for name in sorted(tensors, key=lambda name: (name not in streams, -ITEM_BYTES[tensors[name][0]])):
            dtype, shape, data = tensors[name]
            self.header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(self.body), len(self.body) + len(data)]}
            self.body += data
        end = len(self.body)
        self.header[SEAL] = {"dtype": "U8", "shape": [SEAL_BYTES], "data_offsets": [end, end + SEAL_BYTES]}

    def put(self, stream: str, rows: NDArray[Any], bits: Sequence[int]) -> None:
        """Make a stream of these rows, uncompressed, in one chunk; without rows, in none."""
        sizes = [len(rows)] if len(rows) else []
        data = [pack_fixed(np.asarray(rows, np.uint32), bits) for _ in sizes]
        self.chunks(stream, data, sizes, [[width, 1] for width in bits], "fixed")

    def zeros(self, stream: str, fields: list[list[int]], rows: int, chunks: int) -> None:
        """Make a stream of zeros that takes a few bytes: `chunks` equal zstd chunks of `rows` rows."""
        widths = [width for width, count in fields for _ in range(count)]
        self.chunks(stream, [zstandard.compress(bytes(planes_size(rows, widths)))] * chunks, [rows] * chunks, fields, "zstd")

    def chunks(self, stream: str, stored: list[bytes], rows: list[int], fields: list[list[int]], coding: str) -> None:
        """Make a stream of chunks of these bytes and numbers of rows."""
        widths = [width for width, count in fields for _ in range(count)]
        payload, table, first = bytearray(), list[tuple[int, ...]](), 0
        for data, count in zip(stored, rows, strict=True):
            raw = packed_size(count, widths) if coding == "fixed" else planes_size(count, widths)
            table.append((len(payload), len(data), raw, first, count, zlib.crc32(data)))
            payload += data + (bytes(-len(data) % ALIGN) if coding == "zstd" else b"")
            first += count
        payload += bytes(-len(payload) % ALIGN)
        chunk_rows = max(8, -(-max(rows, default=0) // 8) * 8)
        self.metadata["vql.streams"][stream] = {"bits": fields, "rows": first, "chunk_rows": chunk_rows, "coding": coding}
        self.tensor(stream, "U8", [len(payload)], bytes(payload))
        shape = [len(table), len(CHUNK_COLUMNS)]
        self.tensor(stream + CHUNKS, "U64", shape, np.array(table, "<u8").reshape(shape).tobytes())

    def chunk(self, stream: str, stored: bytes, **columns: int) -> None:
        """Replace the bytes of the only chunk of a stream, and in the chunk table its size, sum and `columns`."""
        padded = stored + bytes(-len(stored) % ALIGN)
        self.tensor(stream, "U8", [len(padded)], padded)
        self.table(stream, **{"stored": len(stored), "crc": zlib.crc32(stored), **columns})

    def table(self, stream: str, **columns: int) -> None:
        """Change columns of the first row of the chunk table of a stream."""
        span = self.span(stream + CHUNKS)
        table = np.frombuffer(bytes(self.body[span]), "<u8").reshape(-1, len(CHUNK_COLUMNS)).copy()
        for column, value in columns.items():
            table[0, CHUNK_COLUMNS.index(column)] = value
        self.body[span] = table.tobytes()

    def _sum(self, tensor: str) -> str:
        try:
            return hashlib.sha256(self.body[self.span(tensor)]).hexdigest()
        except (TypeError, KeyError, ValueError):
            return "a tensor so forged has none"

    def write(self, path: Path, text: Callable[[str], str] = lambda text: text) -> Path:
        """Write the file; `text` changes the text of the header."""
        sums = {name: self._sum(name) for name in self.header if name != SEAL}
        metadata = {**self.metadata, "vql.sums": sums}
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
        header = text(json.dumps({"__metadata__": texts, **self.header})).encode()
        area = max(self.area, -(-(len(header) + 8) // HEADER_STEP) * HEADER_STEP)
        front = (area - 8).to_bytes(8, "little") + header.ljust(area - 8)
        path.write_bytes(front + self.body + hashlib.sha256(front).digest())
        return path


def flip_bit(data: bytes, byte: int, bit: int = 0) -> bytes:
    return data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]


def change_pickle(file: Path, change: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Change the pickle inside a torch.save file."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)
