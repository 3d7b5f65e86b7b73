"""bf16 rounds the factors of a product and nothing else; what float32 arithmetic sets, it gives back."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from vqlabel.codecs.precision import bf16_products, float32_arithmetic, multiplies_bf16, quick_addmm

CPU = torch.device("cpu")


def test_a_bias_that_masks_a_class_is_not_rounded() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 8, generator=generator), torch.randn(8, 20, generator=generator)
    bias = torch.full((20,), -10_001.0)
    with bf16_products(False):
        assert torch.equal(quick_addmm(bias, a, b), torch.addmm(bias, a, b))
    with bf16_products(True):
        found = quick_addmm(bias, a, b)
    assert found.dtype == torch.float32
    lost = (found - torch.addmm(bias, a, b)).abs().max()
    assert 0 < float(lost) < 0.1, "of products of about 3, and not of 10,000"


def test_the_gradient_of_a_bias_is_a_sum_in_float32() -> None:
    a, b, bias = torch.zeros(10_000, 1), torch.zeros(1, 1), torch.zeros(1, requires_grad=True)
    with bf16_products(True):
        quick_addmm(bias, a, b).sum().backward()
    assert float(bias.grad) == 10_000, "a sum of ones in bf16 ends at 256"


def test_precision_is_chosen_inside_and_the_machine_s_outside() -> None:
    outside = multiplies_bf16(CPU)
    for chosen in (True, False):
        with bf16_products(chosen):
            assert multiplies_bf16(CPU) == multiplies_bf16(torch.device("cuda")) == chosen
    assert multiplies_bf16(CPU) == outside


def settings() -> tuple[object, ...]:
    backends = torch.backends
    return (
        torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), backends.cuda.matmul.fp32_precision,
        backends.mkldnn.matmul.fp32_precision,
    )  # fmt: skip


def test_float32_is_kept_as_long_as_any_thread_needs_it_and_then_given_back() -> None:
    inside, seen = (torch.float32, False, "ieee", "ieee"), []
    first_left, both_in = Barrier(2, timeout=30), Barrier(2, timeout=30)

    def first() -> None:
        with float32_arithmetic(CPU):
            both_in.wait()
        first_left.wait()

    def second() -> None:
        with float32_arithmetic(CPU):
            both_in.wait()
            first_left.wait()
            seen.append(settings())

    default, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    torch.set_default_dtype(torch.float16)
    torch.set_float32_matmul_precision("high")
    try:
        before = settings()
        with torch.autocast("cpu", torch.bfloat16), float32_arithmetic(CPU):
            assert settings() == inside != before
        with ThreadPoolExecutor(2) as pool:
            for done in (pool.submit(first), pool.submit(second)):
                done.result()
        assert seen == [inside]
        assert settings() == before
        with pytest.raises(ZeroDivisionError), float32_arithmetic(CPU):
            _ = 1 / 0
        assert settings() == before
    finally:
        torch.set_default_dtype(default)
        torch.set_float32_matmul_precision(precision)
