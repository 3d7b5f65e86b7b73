"""The examples run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_round_trip_example_prints_its_four_lines() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = ROOT / "examples" / "roundtrip.py"
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    assert [line.split(":")[0].split(",")[0] for line in ran.stdout.splitlines()] == [
        "codec",
        "file",
        "first label of epoch 3",
        "epoch 3",
    ]


@pytest.mark.slow
def test_the_demo_teaches_both_students(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from vqlabel.demo import run_demo

    found = run_demo(tmp_path, say=lambda _: None)
    assert found["top1"]["teacher"] > 0.6
    assert found["top1"]["student_raw"] > 0.5
    assert found["top1"]["student_vql"] > 0.9 * found["top1"]["student_raw"]
    assert found["bytes"]["total"] < found["raw_dump_bytes"] / 50
