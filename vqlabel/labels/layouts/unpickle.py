"""torch.save files and plain pickles -> tensors, NumPy arrays, numbers, strings and containers. Nothing that they name is run.

torch.load is not used: its safe mode takes no pickle of protocol 4 or 5, leaves the crc32 of a file's members unread, and leaves memory as it
was where an older file lacks what it lists. What a pickle may name is in `labels/pickles.py`; here are torch's tensors, and where their
numbers lie:

zip (torch 1.6 and later)   NAME/data.pkl, NAME/data/KEY for every storage, NAME/byteorder; nothing is compressed
older                       pickles of a magic number, a version, a description of the machine, the object and the keys of its storages,
                            then for each key its length, int64, in numbers, and the numbers
"""

import io
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vqlabel.errors import BadLabels
from vqlabel.labels.layouts.pickles import Machine, Refused, Token, own_names
from vqlabel.storage.filetypes import HEAD_BYTES, identify, require_regular

if TYPE_CHECKING:
    import torch

WANTED = "a torch.save file or a pickle"
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of torch's older format
CHUNK = 1 << 20
_OF_STORAGE = {
    "Half": "float16", "BFloat16": "bfloat16", "Float": "float32", "Double": "float64", "Bool": "bool", "Byte": "uint8", "Char": "int8",
    "Short": "int16", "Int": "int32", "Long": "int64", "ComplexFloat": "complex64", "ComplexDouble": "complex128", "Untyped": "uint8",
}  # fmt: skip


def unpickle(path: Path) -> Any:
    """Load a torch.save file of any version, or a pickle of protocol 0 to 5. Arrays and tensors are writable, on the CPU, and of this machine's byte
    order; subclasses of dict are dicts, paths are strings.

    Raises:
        BadLabels: the file is damaged, is of another kind, or asks for anything else (which is never run).
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
    except Exception as error:  # forged objects make NumPy, torch and zipfile raise nearly anything, MemoryError among it
        raise BadLabels(f"{path}: damaged pickle ({str(error)[:200]}); copy or regenerate the file") from None


def _load(file: IO[bytes], size: int, *, nested: bool) -> Any:
    """The object in a file of `size` bytes; `nested`: which itself lies in a pickle, where torch puts a tensor that pickle.dump writes."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if head.startswith(b"PK\3\4"):
        return _load_zip(file, size, nested)
    kind = None if head.startswith(b"\x80") else identify(head)
    if kind is not None:
        raise Refused(f"is {kind.what}, not {WANTED}; {kind.remedy}")
    stream = _Bounded(file, size)
    found = _Torch(size, None, nested).load(stream)
    if type(found) is int and found == MAGIC:
        return _load_older(stream, size, nested)
    if stream.left():
        raise ValueError(f"{stream.left()} bytes behind its end")
    return found


class _Bounded:
    """A file that is asked for no more than it has: a length in a pickle is no reason to take that much memory."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self._size = file, size

    def read(self, count: int, /) -> bytes:
        return self.file.read(count if count < CHUNK else min(count, self.left()))

    def readline(self) -> bytes:
        return self.file.readline()

    def left(self) -> int:
        return self._size - self.file.tell()


def _fill(file: IO[bytes], storage: "torch.Tensor") -> None:
    """Read a storage, uint8 [bytes].

    Raises:
        ValueError: there is less to read.
    """
    view, at = memoryview(storage.numpy().data), 0
    while at < len(view):
        data = file.read(min(CHUNK, len(view) - at))
        if not data:
            raise ValueError(f"a storage of {len(view)} bytes ends after {at}")
        view[at : at + len(data)] = data
        at += len(data)


# --- where the numbers lie


def _load_zip(file: IO[bytes], size: int, nested: bool) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        total = sum(member.file_size for member in members.values())
        tops = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(tops) != 1 or len(members) != len(archive.infolist()):
            shown = ", ".join(sorted(members)[:3])
            raise Refused(f"is a zip archive ({shown}), not {WANTED}; extract it, and name what is inside")
        if f"{tops[0]}constants.pkl" in members:
            raise Refused(f"is a TorchScript program, not {WANTED}; save the labels alone, as tensors or NumPy arrays")
        if total > size or any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise Refused(
                f"its members are compressed, or expand to more ({total} bytes) than the file has ({size}); torch.save never does that"
            )
        swap = f"{tops[0]}byteorder" in members and archive.read(f"{tops[0]}byteorder").decode() != sys.byteorder

        def read(key: str, length: int, width: int) -> "torch.Tensor":
            name = f"{tops[0]}data/{key}"
            if name not in members or members[name].file_size != length:
                raise ValueError(f"storage {key[:20]} is not in the file, or has another size")
            storage = _bytes(length)
            with archive.open(name) as member:  # which compares the crc32 at its end
                _fill(member, storage)
            if swap and width > 1:
                storage.numpy().view(f"u{width}").byteswap(inplace=True)
            return storage

        return _Torch(size, read, nested).load(io.BytesIO(archive.read(f"{tops[0]}data.pkl")))


def _load_older(stream: _Bounded, size: int, nested: bool) -> Any:
    version, machine = _Torch(size, None, nested).load(stream), _Torch(size, None, nested).load(stream)
    if version != VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("of another version of torch.save, or of a big-endian machine")
    storages: dict[str, tuple[torch.Tensor, int]] = {}  # and the width of a number

    def promise(key: str, length: int, width: int) -> "torch.Tensor":
        """What is filled when all are known."""
        if sum(len(storage) for storage, _ in storages.values()) + length > size:
            raise ValueError("its storages are larger than the file")
        storages[key] = _bytes(length), width
        return storages[key][0]

    found = _Torch(size, promise, nested).load(stream)
    keys = _Torch(size, None, nested).load(stream)
    if not isinstance(keys, list) or len(keys) != len(storages) or set(keys) != set(storages):
        raise ValueError("the storages that it lists are not those of its tensors")
    for key in keys:
        storage, width = storages[key]
        if int.from_bytes(stream.read(8), "little") * width != len(storage):
            raise ValueError(f"storage {str(key)[:20]} has another size")
        _fill(stream.file, storage)
    return found


def _bytes(length: int) -> "torch.Tensor":
    import torch

    return torch.empty(length, dtype=torch.uint8, device="cpu")


# --- tensors


class _Storage:
    """A tensor's numbers: bytes, and their type."""

    def __init__(self, numbers: "torch.Tensor", dtype: "torch.dtype") -> None:
        self.bytes, self.dtype = numbers, dtype


