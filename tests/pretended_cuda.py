"""CUDA tensors that compute on the CPU, to detect mixed devices on machines without a GPU.

Unlike with torch's `FakeTensorMode`, tensors have values, so code that depends on values runs too. Like CUDA,
operations refuse mixed devices (except CPU tensors with 0 dimensions), CPU generators and `.numpy()`.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import DEFAULT, patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}  # operations that may mix devices


class OnCuda(Tensor):
    """A CPU tensor that reports a CUDA device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnCuda":
        wrapper = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device="meta"
        )  # autograd accepts "meta" without a GPU
        wrapper.inner = inner
        return wrapper  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnCuda({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Factory operations, which have a device argument and no tensor arguments."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    named = next((torch.device(leaf) for leaf in leaves if isinstance(leaf, torch.device)), None)
    there = [isinstance(tensor, OnCuda) for tensor in tensors]
    if any(there) and func not in COPIES:
        for tensor in tensors:
            if not isinstance(tensor, OnCuda) and tensor.dim():
                raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cuda:0 and {tensor.device}")
    onto = named.type in ("cuda", "meta") if named is not None else there[0] if func is torch.ops.aten.copy_.default else any(there)
    if onto and any(isinstance(leaf, torch.Generator) and leaf.device.type == "cpu" for leaf in leaves):
        raise RuntimeError(f"{func}: expected a 'cuda' device type for generator but found 'cpu'")

    def inward(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        return leaf.inner if isinstance(leaf, OnCuda) else leaf

    with _disable_current_modes():
        found = func(*tree_map(inward, args), **tree_map(inward, kwargs))
    written = {id(leaf.inner): leaf for leaf in tensors if isinstance(leaf, OnCuda)}

    def outward(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not onto:
            return leaf
        return written[id(leaf)] if id(leaf) in written else OnCuda(leaf)

    return tree_map(outward, found)


class _Calls(TorchFunctionMode):
    """Function calls that a build without CUDA refuses before dispatch, such as a device without an index."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def whole(leaf: Any) -> Any:
            return (
                CUDA
                if (isinstance(leaf, torch.device) and leaf == torch.device("cuda")) or (isinstance(leaf, str) and leaf == "cuda")
                else leaf
            )

        if func is Tensor.copy_ and isinstance(args[0], OnCuda):
            args[0].inner.copy_(args[1].inner if isinstance(args[1], OnCuda) else args[1])
            return args[0]
        if func is Tensor.tolist and isinstance(args[0], OnCuda):
            return args[0].inner.tolist()
        kwargs = tree_map(whole, kwargs or {})
        if func is torch.tensor and kwargs.get("device") == CUDA:
            return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(CUDA)
        return func(*tree_map(whole, args), **kwargs)


@contextmanager
def pretended_cuda() -> Iterator[None]:
    """A context in which `device="cuda"` is available."""
    torch._C._ensureCUDADeviceGuardSet()  # a guard without effect on builds without CUDA
    replaced = dict.fromkeys(("_lazy_init", "get_rng_state", "set_rng_state"), DEFAULT)
    # Wrapper tensors cannot be created in inference mode.
    without_gradients = patch("torch.inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext())
    with patch.multiple("torch.cuda", **replaced), without_gradients, _Factories(), _Calls():
        yield
