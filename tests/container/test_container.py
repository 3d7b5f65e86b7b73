"""Laws of the container: round trips, safetensors compatibility, same input same bytes, atomic publication."""

import errno
import json
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from safetensors import safe_open

from vqlabel.bitstream import ANS, FIXED, ZSTD, Coding
from vqlabel.container import ContainerReader, ContainerWriter, verify
from vqlabel.container.layout import ALIGN, HEADER_RESERVED, HEADER_STEP, ITEM_BYTES
from vqlabel.errors import BadContainer, CodeOutOfRange, TargetExists, UsageError, VqlabelError

RNG = np.random.default_rng(0)
ROWS = 9001  # two full chunks and a rest, not a multiple of 8
EVEN = RNG.integers(0, 32, (ROWS, 3), np.uint32)  # incompressible: stays bit-packed
SKEWED = RNG.integers(0, 2, (ROWS, 2), np.uint32) * 70_000  # compressible: zstd
BIAS = RNG.standard_normal(7).astype(np.float16)
WEIGHT = RNG.integers(-127, 128, (3, 5), np.int8)


def write(path: Path, *, piece: int = ROWS, tensors: int = 0, overwrite: bool = False) -> Path:
    """Two streams, appended `piece` rows at a time, and a few tensors."""
    with ContainerWriter(path, overwrite=overwrite) as writer:
        for name, rows, bits in (("codes", EVEN, [5] * 3), ("columns.skewed", SKEWED, [17] * 2)):
            writer.begin(name, bits)
            for at in range(0, ROWS, piece):
                writer.append(rows[at : at + piece])
            writer.end()
        writer.tensor("codec.bias", "F16", BIAS)
        writer.tensor("codec.weight", "I8", WEIGHT)
        for i in range(tensors):
            writer.tensor(f"codec.extra{i:04}", "F32", np.full(2, i, np.float32))
        writer.finish({"vql.note": "é"})
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("container") / "a.vql")


def test_rows_and_tensors_come_back(file: Path) -> None:
    reader = ContainerReader(file)
    assert {name: stream.coding.name for name, stream in reader.streams.items()} == {"codes": "fixed", "columns.skewed": "zstd"}
    np.testing.assert_array_equal(reader.rows("codes"), EVEN)
    np.testing.assert_array_equal(reader.rows("columns.skewed"), SKEWED)
    np.testing.assert_array_equal(reader.tensor("codec.bias"), BIAS)
    np.testing.assert_array_equal(reader.tensor("codec.weight"), WEIGHT)
    assert reader.metadata["vql.note"] == "é"
    assert verify(file) == {"bytes": file.stat().st_size, "tensors": 7, "streams": 2, "chunks": 6}


def test_a_file_is_a_valid_safetensors_file(file: Path) -> None:
    reader = ContainerReader(file)
    with safe_open(file, "np") as other:
        assert set(other.keys()) == set(reader.sections)
        assert other.metadata() == reader.metadata
        np.testing.assert_array_equal(other.get_tensor("codec.bias"), BIAS)
        np.testing.assert_array_equal(other.get_tensor("codec.weight"), WEIGHT)
        payload, table = other.get_tensor("columns.skewed").tobytes(), other.get_tensor("columns.skewed.chunks")
    offset, stored, raw, first, rows, _ = table[1].tolist()
    planes = np.frombuffer(zstandard.decompress(payload[offset : offset + stored]), np.uint8).reshape(2, 3, rows)
    assert raw == planes.size and offset % ALIGN == 0
    np.testing.assert_array_equal(np.einsum("fbr,b->rf", planes.astype(int), [1, 256, 65536]), SKEWED[first : first + rows])


def test_every_tensor_starts_at_a_multiple_of_its_item_size(tmp_path: Path) -> None:
    """Readers can map such a file.

    There are no gaps between tensors: payloads are multiples of 64, then come the widest items.
    """
    with ContainerWriter(tmp_path / "a.vql") as writer:
        for name in ("codes", "columns.image"):
            writer.begin(name, [5])
            writer.append(EVEN[:7, :1])
            writer.end()
        for number, (dtype, kind) in enumerate((("I8", np.int8), ("F16", np.float16), ("F32", np.float32), ("I8", np.int8))):
            writer.tensor(f"codec.{number}", dtype, np.ones(3, kind))
        writer.finish({})
    for name, section in ContainerReader(tmp_path / "a.vql").sections.items():
        assert section.start % (ALIGN if name in ("codes", "columns.image") else ITEM_BYTES[section.dtype]) == 0, name


def test_the_same_input_makes_the_same_bytes_however_it_is_split(file: Path, tmp_path: Path) -> None:
    for piece in (1000, 4096, 8192):
        assert write(tmp_path / f"{piece}.vql", piece=piece).read_bytes() == file.read_bytes()


