"""Columns of Parquet and Arrow files -> labels: lists of every kind, read in pieces; other columns are refused."""

import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqlabel.errors import BadLabels, MissingExtra, UsageError
from vqlabel.labels import open_labels
from vqlabel.labels.layouts.rows import BATCH_RECORDS

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FILES = ("a.parquet", "file.arrow", "stream.arrow", "a.feather")
N = BATCH_RECORDS + 900


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def write(path: Path, chunk: int = 700, /, **columns: Any) -> Path:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=chunk)
    else:
        new = pa.ipc.new_stream if path.stem == "stream" else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=chunk)
    return path


def lists(z: np.ndarray, kind: Any = None, fixed: bool = False) -> Any:
    values = pa.array(z.reshape(-1), type=kind)
    if fixed:
        return pa.FixedSizeListArray.from_arrays(values, z.shape[-1])
    return pa.ListArray.from_arrays(np.arange(0, z.size + 1, z.shape[-1], dtype=np.int32), values)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("fixed", [False, True], ids=["variable", "fixed"])
@pytest.mark.parametrize(("kind", "dtype"), [("float16", "F16"), ("float32", "F32"), ("float64", "F32")])
def test_a_column_of_lists_can_be_read_in_any_order(kind: str, dtype: str, fixed: bool, file: str, tmp_path: Path) -> None:
    z = draw(N, 7).astype(kind)
    source = open_labels(write(tmp_path / file, logits=lists(z, fixed=fixed), label=list(range(N)), path=["x"] * N))
    assert (source.layout, source.classes, source.dtype, source.order) == ("arrays", 7, dtype, "none")
    assert "the labels are 'logits'; not read: 'label' int64" in source.notes[0] and "'path' string" in source.notes[0]
    for at in (1, 0, 1, 0):
        expected = z[at * BATCH_RECORDS : (at + 1) * BATCH_RECORDS].astype(np.float16 if dtype == "F16" else np.float32)
        assert (source.read(at).labels == expected).all()


@pytest.mark.parametrize("file", ["a.parquet", "stream.arrow"])
def test_a_row_of_several_lists_is_an_image_with_several_views(file: str, tmp_path: Path) -> None:
    z = draw(50, 3, 7)
    nested = pa.ListArray.from_arrays(np.arange(0, 151, 3, dtype=np.int32), lists(z.reshape(-1, 7)))
    source = open_labels(write(tmp_path / file, 11, logits=nested))
    assert [place.epoch for place in source.places] == [0, 1, 2] and source.order == "rows"
    assert (np.stack([batch.labels for batch in source]) == z.transpose(1, 0, 2)).all()


def test_shards_are_concatenated_and_a_column_can_be_selected(tmp_path: Path) -> None:
    for shard in range(2):
        write(tmp_path / f"train-0000{shard}-of-00002.parquet", a=lists(draw(9, 5) + shard), b=lists(draw(9, 5)))
    with pytest.raises(BadLabels, match=r"several of its arrays may be the labels: 'a' .*; name one with --array a"):
        open_labels(tmp_path)
    source = open_labels(tmp_path, array="a")
    assert (np.concatenate([batch.labels for batch in source]) == np.concatenate([draw(9, 5), draw(9, 5) + 1])).all()
    with pytest.raises(UsageError, match=r"--array c: .*parquet contains 'a' float32 \[9, 5\], 'b' float32 \[9, 5\]"):
        open_labels(tmp_path, array="c")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"logits": [[1.0, 2.0], [3.0, 4.0], [5.0]]}, r"row 2 has a list of 1; row 0 has a list of 2"),
        ({"logits": [[1.0, 2.0], None, [5.0, 6.0]]}, r"row 1 has a list of 0; row 0 has a list of 2"),
        ({"logits": [[1.0, 2.0], [3.0, None]]}, r"at or after row 0 a value is null; every label must have C numbers"),
        ({"logits": [[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0]]]}, r"row 1 has a list of 1; row 0 has lists of 2"),
        ({"logits": [1.0, 2.0]}, r"column 'logits' is double; labels must be a column of lists of C floats"),
        ({"logits": [[1, 2], [3, 4]]}, r"column 'logits' is list<.*int64>; labels must be a column of lists of C floats"),
        ({"c0": [1.0, 2.0], "c1": [1.0, 2.0]}, r"contains 'c0' double \[2\], 'c1' double \[2\], but no array \[n, C\] of floats"),
    ],
    ids=range(7),
)
def test_a_column_without_labels_is_refused(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    for file in ("a.parquet", "stream.arrow"):
        path = write(tmp_path / file, **columns)
        with pytest.raises(BadLabels, match=rf"{file}: {message}"):
            list(open_labels(path))


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", logits=pa.array([], pa.list_(pa.float32())))
    with pytest.raises(BadLabels, match=r"a\.parquet: column 'logits' is list<"):
        open_labels(path)


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_refused_with_its_name_or_read_correctly(file: str, tmp_path: Path) -> None:
    path = write(tmp_path / file, 10, logits=lists(draw(40, 5)))
    data = path.read_bytes()
    for size in range(0, len(data) - 9, 61):
        path.write_bytes(data[:size])
        with pytest.raises(BadLabels, match=rf"{file}: "):
            list(open_labels(path))
    for at in range(8, len(data), 37):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        with suppress(BadLabels, UsageError):
            assert sum(len(batch) for batch in open_labels(path)) <= 1032 * len(data)


def test_reading_holds_one_batch_and_one_piece_in_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", 1 << 20, logits=lists(draw(4 * BATCH_RECORDS, 200)))  # 13 MB in one row group
    open_labels(path).read(0)
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    source = open_labels(path)
    for at in range(len(source)):
        source.read(at)
        assert pa.total_allocated_bytes() - before < 16 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20


def test_the_error_without_pyarrow_has_the_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", logits=lists(draw(4, 5)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"needs pyarrow, which is not installed; run: pip install 'vqlabel\[parquet\]'"):
        open_labels(path)
