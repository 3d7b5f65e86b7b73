"""DistillKit's captured log-probabilities, rows of Parquet or Arrow files -> documents.

    input_ids [L], token_ids [n, k], top_values [n, k]                          raw: ids and log-probabilities
    input_ids [L], bytepacked_indices [n, bytes], compressed_logprobs [n, bytes]    compressed: `distillkit_bytes`

n is L - 1, or L if the last row is of a token that was cut off, as in packed sets; that row is dropped. A packed row of
the table holds several documents, whose tokens attention_mask numbers from 1; 0 is padding. The numbers of rows that
were packed twice are lost: there the label in front of a document's first token is one of the document before.

A folder of captures has data_0.parquet, data_1.parquet ... and, if they are compressed, compression_config.yaml.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, MissingExtra, UsageError
from vqlabel.labels.layouts.arrow import SUFFIXES
from vqlabel.labels.layouts.shards import in_numeric_order
from vqlabel.labels.text.layouts.array_source import settle_vocabulary
from vqlabel.labels.text.layouts.distillkit_bytes import Compression, parse_compression
from vqlabel.labels.text.layouts.layout import TextLayout, TextOptions
from vqlabel.labels.text.layouts.table_rows import TableRows, need_columns
from vqlabel.labels.text.source import TextAbout, TextDocument, TextSource
from vqlabel.labels.text.sparse_rows import need_vocabulary, settle_k, settle_rest, sparse_rows
from vqlabel.storage.filetypes import require_regular

TOKENS, MASK = "input_ids", "attention_mask"
RAW = (TOKENS, "token_ids", "top_values")
COMPRESSED = (TOKENS, "bytepacked_indices", "compressed_logprobs")
LEGACY = ("packed_indices", "exact_values", "coeffs")
CONFIGS = ("compression_config.yaml", "compression_config.yml", "compression_config.json")
MAX_CONFIG_BYTES = 1 << 16
LOSSY_TOLERANCE = 9.0  # by which probabilities of a row that a polynomial approximates may sum to more than 1


class _Place(NamedTuple):
    """A document: tokens start : start + length of a row of a table."""

    table: TableRows
    row: int
    start: int
    length: int


class DistillKitSource(TextSource):
    """One file, or those of a folder in numeric order. Tokens are read once when the dump is opened, for the lengths.

    Raises:
        UsageError: an option is missing or does not fit.
        BadLabels: columns or the configuration are missing, or a file is damaged.
        MissingExtra: pyarrow, or for a YAML file pyyaml, is not installed.
    """

    def __init__(self, path: Path, options: TextOptions) -> None:
        self.path = path
        tables = [TableRows(file) for file in _files(path)]
        if not tables:
            raise BadLabels(f"{path}: contains none of {', '.join(SUFFIXES)}; a dump has at least one")
        self._columns, self._open = _columns(tables), tables[0]
        is_raw = self._columns == RAW
        if is_raw and options.compression is not None:
            raise UsageError(
                f"compression is {options.compression}; {path} holds raw values, {' and '.join(RAW[1:])}: leave it out"
            )
        self._compression = None if is_raw else _compression(path, options.compression)
        self._places = [place for table in tables for place in _documents(table)]
        recorded = None if self._compression is None else self._compression.d
        vocabulary = need_vocabulary(settle_vocabulary(recorded, options.vocab, path), path, "distillkit")
        self._rest, stored = settle_rest(options.rest), self._stored_k()
        self.about = TextAbout(
            layout="distillkit",
            domain="topk",
            width=settle_k(stored, options.k, path),
            dtype="F32",
            vocabulary=vocabulary,
            rest=self._rest,
            details={"k": stored, "rest": self._rest, "compressed": not is_raw},
        )
        if not is_raw:
            self.notes.append(f"{path}: rows whose approximated probabilities sum to more than 1 are divided by their sum")

    def __len__(self) -> int:
        return len(self._places)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[D]"""
        return np.array([place.length for place in self._places], np.int64)

    def _stored_k(self) -> int:
        """k of the compression, or of the first document that has a row."""
        if self._compression is not None:
            return self._compression.k
        table, row = next(((place.table, place.row) for place in self._places if place.length > 1), (None, 0))
        return 1 if table is None else int(table.read_matrix(self._columns[1], row).shape[1])

    def _load(self, index: int) -> tuple[TextDocument, str]:
        table, row, start, length = place = self._places[index]
        if table is not self._open:  # a dump may have more files than a process may open
            self._open.close()
            self._open = table
        name = f"{table.path}, row {row}" + (f", tokens from {start}" if start else "")
        tokens = table.read_integers(TOKENS, row)
        ids, logprobs = (table.read_matrix(column, row) for column in self._columns[1:])
        if not len(tokens) - 1 <= len(ids) <= len(tokens) or len(logprobs) != len(ids):
            raise BadLabels(
                f"{name}: {self._columns[1]} has {len(ids)} rows and {self._columns[2]} {len(logprobs)} for {len(tokens)} tokens; L tokens have "
                "L - 1 rows, or L"
            )
        rows = slice(start, start + length - 1)
        ids, logprobs = self._decoded(ids[rows], logprobs[rows], name)
        k, vocabulary = self.about.width, self.about.vocabulary
        assert vocabulary is not None
        tolerance = {} if self._compression is None else {"tolerance": LOSSY_TOLERANCE}
        labels = sparse_rows(ids[:, :k], logprobs[:, :k], vocabulary, self._rest, name, **tolerance)
        return TextDocument(tokens=tokens[start : start + place.length], rows=labels), name

    def _decoded(self, ids: NDArray[Any], logprobs: NDArray[Any], name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Ids and log-probabilities [n, k] of stored rows."""
        stored = self._compression
        if not len(ids):
            return np.empty((0, self.about.width), np.int64), np.empty((0, self.about.width), np.float32)
        expected = (self.about.details["k"],) * 2 if stored is None else (stored.id_bytes, stored.value_bytes)
        widths, unit = (ids.shape[1], logprobs.shape[1]), "numbers" if stored is None else "bytes"
        kinds = ("iu", "f") if stored is None else ("iu", "iu")
        if widths != expected or ids.dtype.kind not in kinds[0] or logprobs.dtype.kind not in kinds[1]:
            other = (
                "the first row has"
                if stored is None
                else f"d = {stored.d}, k = {stored.k} and the other fields of the compression need"
            )
            raise BadLabels(
                f"{name}: rows of {widths[0]} and {widths[1]} {unit} ({ids.dtype}, {logprobs.dtype}) in {' and '.join(self._columns[1:])}; {other} "
                f"{expected[0]} and {expected[1]}"
            )
        if stored is None:
            return ids, logprobs
        if min(ids.min(), logprobs.min()) < 0 or max(ids.max(), logprobs.max()) > 255:
            raise BadLabels(f"{name}: {' or '.join(self._columns[1:])} holds numbers outside 0..255; they must be bytes")
        return stored.ids(ids.astype(np.uint8)), stored.logprobs(logprobs.astype(np.uint8))


def _columns(tables: list[TableRows]) -> tuple[str, ...]:
    """The columns of the labels, RAW or COMPRESSED; those of all tables."""
    for table in tables:
        if set(LEGACY) <= set(table.columns):
            raise BadLabels(
                f"{table.path}: holds labels of DistillKit's legacy compression ({', '.join(LEGACY)}): logits without their normaliser, which give "
                "no probabilities; capture them anew"
            )
    columns = need_columns(tables[0], (COMPRESSED, RAW))
    for table in tables[1:]:
        need_columns(table, (columns,))
    return tuple(columns)


def _documents(table: TableRows) -> Iterator[_Place]:
    """The documents of a table: its rows, or parts of them that attention_mask numbers."""
    masks = table.integers(MASK) if MASK in table.columns else None
    for row, tokens in enumerate(table.integers(TOKENS)):
        mask = np.ones(len(tokens), np.int64) if masks is None else next(masks)
        if len(mask) != len(tokens):
            raise BadLabels(f"{table.path}, row {row}: {len(mask)} numbers of {MASK} for {len(tokens)} tokens")
        starts = np.flatnonzero(np.append(mask[:1] != 0, mask[1:] != mask[:-1]))
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(mask)], strict=False):
            if mask[start]:
                yield _Place(table, row, start, stop - start)


def _compression(path: Path, config: Path | None) -> Compression:
    """The configuration that the user names, or that lies beside the files."""
    folder = path if path.is_dir() else path.parent
    if config is None:
        config = next((folder / name for name in CONFIGS if (folder / name).exists()), None)
    if config is None:
        raise UsageError(
            f"compression is not passed, and {folder} has no {CONFIGS[0]}; pass the YAML or JSON of the capture, or of DistillKit's training: what "
            "the bytes mean is recorded nowhere else"
        )
    values = _config_values(config)
    for key in ("teacher", "logprob_compressor"):  # of the YAML of a training run
        values = values[key] if isinstance(values, dict) and key in values else values
    if not isinstance(values, dict):
        raise BadLabels(f"{config}: is no mapping; DistillKit's compression has the fields d, k, exact_k, polynomial_terms ...")
    return parse_compression(values, str(config))


def _config_values(config: Path) -> Any:
    if not config.exists():
        raise UsageError(f"compression is {config}; there is no such file")
    require_regular(config)
    data = config.read_bytes()
    if len(data) > MAX_CONFIG_BYTES:
        raise BadLabels(f"{config}: has {len(data)} bytes; a configuration of DistillKit's compression has a few hundred")
    try:
        if config.suffix == ".json":
            return json.loads(data)
        import yaml

        return yaml.safe_load(data)
    except ImportError:
        raise MissingExtra("pyyaml", "text") from None
    except Exception as error:  # yaml raises nearly anything on damaged text
        raise BadLabels(f"{config}: cannot be read ({str(error)[:200]})") from None


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith(".")]
    return sorted(files, key=in_numeric_order)


LAYOUT = TextLayout(
    source=DistillKitSource,
    detect=lambda path: bool(_files(path)) if path.is_dir() else path.suffix in SUFFIXES,
    options=frozenset({"k", "rest", "compression"}),
)
