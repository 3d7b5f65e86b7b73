"""The domain "sigmoid": losses against closed forms, the search against brute force, means over classes preserved."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vqlabel
from vqlabel import FitConfig
from vqlabel.codecs import LabelSample, fit_codec
from vqlabel.codecs.vqae.sigmoid_search import SigmoidCodeSearch
from vqlabel.errors import BadContainer, UsageError
from vqlabel.labels import open_labels
from vqlabel.metrics.distortion import temperature_weight
from vqlabel.metrics.sigmoid import (
    SigmoidDistortion,
    binary_cross_entropy,
    binary_features,
    binary_kl_divergence,
    binary_soft_target,
)
from vqlabel.vql.file import SIGMOID_LABELS, VqlFile
from vqlabel.workflows.quality import fit_quality

C, K = 12, 10
TEMPERATURES = [(1.0,), (0.5, 4.0)]


def draw(n: int, size: float = 2.0, seed: int = 0) -> Tensor:
    """[n, C] logits whose mean over classes differs from label to label."""
    generator = torch.Generator().manual_seed(seed)
    return size * (torch.randn(n, C, generator=generator) + torch.randn(n, 1, generator=generator) - 0.5)


def test_binary_kl_is_the_sum_over_classes() -> None:
    teacher, student = draw(5), draw(5, seed=1)
    for t in (1.0, 3.0):
        want = []
        for x, y in zip(teacher.double(), student.double(), strict=True):
            p, q = torch.sigmoid(x / t), torch.sigmoid(y / t)
            want.append(float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()) * t * t)
        assert binary_kl_divergence(teacher, student, t).tolist() == pytest.approx(want, rel=1e-4)
    sure = torch.tensor([[100.0, -100.0]])
    assert binary_kl_divergence(sure, -sure, 1.0).tolist() == pytest.approx([200])
    assert binary_kl_divergence(sure, sure, 1.0).tolist() == [0]


@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_cross_entropy_is_the_weighted_kl_plus_a_constant_and_has_its_gradient(temperatures: tuple[float, ...]) -> None:
    teacher, target = draw(4), binary_soft_target(draw(4), temperatures)
    students = [draw(4, seed=seed).requires_grad_() for seed in (1, 2)]
    losses = [binary_cross_entropy(student, target, temperatures) for student in students]
    kls = [sum(temperature_weight(t) * binary_kl_divergence(teacher, student, t) for t in temperatures) for student in students]
    torch.testing.assert_close(losses[0] - losses[1], kls[0] - kls[1], rtol=1e-4, atol=1e-4)
    losses[0].sum().backward()
    want = sum(temperature_weight(t) * t * (torch.sigmoid(students[0] / t) - torch.sigmoid(teacher / t)) for t in temperatures)
    torch.testing.assert_close(students[0].grad, want, rtol=1e-4, atol=1e-5)


def test_the_distance_of_features_is_the_kl_to_second_order() -> None:
    x = draw(200)
    y = x + 0.05 * draw(200, seed=1)
    for t in (1.0, 4.0):
        distance = (binary_features(x, t) - binary_features(y, t)).square().sum(1)
        assert float(distance.mean()) == pytest.approx(
            temperature_weight(t) * float(binary_kl_divergence(x, y, t).mean()), rel=0.02
        )


def test_figures_have_the_sum_and_the_mean_over_classes() -> None:
    raw = torch.tensor([[2.0, -1, 3, -4], [1, -1, -1, -1]])
    decoded = torch.tensor([[1.0, 1, 2, -3], [-1, -1, -1, -1]])
    figures = SigmoidDistortion(temperatures=(1.0,), domain="sigmoid")
    figures.add(raw[:1], decoded[:1])
    figures.add(raw[1:], decoded[1:])
    kl = float(binary_kl_divergence(raw, decoded, 1.0).mean())
    assert figures.figures() == pytest.approx({
        "binary_kl_T1": kl, "binary_kl_per_class_T1": kl / 4, "relative_mse": 11 / 34, "mse": 11 / 8, "half_agreement": 6 / 8,
        "half_f1": 4 / 6,
    })  # fmt: skip


@pytest.mark.parametrize("temperatures", TEMPERATURES, ids=str)
def test_every_code_is_the_best_given_those_before_or_next_to_it(temperatures: tuple[float, ...]) -> None:
    """The best of all codes, though the loss of only a few is computed exactly."""
    generator = torch.Generator().manual_seed(3)
    target, books = draw(60), 2 * torch.randn(3, 40, C, generator=generator)
    soft, logits = binary_soft_target(target, temperatures), torch.zeros(60, C)
    found = SigmoidCodeSearch(books, torch.eye(C), temperatures)(logits, target, 0)
    best = 0
    for slot, book in enumerate(books):
        tried = torch.stack([binary_cross_entropy(logits + move, soft, temperatures) for move in book], 1)
        best += int((found[:, slot] == tried.argmin(1)).sum())
        logits = logits + book[found[:, slot]]
    assert best >= 0.98 * 180


def test_sweeps_and_beams_come_nearer_to_the_best_of_all_codes() -> None:
    generator = torch.Generator().manual_seed(3)
    target, books = draw(50), 1.5 * torch.randn(3, K, C, generator=generator)
    soft, search = binary_soft_target(target, (1.0,)), SigmoidCodeSearch(books, torch.eye(C), (1.0,))

    def loss(codes: Tensor) -> Tensor:
        return binary_cross_entropy(sum(book[codes[:, slot]] for slot, book in enumerate(books)), soft, (1.0,))  # type: ignore[arg-type]

    every = torch.stack([loss(torch.tensor([code] * 50)) for code in itertools.product(range(K), repeat=3)])
    base = torch.zeros(50, C)
    fast, normal, best = (loss(search(base, target, *how)) for how in ((0,), (1,), (4, 8)))
    assert float((normal - fast).max()) < 1e-4
    assert float(best.mean()) <= float(normal.mean()) <= float(fast.mean())
    assert float((every.mean(0) - best).mean()) > 0.99 * float((every.mean(0) - every.amin(0)).mean())


def test_prefix_losses_are_what_codes_add() -> None:
    generator = torch.Generator().manual_seed(3)
    target, books = draw(30), torch.randn(4, K, C, generator=generator)
    search, soft, base = SigmoidCodeSearch(books, torch.eye(C), (1.0,)), binary_soft_target(target, (1.0,)), draw(30, 0.5, seed=9)
    codes, losses = search(base, target, 0), search.prefix_losses(base, target)
    start = binary_cross_entropy(base, soft, (1.0,))
    for slot in range(4):
        base = base + books[slot][codes[:, slot]]
        torch.testing.assert_close(losses[:, slot + 1], binary_cross_entropy(base, soft, (1.0,)) - start, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of 20 classes; some images have many positive classes, some none."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("sigmoid") / "z.npy"
    z = (
        rng.normal(size=(30, 20))[rng.integers(0, 30, 1000)] * 2
        + rng.normal(size=(1000, 20)) * 0.3
        - 3
        + rng.normal(size=(1000, 1)) * 2
    )
    np.save(path, z.astype(np.float32))
    return path


def test_means_over_classes_and_positive_classes_are_preserved(dump: Path, tmp_path: Path) -> None:
    source = open_labels(dump, domain="sigmoid")
    codec, report = vqlabel.fit(source, FitConfig(bits=40, codebook_size=32, epochs=3))
    assert report["config"]["temperature"] == (1.0,)
    assert "notes" not in report
    vqlabel.pack(source, tmp_path / "z.vql", codec=codec)
    raw, decoded = torch.from_numpy(np.load(dump)), vqlabel.open(tmp_path / "z.vql")[:]
    assert float(((raw > 0) == (decoded > 0)).float().mean()) > 0.98
    assert float((decoded > 0).sum()) == pytest.approx(float((raw > 0).sum()), rel=0.04)
    assert float((decoded.mean(1) - raw.mean(1)).abs().mean()) < 0.25 * float(raw.mean(1).std())
    found = vqlabel.stats(tmp_path / "z.vql", against=source)
    assert found["distortion"].keys() >= {"binary_kl_T1", "binary_kl_per_class_T1", "half_agreement", "half_f1"}
    assert found["calibration"] == {}
    quality = fit_quality(report, 40)
    assert quality["held_out"].keys() == {"binary_kl_T1", "half_f1"}
    assert quality["held_out"]["binary_kl_T1"] < 0.1 * quality["mean_label"]["binary_kl_T1"]
    assert quality["warnings"] == []


def test_a_file_requires_a_reader_that_supports_the_domain(dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_labels(dump, domain="sigmoid")
    vqlabel.pack(source, tmp_path / "z.vql", codec=vqlabel.fit(source, FitConfig(codec="raw"))[0])
    file = VqlFile(tmp_path / "z.vql")
    assert file.container.requires == [SIGMOID_LABELS]
    assert (file.label["domain"], file.label["shift_preserved"]) == ("sigmoid", True)
    vqlabel.unpack(tmp_path / "z.vql", tmp_path / "z.safetensors")
    assert open_labels(tmp_path / "z.safetensors").domain == "sigmoid"
    monkeypatch.setattr("vqlabel.container.header.FEATURES", frozenset({"variable_slots"}))
    with pytest.raises(BadContainer, match=SIGMOID_LABELS):
        VqlFile(tmp_path / "z.vql")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "topk", "slots": 3}, "it is for vqae and raw: topk keeps the largest classes of one distribution"),
        (
            {"codec": "sparse", "slots": 3},
            "it is for vqae and raw: sparse keeps the largest classes of one distribution",
        ),
        ({"codec": "vqae", "exact_classes": 1}, "head is 1; it must be 0 for sigmoid labels"),
    ],
)
def test_codecs_of_one_distribution_refuse_sigmoid_labels(options: dict[str, object], message: str) -> None:
    labels = draw(60)
    sample = LabelSample(train=labels, held_out=labels, train_context=None, held_out_context=None, domain="sigmoid", dtype="F32")
    with pytest.raises(UsageError, match=message):
        fit_codec(sample, FitConfig(epochs=0, **options))  # type: ignore[arg-type]


def test_the_mean_label_of_sigmoids_is_their_mean_probability() -> None:
    labels = draw(400)
    mean = torch.sigmoid(labels).mean(0)
    best = float(binary_kl_divergence(labels, mean.logit().expand_as(labels), 1.0).mean())
    entropy = float(F.binary_cross_entropy(mean, mean, reduction="sum"))
    p = torch.sigmoid(labels)
    assert best == pytest.approx(entropy - float(F.binary_cross_entropy(p, p, reduction="none").sum(1).mean()), rel=1e-4)
    assert math.isfinite(best)
