"""Named, checked byte sections <-> one `.vql` file: docs/format.md. Standard library, numpy and zstandard."""

from vqlabel.container.header import Section
from vqlabel.container.reader import ContainerReader
from vqlabel.container.recognize import is_codec_file
from vqlabel.container.stream import Stream
from vqlabel.container.strict_json import canonical
from vqlabel.container.verify import verify
from vqlabel.container.writer import ContainerWriter

__all__ = ["ContainerReader", "ContainerWriter", "Section", "Stream", "canonical", "is_codec_file", "verify"]
