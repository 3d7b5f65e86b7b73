"""Pickled torch tensors -> tensors: views of storages by offset, shape and strides, checked before torch sees them."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from vqlabel.labels.layouts.pickle_machine import Machine
from vqlabel.labels.layouts.pickle_names import Token, allowed_names

if TYPE_CHECKING:
    import torch

MAX_NUMBER = 1 << 62  # of offsets, sizes and strides: their products in Python cannot overflow torch's int64 unnoticed
_STORAGE_TYPES = {
    "Half": "float16", "BFloat16": "bfloat16", "Float": "float32", "Double": "float64", "Bool": "bool", "Byte": "uint8", "Char": "int8",
    "Short": "int16", "Int": "int32", "Long": "int64", "ComplexFloat": "complex64", "ComplexDouble": "complex128", "Untyped": "uint8",
}  # fmt: skip


class Storage:
    """The bytes of a tensor's values, uint8 [bytes], and their type."""

    def __init__(self, data: "torch.Tensor", dtype: "torch.dtype") -> None:
        self.bytes, self.dtype = data, dtype


class TorchMachine(Machine):
    """Loads a pickle that may contain tensors.

    Args:
        size: bytes of the file.
        read_storage: key, length in bytes and bytes per value -> the bytes of a storage, uint8 [length]; None: there
            are no storages.
        load_nested: loads the torch.save file that torch puts into a pickle for a tensor that pickle.dump writes; None:
            this is one already.
    """

    def __init__(
        self,
        size: int,
        read_storage: "Callable[[str, int, int], torch.Tensor] | None" = None,
        load_nested: Callable[[bytes], Any] | None = None,
    ) -> None:
        super().__init__(size, _torch_names(), self._storage)
        self._read_storage, self.load_nested = read_storage, load_nested
        self._storages: dict[str, tuple[Storage, int]] = {}  # by key, with the number of values that the first reference declared

    def _storage(self, persistent_id: Any) -> Storage:
        kind, token, key, _, count = persistent_id[:5]
        dtype = _storage_dtype(token)
        valid = kind == "storage" and isinstance(key, str) and type(count) is int and count >= 0
        if not valid or dtype is None or self._read_storage is None:
            raise ValueError("a persistent id that is not a storage")
        if persistent_id[5:] not in ((), (None,)):
            raise ValueError("a view of a storage, as torch 0.1 saved it")
        if key not in self._storages:
            self._storages[key] = Storage(self._read_storage(key, count * dtype.itemsize, dtype.itemsize), dtype), count
        storage, declared = self._storages[key]
        if (storage.dtype, declared) != (dtype, count):
            raise ValueError("two storages with one key")
        return storage


def _storage_dtype(token: Any) -> "torch.dtype | None":
    import torch

    kind = token.name.rpartition(".")[2].removesuffix("Storage") if isinstance(token, Token) else ""
    return getattr(torch, _STORAGE_TYPES[kind]) if kind in _STORAGE_TYPES else None


def _strided(storage: Any, offset: Any, shape: Any, stride: Any, dtype: Any) -> "torch.Tensor":
    """A view of a storage's values.

    Raises:
        ValueError: the view reaches beyond the storage, or an argument is not of its type.
    """
    import torch

    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    numbers = [offset, *shape, *stride]
    valid = len(shape) == len(stride) and all(type(n) is int and 0 <= n < MAX_NUMBER for n in numbers)
    if not valid or not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor with an invalid shape, stride or type")
    values = storage.bytes.view(dtype)
    end = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1 if all(shape) else 0
    if end > len(values):
        raise ValueError("a tensor reaches beyond its storage")
    return values.as_strided(tuple(shape), tuple(stride), offset if all(shape) else 0)


# --- what stands in for torch's functions that rebuild tensors


def _rebuild(
    machine: TorchMachine,
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    grad: Any = None,
    hooks: Any = None,
    metadata: Any = None,
) -> "torch.Tensor":
    """A tensor of its storage's type."""
    return _rebuild_typed(machine, storage, offset, shape, stride, grad, hooks, getattr(storage, "dtype", None), metadata)


def _rebuild_typed(
    machine: TorchMachine,
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> "torch.Tensor":
    """A tensor of a given type, which may have no typed storages."""
    import torch

    tensor = _strided(storage, offset, shape, stride, dtype)
    if not metadata:
        return tensor
    if not isinstance(metadata, dict) or metadata.get("conj") or not set(metadata) <= {"neg", "conj"}:
        raise ValueError("a conjugate, or a view of another kind")
    return torch._neg_view(tensor) if metadata.get("neg") else tensor


def _rebuild_from_type(machine: TorchMachine, build: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes, which are dropped."""
    if not isinstance(build, Token) or build.call is None:
        raise ValueError("a tensor without a function that builds it")
    return build.call(machine, *arguments)


def _from_bytes(machine: TorchMachine, data: Any) -> Any:
    """The object of a torch.save file inside a pickle."""
    if machine.load_nested is None or not isinstance(data, bytes | bytearray):
        raise ValueError("a file in a file in a pickle")
    machine.spend(len(data))
    return machine.load_nested(bytes(data))


@cache
def _torch_names() -> dict[str, Any]:
    """The names that a pickle with tensors may use."""
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
    calls |= {f"{module}.{kind}Storage": None for kind in _STORAGE_TYPES for module in ("torch", "torch.cuda", "torch.storage")}
    dtypes = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    return {**allowed_names(), **{name: Token(name, call) for name, call in calls.items()}, **dtypes}
