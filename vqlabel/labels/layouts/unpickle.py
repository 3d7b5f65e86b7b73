"""torch.save files and plain pickles -> tensors, NumPy arrays, numbers, strings and containers; no code is run.

torch.load is not used: with weights_only=True it rejects pickles of protocols 4 and 5, does not check the crc32 of the
members of a file, and returns uninitialised memory if a file of the older format is truncated. What a pickle may name
is in `pickle_names` and `torch_tensors`; this module finds the bytes of the storages:

zip (torch 1.6 and later)   NAME/data.pkl, NAME/data/KEY for every storage, NAME/byteorder; nothing is compressed
older                       pickles of a magic number, a version, properties of the machine, the object and its
                            storage keys;
                            then for each key the number of values, int64, and the values
"""

import io
import sys
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vqlabel.errors import BadLabels
from vqlabel.labels.layouts.pickle_names import Refused
from vqlabel.labels.layouts.torch_tensors import TorchMachine
from vqlabel.storage.filetypes import HEAD_BYTES, identify, require_regular

if TYPE_CHECKING:
    import torch

EXPECTED = "a torch.save file or a pickle"
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of torch's older format
CHUNK_BYTES = 1 << 20  # read at a time


def unpickle(path: Path) -> Any:
    """Load a torch.save file of any version, or a pickle of protocol 0 to 5.

    Arrays and tensors are writable, on the CPU, and in native byte order; subclasses of dict become dicts, and paths
    strings.

    Raises:
        BadLabels: the file is damaged, is of another type, or uses anything that is not allowed (which is never run).
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            return _load(file, path.stat().st_size, nested=False)
    except BadLabels:
        raise
    except Refused as error:
        raise BadLabels(f"{path}: {error}") from None
    except OSError as error:
        raise BadLabels(f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions") from None
    except zipfile.BadZipFile as error:
        raise BadLabels(
            f"{path}: damaged torch.save file ({str(error)[:200]}); it is truncated or altered: copy or regenerate it"
        ) from None
    except Exception as error:  # forged objects make NumPy, torch and zipfile raise nearly anything, even MemoryError
        raise BadLabels(f"{path}: damaged pickle ({str(error)[:200]}); copy or regenerate the file") from None


def _load(file: IO[bytes], size: int, *, nested: bool) -> Any:
    """The object in a file of `size` bytes; `nested`: the file is itself inside a pickle."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if head.startswith(b"PK\3\4"):
        return _load_zip(file, size, nested)
    kind = None if head.startswith(b"\x80") else identify(head)
    if kind is not None:
        raise Refused(f"is {kind.what}, not {EXPECTED}; {kind.remedy}")
    stream = _Bounded(file, size)
    value = _machine(size, None, nested).load(stream)
    if type(value) is int and value == MAGIC:
        return _load_older(stream, size, nested)
    if stream.left():
        raise ValueError(f"{stream.left()} bytes behind its end")
    return value


def _machine(size: int, read_storage: Any, nested: bool) -> TorchMachine:
    load_nested = None if nested else lambda data: _load(io.BytesIO(data), len(data), nested=True)
    return TorchMachine(size, read_storage, load_nested)


class _Bounded:
    """A file that is read only up to its size: a forged length in a pickle must not allocate that much memory."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self._size = file, size

    def read(self, count: int, /) -> bytes:
        return self.file.read(count if count < CHUNK_BYTES else min(count, self.left()))

    def readline(self) -> bytes:
        return self.file.readline()

    def left(self) -> int:
        """Bytes that have not been read."""
        return self._size - self.file.tell()


def _load_zip(file: IO[bytes], size: int, nested: bool) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        top = _top_folder(archive, members, size)
        swap = f"{top}byteorder" in members and archive.read(f"{top}byteorder").decode() != sys.byteorder

        def read_storage(key: str, length: int, width: int) -> "torch.Tensor":
            name = f"{top}data/{key}"
            if name not in members or members[name].file_size != length:
                raise ValueError(f"storage {key[:20]} is not in the file, or has another size")
            storage = _empty_bytes(length)
            with archive.open(name) as member:  # compares the crc32 at its end
                _fill(member, storage)
            if swap and width > 1:
                storage.numpy().view(f"u{width}").byteswap(inplace=True)
            return storage

        return _machine(size, read_storage, nested).load(io.BytesIO(archive.read(f"{top}data.pkl")))


def _top_folder(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], size: int) -> str:
    """The folder that contains data.pkl, with its slash.

    Raises:
        Refused: torch.save does not write such archives.
    """
    tops = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(tops) != 1 or len(members) != len(archive.infolist()):
        shown = ", ".join(sorted(members)[:3])
        raise Refused(f"is a zip archive ({shown}), not {EXPECTED}; extract it, and pass one of the files in it")
    if f"{tops[0]}constants.pkl" in members:
        raise Refused(f"is a TorchScript program, not {EXPECTED}; save the labels alone, as tensors or NumPy arrays")
    total = sum(member.file_size for member in members.values())
    if total > size or any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
        raise Refused(
            f"its members are compressed, or have more bytes ({total}) than the file ({size}); torch.save never writes such files"
        )
    return tops[0]


def _load_older(stream: _Bounded, size: int, nested: bool) -> Any:
    version, system = _machine(size, None, nested).load(stream), _machine(size, None, nested).load(stream)
    if version != VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("of another version of torch.save, or of a big-endian machine")
    storages: dict[str, tuple[torch.Tensor, int]] = {}  # with the bytes per value

    def reserve_storage(key: str, length: int, width: int) -> "torch.Tensor":
        """A storage that is filled when all keys are known."""
        if sum(len(storage) for storage, _ in storages.values()) + length > size:
            raise ValueError("its storages are larger than the file")
        storages[key] = _empty_bytes(length), width
        return storages[key][0]

    value = _machine(size, reserve_storage, nested).load(stream)
    keys = _machine(size, None, nested).load(stream)
    if not isinstance(keys, list) or len(keys) != len(storages) or set(keys) != set(storages):
        raise ValueError("the storages that it lists are not those of its tensors")
    for key in keys:
        storage, width = storages[key]
        if int.from_bytes(stream.read(8), "little") * width != len(storage):
            raise ValueError(f"storage {str(key)[:20]} has another size")
        _fill(stream.file, storage)
    return value


def _empty_bytes(length: int) -> "torch.Tensor":
    import torch

    return torch.empty(length, dtype=torch.uint8, device="cpu")


def _fill(file: IO[bytes], storage: "torch.Tensor") -> None:
    """Read the bytes of a storage, uint8 [bytes].

    Raises:
        ValueError: the file ends before.
    """
    view, filled = memoryview(storage.numpy().data), 0
    while filled < len(view):
        data = file.read(min(CHUNK_BYTES, len(view) - filled))
        if not data:
            raise ValueError(f"a storage of {len(view)} bytes ends after {filled}")
        view[filled : filled + len(data)] = data
        filled += len(data)
