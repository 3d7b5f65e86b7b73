"""Bytes that a `.vql` takes besides its codes, columns and codec tensors: header area, padding, chunk tables and seal.

Codecs that must fit into a budget ask here instead of repeating the writer's constants. Source: docs/format.md,
"Layout" and "Streams".
"""

from vqlabel.container.layout import ALIGN, CHUNK_FIELDS, HEADER_RESERVED, HEADER_STEP, ITEM_BYTES, SEAL_BYTES

CHUNK_ROWS = 4096  # rows in a chunk by default; more make a smaller table, but a reader decodes more rows to return one
NARROW_CHUNK_ROWS = 32_768  # rows in a chunk of one field of a few bits, whose table would take as much as its rows
STREAM_PADDING = ALIGN  # bytes of zeros behind a payload, an upper bound; also the size of a compressed chunk of equal rows
CHUNK_TABLE_ROW = CHUNK_FIELDS * ITEM_BYTES["U64"]  # bytes a chunk
FILE_BYTES = HEADER_RESERVED + STREAM_PADDING + SEAL_BYTES  # of a file with one stream of fixed width, without chunks and tensors
HEADER_GROWTH = HEADER_STEP  # bytes that the header area grows by if many tensors and columns outgrow HEADER_RESERVED
ZSTD_CHUNK_EXCESS = (
    STREAM_PADDING + 32
)  # bytes that a zstd chunk may exceed its packed size by: padding, frame header and incompressible data