class _Torch(Machine):
    """What loads a pickle of torch's.

    Args:
        read: key, length in bytes and width of a number in bytes -> a storage, uint8 [length]; None: there are none.
        nested: see `_load`.
    """

    def __init__(self, size: int, read: "Callable[[str, int, int], torch.Tensor] | None", nested: bool) -> None:
        super().__init__(size, _names(), self._storage)
        self._read, self.nested = read, nested
        self._storages: dict[str, tuple[_Storage, int]] = {}  # by key; and how many numbers its first user named

    def _storage(self, found: Any) -> _Storage:
        kind, token, key, _, count = found[:5]
        dtype = _dtype_of_storage(token)
        if (
            kind != "storage"
            or dtype is None
            or self._read is None
            or not isinstance(key, str)
            or type(count) is not int
            or count < 0
        ):
            raise ValueError("a persistent id that is no storage")
        if found[5:] not in ((), (None,)):
            raise ValueError("a view of a storage, as torch 0.1 saved it")
        if key not in self._storages:
            self._storages[key] = _Storage(self._read(key, count * dtype.itemsize, dtype.itemsize), dtype), count
        storage, first = self._storages[key]
        if (storage.dtype, first) != (dtype, count):
            raise ValueError("two storages of one key")
        return storage


def _rebuild(
    machine: _Torch, storage: Any, offset: Any, shape: Any, stride: Any, grad: Any = None, hooks: Any = None, metadata: Any = None
) -> "torch.Tensor":
    """A tensor of its storage's type."""
    return _rebuild_typed(machine, storage, offset, shape, stride, grad, hooks, getattr(storage, "dtype", None), metadata)


def _rebuild_typed(
    machine: _Torch, storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> "torch.Tensor":
    """A tensor of a type that may have no storages of its own."""
    import torch

    tensor = _strided(storage, offset, shape, stride, dtype)
    if not metadata:
        return tensor
    if not isinstance(metadata, dict) or metadata.get("conj") or not set(metadata) <= {"neg", "conj"}:
        raise ValueError("a conjugate, or a view of another kind")
    return torch._neg_view(tensor) if metadata.get("neg") else tensor


def _rebuild_from_type(machine: _Torch, build: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes, which are left away."""
    if not isinstance(build, Token) or build.call is None:
        raise ValueError("a tensor that nothing builds")
    return build.call(machine, *arguments)


def _from_bytes(machine: _Torch, data: Any) -> Any:
    """What torch.save wrote into a pickle."""
    if machine.nested or not isinstance(data, bytes | bytearray):
        raise ValueError("a file in a file in a pickle")
    machine.spend(len(data))
    return _load(io.BytesIO(data), len(data), nested=True)


@cache
def _names() -> dict[str, Any]:
    """What a pickle of torch's may use."""
    import torch

    calls: dict[str, Callable[..., Any] | None] = {
        "torch._utils._rebuild_tensor": _rebuild,
        "torch._utils._rebuild_tensor_v2": _rebuild,
        "torch._utils._rebuild_tensor_v3": _rebuild_typed,
        "torch._utils._rebuild_parameter": lambda machine, tensor, *_: tensor,
        "torch._utils._rebuild_parameter_with_state": lambda machine, tensor, *_: tensor,
        "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
        "torch.storage._load_from_bytes": _from_bytes,
        "torch.Size": lambda machine, shape=(): shape,
        "torch.serialization._get_layout": lambda machine, name: None,  # of a sparse tensor, which is refused
        "torch.device": lambda machine, kind, *_: str(kind)[:20],
        "torch.Tensor": None,
        "torch._tensor.Tensor": None,
        "torch.nn.parameter.Parameter": None,
    }
    calls |= {f"{module}.{kind}Storage": None for kind in _OF_STORAGE for module in ("torch", "torch.cuda", "torch.storage")}
    dtypes = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    return {**own_names(), **{name: Token(name, call) for name, call in calls.items()}, **dtypes}


def _dtype_of_storage(token: Any) -> "torch.dtype | None":
    import torch

    kind = token.name.rpartition(".")[2].removesuffix("Storage") if isinstance(token, Token) else ""
    return getattr(torch, _OF_STORAGE[kind]) if kind in _OF_STORAGE else None


def _strided(storage: Any, offset: Any, shape: Any, stride: Any, dtype: Any) -> "torch.Tensor":
    """A view of a storage's numbers.

    Raises:
        ValueError: it reaches beyond them, or a number is none.
    """
    import torch

    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    numbers = [offset, *shape, *stride]
    if (
        len(shape) != len(stride)
        or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)
        or not isinstance(dtype, torch.dtype)
    ):
        raise ValueError("a tensor whose shape, strides or type are none")
    flat = storage.bytes.view(dtype)
    end = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1 if all(shape) else 0
    if end > len(flat):
        raise ValueError("a tensor reaches beyond its storage")
    return flat.as_strided(tuple(shape), tuple(stride), offset if all(shape) else 0)
