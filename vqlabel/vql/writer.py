"""Codes and columns -> a `.vql`: added by spans of batches, then the decoder's tensors and the header."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vqlabel.bitstream import split_ragged
from vqlabel.codecs.config import CodecConfig, CodeStream
from vqlabel.container import ContainerWriter, canonical
from vqlabel.dtypes import stored_type
from vqlabel.errors import require
from vqlabel.labels import LabelBatch, LabelSource
from vqlabel.labels.image_set import ImageSet
from vqlabel.labels.schema import NEVER_DRAWN
from vqlabel.version import __version__
from vqlabel.views.recipe import DrawnColumns
from vqlabel.vql.column_limits import PREFIX
from vqlabel.vql.column_writer import ColumnWriter
from vqlabel.vql.file import CODEC, SIGMOID_LABELS
from vqlabel.vql.ragged_codes import VARIABLE_SLOTS
from vqlabel.vql.seeded import SEEDED_VIEWS, VIEW_COLUMNS, write_drawn
from vqlabel.vql.spool import Spool

Codes = NDArray[np.unsignedinteger]  # [n, m]


class VqlWriter:
    """Writes a `.vql`, as a context manager: the complete file appears if `finish` was called, otherwise no file.

    Args:
        out: the file.
        config: of the codec; it declares the streams of codes.
        order: of the dump: "explicit", "rows" or "none", see `labels.source.About`.

    Raises:
        TargetExists: `out` exists and `overwrite` is false.
    """

    def __init__(self, out: str | PathLike[str], config: CodecConfig, order: str, *, overwrite: bool = False) -> None:
        self._container, self._config, self._order = ContainerWriter(out, overwrite=overwrite), config, order

    def __enter__(self) -> Self:
        self._container.__enter__()
        ragged = self._config.max_codes is not None
        self._codes = (_RaggedCodes if ragged else _FixedCodes)(self._container, self._config.streams)
        self._columns = ColumnWriter(self._container.path.parent, self._order)
        self._next, self._waiting = 0, dict[int, tuple[int, Codes, list[LabelBatch]]]()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._container.__exit__(kind, error, trace)

    @property
    def path(self) -> Path:
        """The file to be written."""
        return self._container.path

    def add(self, indices: range, codes: Codes, batches: Sequence[LabelBatch] = ()) -> None:
        """Add consecutive batches, in any order: those that come early wait in memory, without their labels.

        Args:
            indices: of the batches in the file; all batches of the file must be added, each once.
            codes: of their records, [n, m]; [n, 1 + m] with the count first at a variable rate.
            batches: with their augmentation; none if a recipe draws it.

        Raises:
            BadLabels: see `ColumnWriter.add`.
        """
        without_labels = [replace(batch, labels=np.empty((len(batch), 0), np.float16)) for batch in batches]
        self._waiting[indices.start] = indices.stop, codes, without_labels
        while self._next in self._waiting:
            self._next, codes, batches = self._waiting.pop(self._next)
            for batch in batches:
                self._columns.add(batch)
            self._codes.append(codes)

    def end_codes(self) -> int:
        """Close the streams of codes. Returns the number of records."""
        return self._codes.end()

    def images_shown(self) -> int | None:
        """The number of images that complete epochs show; None if no epoch is complete."""
        return self._columns.whole_epochs.images()

    def column_bits(self) -> int:
        """Size of the columns in bits before any coding, without chunk tables and names."""
        return self._columns.bits()

    def finish(
        self,
        source: LabelSource,
        tensors: Mapping[str, NDArray[Any]],
        made_by: Mapping[str, Any],
        *,
        drawn: DrawnColumns | None = None,
        images: ImageSet | None = None,
    ) -> int:
        """Write columns, tensors and header, after the codes. Returns the size of the file in bytes.

        Args:
            source: the dump, whose properties the header records.
            tensors: of the decoder, by name, in their stored dtypes.
            made_by: further fields of `vql.source`.
            drawn: columns that the file stores as a recipe and its seed; None: the columns that were added are stored.
            images: which images the labels are of; None if unknown.

        Raises:
            UsageError: a batch of the dump was not added.
        """
        complete = self._next == len(source) and not self._waiting
        require(complete, "batches", self._next, f"must be all {len(source)} of {source.path}, each added once")
        container = self._container
        header = (
            self._columns.write(container, source.about.names) if drawn is None else write_drawn(container, drawn, source.places)
        )
        for name, tensor in tensors.items():
            container.tensor(CODEC + name, stored_type(tensor.dtype), tensor)
        return container.finish(
            {
                "vql.label": canonical(_label_of(self._config, source)),
                "vql.codec": canonical({"kind": self._config.kind, "config": self._config.to_dict()}),
                "vql.columns": canonical(header),
                "vql.source": canonical({**_source_of(source), **made_by}),
                "vql.writer": f"vqlabel {__version__}",
                **({} if images is None else {"vql.images": canonical(images.to_dict())}),
            },
            [VARIABLE_SLOTS] * (self._config.max_codes is not None)
            + [SEEDED_VIEWS] * (header["order"] == "seeded")
            + [SIGMOID_LABELS] * (source.domain == "sigmoid")
            + [VIEW_COLUMNS] * any(PREFIX + name in container.streams for name in NEVER_DRAWN),
        )


def _label_of(config: CodecConfig, source: LabelSource) -> dict[str, Any]:
    """The content of `vql.label`.

    `shift_preserved`: whether a label's mean over classes is kept; squared error needs it, softmax does not.
    """
    preserved = config.keeps_level or source.domain == "sigmoid"
    label = {"classes": source.classes, "domain": source.domain, "dtype": source.dtype, "shift_preserved": preserved}
    return label if source.support is None else {**label, "support": {"k": source.support.k, "rest": source.support.rest}}


def _source_of(source: LabelSource) -> dict[str, Any]:
    """The properties of the dump that `vql.source` records."""
    values = {"layout": source.layout, "temperature": source.about.temperature, "details": dict(source.about.details)}
    return {name: value for name, value in values.items() if value}


class _FixedCodes:
    """Codes at a fixed rate -> their stream."""

    def __init__(self, container: ContainerWriter, streams: Sequence[CodeStream]) -> None:
        (stream,) = streams
        self._container, self._fields = container, len(stream.bits)
        container.begin(stream.name, stream.bits, stream.codings, stream.chunk_rows)

    def append(self, codes: Codes) -> None:
        """Append [n, m]. Codes [n, 0] are stored as one zero per label, since a stream has at least one field."""
        self._container.append(codes if codes.shape[1] else np.zeros((len(codes), self._fields), np.uint32))

    def end(self) -> int:
        return self._container.end().rows


class _RaggedCodes:
    """Codes at a variable rate -> their stream, then the stream of counts, which a temporary file buffers."""

    def __init__(self, container: ContainerWriter, streams: Sequence[CodeStream]) -> None:
        codes, self._counts_stream = streams
        self._container = container
        self._counts = Spool(container.path.parent, 1)
        container.begin(codes.name, codes.bits, codes.codings, codes.chunk_rows)

    def append(self, codes: Codes) -> None:
        """Append [n, 1 + m]: count and codes."""
        counts, used = split_ragged(codes)
        self._counts.add(counts)
        self._container.append(used)

    def end(self) -> int:
        self._container.end()
        stream = self._counts_stream
        self._container.begin(stream.name, stream.bits, stream.codings, stream.chunk_rows)
        for counts in self._counts:
            self._container.append(counts)
        return self._container.end().rows
