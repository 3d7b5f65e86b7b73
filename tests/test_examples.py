"""The scripts in examples/ run unchanged."""

import importlib.util
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image

pytestmark = pytest.mark.usefixtures("short_fits")

Run = Callable[..., list[str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an example in this process, which has imported torch already; return the lines of its stdout."""

    def run(script: str, *arguments: object, folder: Path = ROOT) -> list[str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_the_round_trip_example_prints_its_four_lines(run: Run) -> None:
    assert [line.split(":")[0].split(",")[0] for line in run("roundtrip.py")] == [
        "codec",
        "file",
        "first label of epoch 3",
        "epoch 3",
    ]


def test_the_example_with_students_prints_a_row_for_each_kind_of_labels(run: Run, tree: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder, images in (("images/all", 60), ("val/ant", 3), ("val/bee", 3)):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(images):
            Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(tmp_path / folder / f"{index:03}.png")
    np.save(tmp_path / "val.npy", rng.normal(size=(6, 40)).astype(np.float32))
    np.save(tmp_path / "other.npy", rng.normal(size=(360, 40)).astype(np.float16))
    (tmp_path / "classes.json").write_text(json.dumps({"ant": 3, "bee": 39}))
    lines = run(
        "what_labels_are_worth.py", tree, "--images", tmp_path / "images", "--val", tmp_path / "val", "--val-labels", tmp_path / "val.npy",
        "--class-map", tmp_path / "classes.json", "--view", 170, "--ratio", 2, "--no-prior", 2, "--passes", 1, "--top-k", 5, "--keep", 0.5,
        "--labels", f"random={tmp_path / 'other.npy'}", "--seeds", 0,
    )  # fmt: skip
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[0] for row in rows] == [
        "raw fp16", "vqlabel, 1/2", "vqlabel, 1/2, no prior", "random", "top-5, re-normalised", "raw labels of 0.5 of the views",
    ]  # fmt: skip
    assert 0.9 * 320 < float(rows[1][1]) <= 320
    assert rows[0][3] == "+0.0 %"
    assert all(float(row[2].split()[0]) > 0 for row in rows)


TEACHER = """
import torch
def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(48, 40))
"""


def test_the_example_that_trains_a_student_keeps_files_within_the_budget(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("ant", "bee"):
            (tmp_path / split / folder).mkdir(parents=True)
            for index in range(20):
                Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(
                    tmp_path / split / folder / f"{index:02}.png"
                )
    (tmp_path / "teachers.py").write_text(TEACHER)
    lines = run(
        "train_a_student.py", "train", "--teacher", "teachers:small", "--val", "val", "--work", "work", "--view", 32, "--epochs", 12,
        "--batch", 10, "--passes", 1, "--ratio", 4, "--seeds", 0, "--minutes", 0.001, folder=tmp_path,
    )  # fmt: skip
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[0] for row in rows] == [
        "raw", "raw, 1/10 of the batches", "top-10", "vqlabel, 1/4", "vqlabel, 1/4, 1/10 of the batches"
    ]  # fmt: skip
    raw_bytes = 40 * 12 * (2 * 40 + 25)
    sizes = {row[0]: int(row[1].replace(",", "")) for row in rows}
    assert 0.8 * raw_bytes / 4 < sizes["vqlabel, 1/4"] <= raw_bytes / 4
    assert all(len(row) == 7 and float(row[3].split()[0]) > 0 for row in rows)


@pytest.fixture
def language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of language models import the first of them, which lies beside them."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def kl_before_and_after(line: str) -> list[float]:
    text, _, values = line.partition(": ")
    assert text == "KL to the teacher on new documents"
    return [float(value) for value in values.split(" -> ")]


def test_the_example_of_a_language_model_saves_bytes_and_teaches(run: Run) -> None:
    saved, learned = run("language_model.py")
    labels, logits, states, packed = (
        int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d(?= labels| bytes| as| packed)", saved)
    )
    assert labels == 120 * 39 and logits == 2 * 150 * labels and 8 * packed < 2 * states < logits / 4
    before, after = kl_before_and_after(learned)
    assert after < before / 2


def test_the_example_of_hugging_faces_trainer_teaches_by_packed_rows(run: Run, language_model: None) -> None:
    if importlib.util.find_spec("datasets") is None or importlib.util.find_spec("transformers") is None:
        with pytest.raises(SystemExit, match="this example needs transformers, accelerate and datasets: No module named"):
            run("hugging_face_trainer.py")
        return
    lines = run("hugging_face_trainer.py")
    assert lines[0] == "66 rows of 60 tokens with the columns input_ids, vqlabel, labels"
    before, after = kl_before_and_after(lines[-1])
    assert after < before / 2


def test_the_example_of_ligers_loss_agrees_with_kd_loss(run: Run, language_model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(SystemExit, match="this example needs a GPU"):
            run("liger_loss.py")
        return
    if importlib.util.find_spec("liger_kernel") is None:
        with pytest.raises(SystemExit, match="this example needs liger-kernel with LigerFusedLinearKLDivLoss"):
            run("liger_loss.py")
        return
    liger, own = (re.findall(r"\d+\.\d+", line) for line in run("liger_loss.py"))
    assert [float(value) for value in liger] == pytest.approx([float(value) for value in own], rel=1e-3)


def test_the_example_of_distillkits_columns_prints_their_shapes_and_two_losses(run: Run, language_model: None) -> None:
    shapes, mass, losses = run("distillkit_columns.py")
    assert shapes == "{'input_ids': [8, 39], 'token_ids': [8, 39, 32], 'top_values': [8, 39, 32]}"
    assert 90 < float(re.findall(r"[\d.]+(?= %)", mass)[0]) < 100
    sparse, whole = (float(value) for value in re.findall(r": (\d+\.\d+)", losses))
    assert 0.9 * whole < sparse < whole


@pytest.mark.slow
def test_the_demo_trains_both_students(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from vqlabel.demo import run_demo

    result = run_demo(tmp_path, notify=lambda _: None)
    assert result["top1"]["teacher"] > 0.6
    assert result["top1"]["student_raw"] > 0.5
    assert result["top1"]["student_vql"] > 0.9 * result["top1"]["student_raw"]
    assert result["bytes"]["total"] < result["raw_dump_bytes"] / 50
