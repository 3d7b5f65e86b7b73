"""A small student of labels: it learns, its numbers are reproducible, and its scores are those of dense formulas."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.errors import UsageError
from vqlabel.labels.text.documents import Documents
from vqlabel.report.text import student as module
from vqlabel.report.text.student import ProbsOf, StudentSchedule, calibration_error, judge, train
from vqlabel.report.text.student_network import CausalStudent, StudentConfig

V = 24
CONFIG = StudentConfig(vocabulary=V, width=16, layers=2, heads=2)
FAST = {"batch": 4, "learning_rate": 1e-2, "warmup": 2}


def draw_documents(count: int = 16, seed: int = 0, lengths: tuple[int, int] = (5, 12)) -> Documents:
    rng = np.random.default_rng(seed)
    return Documents.of([rng.integers(0, V, rng.integers(*lengths)) for _ in range(count)])


def probs_after(documents: Documents) -> ProbsOf:
    """Labels of a teacher that knows the token before: one of V fixed distributions."""
    table = torch.softmax(2 * torch.randn(V, V, generator=torch.Generator().manual_seed(9)), 1)
    before = torch.from_numpy(documents.tokens[documents.position])
    return lambda rows: table[before[rows]]


def dense_logits(student: CausalStudent, documents: Documents) -> Tensor:
    """[n, V], document by document."""
    parts = torch.from_numpy(documents.tokens).split(documents.lengths.tolist())
    with torch.no_grad():
        return torch.cat([student(part[None, :-1])[0] @ student.out for part in parts if len(part) > 1])


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_lowers_the_kl_to_the_teacher_on_new_documents() -> None:
    learn, held = draw_documents(48), draw_documents(8, seed=1)
    student = CausalStudent.draw(CONFIG)
    before = judge(student, held, probs_after(held))
    losses = train(student, learn, probs_after(learn), StudentSchedule(passes=4, **FAST))
    after = judge(student, held, probs_after(held))
    assert len(losses) == 4 * 12
    assert after.kl < 0.5 * before.kl


@pytest.mark.parametrize("tied", [True, False])
def test_one_seed_gives_one_student(tied: bool) -> None:
    learn, weights, losses = draw_documents(8), [], []
    config = StudentConfig(vocabulary=V, width=16, heads=2, tied=tied)
    for draw, order in ((0, 0), (0, 0), (0, 1), (1, 0)):
        torch.manual_seed(len(weights))  # the global generator has no part in it
        student = CausalStudent.draw(config, seed=draw)
        losses.append(train(student, learn, probs_after(learn), StudentSchedule(seed=order, **FAST)))
        weights.append(student.out.detach().clone())
    assert losses[0] == losses[1] and torch.equal(weights[0], weights[1])
    assert losses[0] != losses[2] and not torch.equal(weights[0], weights[3])


def test_the_order_of_documents_does_not_depend_on_labels_or_student() -> None:
    learn, orders = draw_documents(), []
    for labels, width in ((probs_after(learn), 16), (lambda rows: torch.full((len(rows), V), 1 / V), 8)):
        seen: list[int] = []

        def record(rows: Tensor, labels: ProbsOf = labels, seen: list[int] = seen) -> Tensor:
            seen += rows.tolist()
            return labels(rows)

        student = CausalStudent.draw(StudentConfig(vocabulary=V, width=width, heads=2))
        train(student, learn, record, StudentSchedule(passes=2, **FAST))
        orders.append(seen)
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(2 * list(range(learn.rows)))
    assert orders[0][: learn.rows] != orders[0][learn.rows :]


def test_the_first_loss_is_the_cross_entropy_of_its_documents() -> None:
    learn = draw_documents(4)
    student = CausalStudent.draw(CONFIG)
    log_q, p = F.log_softmax(dense_logits(student, learn), 1), probs_after(learn)(torch.arange(learn.rows))
    (loss,) = train(student, learn, probs_after(learn), StudentSchedule(**FAST))
    assert loss == pytest.approx(-(p * log_q).sum(1).mean().item(), rel=1e-4)


def test_the_gradient_of_the_loss_is_that_of_kl() -> None:
    logits = torch.randn(5, V, generator=torch.Generator().manual_seed(0)).requires_grad_()
    p = torch.softmax(torch.randn(5, V, generator=torch.Generator().manual_seed(1)), 1)
    (gradient,) = torch.autograd.grad(F.kl_div(F.log_softmax(logits, 1), p, reduction="sum"), logits)
    loss, error = module.soft_cross_entropy(logits.detach(), p)
    assert torch.allclose(error, gradient, atol=1e-6)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, p, reduction="sum").item(), rel=1e-5)


def test_steps_follow_adamw_with_warm_up_and_decay() -> None:
    learn = draw_documents(4)  # one batch of all documents: the order within it does not matter
    students = [CausalStudent.draw(CONFIG) for _ in range(2)]
    for student in students:
        student.embedding.weight.data *= 60  # gradients of norms above 1 are clipped
    train(students[0], learn, probs_after(learn), StudentSchedule(passes=3, **FAST))
    optimizer = torch.optim.AdamW(students[1].parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    p = probs_after(learn)(torch.arange(learn.rows))
    for rate in (0.5 * 1e-2, 1e-2 * (1 - 1 / 3), 1e-2 * (1 - 2 / 3)):
        parts = torch.from_numpy(learn.tokens).split(learn.lengths.tolist())
        logits = torch.cat([students[1](part[None, :-1])[0] @ students[1].out for part in parts])
        optimizer.zero_grad()
        (p * (p.log() - F.log_softmax(logits, 1))).sum(1).mean().backward()
        assert torch.nn.utils.clip_grad_norm_(students[1].parameters(), 1.0) > 1.5
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    for got, want in zip(students[0].parameters(), students[1].parameters(), strict=True):
        assert torch.allclose(got, want, atol=2e-4)


def test_labels_are_asked_for_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    learn, sizes = draw_documents(), []
    monkeypatch.setattr("vqlabel.metrics.factored.chunk_rows", lambda vocabulary: 16)
    monkeypatch.setattr(module, "chunk_rows", lambda vocabulary: 16)

    def labels(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return probs_after(learn)(rows)

    student = CausalStudent.draw(CONFIG)
    train(student, learn, labels, StudentSchedule(batch=8))
    judge(student, learn, labels)
    assert max(sizes) == 16 and sum(sizes) == 2 * learn.rows


def test_documents_of_one_token_have_no_label() -> None:
    documents = Documents.of([np.array([3]), np.array([1, 2, 3]), np.array([7]), np.array([4, 5]), np.array([6])])
    rows: list[int] = []

    def labels(asked: Tensor) -> Tensor:
        rows.extend(asked.tolist())
        return probs_after(documents)(asked)

    assert len(train(CausalStudent.draw(CONFIG), documents, labels, StudentSchedule(batch=16))) == 1
    assert sorted(rows) == [0, 1, 2]


def test_progress_is_reported_at_the_last_step() -> None:
    learn, reports = draw_documents(4), []
    losses = train(
        CausalStudent.draw(CONFIG), learn, probs_after(learn), StudentSchedule(passes=24, **FAST),
        progress=lambda what, done, total, figures: reports.append((what, done, total, figures)),
    )  # fmt: skip
    assert [(what, done, total) for what, done, total, _ in reports] == [("student", 20, 24), ("student", 24, 24)]
    assert reports[-1][3] == {"loss": losses[-1]}


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_dense_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    held = draw_documents(20)
    student = CausalStudent.draw(CONFIG)
    train(student, held, probs_after(held), StudentSchedule(**FAST))
    monkeypatch.setattr(module, "chunk_rows", lambda vocabulary: 16)
    scores = judge(student, held, probs_after(held))
    log_q = F.log_softmax(dense_logits(student, held), 1)
    p, gold = probs_after(held)(torch.arange(held.rows)), torch.from_numpy(held.next_tokens)
    hits = (log_q.argmax(1) == gold).float()
    assert scores.kl == pytest.approx((p * (p.log() - log_q)).sum(1).mean().item(), rel=1e-4)
    assert scores.ce == pytest.approx(F.nll_loss(log_q, gold).item(), rel=1e-4)
    assert scores.top1 == pytest.approx(100 * hits.mean().item())
    assert scores.ece == pytest.approx(100 * calibration_error(log_q.exp().amax(1), hits), rel=1e-4)


def test_scores_of_hard_teachers_are_finite() -> None:
    held = draw_documents(4)
    gold = torch.from_numpy(held.next_tokens)
    scores = judge(CausalStudent.draw(CONFIG), held, lambda rows: F.one_hot(gold[rows], V).float())
    assert scores.kl == pytest.approx(scores.ce, rel=1e-5)


def test_calibration_error_by_hand() -> None:
    confidence = torch.tensor([0.01, 0.05, 0.5, 0.51, 1.0])
    correct = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    assert calibration_error(confidence, correct) == pytest.approx((abs(0.06 - 1) + abs(1.01 - 1) + 0) / 5, abs=1e-6)
    assert calibration_error(torch.full((10,), 0.7), torch.tensor([1.0] * 7 + [0.0] * 3)) == pytest.approx(0, abs=1e-6)


# --- network ----------------------------------------------------------------------------------------------------------


def test_a_student_sees_no_later_tokens() -> None:
    student = CausalStudent.draw(CONFIG)
    train(student, draw_documents(), lambda rows: torch.full((len(rows), V), 1 / V), StudentSchedule(**FAST))
    tokens = torch.randint(0, V, (2, 9), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 5] = (tokens[:, 5] + 1) % V
    with torch.no_grad():
        a, b = student(tokens), student(changed)
    assert torch.allclose(a[:, :5], b[:, :5], atol=1e-6) and not torch.allclose(a[:, 6:], b[:, 6:], atol=1e-3)


def test_a_student_sees_the_order_of_earlier_tokens() -> None:
    student = CausalStudent.draw(StudentConfig(vocabulary=V, width=16, layers=1, heads=2))
    torch.nn.init.normal_(student.blocks[0].mixed.weight)
    with torch.no_grad():
        a, b = student(torch.tensor([[1, 2, 3]]))[0, 2], student(torch.tensor([[2, 1, 3]]))[0, 2]
    assert not torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_a_student_starts_from_the_first_layers_of_given_weights(tied: bool) -> None:
    whole = CausalStudent.draw(StudentConfig(vocabulary=V, width=16, layers=3, heads=2, tied=tied), seed=4)
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    student = CausalStudent.of_weights(whole.state_dict(), layers=2, heads=2)
    assert student.config == StudentConfig(vocabulary=V, width=16, layers=2, heads=2, tied=tied)
    whole.blocks = whole.blocks[:2]
    tokens = torch.arange(7)[None]
    with torch.no_grad():
        assert torch.equal(student(tokens) @ student.out, whole(tokens) @ whole.out)
        student.embedding.weight.zero_()
    assert whole.embedding.weight.abs().sum() > 0  # a copy


def test_a_tied_head_is_the_embedding() -> None:
    student = CausalStudent.draw(CONFIG)
    assert student.out.data_ptr() == student.embedding.weight.data_ptr() and student.out.shape == (16, V)
    assert not any("head" in name for name, _ in student.named_parameters())
    untied = CausalStudent.draw(StudentConfig(vocabulary=V, width=16, heads=2, tied=False))
    assert untied.head is not None and untied.out.data_ptr() == untied.head.weight.data_ptr()


def test_queries_and_keys_are_normalised() -> None:
    student, tokens = CausalStudent.draw(CONFIG), torch.arange(7)[None]
    torch.nn.init.normal_(student.blocks[0].mixed.weight)
    with torch.no_grad():
        before = student(tokens)
        student.blocks[0].qkv.weight[:32] *= 5  # queries and keys, not values
        assert torch.allclose(student(tokens), before, atol=1e-5)
        student.blocks[0].qkv.weight[32:] *= 5
        assert not torch.allclose(student(tokens), before, atol=1e-2)


# --- refusals ---------------------------------------------------------------------------------------------------------


def missing(name: str, shape: tuple[int, ...] | None = None) -> Callable[[], Any]:
    weights = CausalStudent.draw(CONFIG).state_dict()
    del weights[name]
    if shape is not None:
        weights[name] = torch.zeros(shape)
    return lambda: CausalStudent.of_weights(weights, heads=2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StudentConfig(vocabulary=V, width=12, heads=4), r"width is 12; it must be a multiple of twice the heads \(4\)"),
        (lambda: StudentConfig(vocabulary=0, width=16), "vocabulary is 0; it must be at least 1"),
        (lambda: StudentSchedule(passes=0), "passes is 0; it must be at least 1"),
        (lambda: StudentSchedule(batch=0), "batch is 0; it must be at least 1"),
        (lambda: StudentSchedule(warmup=0), "warmup is 0; it must be at least 1"),
        (lambda: StudentSchedule(learning_rate=0.0), "learning_rate is 0.0; it must be above 0"),
        (lambda: StudentSchedule(weight_decay=-1.0), "weight_decay is -1.0; it must be 0 or above"),
        (missing("embedding.weight"), r'weights is .*; it must have "embedding.weight" \[V, d\]'),
        (
            missing("blocks.1.qkv.weight"),
            r"weights: tensor blocks.1.qkv.weight must have shape \[48, 16\], found none",
        ),
        (
            missing("blocks.1.qkv.weight", (48, 8)),
            r"weights: tensor blocks.1.qkv.weight must have shape \[48, 16\], found shape \[48, 8\]",
        ),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build()


@pytest.mark.parametrize("call", [train, judge])
def test_documents_that_a_student_cannot_read_are_refused(call: Callable[..., Any]) -> None:
    student, labels = CausalStudent.draw(CONFIG), lambda rows: torch.full((len(rows), V), 1 / V)
    for token in (V, -1):
        with pytest.raises(UsageError, match=rf"token {token} of the documents is outside 0\.\.23, the student's vocabulary"):
            call(student, Documents.of([np.array([1, token])]), labels)
    for documents in (Documents.of([np.array([1]), np.array([2])]), Documents.of([])):
        with pytest.raises(UsageError, match="no document has two tokens, so none has a label: a student cannot learn from them"):
            call(student, documents, labels)


def test_math_of_a_uniform_start() -> None:
    """Tied embeddings of scale 0.02 give nearly uniform predictions at the start."""
    held = draw_documents(4)
    assert judge(CausalStudent.draw(CONFIG), held, probs_after(held)).ce == pytest.approx(math.log(V), abs=0.1)
