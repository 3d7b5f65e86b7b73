"""A `.vql` with the labels of documents, as its table, codec configuration and codes; no label is decoded. No torch."""

from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.codecs.config import COUNTS, CodecConfig
from vqlabel.codecs.registry import codec_config
from vqlabel.container import ContainerReader
from vqlabel.errors import BadContainer, UsageError
from vqlabel.vql.in_words import in_bytes
from vqlabel.vql.text.streams import Fields, counts_stream, join_streams, run_lengths
from vqlabel.vql.text.table import TABLE, DocumentTable

SUMS = COUNTS + ".sums"  # tensor: rows of every run before each chunk of counts
_LABEL = {"classes": int, "domain": str, "dtype": str}
_TEXT = {"tokenizer": dict, "teacher": dict, "head": dict, "shift": int}


class TextVqlFile:
    """An open `.vql` of documents.

    Attributes:
        label: `vql.label`: classes (V), domain, dtype of the dump.
        text: `vql.text`: tokenizer, teacher and head, as far as they are known, and the shift, 1.
        codec: `vql.codec`: kind and config, unchecked.
        config: the checked configuration.
        rows: number of labels.
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
        self.label, self.text = self.container.json_object("vql.label", _LABEL), self.container.json_object("vql.text", _TEXT)
        self.codec = self.container.json_object("vql.codec", {"kind": str, "config": dict})
        try:
            self.config: CodecConfig = codec_config(self.codec["kind"], self.codec["config"])
        except BadContainer as error:
            raise BadContainer(f"{path}: {error}") from None
        self._check()
        self.rows = self.container.streams[counts_stream(self.config)].rows
        self.documents = DocumentTable(self.container, self.rows)
        self._sums = self._read_sums()

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

    def __repr__(self) -> str:
        return f"TextVqlFile({self.summary})"

    @property
    def summary(self) -> str:
        """ "'text.vql': 9,000 labels of 30 documents, 1,024 tokens in the vocabulary, 36.5 bits per label, 83 kB"."""
        return (
            f"{str(self.container.path)!r}: {self.rows:,} labels of {len(self.documents):,} documents, "
            f"{self.classes:,} tokens in the vocabulary, {self.label_bits:.1f} bits per label, {in_bytes(self.container.size)}"
        )

    @property
    def classes(self) -> int:
        """V."""
        return int(self.label["classes"])

    def fields(self, index: int, first: int = 0, stop: int | None = None) -> Fields:
        """Fields [n, f] of labels of a document; reads their rows, rounded up to chunks.

        Args:
            index: of the document.
            first: row of the document, from which the labels are read.
            stop: row of the document, before which they end; None: all to its end.

        Raises:
            BadContainer: a chunk is damaged, counts and streams differ, or a code or an id is outside its range.
        """
        before, end = (int(row) for row in self.documents.starts[index : index + 2])
        start, stop = before + first, end if stop is None else before + stop
        streams = {counts_stream(self.config): self.container.rows(counts_stream(self.config), start, stop)}
        if self.config.runs:
            begins, ends = self._run_rows(start).tolist(), self._run_rows(stop).tolist()
            for run, first_row, last_row in zip(self.config.runs, begins, ends, strict=True):
                streams[run.stream] = self.container.rows(run.stream, first_row, last_row)
        fields = join_streams(self.config, streams)
        limits = [(slice(i, i + 1), limit + 1) for i, limit in enumerate(self.config.count_limits)]
        for columns, size in [*limits, *self.config.indices]:
            largest = int(fields[:, columns].max(initial=0))
            if largest >= size:
                raise BadContainer(
                    f"{self.container.path}: document {index}: a code or count of {largest} is outside 0..{size - 1}; damaged or forged"
                )
        return fields

    def _run_rows(self, row: int) -> NDArray[np.int64]:
        """[runs] rows of every run before the label `row`."""
        size = self.container.streams[COUNTS].chunk_rows
        chunk = min(row // size, len(self._sums) - 1)
        if chunk < 0:
            return np.zeros(len(self.config.runs), np.int64)
        counts = self.container.rows(COUNTS, chunk * size, row)
        rows: NDArray[np.int64] = self._sums[chunk] + run_lengths(self.config, counts).sum(0)
        total = [self.container.streams[run.stream].rows for run in self.config.runs]
        if (rows > total).any():
            raise BadContainer(
                f"{self.container.path}: the counts of {row} labels add up to {rows.tolist()} rows of {total}; damaged or forged"
            )
        return rows

    def _read_sums(self) -> NDArray[np.int64]:
        """[chunks, runs] of SUMS, checked against the streams."""
        runs = self.config.runs
        if not runs:
            return np.empty((0, 0), np.int64)
        container, shape = self.container, (self.container.streams[COUNTS].chunks, len(runs))
        section = container.sections.get(SUMS)
        if section is None or section.dtype != "U64" or section.shape != shape:
            raise BadContainer(f"{container.path}: {SUMS} must be U64 {list(shape)}; damaged or forged")
        sums = container.tensor(SUMS)
        total = np.array([container.streams[run.stream].rows for run in runs], np.uint64)
        if (sums[:1] != 0).any() or (sums[1:] < sums[:-1]).any() or (sums[-1:] > total).any():
            raise BadContainer(
                f"{container.path}: {SUMS} does not ascend from 0 to the rows of the streams, {total.tolist()}; damaged or forged"
            )
        return sums.astype(np.int64)

    @property
    def label_bits(self) -> float:
        """Stored bits per label: the streams of its codes, counts and ids."""
        stored = sum(self.container.stored(stream.name) for stream in self.config.streams)
        return round(8 * stored / max(1, self.rows), 4)


def is_text(path: str | PathLike[str]) -> bool:
    """Whether a `.vql` has labels of documents."""
    return TABLE in ContainerReader(path).requires


def as_fields(fields: Fields) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Fields as int32, of the same bits."""
    return fields.astype(np.uint32).view(np.int32)
