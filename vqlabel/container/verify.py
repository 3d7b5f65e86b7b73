"""A `.vql` file -> whether every byte of it is intact: all checksums, all padding, all values within their widths."""

import hashlib
from os import PathLike

from vqlabel.container.layout import SEAL
from vqlabel.container.reader import ContainerReader
from vqlabel.errors import BadContainer
from vqlabel.storage.bytes import READ_BYTES


def verify(path: str | PathLike[str]) -> dict[str, int]:
    """Read and check every byte of a `.vql` file.

    Returns:
        bytes, tensors, streams and chunks that were checked.

    Raises:
        UsageError: no such file.
        BadContainer: anything in it is damaged.
    """
    reader = ContainerReader(path)
    for name in reader.sections:
        if name in reader.streams:
            _verify_stream(reader, name)
        elif name != SEAL:
            reader.tensor(name)
    chunks = sum(stream.chunks for stream in reader.streams.values())
    return {"bytes": reader.size, "tensors": len(reader.sections), "streams": len(reader.streams), "chunks": chunks}


def _verify_stream(reader: ContainerReader, name: str) -> None:
    section, digest = reader.sections[name], hashlib.sha256()
    for start in range(section.start, section.stop, READ_BYTES):
        digest.update(reader.read_at(start, min(READ_BYTES, section.stop - start)))
    if digest.hexdigest() != reader.sums[name]:
        raise BadContainer(f"{reader.path}: stream {name!r} does not match its sha256; the file is damaged: copy it again")
    for number in range(reader.streams[name].chunks):
        reader.read_chunk(name, number)
