"""Unsigned integers <-> bytes. Numpy and zstandard only."""

from vqlabel.bitstream.ans import pack_ans, unpack_ans
from vqlabel.bitstream.counted import counted_bits, join_counted, split_counted
from vqlabel.bitstream.fixed import narrowest, pack_fixed, packed_size, unpack_fixed
from vqlabel.bitstream.planes import pack_planes, planes_size, unpack_planes
from vqlabel.bitstream.usage import Usage

__all__ = [
    "Usage", "counted_bits", "join_counted", "narrowest", "pack_ans", "pack_fixed", "pack_planes", "packed_size", "planes_size", "split_counted",
    "unpack_ans", "unpack_fixed", "unpack_planes",
]  # fmt: skip
