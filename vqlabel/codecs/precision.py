"""Matrix products in bf16 where the machine multiplies it natively: search and training gain, and their choices tolerate it.

Decoding stays in float32, so that a label does not depend on the machine that reads it beyond rounding.
"""

from contextlib import AbstractContextManager

import torch


def quick_matmul(device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bf16, or no change where bf16 is emulated."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_multiplies_bf16(device))


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
