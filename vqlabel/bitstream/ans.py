"""Rows of unsigned integers <-> an entropy-coded chunk: range ANS with a frequency table for each field. Numpy only.

For fields whose small values are frequent, such as gaps between sorted numbers: zstd's Huffman codes take at least one
bit a value, and its fields share tables. Only integers are used, so every machine decodes the same.

Source: range ANS, Duda, arXiv 1311.2540; interleaved states, Giesen, arXiv 1402.3392; docs/format.md, "Coding: ans".
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vqlabel.bitstream.fixed import check_bytes, check_range, narrowest_dtype, pack_fixed, packed_size, unpack_fixed
from vqlabel.errors import CodeOutOfRange

PRECISION = 12  # the frequencies of a field add up to 2^12
FREQUENCY_BITS = PRECISION + 1
LANES = 64  # interleaved states, one for every 64th row: 256 bytes a chunk; 64 rows are coded at a time
STATE_BITS, WORD_BITS = 32, 16  # a state lies in LOW .. 2^32 - 1; it is renormalised by words of 16 bits
LOW = 1 << STATE_BITS - WORD_BITS
MAX_LISTED = 1 << 10  # values in a field's table
WORD, STATE = np.dtype("<u2"), np.dtype("<u4")
Symbols = NDArray[np.int64]  # [n, coded fields]


def pack_ans(rows: NDArray[np.integer], bits: Sequence[int]) -> bytes:
    """Entropy-code rows of fields, each field by its frequencies in these rows.

    The table of a field lists the values 0 .. t - 1, with the t that minimises the size. Larger values are coded as one
    more symbol, the escape, and stored verbatim behind the codes. If a table saves nothing, t is 0 and all values of
    the field are stored verbatim.

    Args:
        rows: [n, m] integers, field j in [0, 2**bits[j]).
        bits: [m] widths in bits, each 1..32.

    Raises:
        CodeOutOfRange: a value is below 0 or needs more bits than its field has, or `rows` are not integers [n, m].

    Source: docs/format.md, "Coding: ans".
    """
    rows = check_range(rows, bits)
    listed = [_listed(rows[:, j], width) for j, width in enumerate(bits)]
    coded = [j for j, count in enumerate(listed) if count]
    parts = [np.array(listed, WORD).tobytes()]
    if coded:
        symbols = np.stack([np.minimum(rows[:, j].astype(np.int64), listed[j]) for j in coded], 1)
        tables = [_frequencies(np.bincount(symbols[:, i], minlength=listed[j] + 1)) for i, j in enumerate(coded)]
        parts += [pack_fixed(np.concatenate(tables)[:, None].astype(np.uint32), [FREQUENCY_BITS]), *_encode(symbols, tables)]
    for j, width in enumerate(bits):
        parts.append(pack_fixed(rows[rows[:, j] >= listed[j], j : j + 1], [width]))
    return b"".join(parts)


def unpack_ans(data: bytes | memoryview, rows: int, bits: Sequence[int]) -> NDArray[np.unsignedinteger]:
    """Inverse of `pack_ans`: [rows, m] of the narrowest of uint8, uint16 and uint32; writable.

    Raises:
        CodeOutOfRange: the chunk is damaged: its length, tables or states are inconsistent.
    """
    check_bytes(data)
    packed_size(rows, bits)  # checks `rows` and `bits`
    chunk = _Chunk(data)
    listed = np.frombuffer(chunk.take(WORD.itemsize * len(bits)), WORD).tolist()
    if any(count > min(MAX_LISTED, 1 << width) or (count and not rows) for count, width in zip(listed, bits, strict=True)):
        raise CodeOutOfRange(
            f"tables list {listed[:8]} values; the limit is {MAX_LISTED} and the range of the field: the stream is damaged"
        )
    out = np.zeros((rows, len(bits)), narrowest_dtype(bits))
    escaped = np.ones((rows, len(bits)), bool)
    if coded := [j for j, count in enumerate(listed) if count]:
        sizes = [listed[j] + 1 for j in coded]
        packed = chunk.take(packed_size(sum(sizes), [FREQUENCY_BITS]))
        frequencies = unpack_fixed(packed, sum(sizes), [FREQUENCY_BITS])[:, 0].astype(np.int64)
        symbols = _decode(chunk, rows, np.split(frequencies, np.cumsum(sizes)[:-1]))
        escaped[:, coded] = symbols == np.array(sizes) - 1
        out[:, coded] = np.where(escaped[:, coded], 0, symbols)
    for j, width in enumerate(bits):
        count = int(escaped[:, j].sum())
        out[escaped[:, j], j] = unpack_fixed(chunk.take(packed_size(count, [width])), count, [width])[:, 0]
    chunk.end()
    return out


def _listed(values: NDArray[np.integer], width: int) -> int:
    """The size of a field's table that minimises its bytes: 0, a power of two, or all values up to the largest."""
    distinct = int(values.max(initial=0)) + 1
    count = np.bincount(values[values < MAX_LISTED], minlength=min(distinct, MAX_LISTED)).astype(np.float64)
    best, lowest_cost = 0, float(len(values) * width)
    for listed in sorted({min(1 << i, distinct, MAX_LISTED) for i in range(1, MAX_LISTED.bit_length())}):
        symbols = np.append(count[:listed], len(values) - count[:listed].sum())  # the last one is the escape
        used = symbols[symbols > 0]
        entropy = float((used * np.log2(len(values) / used)).sum())
        cost = entropy + symbols[-1] * width + FREQUENCY_BITS * (listed + 1)  # bits
        if cost < lowest_cost:
            best, lowest_cost = listed, cost
    return best