def test_the_header_is_canonical_json_in_its_area(file: Path) -> None:
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + size].decode("ascii")
    assert 8 + size == HEADER_RESERVED and text.startswith('{"__metadata__":{"format":"vql"')
    header = json.loads(text)
    assert text.rstrip(" ") == json.dumps(header, sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize("tensors", [60, 1500])
def test_a_header_that_outgrows_its_area_moves_the_payload(tmp_path: Path, tensors: int) -> None:
    reader = ContainerReader(write(tmp_path / "a.vql", tensors=tensors))
    assert reader.header_area > HEADER_RESERVED and reader.header_area % HEADER_STEP == 0
    assert verify(reader.path)["tensors"] == 7 + tensors
    np.testing.assert_array_equal(reader.rows("codes"), EVEN)
    np.testing.assert_array_equal(reader.tensor(f"codec.extra{tensors - 1:04}"), np.full(2, tensors - 1, np.float32))


def test_a_payload_larger_than_the_copy_buffer_moves_completely(tmp_path: Path) -> None:
    big = RNG.integers(-128, 128, 5 << 19, np.int8)  # 2.5 MiB, moved 1 MiB at a time by less than its length
    with ContainerWriter(tmp_path / "a.vql") as writer:
        writer.tensor("codec.big", "I8", big)
        writer.finish({"vql.note": "x" * HEADER_RESERVED})
    np.testing.assert_array_equal(ContainerReader(tmp_path / "a.vql").tensor("codec.big"), big)
    verify(tmp_path / "a.vql")


def test_a_stream_may_be_empty(tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "a.vql") as writer:
        writer.begin("codes", [5, 9])
        writer.end()
        writer.finish({})
    found = ContainerReader(tmp_path / "a.vql").rows("codes")
    assert found.shape == (0, 2) and found.dtype == np.uint16
    assert verify(tmp_path / "a.vql")["chunks"] == 0


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (4095, 4097), (8000, ROWS), (ROWS, ROWS), (5000, None)])
def test_any_range_of_rows_is_read_exactly(file: Path, start: int, stop: int | None) -> None:
    found = ContainerReader(file).rows("columns.skewed", start, stop)
    np.testing.assert_array_equal(found, SKEWED[start:stop])
    assert found.flags.writeable


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (0, ROWS + 1), (ROWS + 1, None)])
def test_a_range_that_exceeds_the_stream_is_refused(file: Path, start: int, stop: int | None) -> None:
    with pytest.raises(UsageError, match=f"are out of range; 'codes' has rows 0:{ROWS}"):
        ContainerReader(file).rows("codes", start, stop)


def test_take_gathers_rows_in_any_order(file: Path) -> None:
    index = RNG.integers(0, ROWS, 500)
    np.testing.assert_array_equal(ContainerReader(file).take("columns.skewed", index), SKEWED[index])
    assert ContainerReader(file).take("codes", np.empty(0, np.int64)).shape == (0, 3)


@pytest.mark.parametrize("outside", [-1, ROWS, 4096 * 3, 1 << 62])
def test_take_refuses_an_index_out_of_range(file: Path, outside: int) -> None:
    with pytest.raises(UsageError, match=f"row {outside} is out of range; 'codes' has rows 0:{ROWS}"):
        ContainerReader(file).take("codes", np.array([3, outside, 5]))


def test_rows_that_were_read_may_be_changed_without_affecting_later_reads(file: Path) -> None:
    reader = ContainerReader(file)
    reader.rows("codes", 0, 10)[:] = 0
    reader.take("codes", np.arange(10))[:] = 0
    np.testing.assert_array_equal(reader.rows("codes", 0, 10), EVEN[:10])


def test_unknown_names_are_refused(file: Path) -> None:
    with pytest.raises(BadContainer, match="has no stream 'other'; it has codes"):
        ContainerReader(file).rows("other")
    with pytest.raises(BadContainer, match=r"has no stream 'codec\.bias'"):
        ContainerReader(file).stored("codec.bias")
    for name in ("other", "vql.seal"):
        with pytest.raises(BadContainer, match=f"has no tensor '{name}'"):
            ContainerReader(file).tensor(name)


def test_a_reader_pickles_to_its_path(file: Path) -> None:
    reader = ContainerReader(file)
    reader.rows("codes")
    data = pickle.dumps(reader)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).rows("codes"), EVEN)


def _sum_in_child(reader: ContainerReader, answer: Any) -> None:
    answer.send(int(reader.rows("codes", 4000, 5000).sum()))
    reader.close()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_reader_works_on_both_sides_of_a_fork(file: Path) -> None:
    reader, want = ContainerReader(file), int(EVEN[4000:5000].sum())
    reader.rows("codes", 0, 1)  # opens the file before the fork
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_sum_in_child, args=(reader, there))
    child.start()
    assert here.poll(30) and here.recv() == want
    child.join()
    assert int(reader.rows("codes", 4000, 5000).sum()) == want


# Atomic publication.


def attempt(path: Path, *steps: Callable[[ContainerWriter], object], overwrite: bool = False) -> None:
    """Write with these steps, one after the other."""
    with ContainerWriter(path, overwrite=overwrite) as writer:
        for step in steps:
            step(writer)


def some_rows(writer: ContainerWriter) -> None:
    writer.begin("codes", [5] * 3)
    writer.append(EVEN)


