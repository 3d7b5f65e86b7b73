"""Weights in small types: how far they may move, and that they move once."""

import pytest
import torch
from torch import Tensor

from vqlabel.codecs.storage import SCALE, expand, round_trip, shrink


@pytest.fixture(params=[(1, 1), (7, 33), (3, 5, 8)], ids=str)
def weight(request: pytest.FixtureRequest) -> Tensor:
    """Rows whose sizes differ by a million, one of them all zero."""
    shape: tuple[int, ...] = request.param
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    drawn *= torch.logspace(-2, 4, drawn[..., 0].numel()).view(*shape[:-1], 1)
    if drawn[..., 0].numel() > 2:
        drawn.view(-1, shape[-1])[1] = 0
    return drawn


def test_a_matrix_travels_as_int8_with_a_half_a_row(weight: Tensor) -> None:
    tensors = shrink("w", weight)
    assert set(tensors) == {"w", "w" + SCALE}
    assert (tensors["w"].dtype, tensors["w"].shape) == (torch.int8, weight.shape)
    assert (tensors["w" + SCALE].dtype, tensors["w" + SCALE].shape) == (torch.float16, weight.shape[:-1])
    assert int(tensors["w"].abs().max()) == 127  # never -128, whose opposite does not exist
    assert all(tensor.is_contiguous() for tensor in tensors.values())


def test_no_entry_moves_by_more_than_half_a_step_of_its_row(weight: Tensor) -> None:
    step = weight.abs().amax(-1, keepdim=True) / 127
    moved = (round_trip(weight) - weight).abs()
    assert bool((moved <= 0.5 * step * 1.001).all())  # 1.001: a half holds the step itself to 2**-11
    assert float(moved.max()) > 0 or weight.numel() == 1


def test_a_second_trip_changes_nothing(weight: Tensor) -> None:
    once = round_trip(weight)
    assert torch.equal(round_trip(once), once)
    again = shrink("w", once)
    assert all(torch.equal(again[name], tensor) for name, tensor in shrink("w", weight).items())


def test_rows_too_small_for_a_half_move_by_next_to_nothing_and_once() -> None:
    tiny = torch.logspace(-12, -2, 400)[:, None] * torch.tensor([1.0, -0.3, 0.01])
    once = round_trip(tiny)
    assert torch.equal(round_trip(once), once)
    assert float((once - tiny).abs().max()) <= 0.5 * 0.01 / 127 * 1.001
    smallest = tiny[:, 0] < 127 * 2**-14
    assert float((once - tiny)[smallest].abs().max()) <= 0.5 * 2**-14


def test_a_large_row_costs_the_others_nothing() -> None:
    small = torch.randn(2, 9, generator=torch.Generator().manual_seed(1))
    both = torch.cat([small, 1e4 * small])
    assert torch.equal(round_trip(both)[:2], round_trip(small))


def test_a_row_of_zeros_stays_one() -> None:
    assert torch.equal(round_trip(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_a_vector_travels_as_halves() -> None:
    bias = torch.randn(9, generator=torch.Generator().manual_seed(2))
    tensors = shrink("b", bias)
    assert set(tensors) == {"b"}
    assert torch.equal(tensors["b"], bias.half())
    assert torch.equal(expand("b", tensors), bias.half().float())
