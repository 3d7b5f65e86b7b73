"""The loss of a student on labels of a language model, against closed forms, torch's losses and finite differences."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from pretended_cuda import pretended_cuda
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vqlabel.codecs.hidden_labels import HiddenLabels, OutputHead
from vqlabel.errors import UsageError
from vqlabel.metrics import factored
from vqlabel.training.text.labels import DenseLogits, TokenLabels
from vqlabel.training.text.losses import kd_loss

BATCH, LENGTH, V, D = 2, 6, 11, 5
DIRECTIONS = ["forward", "reverse"]
TEMPERATURES = [1, 2, 4]
HALVES = [torch.float16, torch.bfloat16]


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels_of(logits: Tensor, position: Tensor | None = None) -> TokenLabels:
    """Labels [n, V] at `position`; by default at 0, 1, 2 ..., with token (3 i + 1) mod V after label i."""
    n, classes = logits.shape
    position = torch.arange(n) if position is None else position
    return TokenLabels(
        position=position, next_tokens=(3 * torch.arange(n) + 1) % classes, classes=classes, source=DenseLogits(logits)
    )


@pytest.fixture
def labels() -> TokenLabels:
    """The labels of two documents of six tokens, [10, V]: no label is of a last token."""
    return labels_of(normal(10, V), torch.tensor([0, 1, 2, 3, 4, 6, 7, 8, 9, 10]))


def student(classes: int = V, dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [BATCH, LENGTH, D], head [classes, D] and bias [classes], which require gradients."""
    parts = normal(BATCH, LENGTH, D, seed=seed), normal(classes, D, seed=seed + 1, scale=0.7), normal(classes, seed=seed + 2)
    hidden, head, bias = (part.to(dtype).requires_grad_(True) for part in parts)
    return hidden, head, bias


def dense_loss(logits: Tensor, labels: TokenLabels, temperature: float, ce_weight: float, direction: str) -> Tensor:
    """`kd_loss` of all logits [..., V'] at once, by torch's losses; every token of the vocabulary has a probability."""
    logits = logits.flatten(0, -2)[labels.position]
    log_p = F.log_softmax(labels.logits(slice(None)).to(logits.dtype) / temperature, 1)
    log_q = F.log_softmax(logits / temperature, 1)
    if direction == "forward":
        kl = F.kl_div(log_q[:, : labels.classes], log_p, log_target=True, reduction="batchmean")
    else:
        given = F.log_softmax(logits[:, : labels.classes] / temperature, 1)
        padded = log_q[:, labels.classes :].exp().sum(1)
        kl = F.kl_div(log_p, given, log_target=True, reduction="batchmean") - torch.log1p(-padded).mean()
    return (1 - ce_weight) * temperature**2 * kl + ce_weight * F.cross_entropy(logits, labels.next_tokens)


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


# --- values and gradients ---------------------------------------------------------------------------------------------


def test_kl_and_cross_entropy_of_two_known_distributions() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    labels = replace(labels_of(p.log() + 3), next_tokens=torch.tensor([2]))
    kl, ce = 0.25 * math.log(2), math.log(2)
    for direction in DIRECTIONS:
        assert kd_loss(q.log() - 5, None, labels, direction=direction).item() == pytest.approx(kl, rel=1e-6)
        weighted = kd_loss(q.log() - 5, None, labels, direction=direction, ce_weight=0.25)
        assert weighted.item() == pytest.approx(0.75 * kl + 0.25 * ce, rel=1e-6)
    warm = labels_of(3 * p.log())
    assert kd_loss(3 * q.log(), None, warm, temperature=3).item() == pytest.approx(9 * kl, rel=1e-6)


