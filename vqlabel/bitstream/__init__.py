"""Unsigned integers <-> bytes. Numpy and zstandard only."""

from vqlabel.bitstream.ans import pack_ans, unpack_ans
from vqlabel.bitstream.codings import ANS, CODINGS, FIXED, ZSTD, Coding
from vqlabel.bitstream.fixed import narrowest_dtype, pack_fixed, packed_size, unpack_fixed
from vqlabel.bitstream.planes import pack_planes, planes_size, unpack_planes
from vqlabel.bitstream.ragged import join_ragged, split_ragged, stored_count_bits

__all__ = [
    "ANS", "CODINGS", "FIXED", "ZSTD", "Coding", "join_ragged", "narrowest_dtype", "pack_ans", "pack_fixed", "pack_planes",
    "packed_size", "planes_size", "split_ragged", "stored_count_bits", "unpack_ans", "unpack_fixed", "unpack_planes",
]  # fmt: skip