def the_rest(writer: ContainerWriter) -> None:
    writer.end()
    writer.tensor("codec.bias", "F16", BIAS)
    writer.finish({})


def fails(error: BaseException) -> Callable[[ContainerWriter], object]:
    def step(_: ContainerWriter) -> None:
        raise error

    return step


def test_a_target_is_kept_without_overwrite(tmp_path: Path) -> None:
    target = tmp_path / "a.vql"
    target.write_text("precious")
    with pytest.raises(TargetExists, match=r"a\.vql exists; pass --overwrite"):
        write(target)
    assert target.read_text() == "precious" and list(tmp_path.iterdir()) == [target]
    verify(write(target, overwrite=True))


def test_a_target_that_is_made_while_a_file_is_written_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "a.vql"
    with pytest.raises(TargetExists):
        attempt(target, some_rows, lambda _: target.write_text("precious"), the_rest)
    assert target.read_text() == "precious" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_target_unchanged(tmp_path: Path, error: type[BaseException], there: bool) -> None:
    target = tmp_path / "a.vql"
    if there:
        target.write_text("precious")
    with pytest.raises(error):
        attempt(target, some_rows, fails(error()), overwrite=True)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["precious"] * there


def test_without_finish_nothing_is_published(tmp_path: Path) -> None:
    attempt(tmp_path / "a.vql", some_rows)
    assert not list(tmp_path.iterdir())


class FullDisk:
    """A file on a disk with room for `room` more calls of `what`."""

    def __init__(self, file: Any, what: str, room: int) -> None:
        self._file, self._what, self._room = file, what, room

    @classmethod
    def under(cls, what: str, room: int) -> Callable[[ContainerWriter], object]:
        """The step that puts it under a writer."""
        return lambda writer: setattr(writer, "_file", cls(writer._file, what, room))

    def __getattr__(self, name: str) -> Any:
        return self._refuse if name == self._what and self._use() else getattr(self._file, name)

    def _use(self) -> bool:
        self._room -= 1
        return self._room < 0

    def _refuse(self, *_: object) -> None:
        if self._what == "close":
            self._file.close()
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("what", "room"), [("write", 0), ("write", 1), ("write", 6), ("flush", 0), ("flush", 1)])
def test_a_full_disk_is_an_error_that_names_the_target(tmp_path: Path, what: str, room: int) -> None:
    target = tmp_path / "a.vql"
    with pytest.raises(VqlabelError, match=r"a\.vql: cannot be written \(No space left on device\); nothing was left behind"):
        attempt(target, FullDisk.under(what, room), some_rows, the_rest)
    assert not list(tmp_path.iterdir())


def test_a_buffer_that_cannot_be_flushed_does_not_hide_an_interrupt(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        attempt(tmp_path / "a.vql", FullDisk.under("close", 0), fails(KeyboardInterrupt()))
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_and_an_impossible_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VqlabelError, match="no such folder"):
        ContainerWriter(tmp_path / "none" / "a.vql")
    with pytest.raises(VqlabelError, match=r"cannot be written \(File name too long\)"):
        ContainerWriter(tmp_path / ("a" * 250 + ".vql"))


CODINGS = (FIXED, ZSTD, ANS)


@pytest.mark.parametrize("coding", CODINGS, ids=lambda coding: coding.name)
def test_a_value_beyond_its_width_is_refused_and_leaves_no_file(tmp_path: Path, coding: Coding) -> None:
    wide = np.full((10, 1), 32, np.uint32)
    with pytest.raises(CodeOutOfRange, match="needs 6 bits"):
        attempt(tmp_path / "a.vql", lambda w: w.begin("codes", [5], (coding,)), lambda w: w.append(wide), the_rest)
    assert not list(tmp_path.iterdir())


def test_a_header_beyond_its_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VqlabelError, match="the format allows 16777216"):
        attempt(tmp_path / "a.vql", lambda writer: writer.finish({"vql.note": "x" * (16 << 20)}))
    assert not list(tmp_path.iterdir())


def test_the_coding_that_makes_the_first_chunk_smallest_is_used(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    gaps = rng.geometric(0.7, (2000, 3)).clip(1, 32).astype(np.uint32) - 1
    best = {"even": "fixed", "skewed": "zstd", "gaps": "ans"}
    for name, rows, bits in (("even", EVEN, [5] * 3), ("skewed", SKEWED, [17] * 2), ("gaps", gaps, [5] * 3)):
        sizes = {}
        for codings in (*((one,) for one in CODINGS), CODINGS):
            with ContainerWriter(tmp_path / "a.vql", overwrite=True) as writer:
                writer.begin("codes", bits, codings)
                writer.append(rows)
                writer.end()
                writer.finish({})
            reader = ContainerReader(tmp_path / "a.vql")
            sizes[codings] = reader.stored("codes")
            np.testing.assert_array_equal(reader.rows("codes"), rows)
        assert reader.streams["codes"].coding.name == best[name]
        assert sizes[CODINGS] == min(sizes[one,] for one in CODINGS)