@pytest.mark.parametrize("classes", [V, V + 3])
@pytest.mark.parametrize("ce_weight", [0, 0.3, 1])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_loss_and_its_gradients_equal_those_of_torchs_losses_of_all_logits(
    direction: str, temperature: float, ce_weight: float, classes: int, labels: TokenLabels
) -> None:
    inputs = hidden, head, bias = student(classes)
    options = {"temperature": temperature, "ce_weight": ce_weight, "direction": direction}
    loss = kd_loss(hidden, head, labels, bias=bias, **options)
    reference = dense_loss(hidden @ head.T + bias, labels, **options)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    for ours, theirs in zip(gradients(loss, *inputs), gradients(reference, *inputs), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def few(padded: int = 0) -> tuple[TokenLabels, list[Tensor]]:
    """Labels [3, 5] of a batch of 4; hidden states [3, 4] as columns, head [5 + padded, 3] and bias in float64."""
    shapes = (3, 4), (5 + padded, 3), (5 + padded,)
    inputs = [normal(*shape, seed=seed).double().requires_grad_(True) for seed, shape in enumerate(shapes)]
    return labels_of(normal(3, 5, seed=3), torch.tensor([0, 1, 3])), inputs


@pytest.mark.parametrize("padded", [0, 2])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_are_those_of_finite_differences(direction: str, temperature: float, padded: int) -> None:
    labels, (hidden, head, bias) = few(padded)
    options = {"temperature": temperature, "ce_weight": 0.3, "direction": direction}
    assert torch.autograd.gradcheck(lambda h, w, b: kd_loss(h.T, w, labels, bias=b, **options), (hidden, head, bias))
    logits = (hidden.T @ head.T + bias).detach().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: kd_loss(x, None, labels, **options), logits)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_of_tokens_without_probability_are_those_of_finite_differences(direction: str) -> None:
    labels, inputs = few(padded=1)
    teacher = labels.logits(slice(None)).clone()
    teacher[::2, :2] = -math.inf
    labels = replace(labels, source=DenseLogits(teacher))
    assert torch.autograd.gradcheck(lambda h, w, b: kd_loss(h.T, w, labels, bias=b, direction=direction), inputs)


def test_logits_have_the_loss_and_the_gradient_of_hidden_states_and_head(labels: TokenLabels) -> None:
    hidden, head, bias = student(V + 2)
    options = {"temperature": 2, "ce_weight": 0.3}
    logits = hidden @ head.T + bias
    loss, reference = kd_loss(logits, None, labels, **options), kd_loss(hidden, head, labels, bias=bias, **options)
    assert torch.equal(loss, reference)
    for ours, theirs in zip(gradients(loss, hidden, head, bias), gradients(reference, hidden, head, bias), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ce_weight", [0, 0.3])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_forward_kl_at_any_temperature_has_a_gradient_of_t_times_the_difference(
    temperature: float, ce_weight: float, labels: TokenLabels
) -> None:
    logits = normal(12, V, seed=4).requires_grad_(True)
    (grad,) = gradients(kd_loss(logits, None, labels, temperature=temperature, ce_weight=ce_weight), logits)
    rows = labels.position
    q, p = (logits[rows] / temperature).softmax(1), labels.probs(slice(None), temperature)
    hard = logits[rows].softmax(1) - F.one_hot(labels.next_tokens, V)
    expected = ((1 - ce_weight) * temperature * (q - p) + ce_weight * hard) / len(labels)
    torch.testing.assert_close(grad[rows], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient(direction: str, temperature: float) -> None:
    hidden, head, bias = student()
    rows = hidden.flatten(0, 1).detach()
    source = HiddenLabels(hidden=rows, head=OutputHead(weight=head.detach(), bias=bias.detach()))
    n = len(rows)
    labels = TokenLabels(position=torch.arange(n), next_tokens=torch.zeros(n, dtype=torch.int64), classes=V, source=source)
    loss = kd_loss(hidden, head, labels, bias=bias, direction=direction, temperature=temperature)
    assert abs(loss.item()) < 1e-7
    assert all(float(grad.abs().max()) < 1e-6 for grad in gradients(loss, hidden, head, bias))


def test_the_sum_over_a_large_vocabulary_is_exact() -> None:
    teacher, logits = normal(16, 100_000, scale=4), normal(16, 100_000, seed=1, scale=4)
    loss = kd_loss(logits, None, labels_of(teacher))
    reference = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(teacher, 1), log_target=True, reduction="none").double().sum()
    assert loss.item() == pytest.approx(reference.item() / 16, rel=1e-6)


