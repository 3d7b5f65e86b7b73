"""Rows of unsigned integers <-> fixed-width bitstream, least significant bit first. Numpy only."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import CodeOutOfRange

MAX_BITS = 32  # width of a field; docs/format.md, "Streams"
LOOP_FIELDS = 256  # up to so many fields, a loop over fields is as fast as `_unpack_wide`
CHUNK = 1 << 20  # numbers that `_unpack_wide` unpacks at a time: 8 MiB of temporary memory


def packed_size(rows: int, bits: Sequence[int]) -> int:
    """Bytes of `rows` packed rows: ceil(rows * sum(bits) / 8).

    Raises:
        CodeOutOfRange: `rows` is not a whole number from 0 on, or a width is not in 1..32.
    """
    check_widths(bits)
    check_count("rows", rows)
    return -(-rows * sum(bits) // 8)


def narrowest_dtype(bits: Sequence[int]) -> np.dtype[np.unsignedinteger]:
    """The narrowest of uint8, uint16 and uint32 that holds the widest field.

    Raises:
        CodeOutOfRange: a width is not a whole number in 1..32.
    """
    check_widths(bits)
    widest = max(bits, default=1)
    return np.dtype(np.uint8 if widest <= 8 else np.uint16 if widest <= 16 else np.uint32)


def pack_fixed(rows: NDArray[np.integer], bits: Sequence[int]) -> bytes:
    """Pack rows of fields into one bitstream: row after row, field after field, no padding between rows.

    Args:
        rows: [n, m] integers, field j in [0, 2**bits[j]).
        bits: [m] widths in bits, each 1..32.

    Returns:
        ceil(n * sum(bits) / 8) bytes; the unused high bits of the last byte are zero.

    Raises:
        CodeOutOfRange: a value is below 0 or needs more bits than its field has, or `rows` are not integers [n, m].

    Source: docs/format.md, "Coding: fixed".
    """
    rows = np.ascontiguousarray(check_range(rows, bits))
    n = len(rows)
    machine_type = _machine_type(bits)
    if machine_type is not None:
        return rows.astype(machine_type).tobytes()
    # Eight rows fill sum(bits) bytes; 4 more, because the last field may be written as 5 bytes.
    out = np.zeros((-(-n // 8), sum(bits) + 4), np.uint8)
    groups = np.zeros((len(out), 8, len(bits)), np.uint64)
    groups.reshape(-1, len(bits))[:n] = rows
    for row, field, start, width in _positions(bits):
        value = groups[:, row, field] << np.uint64(start % 8)
        for byte in range(-(-(start % 8 + width) // 8)):
            out[:, start // 8 + byte] |= (value >> np.uint64(8 * byte)).astype(np.uint8)
    return out[:, : sum(bits)].tobytes()[: packed_size(n, bits)]


def unpack_fixed(data: bytes | memoryview, rows: int, bits: Sequence[int]) -> NDArray[np.unsignedinteger]:
    """Inverse of `pack_fixed`.

    Args:
        data: the bitstream.
        rows: number of rows.
        bits: [m] widths in bits, each 1..32.

    Returns:
        [rows, m] of the narrowest of uint8, uint16 and uint32 that holds the widest field; writable.

    Raises:
        CodeOutOfRange: `data` has another length than `packed_size(rows, bits)`, or its unused high bits are not zero.
    """
    check_bytes(data)
    if len(data) != packed_size(rows, bits):
        raise CodeOutOfRange(
            f"{rows} rows of {sum(bits)} bits are {packed_size(rows, bits)} bytes; the stream has {len(data)}: it is damaged"
        )
    dtype, machine_type = narrowest_dtype(bits), _machine_type(bits)
    if machine_type is not None:
        return np.frombuffer(data, machine_type).reshape(rows, len(bits)).astype(dtype)
    unused = 8 * len(data) - rows * sum(bits)
    if unused and data[-1] >> (8 - unused):
        raise CodeOutOfRange(f"the {unused} unused high bits of the last byte are not zero: the stream is damaged")
    groups = np.zeros((-(-rows // 8), sum(bits)), np.uint8)
    groups.reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
    groups = np.pad(groups, ((0, 0), (0, 4)))
    out = np.empty((len(groups), 8, len(bits)), dtype)
    if len(bits) > LOOP_FIELDS and len(bits) > len(groups):  # with many fields and few rows, the loop below would take minutes
        _unpack_wide(groups, bits, out)
        return out.reshape(-1, len(bits))[:rows].copy()
    for row, field, start, width in _positions(bits):
        value = np.zeros(len(groups), np.uint64)
        for byte in range(-(-(start % 8 + width) // 8)):
            value |= groups[:, start // 8 + byte].astype(np.uint64) << np.uint64(8 * byte)
        out[:, row, field] = (value >> np.uint64(start % 8)) & np.uint64((1 << width) - 1)
    return out.reshape(-1, len(bits))[:rows].copy()


def _unpack_wide(groups: NDArray[np.uint8], bits: Sequence[int], out: NDArray[np.unsignedinteger]) -> None:
    """Many fields at a time: `groups` [groups, bytes of eight rows and 4 more] -> `out` [groups, 8, m]."""
    widths = np.asarray(bits, np.int64)
    start, chunk = np.cumsum(widths) - widths, max(1, CHUNK // max(1, len(groups)))
    for row in range(8):
        for first in range(0, len(bits), chunk):
            fields = slice(first, first + chunk)
            bit = row * int(widths.sum()) + start[fields]
            value = np.zeros((len(groups), len(bit)), np.uint64)
            for byte in range(5):  # a field of 32 bits may start at the last bit of a byte
                position = bit // 8 + byte
                value |= groups[:, np.minimum(position, groups.shape[1] - 1)].astype(np.uint64) << np.uint64(8 * byte)
            mask = (np.uint64(1) << widths[fields].astype(np.uint64)) - np.uint64(1)
            out[:, row, fields] = (value >> (bit % 8).astype(np.uint64)) & mask


def _machine_type(bits: Sequence[int]) -> np.dtype[np.unsignedinteger] | None:
    """uint8, uint16 or uint32, little endian, if every field has that width, so that packing is a copy; else None."""
    if len(set(bits)) != 1 or bits[0] not in (8, 16, 32):
        return None
    return np.dtype(f"<u{bits[0] // 8}")


def _positions(bits: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """(row, field, first bit, width) of every field of eight rows."""
    positions, start = [], 0
    for row in range(8):
        for field, width in enumerate(bits):
            positions.append((row, field, start, width))
            start += width
    return positions


def check_range(rows: NDArray[np.integer], bits: Sequence[int], name: str = "rows") -> NDArray[np.integer]:
    """`rows` as an array [n, m] of integers whose values fit their fields.

    Raises:
        CodeOutOfRange: they are of another type or shape, or a value does not fit.
    """
    check_widths(bits)
    rows = as_integers(name, rows, 2)
    if rows.shape[1] != len(bits):
        raise CodeOutOfRange(f"{name} have shape {rows.shape}; the widths name {len(bits)} fields")
    lows = rows.min(0, initial=0) if rows.dtype.kind == "i" else ()
    for field, low in enumerate(lows):
        if low < 0:
            raise CodeOutOfRange(
                f"value {low} at row {int(rows[:, field].argmin())}, field {field} is below 0; only integers from 0 on can be packed"
            )
    for field, high in enumerate(rows.max(0, initial=0).tolist()):
        if high >> bits[field]:
            row = int(rows[:, field].argmax())
            raise CodeOutOfRange(
                f"value {high} at row {row}, field {field} needs {high.bit_length()} bits, the stream has {bits[field]}; "
                f"pack with bits >= {high.bit_length()}"
            )
    return rows


def as_integers(name: str, values: Any, axes: int) -> NDArray[Any]:
    """`values` as an array of integers with that number of axes.

    Raises:
        CodeOutOfRange: it is not one.
    """
    try:
        array = np.asarray(values)
    except ValueError:  # nested lists of different lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "iu" or array.ndim != axes:
        raise CodeOutOfRange(
            f"{name} are {type(values).__name__} of {array.dtype} {list(array.shape)}; they must be integers of {axes} axes"
        )
    return array


def check_widths(bits: Sequence[int]) -> None:
    """Raises CodeOutOfRange unless every field's width is a whole number in 1..32."""
    valid = (
        isinstance(bits, Sequence)
        and set(map(type, bits)) <= {int}
        and 1 <= min(bits, default=1) <= max(bits, default=1) <= MAX_BITS
    )
    if not valid:
        raise CodeOutOfRange(f"field widths are {str(bits)[:80]}; each must be 1..{MAX_BITS} bits, a whole number")


def check_count(name: str, value: int, minimum: int = 0) -> None:
    """Raises CodeOutOfRange unless `value` is a whole number from `minimum` on."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise CodeOutOfRange(f"{name} is {str(value)[:80]!r}; it must be a whole number, {minimum} or above")


def check_bytes(data: Any) -> None:
    """Raises CodeOutOfRange unless `data` is bytes."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise CodeOutOfRange(f"data is {type(data).__name__}; it must be bytes")
