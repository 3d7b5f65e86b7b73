"""Rows of unsigned integers <-> fixed-width bitstream, least significant bit first. Numpy only."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import CodeOutOfRange

MAX_BITS = 32
_LOOPED = 256  # fields that a loop unpacks as fast
_PIECE = 1 << 20  # numbers unpacked at a time where fields are many


def packed_size(rows: int, bits: Sequence[int]) -> int:
    """Bytes of `rows` rows whose fields have these widths: ceil(rows * sum(bits) / 8).

    Raises:
        CodeOutOfRange: `rows` is not a whole number from 0 on, or a width is not one in 1..32.
    """
    check_widths(bits)
    check_count("rows", rows)
    return -(-rows * sum(bits) // 8)


def narrowest_dtype(bits: Sequence[int]) -> np.dtype[np.unsignedinteger]:
    """The smallest of uint8, uint16 and uint32 that holds the widest field.

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
        CodeOutOfRange: a value is below 0 or needs more than its field's bits; or `rows` holds something else than integers.

    Source: docs/format.md, "Coding: fixed".
    """
    rows = np.ascontiguousarray(check_range(rows, bits))
    n = len(rows)
    whole = _machine_type(bits)
    if whole is not None:
        return rows.astype(whole).tobytes()
    out = np.zeros(
        (-(-n // 8), sum(bits) + 4), np.uint8
    )  # eight rows fill sum(bits) whole bytes; 4 more for the last field's spill
    groups = np.zeros((len(out), 8, len(bits)), np.uint64)
    groups.reshape(-1, len(bits))[:n] = rows
    for row, field, at, width in _places(bits):
        value = groups[:, row, field] << np.uint64(at % 8)
        for byte in range(-(-(at % 8 + width) // 8)):
            out[:, at // 8 + byte] |= (value >> np.uint64(8 * byte)).astype(np.uint8)
    return out[:, : sum(bits)].tobytes()[: packed_size(n, bits)]


def unpack_fixed(data: bytes | memoryview, rows: int, bits: Sequence[int]) -> NDArray[np.unsignedinteger]:
    """Inverse of `pack_fixed`.

    Returns:
        [rows, m] of the narrowest of uint8, uint16, uint32 that holds the widest field; writable.

    Raises:
        CodeOutOfRange: `data` has another length than `packed_size(rows, bits)`, or its unused high bits are not zero.
    """
    check_bytes(data)
    if len(data) != packed_size(rows, bits):
        raise CodeOutOfRange(f"{rows} rows of {sum(bits)} bits are {packed_size(rows, bits)} bytes; found {len(data)}")
    kind, whole = narrowest_dtype(bits), _machine_type(bits)
    if whole is not None:
        return np.frombuffer(data, whole).reshape(rows, len(bits)).astype(kind)
    spare = 8 * len(data) - rows * sum(bits)
    if spare and data[-1] >> (8 - spare):
        raise CodeOutOfRange(f"the {spare} unused high bits of the last byte are not zero: the stream is damaged")
    filled = np.zeros((-(-rows // 8), sum(bits)), np.uint8)
    filled.reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
    filled = np.pad(filled, ((0, 0), (0, 4)))
    out = np.empty((len(filled), 8, len(bits)), kind)
    if len(bits) > _LOOPED and len(bits) > len(filled):  # of many fields and few rows the loop below would take minutes
        _unpack_wide(filled, bits, out)
        return out.reshape(-1, len(bits))[:rows].copy()
    for row, field, at, width in _places(bits):
        value = np.zeros(len(filled), np.uint64)
        for byte in range(-(-(at % 8 + width) // 8)):
            value |= filled[:, at // 8 + byte].astype(np.uint64) << np.uint64(8 * byte)
        out[:, row, field] = (value >> np.uint64(at % 8)) & np.uint64((1 << width) - 1)
    return out.reshape(-1, len(bits))[:rows].copy()


def _unpack_wide(filled: NDArray[np.uint8], bits: Sequence[int], out: NDArray[np.unsignedinteger]) -> None:
    """Many fields at a time: `filled` [groups, bytes of eight rows and 4 more] -> `out` [groups, 8, m]."""
    widths = np.asarray(bits, np.int64)
    start, piece = np.cumsum(widths) - widths, max(1, _PIECE // max(1, len(filled)))
    for row in range(8):
        for at in range(0, len(bits), piece):
            some = slice(at, at + piece)
            bit = row * int(widths.sum()) + start[some]
            value = np.zeros((len(filled), len(bit)), np.uint64)
            for byte in range(5):  # a field of 32 bits may begin at the last bit of a byte
                reached = bit // 8 + byte
                value |= filled[:, np.minimum(reached, filled.shape[1] - 1)].astype(np.uint64) << np.uint64(8 * byte)
            mask = (np.uint64(1) << widths[some].astype(np.uint64)) - np.uint64(1)
            out[:, row, some] = (value >> (bit % 8).astype(np.uint64)) & mask


def _machine_type(bits: Sequence[int]) -> np.dtype[np.unsignedinteger] | None:
    """uint8, uint16 or uint32, little endian, where every field has just that width: then packing is a copy."""
    if len(set(bits)) != 1 or bits[0] not in (8, 16, 32):
        return None
    return np.dtype(f"<u{bits[0] // 8}")


def _places(bits: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """(row, field, first bit, width) of every field of eight rows."""
    places, at = [], 0
    for row in range(8):
        for field, width in enumerate(bits):
            places.append((row, field, at, width))
            at += width
    return places


def check_range(rows: NDArray[np.integer], bits: Sequence[int], name: str = "rows") -> NDArray[np.integer]:
    """`rows`, where it is [n, m] integers and every value fits its field's width.

    Raises:
        CodeOutOfRange: otherwise.
    """
    check_widths(bits)
    rows = integers(name, rows, 2)
    if rows.shape[1] != len(bits):
        raise CodeOutOfRange(f"{name} have shape {rows.shape}; the widths name {len(bits)} fields")
    lows = rows.min(0, initial=0) if rows.dtype.kind == "i" else ()
    for field, low in enumerate(lows):
        if low < 0:
            raise CodeOutOfRange(
                f"value {low} at row {int(rows[:, field].argmin())}, field {field} is below 0; only 0 and above can be packed"
            )
    for field, top in enumerate(rows.max(0, initial=0).tolist()):
        if top >> bits[field]:
            at = int(rows[:, field].argmax())
            raise CodeOutOfRange(
                f"value {top} at row {at}, field {field} needs {top.bit_length()} bits, the stream has {bits[field]}; "
                f"pack with bits >= {top.bit_length()}"
            )
    return rows


def integers(name: str, values: Any, axes: int) -> NDArray[Any]:
    """`values` as an array of integers of so many axes; CodeOutOfRange where it is none."""
    try:
        found = np.asarray(values)
    except ValueError:  # lists of several lengths
        found = np.empty(0, object)
    if found.dtype.kind not in "iu" or found.ndim != axes:
        raise CodeOutOfRange(
            f"{name} are {type(values).__name__} of {found.dtype} {list(found.shape)}; they must be integers of {axes} axes"
        )
    return found


def check_widths(bits: Sequence[int]) -> None:
    """CodeOutOfRange where a field's width is not a whole number in 1..32."""
    good = (
        isinstance(bits, Sequence)
        and set(map(type, bits)) <= {int}
        and 1 <= min(bits, default=1) <= max(bits, default=1) <= MAX_BITS
    )
    if not good:
        raise CodeOutOfRange(f"field widths are {str(bits)[:80]}; each must be 1..{MAX_BITS} bits, a whole number")


def check_count(name: str, value: int, least: int = 0) -> None:
    """CodeOutOfRange where `value` is not a whole number from `least` on."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise CodeOutOfRange(f"{name} is {str(value)[:80]!r}; it must be a whole number, {least} or above")


def check_bytes(data: Any) -> None:
    """CodeOutOfRange where `data` is no bytes."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise CodeOutOfRange(f"data is {type(data).__name__}; it must be bytes")
