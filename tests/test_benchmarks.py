"""Benchmarks that check results, at toy size on the CPU."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paths import TESTS
from typer.testing import CliRunner

from vqlabel.cli import app
from vqlabel.codecs.vqae.codec import VqaeCodec

FOLDER = TESTS / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look the module up
    spec.loader.exec_module(module)
    return module


def test_the_gpu_benchmark_compares_a_device_with_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = load("gpu")
    rows = gpu.measure(torch.device("cpu"), tmp_path, gpu.TOY)
    judged = {row.name: row.passed for row in rows if row.passed is not None}
    assert all(judged.values())
    assert {name.partition(",")[0] for name in judged} >= {"fit", "pack", "decode", "training"}
    assert gpu.table(rows, torch.device("cpu")).count("\n") == len(rows)
    decode = VqaeCodec._decode
    errors = iter(range(1000))
    monkeypatch.setattr(VqaeCodec, "_decode", lambda *arguments: decode(*arguments) + 0.01 * next(errors))
    assert not any(row.passed for row in gpu.compare_labels(tmp_path / "cpu.vql", torch.device("cpu"), gpu.TOY)[:2])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_without_a_gpu_names_the_remedy() -> None:
    run = subprocess.run([sys.executable, FOLDER / "gpu.py", "--toy"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (1, "no CUDA device found; pass --device cpu to compare the CPU with itself\n")


def test_the_benchmark_of_threads_runs_every_command_alone_and_beside_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, ran = load("threads"), []

    def run(words: list[str]) -> dict[str, float]:
        """Run a command in this process, which has imported torch already."""
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        ran.append((words[0], words[-2:] == ["--threads", "2"]))
        return {"wall": 2.0, "processor": 1.0}

    monkeypatch.setattr(threads, "run", run)
    rows = threads.measure(tmp_path, 80, 20, 60, (None, 2), "topk")
    assert ran == [(name, named) for name in ("fit", "pack") for named in (False, False, True, True)]
    assert [(row["command"], row["threads"], row["wall"], row["processor"]) for row in rows] == [
        ("fit", None, 1, 1), ("fit", 2, 1, 1), ("pack", None, 1, 1), ("pack", 2, 1, 1),
    ]  # fmt: skip


def test_the_benchmark_of_the_loss_on_tokens_compares_decoded_with_dense_labels() -> None:
    text_loss = load("text_loss")
    rows = text_loss.ratios(text_loss.TOY, 2)
    assert [name.partition(",")[0] for name in rows] == [
        "KL and gradient of dense fp16 logits", "decoded", "decoded with the prior",
    ]  # fmt: skip
    assert all(value > 0 for value in rows.values())
    assert 0.1 < text_loss.peak_of_a_step(text_loss.TOY) < 100
