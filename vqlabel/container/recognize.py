"""The first bytes of a file -> whether it is a codec file, or another known type in the place of a `.vql`."""

from os import PathLike
from pathlib import Path

from vqlabel.storage.filetypes import HEAD_BYTES, identify

CODEC_FILE = b'{"__metadata__":{"vqlabel.codec"'  # start of a codec file's header, behind its 8 bytes of length


def is_codec_file(path: str | PathLike[str]) -> bool:
    """Whether a file starts as codec files do; False if it does not exist."""
    file = Path(path)
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(8 + len(CODEC_FILE))[8:] == CODEC_FILE


def foreign_type(start: bytes) -> str | None:
    """The type of a file that is not a `.vql`, and what to do with it, for messages.

    Args:
        start: the first HEAD_BYTES bytes or more, or all of a shorter file.

    Returns:
        None if the type is unknown or the file may be a `.vql`.
    """
    if start[8:].startswith(CODEC_FILE):
        return "a codec file; `vqlabel info` shows it, `vqlabel pack --codec` encodes with it"
    file_type = identify(start[:HEAD_BYTES])
    if file_type is None or (file_type.what == "a .safetensors file" and b'"vql' in start):
        return None
    if file_type.what in ("a .npy file", "a zip archive", "a .safetensors file"):
        return f"{file_type.what}; `vqlabel pack` makes a .vql of the labels in it"
    return f"{file_type.what}; {file_type.remedy}"
