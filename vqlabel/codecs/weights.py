"""Decoder weights <-> the small types that travel: integers of 2 to 8 bits with an fp16 scale for each line of a matrix, or fp16."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vqlabel.bitstream import pack_fixed, packed_size, unpack_fixed
from vqlabel.errors import BadContainer, CodeOutOfRange

SCALE = ".scale"
HALF_NORMAL = 2**-14  # below it halves are multiples of 2**-24; rounded up to one, a line would be another after its second trip
# Uniform step with the least squared error on a Gaussian, in standard deviations (Max 1960); from 8 bits on nothing is cut off.
_STEP = {2: 1.224, 3: 0.651, 4: 0.356, 5: 0.194, 6: 0.106, 7: 0.057}


def shrink(name: str, weight: Tensor, bits: int) -> dict[str, Tensor]:
    """A matrix [..., r, c] becomes integers of `bits` bits and fp16 scales, one for each line along its longer axis; a vector becomes fp16.

    A line is rounded to scale * {-most .. most}, most = 2**(bits-1) - 1, scale = largest magnitude / most. Of 8 bits the integers are
    int8 in the matrix's own shape; of fewer they are uint8, integer + most packed in a bitstream.

    Source: docs/format.md, "codec.*".
    """
    if weight.dim() < 2:
        return {name: weight.half().contiguous()}
    whole, scale = _whole(weight, bits)
    if bits == 8:
        stored = whole.to(torch.int8).contiguous()
    else:
        unsigned = (whole + _most(bits)).to(torch.uint8).reshape(-1, 1).numpy()
        stored = torch.frombuffer(bytearray(pack_fixed(unsigned, [bits])), dtype=torch.uint8)
    return {name: stored, name + SCALE: scale.squeeze(_long(weight.shape)).half().contiguous()}


def expand(name: str, tensors: Mapping[str, Tensor], shape: tuple[int, ...], bits: int) -> Tensor:
    """Inverse of `shrink` for a weight of this shape: float32.

    Raises:
        BadContainer: a tensor is missing, of another shape or type, not finite, or has unused bits that are not zero.
    """
    if len(shape) < 2:
        return take(tensors, name, shape, torch.float16).float()
    axis, count = _long(shape), torch.Size(shape).numel()
    scale = take(tensors, name + SCALE, shape[:axis] + shape[axis + 1 :], torch.float16).float().unsqueeze(axis)
    if bits == 8:
        return take(tensors, name, shape, torch.int8).float() * scale
    stored = take(tensors, name, (packed_size(count, [bits]),), torch.uint8)
    try:
        whole = torch.from_numpy(unpack_fixed(stored.numpy().tobytes(), count, [bits])).view(shape).float()
    except CodeOutOfRange as error:
        raise BadContainer(f"codec tensor {name!r}: {error}") from None
    return (whole - _most(bits)) * scale


def take(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor `name`, if it has this shape and type and is finite.

    Raises:
        BadContainer: otherwise.
    """
    if name not in tensors:
        raise BadContainer(f"the codec has no tensor {name!r}; the file is incomplete")
    tensor = tensors[name]
    if tuple(tensor.shape) != shape:
        raise BadContainer(f"codec tensor {name!r} has shape {list(tensor.shape)}; its configuration says {list(shape)}")
    if tensor.dtype != dtype:
        raise BadContainer(f"codec tensor {name!r} is {tensor.dtype}; {dtype} belongs there")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise BadContainer(f"codec tensor {name!r} holds NaN or Inf")
    return tensor


def rounded(weight: Tensor, bits: int) -> Tensor:
    """`weight` as it will be after storage: its far outliers cut where that makes the rest finer, then what `shrink` keeps of it.

    Stored and read again, the result stays as it is.
    """
    if weight.dim() < 2:
        return weight.half().float()
    if bits in _STEP:
        most = _STEP[bits] * _most(bits) * weight.square().mean(_long(weight.shape), keepdim=True).sqrt()
        weight = torch.minimum(torch.maximum(weight, -most), most)
    whole, scale = _whole(weight, bits)
    return whole * scale


def stored_bytes(shape: tuple[int, ...], bits: int) -> int:
    """Bytes of a weight of this shape with its scales."""
    count = torch.Size(shape).numel()
    return 2 * count if len(shape) < 2 else packed_size(count, [bits]) + 2 * (count // shape[_long(shape)])


def _whole(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integers as floats, and the scales, float32 that halves hold exactly."""
    scale = weight.abs().amax(_long(weight.shape), keepdim=True) / _most(bits)
    scale = torch.where(scale < HALF_NORMAL, (scale * 2**24).floor() / 2**24, scale).half().float()
    return (weight / scale.clamp_min(1e-12)).round().clamp(-_most(bits), _most(bits)), scale


def _most(bits: int) -> int:
    return (1 << bits - 1) - 1


def _long(shape: tuple[int, ...]) -> int:
    """The longer of a matrix's axes: lines along it have the fewest scales."""
    return len(shape) - (2 if shape[-2] >= shape[-1] else 1)