def _frequencies(count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts -> integer frequencies that add up to 2^PRECISION; at least 1 for a symbol that occurs, else 0."""
    whole = 1 << PRECISION
    scaled = np.where(count > 0, np.maximum(1, count * whole // max(1, int(count.sum()))), 0)
    while (missing := whole - int(scaled.sum())) != 0:  # a few steps; the largest frequency absorbs the difference
        largest = int(scaled.argmax())
        scaled[largest] += missing if missing > 0 else max(missing, 1 - int(scaled[largest]) // 2)
    return scaled


def _starts(table: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(table) - table


def _encode(symbols: Symbols, tables: list[NDArray[np.int64]]) -> list[bytes]:
    """Final states, number of words, words. State i % LANES codes row i; from the last row to the first, because
    decoding reverses the order.
    """
    state = np.full(LANES, LOW, np.int64)
    words: list[NDArray[np.int64]] = []
    starts = [_starts(table) for table in tables]
    for first in range((len(symbols) - 1) // LANES * LANES, -1, -LANES):
        block = symbols[first : first + LANES]
        for j in range(len(tables) - 1, -1, -1):
            frequency, start = tables[j][block[:, j]], starts[j][block[:, j]]
            x = state[: len(block)]
            overflows = x >= frequency << STATE_BITS - PRECISION
            words.append(x[overflows] & (LOW - 1))
            x = np.where(overflows, x >> WORD_BITS, x)
            state[: len(block)] = (x // frequency << PRECISION) + x % frequency + start
    run = np.concatenate(words[::-1])
    return [state.astype(STATE).tobytes(), np.array([len(run)], STATE).tobytes(), run.astype(WORD).tobytes()]


def _decode(chunk: "_Chunk", rows: int, tables: list[NDArray[np.int64]]) -> Symbols:
    """Inverse of `_encode`: [rows, len(tables)]."""
    whole = 1 << PRECISION
    if any(int(table.sum()) != whole for table in tables):
        raise CodeOutOfRange(f"the frequencies of a field do not add up to {whole}: the stream is damaged")
    state = np.frombuffer(chunk.take(STATE.itemsize * LANES), STATE).astype(np.int64)
    count = int(np.frombuffer(chunk.take(STATE.itemsize), STATE)[0])
    run = np.frombuffer(chunk.take(WORD.itemsize * count), WORD).astype(np.int64)
    starts, symbol_of = [_starts(table) for table in tables], [np.repeat(np.arange(len(table)), table) for table in tables]
    out, used = np.empty((rows, len(tables)), np.int64), 0
    for first in range(0, rows, LANES):
        block = out[first : first + LANES]
        for j, table in enumerate(tables):
            x = state[: len(block)]
            slot = x & (whole - 1)
            symbol = block[:, j] = symbol_of[j][slot]
            x = table[symbol] * (x >> PRECISION) + slot - starts[j][symbol]
            low = x < LOW
            need = int(low.sum())
            if used + need > count:
                raise CodeOutOfRange(f"{count} words are too few for {rows} rows: the stream is damaged")
            x[low] = x[low] << WORD_BITS | run[used : used + need]
            state[: len(block)], used = x, used + need
    if used != count or (state != LOW).any():
        raise CodeOutOfRange("its states do not return to their initial value, or words are left over: the stream is damaged")
    return out


class _Chunk:
    """Bytes, taken from the front. A size is checked against the bytes that are left before anything is allocated."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self._position = memoryview(data), 0

    def take(self, size: int) -> memoryview:
        if size > len(self._data) - self._position:
            raise CodeOutOfRange(f"{size} bytes expected at byte {self._position} of {len(self._data)}: the stream is damaged")
        self._position += size
        return self._data[self._position - size : self._position]

    def end(self) -> None:
        if self._position != len(self._data):
            raise CodeOutOfRange(f"{len(self._data) - self._position} bytes are left over: the stream is damaged")
