"""Quantized weights: error bounds, idempotence, stored bytes and refused tensors."""

import itertools

import pytest
import torch
from torch import Tensor

from vqlabel.codecs.weights import SCALE, expand, rounded, shrink, stored_bytes
from vqlabel.errors import BadContainer

SHAPES = [(1, 1), (7, 33), (33, 7), (5, 5), (3, 5, 8), (3, 8, 5)]


def draw(shape: tuple[int, ...]) -> Tensor:
    """Lines along the longer axis with magnitudes from 1e-2 to 1e4, one of them all zero."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    long = -2 if shape[-2] >= shape[-1] else -1
    lines = drawn.movedim(long, -1).reshape(-1, drawn.shape[long])
    lines *= torch.logspace(-2, 4, len(lines))[:, None]
    if len(lines) > 2:
        lines[1] = 0
    other = [*shape[:-2], shape[-1] if long == -2 else shape[-2], shape[long]]
    return lines.view(other).movedim(-1, long).contiguous()


@pytest.fixture(params=SHAPES, ids=str)
def weight(request: pytest.FixtureRequest) -> Tensor:
    return draw(request.param)


@pytest.fixture(params=range(2, 9))
def bits(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def restored(weight: Tensor, bits: int) -> Tensor:
    """The weight after storing and reading."""
    return expand("w", shrink("w", weight, bits), tuple(weight.shape), bits)


def test_a_matrix_of_8_bits_is_stored_as_int8_in_its_shape(weight: Tensor) -> None:
    tensors = shrink("w", weight, 8)
    assert set(tensors) == {"w", "w" + SCALE}
    assert (tensors["w"].dtype, tensors["w"].shape) == (torch.int8, weight.shape)
    assert int(tensors["w"].abs().max()) == 127  # never -128, whose opposite does not exist
    assert all(tensor.is_contiguous() for tensor in tensors.values())


@pytest.mark.parametrize("bits", range(2, 8))
def test_a_matrix_of_fewer_bits_is_stored_as_one_bitstream_lowest_bit_first(bits: int, weight: Tensor) -> None:
    """Read as format.md describes: integer + q, `bits` bits each, in row order."""
    tensors, largest = shrink("w", weight, bits), 2 ** (bits - 1) - 1
    assert (tensors["w"].dtype, tensors["w"].dim()) == (torch.uint8, 1)
    number = int.from_bytes(tensors["w"].numpy().tobytes(), "little")
    fields = torch.tensor([number >> bits * i & (1 << bits) - 1 for i in range(weight.numel())])
    assert number >> bits * weight.numel() == 0
    assert int(fields.max()) <= 2 * largest
    scale = tensors["w" + SCALE].float().unsqueeze(-2 if weight.shape[-2] >= weight.shape[-1] else -1)
    assert torch.equal((fields - largest).view(weight.shape) * scale, restored(weight, bits))


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((7, 33), [7]), ((33, 7), [7]), ((5, 5), [5]), ((3, 5, 8), [3, 5]), ((3, 8, 5), [3, 5]), ((1, 1), [1]), ((4, 9, 9), [4, 9])],
)
def test_scales_are_fp16_one_for_each_line_along_the_longer_axis(shape: tuple[int, ...], scales: list[int], bits: int) -> None:
    tensor = shrink("w", draw(shape), bits)["w" + SCALE]
    assert (tensor.dtype, list(tensor.shape)) == (torch.float16, scales)


def test_lines_of_a_square_run_down_its_columns() -> None:
    scale = shrink("w", torch.tensor([[127.0, 0.0], [0.0, 254.0]]) * 2, 8)["w" + SCALE]
    assert scale.tolist() == [2, 4]
    scale = shrink("w", torch.tensor([[1.0, 4.0], [8.0, 2.0]]) * 127, 8)["w" + SCALE]
    assert scale.tolist() == [8, 4]


def test_stored_bytes_are_those_of_the_tensors(weight: Tensor, bits: int) -> None:
    assert sum(tensor.nbytes for tensor in shrink("w", weight, bits).values()) == stored_bytes(tuple(weight.shape), bits)
    assert stored_bytes(tuple(weight.shape), bits) >= -(-weight.numel() * bits // 8) + 2 * min(weight.shape[-2:])


def test_no_entry_changes_by_more_than_half_a_step_of_its_line(weight: Tensor, bits: int) -> None:
    long = -2 if weight.shape[-2] >= weight.shape[-1] else -1
    step = weight.abs().amax(long, keepdim=True) / (2 ** (bits - 1) - 1)
    error = (restored(weight, bits) - weight).abs()
    assert bool((error <= 0.5 * step * 1.001 + weight.abs() * 2**-11).all())  # fp16 rounds the step itself to 2**-11
    assert float(error.max()) > 0 or weight.numel() == 1


def test_storing_rounded_weights_again_leaves_them_unchanged(weight: Tensor, bits: int) -> None:
    once = rounded(weight, bits)
    assert torch.equal(restored(once, bits), once)
    assert torch.equal(restored(restored(once, bits), bits), once)
    plain = restored(weight, bits)
    assert torch.equal(restored(plain, bits), plain)


@pytest.mark.parametrize("bits", range(2, 8))
def test_clipping_outliers_lowers_the_error_of_a_gaussian(bits: int) -> None:
    """Compared with a scale that ends at the largest entry."""
    gaussian = torch.randn(4, 4000, generator=torch.Generator().manual_seed(3))
    error, plain = ((kept - gaussian).square().mean() for kept in (rounded(gaussian, bits), restored(gaussian, bits)))
    assert float(error) < (0.9 if bits < 7 else 0.99) * float(plain)


def test_8_bits_clip_nothing() -> None:
    gaussian = torch.randn(4, 4000, generator=torch.Generator().manual_seed(3))
    assert torch.equal(rounded(gaussian, 8), restored(gaussian, 8))


def test_one_more_bit_halves_the_error() -> None:
    gaussian = torch.randn(4, 4000, generator=torch.Generator().manual_seed(4))
    errors = [float((rounded(gaussian, bits) - gaussian).square().mean().sqrt()) for bits in range(2, 8)]
    assert all(0.4 < finer / coarser < 0.65 for coarser, finer in itertools.pairwise(errors))


def test_lines_below_the_fp16_range_have_a_tiny_error_and_are_idempotent() -> None:
    tiny = torch.logspace(-12, -2, 400)[None] * torch.tensor([1.0, -0.3, 0.01] * 200)[:, None]
    once = rounded(tiny, 8)
    assert torch.equal(restored(once, 8), once)
    assert float((once - tiny).abs().max()) <= 0.5 * 0.01 / 127 * 1.001
    smallest = tiny[0] < 127 * 2**-14
    assert float((once - tiny)[:, smallest].abs().max()) <= 0.5 * 2**-14


def test_a_large_line_does_not_change_the_error_of_the_others(bits: int) -> None:
    small = torch.randn(9, 2, generator=torch.Generator().manual_seed(1))
    both = torch.cat([small, 1e4 * small], 1)
    assert torch.equal(rounded(both, bits)[:, :2], rounded(small, bits))


def test_zeros_stay_zeros(bits: int) -> None:
    assert torch.equal(rounded(torch.zeros(3, 4), bits), torch.zeros(3, 4))
    assert torch.equal(restored(torch.zeros(3, 4), bits), torch.zeros(3, 4))


def test_a_vector_is_stored_in_fp16_at_any_bits(bits: int) -> None:
    bias = torch.randn(9, generator=torch.Generator().manual_seed(2))
    tensors = shrink("b", bias, bits)
    assert set(tensors) == {"b"}
    assert torch.equal(tensors["b"], bias.half())
    assert torch.equal(expand("b", tensors, (9,), bits), bias.half().float())
    assert torch.equal(rounded(bias, bits), bias.half().float())
    assert stored_bytes((9,), bits) == 18


def test_tensors_of_another_shape_are_refused(bits: int) -> None:
    shape = (5, 8)
    tensors = shrink("w", draw(shape), bits)
    for name in tensors:
        with pytest.raises(BadContainer, match=rf"the codec has no tensor '{name}'; the file is incomplete"):
            expand("w", {key: value for key, value in tensors.items() if key != name}, shape, bits)
        with pytest.raises(BadContainer, match=rf"codec tensor '{name}' has shape .*; its configuration declares"):
            expand("w", {**tensors, name: tensors[name][:-1]}, shape, bits)
    for value in (float("nan"), float("inf")):
        with pytest.raises(BadContainer, match=rf"codec tensor 'w{SCALE}' holds NaN or Inf"):
            expand("w", {**tensors, "w" + SCALE: torch.full((5,), value).half()}, shape, bits)


@pytest.mark.parametrize(("bits", "wrong"), [(4, torch.int8), (4, torch.float16), (8, torch.uint8), (8, torch.float32)])
def test_a_matrix_of_another_dtype_is_refused(bits: int, wrong: torch.dtype) -> None:
    tensors = shrink("w", draw((5, 8)), bits)
    with pytest.raises(
        BadContainer, match=rf"codec tensor 'w' has dtype {wrong}; it must be torch.{'int8' if bits == 8 else 'uint8'}"
    ):
        expand("w", {**tensors, "w": tensors["w"].to(wrong)}, (5, 8), bits)


@pytest.mark.parametrize("wrong", [torch.int8, torch.uint8, torch.float32])
def test_a_scale_or_vector_that_is_not_fp16_is_refused(wrong: torch.dtype) -> None:
    tensors = shrink("w", draw((5, 8)), 8)
    with pytest.raises(BadContainer, match=rf"codec tensor 'w{SCALE}' has dtype {wrong}; it must be torch.float16"):
        expand("w", {**tensors, "w" + SCALE: torch.ones(5, dtype=wrong)}, (5, 8), 8)
    with pytest.raises(BadContainer, match=rf"codec tensor 'b' has dtype {wrong}; it must be torch.float16"):
        expand("b", {"b": torch.ones(5, dtype=wrong)}, (5,), 8)
