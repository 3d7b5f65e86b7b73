"""Where fits multiply in bf16, and how a codec computes in float32 whatever the code around it has set.

A fit's largest product, latents by output map, gains most of bf16 and tolerates its 8 bits. Biases, losses, the search for codes and all
else stay in float32: a bias of -1e4, which masks a class, would be off by up to 32 in bf16.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_chosen: ContextVar[bool | None] = ContextVar("_chosen", default=None)


@contextmanager
def float32_arithmetic(device: torch.device) -> Iterator[None]:
    """Inside, `device` computes in float32, whatever autocast, default dtype or precision of products (TF32, bf16) is set outside.

    Compiled code is built for the default dtype and the precision of products that are set where it is compiled; autocast is off there too.
    """
    if torch.compiler.is_compiling():
        with torch.autocast(device.type, enabled=False):
            yield
        return
    with _process.float32():
        if device.type == "meta":  # has no autocast
            yield
        else:
            with torch.autocast(device.type, enabled=False):
                yield


class _ProcessSettings:
    """Settings of the whole process that change float32: set while any thread is inside, and given back by the last one."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """No thread is inside."""
        self._lock, self._inside = threading.Lock(), 0

    @contextmanager
    def float32(self) -> Iterator[None]:
        products = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
        with self._lock:
            if not self._inside:
                self._dtype, self._precisions = torch.get_default_dtype(), [one.fp32_precision for one in products]
                torch.set_default_dtype(torch.float32)
                for one in products:
                    one.fp32_precision = "ieee"
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    torch.set_default_dtype(self._dtype)
                    for one, precision in zip(products, self._precisions, strict=True):
                        one.fp32_precision = precision


_process = _ProcessSettings()
if hasattr(os, "register_at_fork"):  # a worker may be forked while a thread that it does not have holds the lock
    os.register_at_fork(after_in_child=_process.reset)


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """Inside, new tensors are made on the CPU unless their device is named, whatever default device is set outside."""
    if torch.get_default_device().type == "cpu":
        yield  # a device as a context slows every operation down: fits took a third longer
        return
    with torch.device("cpu"):
        yield


@contextmanager
def bf16_products(enabled: bool) -> Iterator[None]:
    """Inside, fits multiply in bf16, emulated where the machine does not multiply it natively, or in float32 on every machine."""
    before = _chosen.set(enabled)
    try:
        yield
    finally:
        _chosen.reset(before)


def quick_addmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """bias [C] + a [n, d] @ b [d, C], float32; a and b are rounded to bf16 where the device multiplies it natively."""
    if not multiplies_bf16(a.device):
        return torch.addmm(bias, a, b)
    return bias + (a.bfloat16() @ b.bfloat16()).float()


def quick_matmul(device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bf16 for networks that nothing is decoded by; no change where `multiplies_bf16` is false."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16(device))


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively, or what `bf16_products` chose."""
    if (chosen := _chosen.get()) is not None:
        return chosen
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
