"""bf16 rounds only the factors of a product; `float32_arithmetic` restores the settings that it changes."""

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
        product = quick_addmm(bias, a, b)
    assert product.dtype == torch.float32
    error = (product - torch.addmm(bias, a, b)).abs().max()
    assert 0 < float(error) < 0.1, "the error is relative to products of about 3, not to the bias of 10,000"


def test_the_gradient_of_a_bias_is_a_sum_in_float32() -> None:
    a, b, bias = torch.zeros(10_000, 1), torch.zeros(1, 1), torch.zeros(1, requires_grad=True)
    with bf16_products(True):
        quick_addmm(bias, a, b).sum().backward()
    assert float(bias.grad) == 10_000, "a sum of ones in bf16 stops at 256"


def test_bf16_products_overrides_the_machine_inside_its_context_only() -> None:
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


def test_settings_are_restored_when_the_last_thread_leaves() -> None:
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
