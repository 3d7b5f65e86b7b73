"""Named, checked byte sections <-> one `.vql` file: docs/format.md. Standard library, numpy and zstandard."""

from vqlabel.container.layout import Stream
from vqlabel.container.reader import ContainerReader, Section, is_codec_file, verify
from vqlabel.container.writer import ContainerWriter, canonical

__all__ = ["ContainerReader", "ContainerWriter", "Section", "Stream", "canonical", "is_codec_file", "verify"]
