"""The first bytes of a file -> its type if its name suggests another one, and the remedy. Nothing is decoded."""

import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vqlabel.errors import BadInput, BadLabels

HEAD_BYTES = 512  # enough for the "ustar" of a tar archive at byte 257


class FileType(NamedTuple):
    """A type of file, and what the user should do who has it in the place of labels."""

    what: str  # with its article: "a gzip file"
    remedy: str  # an instruction: "decompress it first: gunzip"


def _starts_with(*magic: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magic)


def _is_page(head: bytes) -> bool:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith((b"<!doctype html", b"<html", b"<head", b"<script"))


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else HEAD_BYTES cuts the last character
            return False
        text = head[: error.start].decode()
    return bool(text) and not re.search(r"[\x00-\x08\x0e-\x1f\x7f]", text)


_SAVE = "save the labels with torch.save, numpy.save or safetensors"
_TYPES: tuple[tuple[Callable[[bytes], bool], FileType], ...] = (
    (lambda head: not head, FileType("an empty file (0 bytes)", "copy, download or write it again")),
    (
        _starts_with(b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/"),
        FileType("a Git-LFS pointer", "run `git lfs pull` in its repository to fetch the file itself"),
    ),
    (
        _is_page,
        FileType(
            "an HTML page",
            "the download returned a web page instead of the file: download it again, after logging in or confirming the warning",
        ),
    ),
    (
        _starts_with(b"\x00\x05\x16\x07", b"\x00\x05\x16\x00"),
        FileType(
            "a macOS sidecar file (AppleDouble, ._NAME)", "it contains no data: name the file without ._, and delete this one"
        ),
    ),
    (_starts_with(b"\x1f\x8b"), FileType("a gzip file", "decompress it first: gunzip")),
    (_starts_with(b"BZh"), FileType("a bzip2 file", "decompress it first: bunzip2")),
    (_starts_with(b"\xfd7zXZ\x00"), FileType("an xz file", "decompress it first: unxz")),
    (_starts_with(b"\x28\xb5\x2f\xfd"), FileType("a zstd file", "decompress it first: zstd -d")),
    (_starts_with(b"7z\xbc\xaf\x27\x1c", b"Rar!"), FileType("a 7z or RAR archive", "extract it, and name its content")),
    (lambda head: head[257:262] == b"ustar", FileType("a tar archive", "extract it, and name its content")),
    (_starts_with(b"\x93NUMPY"), FileType("a .npy file", "give it the suffix .npy")),
    (lambda head: head[8:10] == b'{"' and not any(head[5:8]), FileType("a .safetensors file", "give it the suffix .safetensors")),
    (_starts_with(b"\x89HDF\r\n\x1a\n"), FileType("an HDF5 file", "give it the suffix .h5")),
    (_starts_with(b"PAR1"), FileType("a Parquet file", "give it the suffix .parquet")),
    (_starts_with(b"ARROW1"), FileType("an Arrow file", "give it the suffix .arrow")),
    (_starts_with(b"\xff\xd8\xff", b"\x89PNG", b"GIF8"), FileType("an image", "name the labels, not the images")),
    (_starts_with(b"%PDF"), FileType("a PDF document", _SAVE)),
    (_starts_with(b"PK\x03\x04", b"PK\x05\x06"), FileType("a zip archive", "extract it, and name its content")),
    (
        lambda head: not any(head),
        FileType("a file of zero bytes only", "its content was never written or copied: copy or download it again"),
    ),
    (lambda head: _is_text(head) and head.lstrip()[:1] in (b"{", b"["), FileType("a JSON text", _SAVE)),
    (lambda head: _is_text(head) and head[:1] == b"<", FileType("an XML document", _SAVE)),
    (_is_text, FileType("a text file", _SAVE)),
)
_BY_SUFFIX = {  # types that a suffix stands for
    ".npy": ("a .npy file",),
    ".npz": ("a zip archive",),
    ".safetensors": ("a .safetensors file",),
    ".json": ("a JSON text", "a text file"),
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), ("an HDF5 file",)),
    **dict.fromkeys((".parquet", ".pq"), ("a Parquet file",)),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), ("an Arrow file",)),
    ".tar": ("a tar archive",),
}


def identify(head: bytes) -> FileType | None:
    """The type of a file, from its first bytes.

    Args:
        head: the first HEAD_BYTES bytes, or all of a shorter file.

    Returns:
        None if the type is unknown.
    """
    return next((file_type for matches, file_type in _TYPES if matches(head)), None)


def foreign_file_message(path: Path, expected: str) -> str | None:
    """The error message for a file that could not be read as the expected type.

    Args:
        expected: with its article, such as "a torch.save file".

    Returns:
        None if the first bytes identify no other type than the suffix does.
    """
    with path.open("rb") as file:
        file_type = identify(file.read(HEAD_BYTES))
    if file_type is None or file_type.what in _BY_SUFFIX.get(path.suffix, ()):
        return None
    return f"{path}: is {file_type.what}, not {expected}; {file_type.remedy}"


def read_text(path: Path) -> str:
    """The content of a regular UTF-8 text file, with its line ends unchanged.

    Raises:
        BadLabels: it is a pipe, a device or a folder.
        OSError, UnicodeDecodeError: it cannot be read, or is not UTF-8 text.
    """
    require_regular(path)
    return path.read_bytes().decode()


def is_sidecar(path: Path) -> bool:
    """Whether a file is an AppleDouble file by its name: ._NAME, in which macOS keeps the attributes of NAME."""
    return path.name.startswith("._")


def require_regular(path: Path, error: type[BadInput] = BadLabels) -> None:
    """Refuse named pipes, sockets, devices and folders before they are opened.

    A pipe without a writer blocks forever, and /dev/zero never ends.

    Args:
        error: type of the error to raise.

    Raises:
        BadInput: `path`, or the target of the link, is not a regular file.
        FileNotFoundError: it does not exist.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise error(
            f"{path}: is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file; name a regular file, or copy its content into one"
        )
