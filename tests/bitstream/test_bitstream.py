"""Laws of all codings: round trips, sizes, refusal of values out of range; and the exact bytes, once."""

import math
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import zstandard
from paths import ROOT

from vqlabel.bitstream import (
    CODINGS,
    Coding,
    narrowest_dtype,
    pack_fixed,
    pack_planes,
    packed_size,
    planes_size,
    unpack_fixed,
    unpack_planes,
)
from vqlabel.bitstream.planes import inflate
from vqlabel.errors import CodeOutOfRange
from vqlabel.metrics.code_usage import CodeUsage

WIDTHS = [[width] * fields for width in range(1, 33) for fields in (1, 3)]
MIXED = [[1, 32], [32, 1, 7], [5, 8, 16, 3], [10] * 4 + [16] * 4, [31, 2], list(range(1, 33))]


def coding_on_the_contributing_page() -> Coding:
    """The example of "How to add a coding"."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    block = next(text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "pack_delta" in text)
    names: dict[str, Any] = {"planes_size": planes_size, "Coding": Coding}
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    (entry,) = re.findall(r"^\+DELTA = (.*)$", page, re.MULTILINE)
    coding: Coding = eval(entry, names)
    return coding


EXAMPLE = coding_on_the_contributing_page()


@pytest.fixture(params=[*CODINGS, EXAMPLE.name])
def coding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Coding:
    """Every coding, and the example of the contributing page."""
    monkeypatch.setitem(CODINGS, EXAMPLE.name, EXAMPLE)
    return CODINGS[request.param]


def draw(rows: int, bits: Sequence[int], seed: int = 0) -> np.ndarray:
    """[rows, m] uint32 of every size, the largest value of each field among them."""
    rng = np.random.default_rng(seed)
    top = 2.0 ** np.array(bits)
    values = np.floor(rng.random((rows, len(bits))) * top).astype(np.uint32)
    values[-1:] = (top - 1).astype(np.uint32)
    return values


@pytest.mark.parametrize("bits", WIDTHS + MIXED, ids=lambda bits: "-".join(map(str, bits[:5])))
def test_every_width_survives_a_round_trip_in_the_narrowest_type(coding: Coding, bits: list[int]) -> None:
    pack, unpack = coding.pack, coding.unpack
    for rows in (0, 1, 7, 8, 9, 100):
        values = draw(rows, bits)
        found = unpack(pack(values, bits), rows, bits)
        assert found.dtype == narrowest_dtype(bits) and found.shape == (rows, len(bits)) and found.flags.writeable
        np.testing.assert_array_equal(found, values)


def test_the_bytes_do_not_depend_on_the_type_of_the_rows(coding: Coding) -> None:
    values = draw(50, [5, 8, 3])
    assert len({coding.pack(values.astype(kind), [5, 8, 3]) for kind in (np.uint8, np.uint16, np.uint32)}) == 1


@pytest.mark.parametrize("bits", MIXED, ids=str)
def test_sizes_are_as_computed(bits: list[int]) -> None:
    values = draw(13, bits)
    assert len(pack_fixed(values, bits)) == packed_size(13, bits) == math.ceil(13 * sum(bits) / 8)
    assert zstandard.frame_content_size(pack_planes(values, bits)) == planes_size(13, bits)


def test_eight_rows_at_a_time_make_the_same_stream() -> None:
    """Chunks whose rows are a multiple of 8 begin at a byte, so a stream may be cut there."""
    values = draw(29, [3, 7])
    assert b"".join(pack_fixed(values[at : at + 8], [3, 7]) for at in range(0, 29, 8)) == pack_fixed(values, [3, 7])


@pytest.mark.parametrize(("width", "value"), [(1, 2), (7, 128), (8, 256), (10, 1024), (16, 1 << 16), (31, 1 << 31)])
def test_a_value_beyond_its_width_is_refused_with_its_position_and_a_remedy(coding: Coding, width: int, value: int) -> None:
    rows = np.zeros((5, 2), np.uint32)
    rows[3, 1] = value
    need = value.bit_length()
    message = f"value {value} at row 3, field 1 needs {need} bits, the stream has {width}; pack with bits >= {need}"
    with pytest.raises(CodeOutOfRange, match=message):
        coding.pack(rows, [4, width])


@pytest.mark.parametrize(("shape", "bits"), [((2, 2), [0, 4]), ((2, 1), [33]), ((2, 3), [4, 4]), ((4,), [4])])
def test_invalid_widths_and_rows_are_refused(coding: Coding, shape: tuple[int, ...], bits: list[int]) -> None:
    with pytest.raises(CodeOutOfRange, match=r"each must be 1\.\.32 bits|the widths name|must be integers of 2 axes"):
        coding.pack(np.zeros(shape, np.uint32), bits)


@pytest.mark.parametrize("bits", [[3], [8], [16], [5, 12]], ids=str)
def test_a_stream_of_another_length_is_refused(coding: Coding, bits: list[int]) -> None:
    pack, unpack = coding.pack, coding.unpack
    data = pack(draw(20, bits), bits)
    for damaged in [data[:at] for at in range(len(data))] + [data + b"\0", data + data]:
        with pytest.raises(CodeOutOfRange):
            unpack(damaged, 20, bits)
    with pytest.raises(CodeOutOfRange):
        unpack(data, 40, bits)


@pytest.mark.parametrize("bits", [*MIXED, [1]], ids=str)
def test_a_chunk_has_a_size_that_its_coding_allows(coding: Coding, bits: list[int]) -> None:
    assert coding.name in CODINGS and CODINGS[coding.name] is coding
    for rows in (1, 13, 4096):
        for values in (draw(rows, bits), np.zeros((rows, len(bits)), np.uint32)):
            stored, raw = len(coding.pack(values, bits)), coding.raw_size(rows, bits)
            assert coding.allows(stored, raw) and not coding.allows(0, raw)
            assert coding.compressed or (stored == raw and not coding.allows(stored + 1, raw))


def test_unused_high_bits_must_be_zero() -> None:
    data = bytearray(pack_fixed(draw(3, [3]), [3]))  # 9 bits: 7 are unused
    for bit in range(1, 8):
        damaged = data[:1] + bytes([data[1] | 1 << bit])
        with pytest.raises(CodeOutOfRange, match="7 unused high bits of the last byte are not zero"):
            unpack_fixed(damaged, 3, [3])


def test_a_plane_that_exceeds_its_width_is_refused() -> None:
    with pytest.raises(CodeOutOfRange, match="field 0 has the value 16, which exceeds its 4 bits"):
        unpack_planes(zstandard.compress(bytes([3, 16])), 2, [4])


def test_a_frame_must_declare_and_contain_the_expected_size() -> None:
    frame = zstandard.compress(bytes(200))  # a frame of one segment: its size is the byte behind the descriptor
    assert frame[5] == 200 and inflate(frame, 200) == bytes(200)
    lying = frame[:5] + bytes([100]) + frame[6:]
    undeclared = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(200))
    for damaged, size in ((frame, 100), (lying, 100), (undeclared, 200), (b"", 0), (b"no frame", 200)):
        with pytest.raises(CodeOutOfRange, match="a zstd frame"):
            inflate(damaged, size)


def test_fixed_fills_bytes_from_the_least_significant_bit() -> None:
    assert pack_fixed(np.array([[1], [2], [3]]), [3]) == bytes([0b11_010_001, 0])  # 3 (its low bits), 2, 1 | 3's high bit
    assert pack_fixed(np.array([[0xA, 0xBCD]]), [4, 12]) == bytes([0xDA, 0xBC])
    assert pack_fixed(np.array([[0x0102], [0x0304]]), [16]) == bytes([2, 1, 4, 3])


def test_zstd_holds_byte_planes_low_byte_first_field_after_field() -> None:
    frame = pack_planes(np.array([[0x0102, 7], [0x0304, 9]], np.uint16), [16, 4])
    assert zstandard.decompress(frame) == bytes([2, 4, 1, 3, 7, 9])


def test_usage_agrees_with_closed_forms() -> None:
    usage = CodeUsage(3, 8)
    even, single, halves = np.arange(8), np.full(8, 5), np.array([0, 0, 0, 0, 1, 1, 2, 2])
    usage.add(np.stack([even, single, halves], 1))
    usage.add(np.stack([even, single, halves], 1).astype(np.uint8))  # frequencies stay the same
    np.testing.assert_allclose(usage.entropy(), [3, 0, 1.5], atol=1e-12)  # log2 8, 0, 1/2 + 2 * 2/4
    np.testing.assert_allclose(usage.perplexity(), [8, 1, 2**1.5])
    np.testing.assert_array_equal(CodeUsage(2, 4).entropy(), [0, 0])  # no codes


@pytest.mark.parametrize("bits", [[1] * 3000, [5, 17, 32, 1] * 300, [32] * 300 + [3], [20] * 500 + [16] * 500])
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 70])
def test_many_fields_of_few_rows_survive_a_round_trip(bits: list[int], rows: int) -> None:
    rng = np.random.default_rng(rows)
    wanted = np.stack([rng.integers(0, 1 << width, rows, np.uint32) for width in bits], 1)
    for found in (unpack_fixed(pack_fixed(wanted, bits), rows, bits), unpack_planes(pack_planes(wanted, bits), rows, bits)):
        np.testing.assert_array_equal(found, wanted)


def test_a_million_fields_are_unpacked_in_seconds() -> None:
    bits, began = [1] * (1 << 20), time.process_time()
    assert not unpack_fixed(bytes(1 << 17), 1, bits).any()
    assert not unpack_planes(zstandard.compress(bytes(1 << 20)), 1, bits).any()
    assert time.process_time() - began < 5
