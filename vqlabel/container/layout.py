"""docs/format.md as constants: names, and the limits that a reader enforces before it trusts a size."""

import re

from vqlabel.dtypes import numpy_type

FORMAT = "vql"
VERSION = (1, 0)  # major, minor
# Features in `vql.requires` that this reader supports.
FEATURES = frozenset({"variable_slots", "seeded_views", "view_columns", "sigmoid_labels", "documents"})

SEAL = "vql.seal"  # the last tensor: sha256 of the header area
SEAL_BYTES = 32
CHUNKS = ".chunks"  # stream "codes" has its chunk table in the tensor "codes.chunks"
CHUNK_FIELDS = 6  # numbers in a row of a chunk table: see `chunks.Chunk`
NAME = re.compile(r"[a-z0-9_.]{1,128}")  # of a tensor
ITEM_BYTES = {
    name: numpy_type(name).itemsize for name in ("U8", "I8", "F16", "BF16", "F32", "U64")
}  # of the types that tensors may have

HEADER_STEP = 4096  # bytes; the header area is a multiple of it, so that payloads start on a page
HEADER_RESERVED = 8192  # bytes reserved in front of the streams; a larger header moves them, which copies the file once
ALIGN = 64  # bytes; a compressed chunk, and the payload of a stream, is padded with zeros to a multiple of it

# Limits. Larger values would let a small forged file claim more memory or time; smaller ones would refuse files that
# users make.
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 4096
MAX_CHUNKS = 1 << 26  # of a stream
MAX_CHUNK_ROWS = 1 << 16  # a chunk takes 112 bytes of a file or more, so no byte of a file stands for more than 585 rows
MAX_CHUNK_BYTES = 64 << 20  # of one chunk before compression: what a reader allocates for it
MAX_RANK = 8  # axes of a tensor
MAX_JSON_DEPTH = 8  # levels of the header, and of each JSON value in it
MAX_INTEGER = (1 << 53) - 1  # in the header: larger ones are not exact in JSON readers that use float64
MAX_FIELDS = 1 << 21  # of one stream: two for each of the 2^20 classes that a label may have
MAX_FILE_FIELDS = 1 << 22  # of all streams of a file: a few bytes of header can declare many
