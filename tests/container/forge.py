"""A `.vql` taken apart and reassembled with valid checksums, as a forger can and an accident cannot."""

import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from vqlabel.bitstream import pack_fixed, packed_size, planes_size
from vqlabel.container import ContainerReader

ITEM = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4, "U64": 8}


class Forgery:
    """`metadata` maps keys to parsed values, `tensors` names to (dtype, shape, bytes)."""

    def __init__(self, path: Path) -> None:
        reader = ContainerReader(path)
        self.metadata: dict[str, Any] = {
            key: json.loads(text) if text[:1] in "[{" else text for key, text in reader.metadata.items()
        }
        data, self.tensors = path.read_bytes(), dict[str, tuple[str, list[int], bytes]]()
        for name, section in reader.sections.items():
            if name != "vql.seal":
                self.tensors[name] = section.dtype, list(section.shape), data[section.start : section.stop]
        self._reader = reader

    def rows(self, name: str) -> NDArray[Any]:
        return self._reader.rows(name)

    def put(self, name: str, rows: NDArray[Any], bits: Sequence[int]) -> None:
        """A stream of these rows in one chunk."""
        self.chunks(name, [pack_fixed(np.asarray(rows, np.uint32), bits)], [len(rows)], [[width, 1] for width in bits], "fixed")

    def zeros(self, name: str, fields: list[list[int]], rows: int, chunks: int) -> None:
        """A stream of zeros that takes a few bytes: `chunks` equal zstd chunks of `rows` rows."""
        widths = [width for width, count in fields for _ in range(count)]
        self.chunks(name, [zstandard.compress(bytes(planes_size(rows, widths)))] * chunks, [rows] * chunks, fields, "zstd")

    def chunks(self, name: str, stored: list[bytes], rows: list[int], fields: list[list[int]], coding: str) -> None:
        widths = [width for width, count in fields for _ in range(count)]
        payload, table, first = bytearray(), list[tuple[int, ...]](), 0
        for data, many in zip(stored, rows, strict=True):
            raw = packed_size(many, widths) if coding == "fixed" else planes_size(many, widths)
            table.append((len(payload), len(data), raw, first, many, zlib.crc32(data)))
            payload += data + (bytes(-len(data) % 64) if coding == "zstd" else b"")
            first += many
        payload += bytes(-len(payload) % 64)
        self.tensors[name] = "U8", [len(payload)], bytes(payload)
        self.tensors[name + ".chunks"] = "U64", [len(table), 6], np.array(table, "<u8").reshape(-1, 6).tobytes()
        described = {"bits": fields, "rows": first, "chunk_rows": max(8, -(-rows[0] // 8) * 8), "coding": coding}
        self.metadata["vql.streams"][name] = described

    def drop(self, name: str) -> None:
        for one in (name, name + ".chunks"):
            self.tensors.pop(one, None)
        self.metadata["vql.streams"].pop(name, None)

    def write(self, path: Path) -> Path:
        body, header, sums = bytearray(), dict[str, Any](), dict[str, str]()
        payloads = [name for name in self.tensors if name in self.metadata["vql.streams"]]
        others = sorted(set(self.tensors) - set(payloads), key=lambda name: -ITEM[self.tensors[name][0]])
        for name in payloads + others:
            dtype, shape, data = self.tensors[name]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
            sums[name] = hashlib.sha256(data).hexdigest()
            body += data
        header["vql.seal"] = {"dtype": "U8", "shape": [32], "data_offsets": [len(body), len(body) + 32]}
        metadata = {**self.metadata, "vql.sums": sums}
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
        text = json.dumps({"__metadata__": texts, **header}).encode()
        area = max(8192, -(-(len(text) + 8) // 4096) * 4096)
        front = (area - 8).to_bytes(8, "little") + text.ljust(area - 8)
        path.write_bytes(front + body + hashlib.sha256(front).digest())
        return path
