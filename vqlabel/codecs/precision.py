"""Where fits multiply in bf16, and what keeps a caller's settings out of codecs' float32.

A fit's largest product, latents by output map, gains most of bf16 and tolerates its 8 bits. Biases, losses, the search for codes and all
else stay in float32: a bias of -1e4, which masks a class, would be off by up to 32 in bf16.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_chosen: ContextVar[bool | None] = ContextVar("_chosen", default=None)


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
