"""The entropy coder: its size against the entropy, its exact bytes, and damaged chunks."""

import numpy as np
import pytest
from numpy.typing import NDArray

from vqlabel.bitstream import pack_ans, pack_fixed, packed_size, unpack_ans
from vqlabel.bitstream.ans import LANES
from vqlabel.errors import CodeOutOfRange

BITS = [5, 10, 8]


def skewed(rows: int) -> NDArray[np.uint32]:
    """[rows, 3]: geometric gaps, uniform ids, and a field that is nearly always 0 and rarely 255."""
    rng = np.random.default_rng(rows)
    rare = np.where(rng.random(rows) < 0.01, 255, 0)
    return np.stack([rng.geometric(0.6, rows).clip(1, 32) - 1, rng.integers(0, 1000, rows), rare], 1).astype(np.uint32)


def entropy(values: NDArray[np.uint32]) -> float:
    share = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(share * np.log2(share)).sum())


@pytest.mark.parametrize("rows", [0, 1, LANES - 1, LANES, LANES + 1, 1000, 4096])
def test_any_number_of_rows_survives_a_round_trip(rows: int) -> None:
    values = skewed(rows)
    assert np.array_equal(unpack_ans(pack_ans(values, BITS), rows, BITS), values)


def test_skewed_fields_take_about_their_entropy_and_uniform_ones_their_width() -> None:
    values = skewed(4096)
    bits = 8 * len(pack_ans(values, BITS)) / 4096
    least = entropy(values[:, 0]) + 10 + entropy(values[:, 2])
    assert least < bits < least + 1.2, "states and tables are 320 bytes; an escape has its 8 bits behind it"
    assert bits < 0.6 * sum(BITS)


def test_uniform_fields_take_their_packed_size_and_two_bytes_each() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 10, (500, 4)).astype(np.uint32)
    assert pack_ans(values, [10] * 4) == bytes(8) + b"".join(pack_fixed(values[:, j : j + 1], [10]) for j in range(4))


def test_the_bytes_are_those_of_the_documented_format() -> None:
    """Four rows of one field: lists 0 and 1, frequencies 3/4, 1/4 and 0; each lane has a row; no state gives a word."""
    values = np.array([[0], [0], [1], [0]] * 16, np.uint32)
    data = pack_ans(values, [8])
    frequencies = pack_fixed(np.array([[3072], [1024], [0]], np.uint32), [13])
    low = 1 << 16
    states = [low // 3072 * 4096 + low % 3072, low // 1024 * 4096 + low % 1024 + 3072]
    lanes = np.array([states[value] for value in values[:, 0]], "<u4").tobytes()
    assert data == b"\2\0" + frequencies + lanes + bytes(4)


@pytest.mark.parametrize(
    ("at", "byte", "message"),
    [
        (1, 255, r"tables list \[.*\] values; the limit is 1024"),
        (6, 255, r"the frequencies of a field do not add up to 4096|expected at byte"),
        (-1, None, "states do not return to their initial value|left over|expected at byte|unused high bits|words are too few"),
    ],
)
def test_a_damaged_chunk_is_refused(at: int, byte: int | None, message: str) -> None:
    data = pack_ans(skewed(200), BITS)
    damaged = data[:-1] if byte is None else data[:at] + bytes([byte]) + data[at + 1 :]
    with pytest.raises(CodeOutOfRange, match=message):
        unpack_ans(damaged, 200, BITS)


def test_damage_raises_no_other_error_and_allocates_no_memory() -> None:
    data, rng = pack_ans(skewed(300), BITS), np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        try:
            found = unpack_ans(bytes(damaged), 300, BITS)
        except CodeOutOfRange:
            continue
        assert found.shape == (300, 3)
    count = 2 * len(BITS) + packed_size(sum(np.frombuffer(data[:6], "<u2").tolist()) + 2, [13]) + 4 * LANES
    claim = data[:count] + b"\xff\xff\xff\xff" + data[count + 4 :]
    with pytest.raises(CodeOutOfRange, match="8589934590 bytes expected at byte"):
        unpack_ans(claim, 300, BITS)
