"""What a `.vql` file says, without decoding a label: records, label type, codec, columns, codes. No torch."""

import json
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.columns import ColumnReader
from vqlabel.container import ContainerReader
from vqlabel.errors import BadContainer

CODES = "codes"
CODEC = "codec."


class VqlFile:
    """An opened `.vql`.

    Attributes:
        records: n.
        label: classes, domain, dtype ("F16", "BF16", "F32": the dump's) and shift_preserved.
        codec: kind and config.
        columns: places and augmentation.
        container: the checked file below.

    Raises:
        UsageError: no such file.
        BadContainer: the file is damaged, forged or from a newer version.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.container = ContainerReader(path)
        meta = self.container.metadata
        self.label = self._json(meta, "vql.label", {"classes": int, "domain": str, "dtype": str, "shift_preserved": bool})
        self.codec = self._json(meta, "vql.codec", {"kind": str, "config": dict})
        config = self.codec["config"]
        if self.label["dtype"] not in ("F16", "BF16", "F32") or any(
            config.get(key) != self.label[key] for key in ("classes", "domain")
        ):
            raise BadContainer(
                f"{path}: vql.label is {self.label}, the codec's configuration {str(config)[:120]}; damaged or forged"
            )
        if CODES not in self.container.streams:
            raise BadContainer(f"{path}: has no codes; damaged or forged")
        self.records = self.container.streams[CODES].rows
        self.columns = ColumnReader(self.container, self._json(meta, "vql.columns", {}), self.records)
        self.source = self._json(meta, "vql.source", {})

    def _json(self, metadata: dict[str, str], key: str, want: dict[str, type]) -> dict[str, Any]:
        try:
            value = json.loads(metadata.get(key, ""))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or any(type(value.get(name)) is not kind for name, kind in want.items()):
            raise BadContainer(f"{self.container.path}: metadata {key!r} is {metadata.get(key, '')[:80]!r}; damaged or forged")
        return value

    @property
    def classes(self) -> int:
        """C."""
        return int(self.label["classes"])

    @property
    def code_bits(self) -> tuple[int, ...]:
        """[m] stored width of each code."""
        return self.container.streams[CODES].bits

    def codes(self, start: int, stop: int) -> NDArray[np.unsignedinteger]:
        """[stop - start, m] of uint8, uint16 or uint32, checked against the codebook's size; writable."""
        return self._checked(self.container.rows(CODES, start, stop))

    def take_codes(self, index: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        """[n, m] codes of the records at `index`, each in [0, records)."""
        return self._checked(self.container.take(CODES, index))

    def _checked(self, codes: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        """An index outside its codebook poisons a GPU process, so none leaves this place."""
        config = self.codec["config"]
        slots, size = self._index_slots()
        if slots and codes.size and int(codes[:, :slots].max()) >= size:
            raise BadContainer(
                f"{self.container.path}: code {int(codes[:, :slots].max())} leaves 0..{size - 1} ({config}); damaged or forged"
            )
        return codes

    def _index_slots(self) -> tuple[int, int]:
        """How many leading fields of a record index a table, and its size: codebooks (vqae) or classes (topk)."""
        kind, config = self.codec["kind"], self.codec["config"]
        if kind == "vqae":
            return len(self.code_bits), int(config["codebook_size"])
        return (int(config["k"]), self.classes) if kind == "topk" else (0, 0)
