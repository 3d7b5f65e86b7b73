"""Bytes that a `.vql` takes besides its codes, columns and codec tensors: header area, padding, chunk tables and seal.

Codecs that must fit into a budget ask here instead of repeating the writer's constants. Source: docs/format.md,
"Layout" and "Streams".
"""

from vqlabel.container.layout import ALIGN, CHUNK_FIELDS, HEADER_RESERVED, HEADER_STEP, ITEM_BYTES, SEAL_BYTES

# Rows in a chunk by default. More rows make a smaller table, but a reader decodes more of them to return one.
CHUNK_ROWS = 4096
# Rows in a chunk of one field of a few bits, whose table would otherwise take as much as its rows.
NARROW_CHUNK_ROWS = 32_768
# Bytes of zeros behind a payload, at most; also the size of a compressed chunk of equal rows.
STREAM_PADDING = ALIGN
# Bytes of the chunk table for each chunk.
CHUNK_TABLE_ROW = CHUNK_FIELDS * ITEM_BYTES["U64"]
# Bytes of a file with one stream, without its rows, its table and tensors.
FILE_BYTES = HEADER_RESERVED + STREAM_PADDING + SEAL_BYTES
# Bytes that the header area grows by if many tensors and columns outgrow HEADER_RESERVED.
HEADER_GROWTH = HEADER_STEP
# Bytes that a zstd chunk of counts may take above its packed size: padding and a frame header. An allowance, not a
# bound: zstd is chosen if it makes the first chunk smaller, and later ones may be larger.
ZSTD_CHUNK_EXCESS = STREAM_PADDING + 32
