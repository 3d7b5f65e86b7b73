"""Losses of students, temperature schedules and the temperature search, against closed forms and torch's own losses."""

import io
import math
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vqlabel
from vqlabel.codecs.topk.codec import TopkCodec
from vqlabel.codecs.topk.config import TopkConfig
from vqlabel.errors import UsageError
from vqlabel.labels.batch import NOWHERE
from vqlabel.training import CosineSchedule, StepSchedule, StudentTemperature, bce, kl, mse_gt, targets, top_k
from vqlabel.vql.decode import decode_steps

P, Q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
KL_PQ = 0.25 * math.log(2)
TEMPERATURES = [1, 4, 20]
HALVES = [torch.float16, torch.bfloat16]


def normal(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def labels() -> Tensor:
    """[64, 20] a teacher's logits."""
    return normal(64, 20) + 2


@pytest.fixture
def student() -> Tensor:
    """[64, 20] logits of a student that is often wrong; a leaf tensor."""
    return normal(64, 20, seed=1).requires_grad_(True)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(loss, of)
    return grad


# --- KL ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_matches_the_closed_form(temperature: float) -> None:
    teacher, student = temperature * P.log() + 3, temperature * Q.log() - 5
    assert kl(student, teacher, temperature).item() == pytest.approx(KL_PQ, rel=1e-5)
    assert kl(student, teacher, temperature, squared=True).item() == pytest.approx(temperature**2 * KL_PQ, rel=1e-5)
    assert kl(7 * Q.log(), teacher, temperature, student_temperature=7).item() == pytest.approx(KL_PQ, rel=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_equals_torchs_kldivloss(temperature: float, labels: Tensor, student: Tensor) -> None:
    reference = nn.KLDivLoss(reduction="batchmean")
    assert torch.equal(
        kl(student, labels, temperature), reference((student / temperature).log_softmax(1), (labels / temperature).softmax(1))
    )
    cooler = kl(student, labels, temperature, student_temperature=0.3)
    assert torch.equal(cooler, reference((student / 0.3).log_softmax(1), (labels / temperature).softmax(1)))
    assert torch.equal(kl(student, labels), kl(student, labels, 20.0))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("tau", [None, 0.4])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_of_kl_is_the_difference_of_the_distributions(
    temperature: float, tau: float | None, squared: bool, labels: Tensor, student: Tensor
) -> None:
    grad = gradient(kl(student, labels, temperature, student_temperature=tau, squared=squared), student)
    t = tau or temperature
    want = (F.softmax(student / t, 1) - F.softmax(labels / temperature, 1)) / t / len(labels)
    torch.testing.assert_close(grad, want * temperature**2 if squared else want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("tau", [None, 0.4])
def test_kl_is_zero_for_equal_distributions(tau: float | None, labels: Tensor) -> None:
    for temperature in TEMPERATURES:
        perfect = labels * (tau or temperature) / temperature - 30
        assert kl(perfect, labels, temperature, student_temperature=tau).item() == pytest.approx(0, abs=1e-6)
    probs = F.softmax(labels, 1)
    assert kl(labels, probs, 1, domain="probs").item() == pytest.approx(0, abs=1e-6)


def test_kl_of_probabilities_equals_kl_of_their_logits(labels: Tensor, student: Tensor) -> None:
    probs = F.softmax(labels, 1)
    for tau in (None, 0.4):
        loss = kl(student, probs, 1, student_temperature=tau, domain="probs")
        torch.testing.assert_close(loss, kl(student, labels, 1, student_temperature=tau))
    stored = 0.9 * probs  # stored probabilities need not sum to 1
    torch.testing.assert_close(kl(student, stored, 1, domain="probs"), kl(student, labels, 1))
    sharp = torch.eye(20)[:10]  # p log p is 0 at p = 0
    assert kl(student[:10], sharp, 1, domain="probs").item() == pytest.approx(
        F.cross_entropy(student[:10], torch.arange(10)).item()
    )


# --- the k largest ----------------------------------------------------------------------------------------------------


def test_mr_k_matches_the_closed_form() -> None:
    labels, student = torch.tensor([[1.0, 3.0, 2.0, 0.0]]), torch.tensor([[0.5, -1.0, 0.25, 2.0]])
    found = top_k(labels, 2)
    assert found.tolist() == [[NOWHERE, 3.0, 2.0, NOWHERE]]
    for temperature in TEMPERATURES:
        q = 1 / (1 + math.exp(-1 / temperature))  # probability of the larger; the other has 1 - q
        log_s = [
            z / temperature - math.log(sum(math.exp(z / temperature) for z in student[0].tolist())) for z in student[0].tolist()
        ]
        want = q * (math.log(q) - log_s[1]) + (1 - q) * (math.log(1 - q) - log_s[2])
        assert kl(student, found, temperature).item() == pytest.approx(want, rel=1e-5)
        assert targets(found, temperature).tolist() == [pytest.approx([0, q, 1 - q, 0])]


def test_the_k_largest_probabilities_are_normalised() -> None:
    probs = torch.tensor([[0.4, 0.1, 0.2, 0.3]], dtype=torch.float16)
    assert top_k(probs, 3, "probs").tolist() == [pytest.approx([4 / 9, 0, 2 / 9, 3 / 9], abs=1e-3)]
    assert top_k(probs, 1, "probs").tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_of_topk_labels_equals_lpqlds_loss(temperature: float, labels: Tensor, student: Tensor) -> None:
    labels = labels.half()
    codec = TopkCodec(TopkConfig(classes=20, domain="logits", k=5))
    stored = codec.decode(codec.encode(labels))
    assert int((stored == NOWHERE).sum()) == 64 * 15
    values, classes = labels.float().topk(5, 1)  # as in LPQLD's trainer: a softmax over the k largest, scattered
    reference = torch.zeros(64, 20).scatter(1, classes, F.softmax(values / temperature, 1))
    want = F.kl_div(F.log_softmax(student / temperature, 1), reference, reduction="batchmean")
    for k_largest in (stored, top_k(labels, 5), top_k(stored, 5)):
        torch.testing.assert_close(kl(student, k_largest, temperature), want, rtol=1e-6, atol=0)
    assert kl(student, labels, temperature).item() != pytest.approx(want.item(), rel=0.01)
    probs = F.softmax(labels.float(), 1)
    torch.testing.assert_close(kl(student, top_k(probs, 5, "probs"), 1, domain="probs"), kl(student, stored, 1))


def test_top_k_of_all_classes_is_the_identity(labels: Tensor) -> None:
    assert torch.equal(top_k(labels, 20), labels)
    torch.testing.assert_close(top_k(F.softmax(labels, 1), 20, "probs"), F.softmax(labels, 1))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_loss_and_gradient_of_unknown_classes_are_finite_at_every_temperature(dtype: torch.dtype, labels: Tensor) -> None:
    stored = top_k(labels, 3).to(dtype)
    for scale in (0.0, 3.0, 1e4):  # an untrained student, a trained one, one about to diverge
        student = normal(64, 20, seed=2, scale=scale).requires_grad_(True)
        for temperature in range(1, 21):
            loss = kl(student, stored, temperature)
            found = gradient(loss, student)
            assert bool(loss.isfinite()) and bool(found.isfinite().all())
            unknown = stored < -9000
            torch.testing.assert_close(
                found[unknown], (F.softmax(student / temperature, 1) / (64 * temperature))[unknown], rtol=1e-5, atol=1e-9
            )


# --- squared error ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.1, 0.025])
def test_mse_gt_is_squared_error_plus_weighted_cross_entropy(weight: float, labels: Tensor, student: Tensor) -> None:
    target = torch.arange(64) % 20
    loss = mse_gt(student, labels, target, weight)
    want = F.mse_loss(student, labels) + weight * F.cross_entropy(student, target)
    torch.testing.assert_close(loss, want)
    found = gradient(loss, student)
    hard = (F.softmax(student, 1) - F.one_hot(target, 20)) / 64
    torch.testing.assert_close(found, 2 * (student - labels) / (64 * 20) + weight * hard, rtol=1e-4, atol=1e-7)
    assert torch.equal(mse_gt(student, labels, target), mse_gt(student, labels, target, 0.1))


def test_squared_error_depends_on_the_mean_logit_and_kl_does_not(labels: Tensor) -> None:
    target = labels.argmax(1)
    hard = 0.1 * F.cross_entropy(labels, target).item()
    assert mse_gt(labels, labels, target).item() == pytest.approx(hard)
    assert mse_gt(labels, labels + 2, target).item() == pytest.approx(4 + hard, rel=1e-5)
    assert kl(labels, labels + 2).item() == pytest.approx(0, abs=1e-6)


# --- types ------------------------------------------------------------------------------------------------------------


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": kl,
    "kl of the k largest": lambda student, labels: kl(student, top_k(labels, 5), 4),
    "kl of probs": lambda student, labels: kl(student, F.softmax(labels, 1), 1, domain="probs"),
    "mse_gt": lambda student, labels: mse_gt(student, labels, labels.argmax(1)),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("label_type", [torch.float32, *HALVES])
@pytest.mark.parametrize("student_type", HALVES)
def test_half_precision_inputs_are_computed_in_float32(
    student_type: torch.dtype, label_type: torch.dtype, name: str, labels: Tensor, student: Tensor
) -> None:
    low, stored = student.detach().to(student_type).requires_grad_(True), labels.to(label_type)
    loss, want = LOSSES[name](low, stored), LOSSES[name](low.float(), stored if "probs" in name else stored.float())
    assert loss.dtype == torch.float32 and torch.equal(loss, want)
    found = gradient(loss, low)
    assert found.dtype == student_type and bool(found.isfinite().all())


@pytest.mark.parametrize("name", LOSSES)
def test_labels_of_a_file_can_be_targets(name: str, vql: Path) -> None:
    """Inference tensors, which the backward pass cannot save, work too."""
    dataset = vqlabel.open(vql)
    (unpacked,) = decode_steps(dataset.file, dataset.decoder, 0, 10)
    assert unpacked.is_inference()
    found = []
    for stored in (dataset[0:10], unpacked, dataset[0:10].requires_grad_(True)):
        before, student = stored.clone(), normal(10, 40).requires_grad_(True)
        LOSSES[name](student, stored).backward()
        assert student.grad is not None and float(student.grad.abs().max()) > 0
        assert torch.equal(stored, before) and stored.grad is None
        found.append(student.grad)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


# --- the teacher's temperature ----------------------------------------------------------------------------------------


def test_the_default_step_schedule_is_lpqlds() -> None:
    schedule = StepSchedule()
    assert [schedule.temperature(e) for e in (0, 1, 29, 30, 59, 60)] == pytest.approx([20, 20, 20, 14, 14, 9.8])
    want = [20, 14, 9.8, 6.86, 4.802, 3.3614, 2.35298, 2, 2, 2, 2]
    assert [schedule.temperature(30 * step) for step in range(11)] == pytest.approx(want)
    assert [StepSchedule(start=8, end=1, every=1, gamma=0.5).temperature(e) for e in range(5)] == [8, 4, 2, 1, 1]
    assert {StepSchedule(start=4, end=4).temperature(e) for e in range(300)} == {4}


def test_a_cosine_schedule_runs_from_start_to_end() -> None:
    schedule = CosineSchedule(start=20, end=2, epochs=300)
    assert [schedule.temperature(e) for e in (0, 100, 150, 200, 300)] == pytest.approx([20, 15.5, 11, 6.5, 2])
    falls = [schedule.temperature(e) for e in range(1, 301)]
    assert falls == sorted(falls, reverse=True) and 19.99 < falls[0] < 20
    rises = CosineSchedule(start=2, end=20, epochs=300)
    assert [rises.temperature(e) for e in range(301)] == pytest.approx([22 - schedule.temperature(e) for e in range(301)])


# --- the student's temperature ----------------------------------------------------------------------------------------


def fitted(student: Tensor, labels: Tensor, temperature: float = 1, *, grid: Any = None, batch: int = 64) -> float:
    search = StudentTemperature() if grid is None else StudentTemperature(grid=grid)
    for z, x in zip(student.split(batch), labels.split(batch), strict=True):
        search.update(z, x, temperature)
    return search.step()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("tau", [0.01, 0.07, 0.37, 1.0])
def test_the_search_recovers_a_known_temperature(tau: float, temperature: float, labels: Tensor) -> None:
    labels = temperature * labels  # so that the distribution is equally sharp at every temperature
    student = tau * F.log_softmax(labels / temperature, 1) + 5
    assert fitted(student, labels, temperature) == tau


def test_a_wider_grid_finds_a_temperature_outside_the_default_one(labels: Tensor) -> None:
    student = 3.0 * labels
    assert fitted(student, labels) == 1.0, "the nearest end of the grid"
    assert fitted(student, labels, grid=[0.5, 1, 2, 3, 4]) == 3
    assert fitted(student, labels, grid=np.geomspace(0.1, 10, 201)) == pytest.approx(3, rel=0.03)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_search_minimises_kl_over_all_labels(temperature: float, labels: Tensor) -> None:
    student = 0.2 * labels + normal(64, 20, seed=3, scale=0.2)
    grid = StudentTemperature().grid
    losses = [kl(student, labels, temperature, student_temperature=t).item() for t in grid]
    best = grid[int(np.argmin(losses))]
    assert 0.02 < best <= 1
    assert fitted(student, labels, temperature) == best
    assert fitted(student, labels, temperature, batch=7) == best, "independent of the batch size"


def test_all_batches_have_equal_weight(labels: Tensor) -> None:
    scale = torch.cat([torch.full((56, 1), 0.2), torch.full((8, 1), 0.8)])  # the last 8 stand for the last training mini-batch
    student = scale * labels
    assert fitted(student[56:], labels[56:], batch=8) == 0.8
    found = fitted(student, labels, batch=8)
    assert 0.2 <= found < 0.5
    assert fitted(student.flip(0), labels.flip(0), batch=8) == found
    assert fitted(student, labels, batch=56) == found, "labels have equal weight, not batches of 56 and 8"


def test_every_step_clears_the_labels(labels: Tensor) -> None:
    search = StudentTemperature()
    assert search.tau == 1.0
    for tau in (0.2, 0.7):
        search.update(tau * labels, labels, 1)
        assert search.step() == search.tau == tau
    with pytest.raises(
        UsageError, match=r"number of held-out labels since the last step is 0; it must be 1 or more: call update first"
    ):
        search.step()
    assert search.tau == 0.7


def test_the_state_of_a_search_does_not_grow_with_the_labels(labels: Tensor) -> None:
    search, sizes = StudentTemperature(grid=[0.1, 1]), list[int]()
    for _ in range(3):
        student = labels.clone().requires_grad_(True)
        search.update(student, labels, 1)
        sizes.append(len(pickle.dumps(search)))
        alive = weakref.ref(student)
        del student
        assert alive() is None, "the graph of the student's logits is kept"
    assert max(sizes) - min(sizes) < 8 and max(sizes) < 1000


def test_the_search_works_for_half_precision_probabilities_and_topk_labels(labels: Tensor) -> None:
    labels = labels.half()
    student = labels / 2
    assert fitted(student, labels) == 0.5
    search = StudentTemperature()
    search.update(student, F.softmax(labels.float(), 1), 1, domain="probs")
    assert search.step() == 0.5
    single, low = StudentTemperature(), StudentTemperature()
    single.update(student.bfloat16().float(), labels.float(), 1)
    low.update(student.bfloat16(), labels, 1)
    assert low.state_dict() == single.state_dict()
    stored = top_k(labels, 5)
    assert fitted(stored / 2, stored) == 0.5


def test_a_search_resumes_from_a_checkpoint(labels: Tensor) -> None:
    student = torch.cat([torch.full((32, 1), 0.2), torch.full((32, 1), 0.5)]) * labels
    grid = np.linspace(0.05, 0.8, 16)
    search = StudentTemperature(0.9, grid)
    search.update(student[:32], labels[:32], 1)
    file = io.BytesIO()
    torch.save(search.state_dict(), file)
    at_once, later = StudentTemperature(), StudentTemperature()
    for restored in (at_once, later):
        file.seek(0)
        restored.load_state_dict(torch.load(file, weights_only=True))
        assert restored.tau == 0.9
    assert at_once.step() == pytest.approx(0.2)
    later.update(student[32:], labels[32:], 1)
    assert later.step() == fitted(student, labels, grid=grid)
    assert 0.2 < later.tau < 0.5


def test_a_diverged_student_is_refused(labels: Tensor) -> None:
    search = StudentTemperature()
    search.update(torch.full((64, 20), math.nan), labels)
    with pytest.raises(UsageError, match=r"KL on held-out labels is nan; it must be finite: the student's logits are not"):
        search.step()
    search.update(labels * 0.2, labels, 1)  # the diverged logits are cleared
    assert search.step() == pytest.approx(0.2)


def test_labels_of_another_shape_are_refused(labels: Tensor) -> None:
    for call in (targets, lambda label: top_k(label, 2)):
        with pytest.raises(UsageError, match=r"shape of labels is \[20\]; it must be \[n, C\], one row per label"):
            call(labels[0])


# --- a loop -----------------------------------------------------------------------------------------------------------


def test_a_student_learns_while_both_temperatures_change(vql: Path) -> None:
    dataset = vqlabel.open(vql)
    held = list(dataset.batches(5))
    student = nn.Embedding(60, 40)  # one row of logits per image
    nn.init.zeros_(student.weight)
    optimizer = torch.optim.Adam(student.parameters(), 0.3)
    teacher, search = StepSchedule(start=8, every=2), StudentTemperature(grid=np.geomspace(0.1, 10, 101))

    def held_out_kl(tau: float) -> float:
        return float(np.mean([kl(student(b.image), b.labels, 2, student_temperature=tau).item() for b in held]))

    before = held_out_kl(1)
    for epoch in range(1, 11):
        temperature = teacher.temperature(epoch)
        for batch in dataset.batches(epoch % 5):
            loss = kl(student(batch.image), batch.labels, temperature, student_temperature=search.tau)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for batch in held:
            search.update(student(batch.image), batch.labels, temperature)
        search.step()
    assert temperature == 2 and held_out_kl(search.tau) < min(held_out_kl(1), 0.5 * before)


# --- refusals ---------------------------------------------------------------------------------------------------------


Z = torch.zeros(4, 10)
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "probs tempered": (
        lambda: kl(Z, Z + 0.1, domain="probs"),
        r"temperature is 20\.0; it must be 1 for probs: probabilities rounded to 0 cannot be recovered at another temperature",
    ),
    "a search of probs tempered": (
        lambda: StudentTemperature().update(Z, Z + 0.1, 4, domain="probs"),
        r"temperature is 4; it must be 1 for probs",
    ),
    "probs squared": (
        lambda: mse_gt(Z, Z + 0.1, torch.zeros(4, dtype=torch.int64), domain="probs"),
        r"mse_gt compares logits, but these labels are probabilities; use kl at temperature 1",
    ),
    "no domain": (lambda: kl(Z, Z, domain="logit"), r"domain is 'logit'; it must be logits, probs or sigmoid"),
    "no domain, squared": (
        lambda: mse_gt(Z, Z, torch.zeros(4), domain="prob"),
        r"domain is 'prob'; it must be logits, probs or sigmoid",
    ),
    "no domain of k": (lambda: top_k(Z, 2, "x"), r"domain is 'x'; it must be logits, probs or sigmoid"),
    "k entries only": (
        lambda: kl(Z, Z[:, :1]),
        r"student_logits have shape \[4, 10\], labels \[4, 1\]; both must be \[n, C\], one row per label",
    ),
    "one label of four": (lambda: mse_gt(Z, Z[:1], torch.zeros(4)), r"student_logits have shape \[4, 10\], labels \[1, 10\]; both"),
    "a label alone": (lambda: kl(Z[0], Z[0]), r"student_logits have shape \[10\], labels \[10\]; both must be \[n, C\]"),
    "a search of other labels": (
        lambda: StudentTemperature().update(Z, Z[:2]),
        r"student_logits have shape \[4, 10\], labels \[2, 10\]",
    ),
    "no temperature": (lambda: kl(Z, Z, 0), r"^temperature is 0; it must be above 0"),
    "infinite temperature": (lambda: kl(Z, Z, math.inf), r"^temperature is inf; it must be above 0"),
    "no student temperature": (lambda: kl(Z, Z, 4, student_temperature=-1), r"student_temperature is -1; it must be above 0"),
    "k of 0": (lambda: top_k(Z, 0), r"k is 0; it must be 1\.\.10 \(the number of classes\)"),
    "k above C": (lambda: top_k(Z, 11), r"k is 11; it must be 1\.\.10"),
    "a step upwards": (lambda: StepSchedule(start=1), r"start is 1.0; it must be at least 2, the end"),
    "a step to 0": (lambda: StepSchedule(end=0), r"end is 0.0; it must be above 0"),
    "a step every 0": (lambda: StepSchedule(every=0), r"every is 0; it must be at least 1 epoch"),
    "a growing step": (lambda: StepSchedule(gamma=1.1), r"gamma is 1\.1; it must be above 0, at most 1"),
    "an epoch before the first": (lambda: StepSchedule().temperature(-1), r"epoch is -1; it must be 0 or more"),
    "a cosine from 0": (lambda: CosineSchedule(start=0), r"start is 0.0; it must be above 0"),
    "a cosine to 0": (lambda: CosineSchedule(end=0), r"end is 0.0; it must be above 0"),
    "a cosine of 0": (lambda: CosineSchedule(epochs=0), r"epochs is 0; it must be 1 or more"),
    "an epoch after the last": (
        lambda: CosineSchedule(epochs=10).temperature(11),
        r"epoch is 11; it must be 0\.\.10, the epochs of this schedule",
    ),
    "no grid": (lambda: StudentTemperature(grid=[]), r"grid is \[\]; it must have at least one temperature"),
    "a grid with 0": (lambda: StudentTemperature(grid=[0, 1]), r"the student's temperature is 0; it must be above 0"),
    "a start of 0": (lambda: StudentTemperature(0), r"the student's temperature is 0; it must be above 0"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_invalid_arguments_are_refused(what: str) -> None:
    call, message = REFUSED[what]
    with pytest.raises(UsageError, match=message):
        call()


@pytest.mark.parametrize(("temperature", "squared"), [(1.0, False), (2.0, False), (2.0, True)])
def test_bce_and_its_gradient_match_the_closed_form(temperature: float, squared: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    student, labels = (3 * torch.randn(5, 7, generator=generator) for _ in range(2))
    student.requires_grad_()
    p, q = (torch.sigmoid(x / temperature) for x in (labels, student))
    scale = temperature**2 if squared else 1.0
    loss = bce(student, labels, temperature, squared=squared)
    torch.testing.assert_close(loss, -scale * (p * q.log() + (1 - p) * (1 - q).log()).mean())
    loss.backward()
    torch.testing.assert_close(student.grad, scale * (q - p).detach() / temperature / 35)
    assert bce(student.detach().half(), labels.half(), temperature).dtype == torch.float32


def test_sigmoid_labels_are_refused_by_losses_of_distributions() -> None:
    x = torch.zeros(2, 3)
    for call in (lambda: kl(x, x, 1.0, domain="sigmoid"), lambda: top_k(x, 1, domain="sigmoid")):
        with pytest.raises(UsageError, match=r"domain is 'sigmoid'; it must be logits or probs, .* use bce for sigmoid labels"):
            call()
    assert float(mse_gt(x, x, torch.zeros(2, dtype=torch.long), domain="sigmoid")) > 0
    with pytest.raises(UsageError, match="must be above 0"):
        bce(x, x, 0.0)
