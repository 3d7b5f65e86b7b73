"""The overhead that the container declares is the one that its writer produces."""

from pathlib import Path

import numpy as np
import pytest

from vqlabel.bitstream import FIXED, packed_size
from vqlabel.container import ContainerReader, ContainerWriter, overhead
from vqlabel.container.layout import ALIGN, HEADER_RESERVED

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("rows", [1, 4096, 4097, 20_000])
def test_a_file_of_packed_rows_takes_its_rows_its_table_and_the_fixed_overhead(rows: int, tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "a.vql") as writer:
        writer.begin("codes", [7] * 3, [FIXED])
        writer.append(RNG.integers(0, 128, (rows, 3), np.uint32))
        chunks = writer.end().chunks
        size = writer.finish({})
    assert chunks == -(-rows // overhead.CHUNK_ROWS)
    largest = overhead.FILE_BYTES + packed_size(rows, [7] * 3) + chunks * overhead.CHUNK_TABLE_ROW
    assert largest - ALIGN <= size <= largest


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0, 4.0, 30.0])
def test_chunks_of_counts_exceed_their_packed_size_by_less_than_declared(spread: float, tmp_path: Path) -> None:
    counts = np.rint(RNG.normal(8, spread, (3 * overhead.CHUNK_ROWS, 1))).clip(0, 15).astype(np.uint32)
    with ContainerWriter(tmp_path / "a.vql") as writer:
        writer.begin("counts", [4])
        writer.append(counts)
        writer.end()
        writer.finish({})
    payload = ContainerReader(tmp_path / "a.vql").sections["counts"].size
    assert payload <= packed_size(len(counts), [4]) + 3 * overhead.ZSTD_CHUNK_EXCESS


def test_a_compressed_chunk_of_equal_rows_takes_one_step_of_padding(tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "a.vql") as writer:
        writer.begin("codes", [1], chunk_rows=overhead.NARROW_CHUNK_ROWS)
        writer.append(np.zeros((2 * overhead.NARROW_CHUNK_ROWS, 1), np.uint32))
        writer.end()
        writer.finish({})
    assert ContainerReader(tmp_path / "a.vql").sections["codes"].size == 2 * overhead.STREAM_PADDING


def test_a_header_that_outgrows_its_area_by_little_grows_by_one_step(tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "a.vql") as writer:
        writer.finish({"vql.note": "x" * HEADER_RESERVED})
    assert ContainerReader(tmp_path / "a.vql").header_area == HEADER_RESERVED + overhead.HEADER_GROWTH
