"""Rows of unsigned integers <-> byte planes compressed with zstd: for fields whose entropy is below their width."""

from collections.abc import Sequence

import numpy as np
import zstandard
from numpy.typing import NDArray

from vqlabel.bitstream.fixed import check_bytes, check_count, check_range, check_widths, narrowest_dtype
from vqlabel.errors import CodeOutOfRange, require


def planes_size(rows: int, bits: Sequence[int]) -> int:
    """Bytes before compression: every field takes ceil(width / 8) planes of `rows` bytes.

    Raises:
        CodeOutOfRange: `rows` is not a whole number from 0 on, or a width is not in 1..32.
    """
    check_widths(bits)
    check_count("rows", rows)
    return rows * sum(-(-width // 8) for width in bits)


def pack_planes(rows: NDArray[np.integer], bits: Sequence[int], level: int = 3) -> bytes:
    """Split each field into byte planes, low byte first, field after field, and compress them as one zstd frame.

    In a plane, bytes of the same kind are neighbours (for example the sign and exponent of one class): zstd's entropy
    coder needs that.

    Args:
        rows: [n, m] integers, field j in [0, 2**bits[j]).
        level: compression level of zstd, 1..22.

    Raises:
        CodeOutOfRange: a value is below 0 or needs more bits than its field has, or `rows` are not integers [n, m].
        UsageError: `level` is outside 1..22.

    Source: docs/format.md, "Coding: zstd".
    """
    rows = check_range(rows, bits)
    require(type(level) is int and 1 <= level <= zstandard.MAX_COMPRESSION_LEVEL, "level", level, "must be 1..22")
    planes = [(rows[:, j] >> (8 * b) & 0xFF).astype(np.uint8) for j, width in enumerate(bits) for b in range(-(-width // 8))]
    # The frame keeps its content size: the reader checks it before allocating.
    return zstandard.ZstdCompressor(level=level).compress(np.concatenate(planes).tobytes() if planes else b"")


def unpack_planes(data: bytes | memoryview, rows: int, bits: Sequence[int]) -> NDArray[np.unsignedinteger]:
    """Inverse of `pack_planes`: [rows, m] of the narrowest of uint8, uint16 and uint32; writable.

    Raises:
        CodeOutOfRange: the frame is damaged or has another size, or a value exceeds its field's width.
    """
    check_bytes(data)
    planes = np.frombuffer(inflate(data, planes_size(rows, bits)), np.uint8).reshape(planes_size(1, bits), rows)
    widths, dtype = np.asarray(bits), narrowest_dtype(bits)
    counts = -(-widths // 8)  # planes of each field
    first, columns = np.cumsum(counts) - counts, np.zeros((len(bits), rows), dtype)
    for b in range(
        int(counts.max(initial=0))
    ):  # all fields at once: with many fields and few rows, a loop over fields takes minutes
        with_byte = counts > b
        columns[with_byte] |= planes[first[with_byte] + b].astype(dtype) << dtype.type(8 * b)
    largest = columns.max(1, initial=0)
    too_wide = largest.astype(np.int64) >> widths != 0
    if too_wide.any():
        j = int(too_wide.argmax())
        raise CodeOutOfRange(f"field {j} has the value {largest[j]}, which exceeds its {bits[j]} bits: the stream is damaged")
    return np.ascontiguousarray(columns.T)


def inflate(data: bytes | memoryview, size: int) -> bytes:
    """Decompress one zstd frame of exactly `size` bytes with no data behind it.

    The declared size is compared first, because zstandard ignores `max_output_size` if a frame declares its own.

    Raises:
        CodeOutOfRange: the frame declares or contains another number of bytes, is damaged, or has data behind it.
    """
    try:
        declared = zstandard.frame_content_size(data)
        if declared != size:
            raise CodeOutOfRange(f"a zstd frame declares {declared} bytes, expected {size}: the stream is damaged")
        reader = zstandard.ZstdDecompressor().decompressobj(read_across_frames=False)
        out = reader.decompress(bytes(data))
        if len(out) != size or not reader.eof or reader.unused_data:
            raise CodeOutOfRange(f"a zstd frame contains {len(out)} of {size} bytes or has data behind it: the stream is damaged")
        return out
    except zstandard.ZstdError as error:
        raise CodeOutOfRange(f"a zstd frame cannot be read ({error}): the stream is damaged") from None
