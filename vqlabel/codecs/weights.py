"""Decoder weights <-> stored tensors: integers of 2 to 8 bits with an fp16 scale per line of a matrix, or fp16."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vqlabel.bitstream import pack_fixed, packed_size, unpack_fixed
from vqlabel.errors import BadContainer, CodeOutOfRange

SCALE = ".scale"
MIN_NORMAL_FP16 = (
    2**-14
)  # smaller scales are multiples of 2**-24 and rounded down: rounded up, storing twice would change a line again
# Uniform step with the least squared error on a Gaussian, in standard deviations (Max 1960); 8 bits clip nothing.
_GAUSSIAN_STEP = {2: 1.224, 3: 0.651, 4: 0.356, 5: 0.194, 6: 0.106, 7: 0.057}


def shrink(name: str, weight: Tensor, bits: int) -> dict[str, Tensor]:
    """Quantize a weight for storage: a matrix [..., r, c] to integers of `bits` bits and an fp16 scale per line along
    its longer axis, a vector to fp16.

    A line is rounded to scale * {-q .. q}, q = 2**(bits-1) - 1, scale = largest magnitude / q. With 8 bits the integers
    are int8 in the matrix's shape; with fewer they are uint8, integer + q packed in a bitstream.

    Source: docs/format.md, "codec.*".
    """
    if weight.dim() < 2:
        return {name: weight.half().contiguous()}
    integers, scale = _quantize(weight, bits)
    if bits == 8:
        stored = integers.to(torch.int8).contiguous()
    else:
        unsigned = (integers + _max_integer(bits)).to(torch.uint8).reshape(-1, 1).numpy()
        stored = torch.frombuffer(bytearray(pack_fixed(unsigned, [bits])), dtype=torch.uint8)
    return {name: stored, name + SCALE: scale.squeeze(_longer_axis(weight.shape)).half().contiguous()}


def expand(name: str, tensors: Mapping[str, Tensor], shape: tuple[int, ...], bits: int) -> Tensor:
    """Inverse of `shrink` for a weight of this shape: float32.

    Raises:
        BadContainer: a tensor is missing, of another shape or type, not finite, or has unused bits that are not zero.
    """
    if len(shape) < 2:
        return take(tensors, name, shape, torch.float16).float()
    axis, count = _longer_axis(shape), torch.Size(shape).numel()
    scale = take(tensors, name + SCALE, shape[:axis] + shape[axis + 1 :], torch.float16).float().unsqueeze(axis)
    if bits == 8:
        return take(tensors, name, shape, torch.int8).float() * scale
    stored = take(tensors, name, (packed_size(count, [bits]),), torch.uint8)
    try:
        integers = torch.from_numpy(unpack_fixed(stored.numpy().tobytes(), count, [bits])).view(shape).float()
    except CodeOutOfRange as error:
        raise BadContainer(f"codec tensor {name!r}: {error}") from None
    return (integers - _max_integer(bits)) * scale


def take(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor `name`, checked for shape, dtype and finite values.

    Raises:
        BadContainer: otherwise.
    """
    if name not in tensors:
        raise BadContainer(f"the codec has no tensor {name!r}; the file is incomplete")
    tensor = tensors[name]
    if tuple(tensor.shape) != shape:
        raise BadContainer(f"codec tensor {name!r} has shape {list(tensor.shape)}; its configuration declares {list(shape)}")
    if tensor.dtype != dtype:
        raise BadContainer(f"codec tensor {name!r} has dtype {tensor.dtype}; it must be {dtype}")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise BadContainer(f"codec tensor {name!r} holds NaN or Inf")
    return tensor


def rounded(weight: Tensor, bits: int) -> Tensor:
    """`weight` as `shrink` and `expand` would return it, after clipping of outliers where that lowers the error of the
    other values.

    `shrink` and `expand` leave the result unchanged.
    """
    if weight.dim() < 2:
        return weight.half().float()
    if bits in _GAUSSIAN_STEP:
        limit = _GAUSSIAN_STEP[bits] * _max_integer(bits) * weight.square().mean(_longer_axis(weight.shape), keepdim=True).sqrt()
        weight = torch.minimum(torch.maximum(weight, -limit), limit)
    integers, scale = _quantize(weight, bits)
    return integers * scale


def stored_bytes(shape: tuple[int, ...], bits: int) -> int:
    """Bytes of a stored weight of this shape, scales included."""
    count = torch.Size(shape).numel()
    return 2 * count if len(shape) < 2 else packed_size(count, [bits]) + 2 * (count // shape[_longer_axis(shape)])


def _quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integers, and scales that fp16 represents exactly; both float32."""
    scale = weight.abs().amax(_longer_axis(weight.shape), keepdim=True) / _max_integer(bits)
    scale = torch.where(scale < MIN_NORMAL_FP16, (scale * 2**24).floor() / 2**24, scale).half().float()
    return (weight / scale.clamp_min(1e-12)).round().clamp(-_max_integer(bits), _max_integer(bits)), scale


def _max_integer(bits: int) -> int:
    return (1 << bits - 1) - 1


def _longer_axis(shape: tuple[int, ...]) -> int:
    """The longer axis of a matrix, along which lines need the fewest scales."""
    return len(shape) - (2 if shape[-2] >= shape[-1] else 1)
