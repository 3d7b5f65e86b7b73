"""The first bytes of a file -> what it is where its name promises something else, and the remedy. Nothing is decoded."""

import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vqlabel.errors import BadInput, BadLabels

HEAD_BYTES = 512  # enough for the "ustar" of a tar archive at byte 257


class FileType(NamedTuple):
    """What a file is, and what its owner should do."""

    what: str
    remedy: str


def _begins(*magic: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magic)


def _is_page(head: bytes) -> bool:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith((b"<!doctype html", b"<html", b"<head", b"<script"))


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else the last character is cut by HEAD_BYTES
            return False
        text = head[: error.start].decode()
    return bool(text) and not re.search(r"[\x00-\x08\x0e-\x1f\x7f]", text)


_SAVE = "save the labels with torch.save, numpy.save or safetensors"
_TYPES: tuple[tuple[Callable[[bytes], bool], FileType], ...] = (
    (lambda head: not head, FileType("an empty file (0 bytes)", "copy, download or write it again")),
    (
        _begins(b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/"),
        FileType("a Git-LFS pointer", "run `git lfs pull` in its repository to fetch the file itself"),
    ),
    (
        _is_page,
        FileType(
            "an HTML page", "the download gave a web page instead of the file: download it again, logged in or past the warning"
        ),
    ),
    (
        _begins(b"\x00\x05\x16\x07", b"\x00\x05\x16\x00"),
        FileType("a macOS sidecar file (AppleDouble, ._NAME)", "it holds no data: name the file without ._, and delete this one"),
    ),
    (_begins(b"\x1f\x8b"), FileType("a gzip file", "decompress it first: gunzip")),
    (_begins(b"BZh"), FileType("a bzip2 file", "decompress it first: bunzip2")),
    (_begins(b"\xfd7zXZ\x00"), FileType("an xz file", "decompress it first: unxz")),
    (_begins(b"\x28\xb5\x2f\xfd"), FileType("a zstd file", "decompress it first: zstd -d")),
    (_begins(b"7z\xbc\xaf\x27\x1c", b"Rar!"), FileType("a 7z or RAR archive", "extract it, and name what is inside")),
    (lambda head: head[257:262] == b"ustar", FileType("a tar archive", "extract it, and name what is inside")),
    (_begins(b"\x93NUMPY"), FileType("a .npy file", "give it the suffix .npy")),
    (lambda head: head[8:10] == b'{"' and not any(head[5:8]), FileType("a .safetensors file", "give it the suffix .safetensors")),
    (_begins(b"\x89HDF\r\n\x1a\n"), FileType("an HDF5 file", "give it the suffix .h5")),
    (_begins(b"PAR1"), FileType("a Parquet file", "give it the suffix .parquet")),
    (_begins(b"ARROW1"), FileType("an Arrow file", "give it the suffix .arrow")),
    (_begins(b"\xff\xd8\xff", b"\x89PNG", b"GIF8"), FileType("an image", "name the labels, not the images")),
    (_begins(b"%PDF"), FileType("a PDF document", _SAVE)),
    (_begins(b"PK\x03\x04", b"PK\x05\x06"), FileType("a zip archive", "extract it, and name what is inside")),
    (
        lambda head: not any(head),
        FileType("a file of zero bytes only", "its content was never written or copied: copy or download it again"),
    ),
    (lambda head: _is_text(head) and head.lstrip()[:1] in (b"{", b"["), FileType("a JSON text", _SAVE)),
    (lambda head: _is_text(head) and head[:1] == b"<", FileType("an XML document", _SAVE)),
    (_is_text, FileType("a text file", _SAVE)),
)
_OWN = {  # what a file of this suffix is
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
    """What a file is that begins with `head`, its first HEAD_BYTES bytes or all of a shorter one; None: unknown."""
    return next((found for matches, found in _TYPES if matches(head)), None)


def mistaken(path: Path, wanted: str) -> str | None:
    """The refusal of a file that could not be read as `wanted`, such as "a torch.save file", where its first bytes tell what it is instead."""
    with path.open("rb") as file:
        found = identify(file.read(HEAD_BYTES))
    return (
        None
        if found is None or found.what in _OWN.get(path.suffix, ())
        else f"{path}: is {found.what}, not {wanted}; {found.remedy}"
    )


def read_text(path: Path) -> str:
    """All of a regular text file, UTF-8, line ends as they are.

    Raises:
        BadLabels: it is a pipe, a device or a folder.
        OSError, UnicodeDecodeError: it cannot be read, or is no text.
    """
    require_regular(path)
    return path.read_bytes().decode()


def is_sidecar(path: Path) -> bool:
    """Whether a name is that of a file in which macOS keeps what another file system has no place for, beside the file that it is about."""
    return path.name.startswith("._")


def require_regular(path: Path, error: type[BadInput] = BadLabels) -> None:
    """Refuse named pipes, sockets, devices and folders before they are opened: a pipe without a writer blocks for ever, /dev/zero never ends.

    Raises:
        BadInput: `path`, or what it links to, is not a regular file; of the type `error`.
        FileNotFoundError: there is none.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise error(
            f"{path}: is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file; name a regular file, or copy its content into one"
        )
