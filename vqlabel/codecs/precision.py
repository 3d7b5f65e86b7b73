"""Precision of products: bf16 for the largest product of a fit; float32 for codecs, whatever the caller sets.

The product of latents and output map gains the most time from bf16 and tolerates its 8 bits. Biases, losses and the
search for codes stay in float32: a bias of -1e4, which masks a class, would have an error of up to 32 in bf16.
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
    """Compute in float32 on `device`, whatever autocast, default dtype and precision of products the caller sets.

    Compiled code uses the default dtype and precision of products set where it is compiled; autocast is off there too.
    """
    if torch.compiler.is_compiling():
        with torch.autocast(device.type, enabled=False):
            yield
        return
    with _process.float32():
        if device.type == "meta":  # no autocast exists for it
            yield
        else:
            with torch.autocast(device.type, enabled=False):
                yield


class _ProcessSettings:
    """Process-wide settings of float32, set when the first thread enters and restored when the last one leaves."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start with no thread inside."""
        self._lock, self._threads_inside = threading.Lock(), 0

    @contextmanager
    def float32(self) -> Iterator[None]:
        products = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
        with self._lock:
            if not self._threads_inside:
                self._dtype, self._precisions = torch.get_default_dtype(), [backend.fp32_precision for backend in products]
                torch.set_default_dtype(torch.float32)
                for backend in products:
                    backend.fp32_precision = "ieee"
            self._threads_inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._threads_inside -= 1
                if not self._threads_inside:
                    torch.set_default_dtype(self._dtype)
                    for backend, precision in zip(products, self._precisions, strict=True):
                        backend.fp32_precision = precision


_process = _ProcessSettings()
if hasattr(os, "register_at_fork"):  # a forked worker may inherit a lock held by a thread that it does not have
    os.register_at_fork(after_in_child=_process.reset)


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """Create tensors on the CPU unless a device is given, regardless of the default device set outside."""
    if torch.get_default_device().type == "cpu":
        yield  # torch.device as a context slows every operation: fits took a third longer
        return
    with torch.device("cpu"):
        yield


@contextmanager
def bf16_products(enabled: bool) -> Iterator[None]:
    """Make fits multiply in bf16 (emulated if the device has no native bf16), or in float32 on every machine."""
    token = _chosen.set(enabled)
    try:
        yield
    finally:
        _chosen.reset(token)


def quick_addmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """bias [C] + a [n, d] @ b [d, C], float32; a and b are rounded to bf16 if the device multiplies bf16 natively."""
    if not multiplies_bf16(a.device):
        return torch.addmm(bias, a, b)
    return bias + (a.bfloat16() @ b.bfloat16()).float()


def quick_matmul(device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bf16, for networks that do not decode labels; no effect if `multiplies_bf16` is false."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16(device))


def multiplies_bf16(device: torch.device) -> bool:
    """Whether fits multiply in bf16: as set by `bf16_products`, else whether the device does so natively."""
    if (chosen := _chosen.get()) is not None:
        return chosen
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