# --- chunks, rows and memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_size_of_a_chunk_does_not_change_the_result(
    direction: str, labels: TokenLabels, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, results = student(V + 1), []
    for size in (1, 3, 10, 64):
        monkeypatch.setattr(factored, "chunk_rows", lambda _, size=size: size)
        loss = kd_loss(*inputs[:2], labels, bias=inputs[2], temperature=2, ce_weight=0.3, direction=direction)
        results.append((loss, *gradients(loss, *inputs)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-6)


class Largest(TorchDispatchMode):
    """Records the largest number of elements of a tensor that an operation returned."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(x.numel() for x in tree_leaves(found) if isinstance(x, Tensor))])
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_tensor_has_the_logits_of_all_rows(direction: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factored, "CHUNK_BYTES", 1)  # 16 rows
    n, classes = 70, 50
    source = HiddenLabels(hidden=normal(n, 3).to(dtype), head=OutputHead(weight=normal(classes, 3)))
    labels = TokenLabels(position=torch.arange(n), next_tokens=torch.zeros(n, dtype=torch.int64), classes=classes, source=source)
    hidden, head = normal(n, 3).to(dtype).requires_grad_(True), normal(classes, 3).to(dtype).requires_grad_(True)
    with Largest() as largest:
        kd_loss(hidden, head, labels, temperature=2, ce_weight=0.3, direction=direction).backward()
    assert largest.numbers == 16 * classes


def test_positions_choose_the_rows_of_the_student(labels: TokenLabels) -> None:
    hidden, head, _ = student()
    loss = kd_loss(hidden, head, labels, ce_weight=0.3)
    (grad,) = gradients(loss, hidden)
    without_label = torch.ones(BATCH * LENGTH, dtype=torch.bool).index_fill(0, labels.position, False)
    assert without_label.tolist() == [i in (5, 11) for i in range(12)]
    assert torch.equal(grad.flatten(0, 1).any(1), ~without_label)
    order = torch.tensor([7, 2, 9, 0, 1, 8, 3, 4, 6, 5])
    shuffled = replace(
        labels,
        position=labels.position[order],
        next_tokens=labels.next_tokens[order],
        source=DenseLogits(labels.logits(order)),
    )
    again = kd_loss(hidden, head, shuffled, ce_weight=0.3)
    torch.testing.assert_close((again, *gradients(again, hidden)), (loss, grad))


def test_two_labels_at_one_position_add_their_gradients() -> None:
    teacher, logits = normal(2, V), normal(3, V, seed=1).requires_grad_(True)
    both = labels_of(teacher, torch.tensor([1, 1]))
    (grad,) = gradients(kd_loss(logits, None, both), logits)
    one, other = (labels_of(teacher[i : i + 1], torch.tensor([1])) for i in range(2))
    mean = (kd_loss(logits, None, one) + kd_loss(logits, None, other)) / 2
    torch.testing.assert_close(grad, *gradients(mean, logits))


@pytest.mark.parametrize("shape", [(12,), (1, 12), (2, 6), (3, 2, 2)])
def test_a_batch_may_have_any_number_of_dimensions(shape: tuple[int, ...], labels: TokenLabels) -> None:
    hidden, head, _ = student()
    loss = kd_loss(hidden.reshape(*shape, D), head, labels)
    assert torch.equal(loss, kd_loss(hidden, head, labels))


def test_hidden_states_and_heads_need_not_be_contiguous(labels: TokenLabels) -> None:
    hidden, head, bias = student()
    reference = kd_loss(hidden, head, labels, bias=bias)
    expected = gradients(reference, hidden, head, bias)
    inputs = (
        hidden.detach().transpose(0, 1).contiguous().requires_grad_(True),
        head.detach().T.contiguous().requires_grad_(True),
        torch.stack([bias.detach()] * 2, 1).requires_grad_(True),
    )
    loss = kd_loss(inputs[0].transpose(0, 1), inputs[1].T, labels, bias=inputs[2][:, 0])
    grads = gradients(loss, *inputs)
    torch.testing.assert_close((loss, grads[0].transpose(0, 1), grads[1].T, grads[2][:, 0]), (reference, *expected))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_batch_without_labels_has_a_loss_of_0_and_gradients_of_0(direction: str) -> None:
    inputs = hidden, head, bias = student()
    loss = kd_loss(hidden, head, labels_of(torch.empty(0, V)), bias=bias, ce_weight=0.3, direction=direction)
    assert loss.item() == 0 and loss.dtype == torch.float32
    for grad, x in zip(gradients(loss, *inputs), inputs, strict=True):
        assert torch.equal(grad, torch.zeros_like(x))


# --- tokens without probability ---------------------------------------------------------------------------------------


def test_padded_rows_have_probability_0_in_forward_kl(labels: TokenLabels) -> None:
    logits = normal(12, V + 3, seed=4).requires_grad_(True)
    padded = replace(labels, classes=V + 3, source=DenseLogits(F.pad(labels.logits(slice(None)), (0, 3), value=-math.inf)))
    loss, reference = kd_loss(logits, None, labels, temperature=2), kd_loss(logits, None, padded, temperature=2)
    torch.testing.assert_close((loss, *gradients(loss, logits)), (reference, *gradients(reference, logits)))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tokens_of_probability_0_cost_minus_log_of_what_the_others_have(direction: str) -> None:
    teacher, logits = normal(4, V), normal(4, V + 2, seed=1)
    teacher[:, [1, 5]] = -math.inf
    possible = [i for i in range(V) if i not in (1, 5)]
    among = kd_loss(logits[:, possible], None, labels_of(teacher[:, possible]), direction=direction)
    others = -torch.log(logits.softmax(1)[:, possible].sum(1)).mean()
    loss = kd_loss(logits, None, labels_of(teacher), direction=direction)
    assert loss.item() == pytest.approx(float(among + others), rel=1e-5)
    without = logits.index_fill(1, torch.tensor([1, 5, V, V + 1]), -math.inf)
    assert kd_loss(without, None, labels_of(teacher), direction=direction).item() == pytest.approx(among.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_logits_of_minus_infinity_give_finite_losses_and_gradients(direction: str, temperature: float) -> None:
    teacher, logits = normal(6, V), normal(6, V + 1, seed=1)
    teacher[:, 3], teacher[0, 1:] = -math.inf, -math.inf
    logits[1, 3] = logits[:, V] = -math.inf
    logits = logits.requires_grad_(True)
    loss = kd_loss(logits, None, labels_of(teacher), temperature=temperature, direction=direction)
    (grad,) = gradients(loss, logits)
    assert loss.isfinite() and grad.isfinite().all()
    assert grad[1, 3] == 0 and (grad[:, V] == 0).all()
    assert (grad[2:, 3] > 0).all()


def test_a_student_that_rules_out_a_likely_token_has_an_unbounded_forward_loss() -> None:
    logits = torch.zeros(1, V)
    logits[0, 2] = -math.inf
    assert kd_loss(logits, None, labels_of(torch.zeros(1, V))).item() > 1e30


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("broken", ["student", "teacher"])
def test_nan_stays_visible(broken: str, direction: str) -> None:
    logits = {"student": torch.zeros(3, V), "teacher": torch.zeros(3, V)}
    logits[broken][1, 2] = math.nan
    assert kd_loss(logits["student"], None, labels_of(logits["teacher"]), direction=direction).isnan()


# --- precision and gradients asked for --------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_gradients_are_those_of_float32_rounded_once(dtype: torch.dtype, direction: str) -> None:
    n = 300
    labels = labels_of(normal(n, V))
    inputs = [x.to(dtype).requires_grad_(True) for x in (normal(n, D, seed=1), normal(V, D, seed=2), normal(V, seed=3))]
    same = [x.detach().float().requires_grad_(True) for x in inputs]
    options = {"temperature": 2, "ce_weight": 0.3, "direction": direction}
    loss, reference = (kd_loss(x[0], x[1], labels, bias=x[2], **options) for x in (inputs, same))
    assert loss.dtype == torch.float32 and torch.equal(loss, reference)
    for ours, theirs in zip(gradients(loss, *inputs), gradients(reference, *same), strict=True):
        assert torch.equal(ours, theirs.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_logits_have_gradients_of_their_type(dtype: torch.dtype) -> None:
    labels, logits = labels_of(normal(20, V)), normal(20, V, seed=1).to(dtype).requires_grad_(True)
    same = logits.detach().float().requires_grad_(True)
    loss, reference = kd_loss(logits, None, labels), kd_loss(same, None, labels)
    assert torch.equal(loss, reference)
    (ours,), (theirs,) = gradients(loss, logits), gradients(reference, same)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), theirs, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_a_loss_scale_keeps_gradients_of_many_float16_rows_from_vanishing() -> None:
    n = 4096
    labels = labels_of(normal(n, V, scale=0.1))
    hidden, head = normal(n, D, scale=0.01).half().requires_grad_(True), normal(V, D, scale=0.01).half().requires_grad_(True)
    scale = 2.0**17
    ours = torch.autograd.grad(scale * kd_loss(hidden, head, labels), hidden)[0]
    logits = torch.zeros(n, V, dtype=torch.float16, requires_grad=True)
    of_logits = torch.autograd.grad(scale * kd_loss(logits, None, labels), logits)[0]
    exact = scale / n * (1 / V - labels.probs(slice(None)))
    torch.testing.assert_close(of_logits.float(), exact, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(ours.float(), exact @ head.detach().float(), rtol=1e-2, atol=1e-3)


def test_a_loss_scale_above_the_range_of_float16_multiplies_gradients_that_are_within_it() -> None:
    teacher = normal(1, V, scale=0.02)
    logits = torch.zeros(1, V, dtype=torch.float16, requires_grad=True)
    (grad,) = torch.autograd.grad(2.0**17 * kd_loss(logits, None, labels_of(teacher)), logits)
    torch.testing.assert_close(grad.float(), 2.0**17 * (1 / V - teacher.softmax(1)), rtol=2e-3, atol=1)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_autocast_changes_nothing_on_a_cpu(direction: str) -> None:
    hidden, head, bias = student()
    n = BATCH * LENGTH
    source = HiddenLabels(hidden=normal(n, D), head=OutputHead(weight=normal(V, D, seed=3)))
    labels = TokenLabels(position=torch.arange(n), next_tokens=torch.arange(n) % V, classes=V, source=source)
    reference = kd_loss(hidden, head, labels, bias=bias, direction=direction, ce_weight=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = kd_loss(hidden, head, labels, bias=bias, direction=direction, ce_weight=0.3)
        half = kd_loss((hidden * 1).bfloat16(), head, labels, bias=bias)
    results = zip((loss, *gradients(loss, hidden, head, bias)), (reference, *gradients(reference, hidden, head, bias)), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in results)
    assert [grad.dtype for grad in gradients(half, hidden, head)] == [torch.float32] * 2


@pytest.mark.parametrize("chosen", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_only_inputs_that_require_a_gradient_get_one(chosen: tuple[int, ...], labels: TokenLabels) -> None:
    every = student()
    expected = gradients(kd_loss(*every[:2], labels, bias=every[2]), *every)
    inputs = [x.detach().requires_grad_(i in chosen) for i, x in enumerate(every)]
    kd_loss(*inputs[:2], labels, bias=inputs[2]).backward()
    for i, x in enumerate(inputs):
        assert (x.grad is None) == (i not in chosen)
        assert x.grad is None or torch.equal(x.grad, expected[i])


def test_without_gradients_only_the_loss_is_computed(labels: TokenLabels) -> None:
    hidden, head, bias = student()
    reference = kd_loss(hidden, head, labels, bias=bias)
    with patch.object(factored, "add_product", side_effect=AssertionError):
        with torch.no_grad():
            loss = kd_loss(hidden, head, labels, bias=bias)
        detached = kd_loss(hidden.detach(), head.detach(), labels, bias=bias.detach())
    assert not loss.requires_grad and not detached.requires_grad
    assert torch.equal(loss, reference) and torch.equal(detached, reference)


def test_the_gradient_of_a_multiple_is_that_multiple_and_may_be_taken_twice(labels: TokenLabels) -> None:
    hidden, head, _ = student()
    loss = kd_loss(hidden, head, labels)
    once = torch.autograd.grad(loss, (hidden, head), retain_graph=True)
    threefold = torch.autograd.grad(3 * loss, (hidden, head))
    torch.testing.assert_close(threefold, tuple(3 * grad for grad in once))
    weight = torch.ones((), requires_grad=True)
    (grad,) = torch.autograd.grad(weight * kd_loss(hidden, head, labels), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_no_gradient_flows_into_the_labels() -> None:
    teacher, logits = normal(4, V).requires_grad_(True), normal(4, V, seed=1).requires_grad_(True)
    kd_loss(logits, None, labels_of(teacher)).backward()
    assert teacher.grad is None


def float_product(a: Tensor, b: Tensor, *, out_dtype: torch.dtype) -> Tensor:
    """What CUDA's torch.mm does with half-precision matrices."""
    assert a.dtype == b.dtype != torch.float32 and out_dtype == torch.float32
    return a.float() @ b.float()


def add_float_product(total: Tensor, a: Tensor, b: Tensor, *, out_dtype: torch.dtype, out: Tensor) -> Tensor:
    assert out is total
    return total.add_(float_product(a, b, out_dtype=out_dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_products_are_of_half_precision_numbers_with_results_in_float32(
    dtype: torch.dtype, labels: TokenLabels, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = student(V + 1, dtype)
    reference = kd_loss(*inputs[:2], labels, bias=inputs[2], ce_weight=0.3)
    expected = gradients(reference, *inputs)
    monkeypatch.setattr(factored, "_precision", lambda *_: (torch.bfloat16, torch.float32))
    with pretended_cuda(), patch.multiple("torch", mm=float_product, addmm=add_float_product):
        there = [x.detach().to("cuda").requires_grad_(True) for x in inputs]
        source = DenseLogits(labels.logits(slice(None)).to("cuda"))
        moved = replace(labels, position=labels.position.to("cuda"), next_tokens=labels.next_tokens.to("cuda"), source=source)
        loss = kd_loss(*there[:2], moved, bias=there[2], ce_weight=0.3)
        grads = [grad.cpu() for grad in gradients(loss, *there)]
        assert loss.item() == pytest.approx(reference.item(), rel=1e-2 if dtype == torch.float32 else 1e-6)
    for ours, theirs in zip(grads, expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_on_cuda_no_tensor_is_on_the_cpu(direction: str, labels: TokenLabels) -> None:
    inputs = student(V + 1)
    reference = kd_loss(*inputs[:2], labels, bias=inputs[2], ce_weight=0.3, temperature=2, direction=direction)
    with pretended_cuda():
        there = [x.detach().to("cuda").requires_grad_(True) for x in inputs]
        source = DenseLogits(labels.logits(slice(None)).to("cuda"))
        moved = replace(labels, position=labels.position.to("cuda"), next_tokens=labels.next_tokens.to("cuda"), source=source)
        loss = kd_loss(*there[:2], moved, bias=there[2], ce_weight=0.3, temperature=2, direction=direction)
        assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
        assert all(grad.is_cuda for grad in gradients(loss, *there))


@pytest.mark.parametrize(
    ("student_type", "head_type", "autocast", "operands", "sums"),
    [
        (torch.bfloat16, torch.bfloat16, None, torch.bfloat16, torch.float32),
        (torch.float16, torch.float16, None, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, None, torch.float32, torch.float32),
        (torch.float32, torch.float32, torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float16, torch.float16, torch.float32),
        (torch.float64, torch.float32, None, torch.float64, torch.float64),
        (torch.float64, torch.float64, torch.bfloat16, torch.float64, torch.float64),
        (torch.bfloat16, None, torch.bfloat16, torch.float32, torch.float32),
    ],
)
def test_operands_off_the_cpu_have_the_type_of_student_and_head_or_of_autocast(
    student_type: torch.dtype,
    head_type: torch.dtype | None,
    autocast: torch.dtype | None,
    operands: torch.dtype,
    sums: torch.dtype,
) -> None:
    hidden = torch.empty(2, D, dtype=student_type, device="meta")
    head = None if head_type is None else torch.empty(V, D, dtype=head_type, device="meta")
    with patch.multiple("torch", is_autocast_enabled=lambda _: autocast is not None, get_autocast_dtype=lambda _: autocast):
        assert factored._precision(hidden, head) == (operands, sums)


def test_other_devices_round_products_of_half_precision_numbers() -> None:
    a, b, total = normal(3, 4).bfloat16(), normal(4, 5).bfloat16(), torch.ones(3, 5)
    assert factored.product(a, b).dtype == torch.float32
    torch.testing.assert_close(factored.product(a, b), a.float() @ b.float(), rtol=1e-2, atol=1e-2)
    factored.add_product(total, a, b)
    assert torch.equal(total, 1 + factored.product(a, b))


# --- the loss of a codec's fit ----------------------------------------------------------------------------------------


def test_factored_kl_is_the_mean_kl_of_probabilities_in_a_students_own_layout() -> None:
    hidden, head, bias = (x.double().detach() for x in student())
    hidden, out = hidden.flatten(0, 1).requires_grad_(True), head.T.contiguous().requires_grad_(True)
    bias.requires_grad_(True)
    p = normal(12, V).double().softmax(1)
    p[3] = F.one_hot(torch.tensor(2), V)
    loss = factored.factored_kl(hidden, out, bias, lambda rows: p[rows])
    reference = F.kl_div(F.log_softmax(hidden @ out + bias, 1), p, reduction="batchmean")
    inputs = (hidden, out, bias)
    torch.testing.assert_close((loss, *gradients(loss, *inputs)), (reference, *gradients(reference, *inputs)))


# --- refusals ---------------------------------------------------------------------------------------------------------

HIDDEN, HEAD = torch.zeros(2, 6, D), torch.zeros(V, D)
REFUSED: dict[str, tuple[Callable[[TokenLabels], Any], str]] = {
    "another width": (
        lambda labels: kd_loss(HIDDEN[..., :4], HEAD, labels),
        r"student has 4 numbers per token \(shape \[2, 6, 4\]\), and head \[11, 5\] is of 5; give the hidden states that the head",
    ),
    "a smaller vocabulary": (
        lambda labels: kd_loss(HIDDEN, HEAD[:9], labels),
        "the student has 9 logits per token, the labels are of 11 tokens; it needs the teacher's vocabulary: use its tokenizer",
    ),
    "too few logits": (lambda labels: kd_loss(HIDDEN, None, labels), "the student has 5 logits per token, the labels are of 11"),
    "a temperature of 0": (lambda labels: kd_loss(HIDDEN, HEAD, labels, temperature=0), "temperature is 0; it must be above 0"),
    "a negative temperature": (lambda labels: kd_loss(HIDDEN, HEAD, labels, temperature=-1.0), r"temperature is -1\.0; it must be"),
    "a negative weight": (lambda labels: kd_loss(HIDDEN, HEAD, labels, ce_weight=-0.1), r"ce_weight is -0\.1; it must be 0\.\.1"),
    "a large weight": (lambda labels: kd_loss(HIDDEN, HEAD, labels, ce_weight=1.1), r"ce_weight is 1\.1; it must be 0\.\.1"),
    "a direction": (
        lambda labels: kd_loss(HIDDEN, HEAD, labels, direction="jsd"),
        "direction is 'jsd'; it must be forward or reverse",
    ),
    "another batch": (
        lambda labels: kd_loss(HIDDEN[:1], HEAD, labels),
        r"labels have positions 0\.\.10, and the student's batch 0\.\.5; make the labels from the tokens of this batch",
    ),
    "a negative position": (
        lambda labels: kd_loss(HIDDEN, HEAD, replace(labels, position=labels.position - 1)),
        r"labels have positions -1\.\.9, and the student's batch 0\.\.11",
    ),
    "a token outside": (
        lambda labels: kd_loss(HIDDEN, HEAD, replace(labels, next_tokens=labels.next_tokens + 1)),
        r"next_tokens is '1\.\.11'; it must be 0\.\.10, the student's vocabulary",
    ),
    "a bias of logits": (
        lambda labels: kd_loss(torch.zeros(2, 6, V), None, labels, bias=torch.zeros(V)),
        "bias is given without a head; add it to the logits",
    ),
    "a bias of another length": (
        lambda labels: kd_loss(HIDDEN, HEAD, labels, bias=torch.zeros(9)),
        r"shape of bias is \[9\]; it must be \[11\], as of the head",
    ),
    "a head of one dimension": (lambda labels: kd_loss(HIDDEN, HEAD[0], labels), r"shape of head is \[5\]; it must be \[V', d\]"),
    "integers": (
        lambda labels: kd_loss(HIDDEN.long(), HEAD, labels),
        r"student is 'torch\.int64 \[2, 6, 5\]'; it must be floating-",
    ),
    "another device": (
        lambda labels: kd_loss(HIDDEN.to("meta"), HEAD, labels),
        r"devices is {'student': 'meta', 'head': 'cpu', 'labels': 'cpu'}; it must be one device: open the labels with device=",
    ),
    "a model": (lambda labels: kd_loss(object(), HEAD, labels), "student is .*object"),  # type: ignore[arg-type]
    "a layer": (lambda labels: kd_loss(HIDDEN, torch.nn.Linear(D, V), labels), "head is "),  # type: ignore[arg-type]
    "a tensor as labels": (lambda labels: kd_loss(HIDDEN, HEAD, HEAD), "labels is "),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_argument_is_refused_with_its_remedy(name: str, labels: TokenLabels) -> None:
    call, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        call(labels)
