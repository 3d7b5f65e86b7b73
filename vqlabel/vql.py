"""What a `.vql` file says, without decoding a label: records, label type, codec, columns, codes. No torch."""

from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.columns import ColumnReader
from vqlabel.container import ContainerReader
from vqlabel.errors import BadContainer

CODES = "codes"
CODEC = "codec."
NOTHING = [(slice(None), 1)]  # as `VqlFile` checks codes: 0 and nothing else, in all fields
NO_CODES = (1,)  # a label of 0 slots is a bit that is 0, so that the number of records stays backed by bytes


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
        self.label = self._json("vql.label", {"classes": int, "domain": str, "dtype": str, "shift_preserved": bool})
        self.codec = self._json("vql.codec", {"kind": str, "config": dict})
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
        self._tables = self._indexed()
        self.columns = ColumnReader(self.container, self._json("vql.columns", {}), self.records)
        self.source = self._json("vql.source", {})

    def _json(self, key: str, want: dict[str, type]) -> dict[str, Any]:
        value = self.container.json_object(key)
        if any(type(value.get(name)) is not kind for name, kind in want.items()):
            raise BadContainer(f"{self.container.path}: metadata {key!r} is {str(value)[:80]}; damaged or forged")
        return value

    @property
    def classes(self) -> int:
        """C."""
        return int(self.label["classes"])

    @property
    def code_bits(self) -> tuple[int, ...]:
        """[m] stored width of each code."""
        bits = self.container.streams[CODES].bits
        return () if self._tables is NOTHING else bits

    def codes(self, start: int, stop: int) -> NDArray[np.unsignedinteger]:
        """[stop - start, m] of uint8, uint16 or uint32, checked against the codebook's size; writable."""
        return self._checked(self.container.rows(CODES, start, stop))

    def take_codes(self, index: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        """[n, m] codes of the records at `index`, each in [0, records)."""
        return self._checked(self.container.take(CODES, index))

    def _checked(self, codes: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        """An index outside its codebook poisons a GPU process, so none leaves this place."""
        for slots, size in self._tables:
            most = int(codes[:, slots].max(initial=0))
            if most >= size:
                raise BadContainer(
                    f"{self.container.path}: code {most} leaves 0..{size - 1} ({self.codec['config']}); damaged or forged"
                )
        return codes[:, : len(self.code_bits)]

    def _indexed(self) -> list[tuple[slice, int]]:
        """Fields of a record that index a table, and its size: codebooks and the head's classes (vqae), or classes (topk)."""
        kind, config = self.codec["kind"], self.codec["config"]
        if kind == "topk":
            return [(slice(self._number("k", 1)), self.classes)]
        if kind != "vqae":
            return []
        slots, head = self._number("slots", 0), self._number("head", 0) if "head" in config else 0
        if not slots and not head and self.container.streams[CODES].bits == NO_CODES:
            return NOTHING
        return [(slice(slots), self._number("codebook_size", 1)), (slice(slots, slots + head), self.classes)]

    def _number(self, key: str, least: int) -> int:
        """Of the codec's configuration, which nobody has checked yet."""
        value = self.codec["config"].get(key)
        if type(value) is not int or value < least:
            raise BadContainer(f"{self.container.path}: the {self.codec['kind']} codec has {key} {value!r}; damaged or forged")
        return value
