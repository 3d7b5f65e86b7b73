"""Coding objects: the ways to store a chunk of rows of unsigned integers. Each one knows its size, packs and unpacks.

Source: docs/format.md, "Streams".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqlabel.bitstream.ans import pack_ans, unpack_ans
from vqlabel.bitstream.fixed import pack_fixed, packed_size, unpack_fixed
from vqlabel.bitstream.planes import pack_planes, planes_size, unpack_planes

Widths = Sequence[int]  # [m] width of every field in bits, 1..32


@dataclass(frozen=True, kw_only=True)
class Coding:
    """One way to store rows [n, m] of unsigned integers as bytes.

    Attributes:
        name: in `vql.streams`; published, so it never changes.
        compressed: whether the stored size depends on the values, not on the number of rows and the widths alone.
        raw_size: rows, widths -> bytes before compression: byte planes if compressed, else packed bits.
        pack: rows [n, m] integers, widths -> bytes; CodeOutOfRange if a value does not fit its field.
        unpack: bytes, number of rows, widths -> rows [n, m] of the narrowest unsigned type; CodeOutOfRange if the bytes
            are damaged.
        entropy_coder: whether the bits of a code depend on its frequency, so that a rate is measured, not computed.
    """

    name: str
    compressed: bool
    raw_size: Callable[[int, Widths], int]
    pack: Callable[[NDArray[np.integer], Widths], bytes]
    unpack: Callable[[bytes | memoryview, int, Widths], NDArray[np.unsignedinteger]]
    entropy_coder: bool = False

    def allows(self, stored: int, raw: int) -> bool:
        """Whether a chunk of `raw` bytes before compression may take `stored` bytes; incompressible data grows."""
        return 0 < stored <= raw + (raw >> 3) + 4096 if self.compressed else stored == raw


FIXED = Coding(name="fixed", compressed=False, raw_size=packed_size, pack=pack_fixed, unpack=unpack_fixed)
ZSTD = Coding(name="zstd", compressed=True, raw_size=planes_size, pack=pack_planes, unpack=unpack_planes)
ANS = Coding(name="ans", compressed=True, raw_size=planes_size, pack=pack_ans, unpack=unpack_ans, entropy_coder=True)
CODINGS = {coding.name: coding for coding in (FIXED, ZSTD, ANS)}
