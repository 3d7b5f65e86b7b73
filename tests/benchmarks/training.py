"""What a student waits for its labels: training steps with labels from a `.vql`, in turn with the same steps and labels in memory.

    python tests/benchmarks/training.py [VQL] [--size 64] [--steps 30] [--threads 2] [--json]

Without VQL, random labels are packed at 128 bits each. All runs in one process, so decoding hides behind nothing; in DataLoader's workers
it would hide behind the student.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from dumps import random_dump
from torch import Tensor

import vqlabel
from vqlabel.config import FitConfig
from vqlabel.report.student_benchmark import _student
from vqlabel.training.views import StoredBatches

LIMIT = 2  # percent of a step
WARM = 2  # steps that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vql", nargs="?", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.vql or packed(Path(folder)), options.size, options.steps)
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:56} {value:>10.3f}")


def packed(folder: Path) -> Path:
    dump = random_dump(folder / "random", epochs=8)
    vqlabel.pack(dump, folder / "labels.vql", codec=vqlabel.fit(dump, FitConfig(bits=128, epochs=1))[0])
    return folder / "labels.vql"


def measure(vql: Path, size: int, steps: int) -> dict[str, float]:
    labels = vqlabel.open(vql)
    records = (list(StoredBatches(labels)) * steps)[: WARM + steps]
    kept = {tuple(record): labels[record].half() for record in records}
    student = _student(labels.shape[1])
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    views = torch.randn(max(map(len, records)), 3, size, size).to(memory_format=torch.channels_last)

    def step(label_of: Callable[[list[int]], Tensor], record: list[int]) -> tuple[float, float]:
        """Seconds for the labels, and for the whole step."""
        began = time.perf_counter()
        target = label_of(record)
        fetched = time.perf_counter()
        loss = F.kl_div(F.log_softmax(student(views[: len(record)]) / 20, 1), F.softmax(target / 20, 1), reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return fetched - began, time.perf_counter() - began

    ways = {"in memory": lambda record: kept[tuple(record)].float(), "from .vql": lambda record: labels[record]}
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number, record in enumerate(records):
        for name in sorted(ways, reverse=number % 2 == 1):
            took[name].append(step(ways[name], record))
    fetch, whole = ({name: median(time[i] for time in times[WARM:]) for name, times in took.items()} for i in (0, 1))
    return {
        "step with labels in memory, ms": 1e3 * whole["in memory"],
        "step with labels from .vql, ms": 1e3 * whole["from .vql"],
        "labels in memory, ms": 1e3 * fetch["in memory"],
        "labels from .vql, ms": 1e3 * fetch["from .vql"],
        f"labels' share of a step, percent (at most {LIMIT})": 100 * (fetch["from .vql"] - fetch["in memory"]) / whole["in memory"],
    }


if __name__ == "__main__":
    main()
