"""A `.vql` with the labels of documents, as its table, codec configuration and codes; no label is decoded. No torch."""

from os import PathLike
from typing import Any

import numpy as np

from vqlabel.codecs.config import CodecConfig
from vqlabel.codecs.registry import codec_config
from vqlabel.container import ContainerReader
from vqlabel.errors import BadContainer, UsageError
from vqlabel.vql.text.streams import Fields, join_streams
from vqlabel.vql.text.table import TABLE, DocumentTable

_LABEL = {"classes": int, "domain": str, "dtype": str}
_TEXT = {"tokenizer": dict, "teacher": dict, "head": dict, "shift": int}


class TextVqlFile:
    """An open `.vql` of documents.

    Attributes:
        label: `vql.label`: classes (V), domain, dtype of the dump.
        text: `vql.text`: tokenizer, teacher and head, as far as they are known, and the shift, 1.
        codec: `vql.codec`: kind and config, unchecked.
        config: the checked configuration.
        documents: the table of documents.
        container: the file as streams, tensors and metadata.

    Args:
        seal: see `ContainerReader`.

    Raises:
        UsageError: the file does not exist, or has labels of images.
        BadContainer: the file is damaged, forged or from a newer version.
    """

    def __init__(self, path: str | PathLike[str], seal: bytes | None = None) -> None:
        self.container = ContainerReader(path, seal)
        if TABLE not in self.container.requires:
            raise UsageError(f"{path}: has labels of images, not of documents; open it with vqlabel.open")
        self.label, self.text = self._json("vql.label", _LABEL), self._json("vql.text", _TEXT)
        self.codec = self._json("vql.codec", {"kind": str, "config": dict})
        try:
            self.config: CodecConfig = codec_config(self.codec["kind"], self.codec["config"])
        except BadContainer as error:
            raise BadContainer(f"{path}: {error}") from None
        self._check()
        self.documents = DocumentTable(self.container, self.config)

    def _json(self, key: str, types: dict[str, type]) -> dict[str, Any]:
        value = self.container.json_object(key)
        if any(type(value.get(name)) is not kind for name, kind in types.items()):
            raise BadContainer(f"{self.container.path}: metadata {key!r} is {str(value)[:80]}; damaged or forged")
        return value

    def _check(self) -> None:
        """Raises BadContainer if label, streams and configuration contradict each other."""
        path = self.container.path
        if any(getattr(self.config, key) != self.label[key] for key in ("classes", "domain")):
            raise BadContainer(
                f"{path}: vql.label is {str(self.label)[:120]}, the codec's configuration {str(self.codec['config'])[:120]}; damaged or forged"
            )
        if self.text["shift"] != 1:
            raise BadContainer(f"{path}: row t is of token t + {self.text['shift']}; this vqlabel reads a shift of 1: upgrade it")
        for expected in self.config.streams:
            stream = self.container.streams.get(expected.name)
            if stream is None or stream.bits != expected.bits:
                found = None if stream is None else list(stream.bits)[:4]
                raise BadContainer(
                    f"{path}: {expected.name} has fields of {found} bits, the codec's have {list(expected.bits)[:4]}; damaged or forged"
                )

    @property
    def classes(self) -> int:
        """V."""
        return int(self.label["classes"])

    @property
    def rows(self) -> int:
        """Number of labels."""
        return int(self.documents.rows.sum())

    def fields(self, index: int) -> Fields:
        """Fields [n, f] of the labels of a document; reads its rows, rounded up to chunks.

        Raises:
            BadContainer: a chunk is damaged, counts and streams differ, or a code or an id is outside its range.
        """
        starts = self.documents.starts
        streams = {name: self.container.rows(name, int(start[index]), int(start[index + 1])) for name, start in starts.items()}
        where = f"{self.container.path}: document {index}"
        fields = join_streams(self.config, streams, where)
        for columns, size in self.config.indices:
            largest = int(fields[:, columns].max(initial=0))
            if largest >= size:
                raise BadContainer(f"{where}: code {largest} is outside 0..{size - 1}; damaged or forged")
        return fields

    @property
    def label_bits(self) -> float:
        """Stored bits per label: the streams of its codes, counts and ids."""
        stored = sum(self.container.stored(stream.name) for stream in self.config.streams)
        return round(8 * stored / max(1, self.rows), 4)


def stored_bits_by_stream(file: TextVqlFile) -> dict[str, float]:
    """Stored bits per label of every stream, the table of documents included."""
    names = [stream.name for stream in file.config.streams] + [TABLE]
    return {name: 8 * file.container.stored(name) / max(1, file.rows) for name in names}


def is_text(path: str | PathLike[str]) -> bool:
    """Whether a `.vql` has labels of documents."""
    return TABLE in ContainerReader(path).requires


def as_fields(fields: Fields) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Fields as int32, of the same bits."""
    return fields.astype(np.uint32).view(np.int32)
