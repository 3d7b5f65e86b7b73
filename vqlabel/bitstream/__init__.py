"""Unsigned integers <-> bytes. Numpy and zstandard only."""

from vqlabel.bitstream.ans import pack_ans, unpack_ans
from vqlabel.bitstream.fixed import narrowest, pack_fixed, packed_size, unpack_fixed
from vqlabel.bitstream.planes import pack_planes, planes_size, unpack_planes
from vqlabel.bitstream.ragged import counted_bits, join_counted, split_counted

__all__ = [
    "counted_bits", "join_counted", "narrowest", "pack_ans", "pack_fixed", "pack_planes", "packed_size", "planes_size", "split_counted",
    "unpack_ans", "unpack_fixed", "unpack_planes",
]  # fmt: skip
