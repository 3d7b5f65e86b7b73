"""The benchmark of students of language models' labels, at toy size: results are appended, and never made twice."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from paths import TESTS

from vqlabel.report.text.student_network import CausalStudent, StudentConfig

V, D, L = 300, 8, 6


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with 24 sequences of a toy teacher: 20 to learn on, 4 to be judged on."""
    spec = importlib.util.spec_from_file_location("text_students", TESTS / "benchmarks" / "text_students.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "text_students", module)
    spec.loader.exec_module(module)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x_toy.npy", rng.integers(0, V, (24, L + 1)))
    np.save(tmp_path / "h_toy.npy", rng.normal(size=(24, L, D)).astype(np.float16))
    np.save(tmp_path / "W_toy.npy", rng.normal(size=(V, D)).astype(np.float16))
    monkeypatch.setattr(module, "JUDGE", slice(0, 4))
    monkeypatch.setattr(module, "LEARN", slice(4, 24))
    return module


def toy_student() -> CausalStudent:
    return CausalStudent.draw(StudentConfig(vocabulary=V, width=8, layers=1, heads=2))


def test_results_are_appended_and_resumed(benchmark: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "students.jsonl"
    options = {"out": out, "student": toy_student, "arrays": tmp_path}
    first = benchmark.run("toy", ["hard", "dense", "sampling-8"], seeds=[0], **options)
    assert [(result["kind"], result["bits"] is None) for result in first] == [
        ("hard", True), ("dense", True), ("sampling-8", False),
    ]  # fmt: skip
    assert list(map(json.loads, out.read_text().splitlines())) == first
    second = benchmark.run("toy", ["hard", "dense"], seeds=[0, 1], **options)
    assert [(result["kind"], result["seed"]) for result in second] == [("hard", 1), ("dense", 1)]
    assert second[1]["kl"] != first[1]["kl"]  # another order
    (third,) = benchmark.run("toy", ["dense"], seeds=[0], passes=2, **options)
    assert third["passes"] == 2
    assert benchmark.run("toy", ["dense"], seeds=[0, 1], **options) == []


def test_labels_of_a_caller_are_learned(benchmark: ModuleType, tmp_path: Path) -> None:
    learn = benchmark.load("toy", benchmark.LEARN, tmp_path)
    options = {"student": toy_student, "arrays": tmp_path}
    (dense,) = benchmark.run("toy", ["dense"], out=tmp_path / "a.jsonl", **options)
    (mine,) = benchmark.run("toy", {"mine": learn.dense}, out=tmp_path / "b.jsonl", **options)
    assert mine == dense | {"kind": "mine", "seconds": mine["seconds"]}


def test_labels_belong_to_their_sequences(benchmark: ModuleType, tmp_path: Path) -> None:
    learn = benchmark.load("toy", benchmark.LEARN, tmp_path)
    x, h, w = (np.load(tmp_path / f"{name}_toy.npy") for name in "xhW")
    rows = torch.tensor([0, L + 2, 20 * L - 1])  # sequence 4 label 0, sequence 5 label 2, sequence 23 label 5
    assert learn.hard(rows).argmax(1).tolist() == [x[4, 1], x[5, 3], x[23, L]]
    logits = np.stack([h[4, 0], h[5, 2], h[23, L - 1]]).astype(np.float32) @ w.T.astype(np.float32)
    assert torch.allclose(learn.dense(rows), torch.from_numpy(logits).softmax(1), atol=1e-5)


def test_every_kind_but_the_logits_of_the_teacher_is_known(benchmark: ModuleType, tmp_path: Path) -> None:
    learn = benchmark.load("toy", benchmark.LEARN, tmp_path)
    kinds = learn.kinds()
    assert {"hard", "dense", "top-256", "distillkit-budget-zero", "sampling-50", "fp8-hidden"} <= set(kinds)
    assert "teacher" not in kinds
    with pytest.raises(SystemExit, match=r"unknown kinds \['densest'\]; known: hard, dense"):
        benchmark.run("toy", ["densest"], out=tmp_path / "a.jsonl", student=toy_student, arrays=tmp_path)


def test_without_teachers_it_says_that_it_skips(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "TEACHERS", tmp_path / "none")
    monkeypatch.setattr(sys, "argv", ["text_students.py"])
    benchmark.main()
    assert capsys.readouterr().out == f"skipped: {tmp_path / 'none'} is not there\n"
