"""Time that training waits for labels: steps with labels from a `.vql`, alternating with steps with labels in memory.

    python tests/benchmarks/training.py [VQL] [--size 64] [--steps 30] [--threads 2] [--json]

Without VQL, random labels are packed at 128 bits each. Everything runs in one process, so decoding does not overlap
with training as it would in DataLoader's workers.
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
from vqlabel.report.student_network import student_network
from vqlabel.training import StoredBatches

MAX_SHARE = 2  # percent of a step
WARMUP = 2  # steps that are not counted


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
        results = measure(options.vql or packed(Path(folder)), options.size, options.steps)
    if options.json:
        print(json.dumps(results))
    else:
        for name, value in results.items():
            print(f"{name:56} {value:>10.3f}")


def packed(folder: Path) -> Path:
    dump = random_dump(folder / "random", epochs=8)
    vqlabel.pack(dump, folder / "labels.vql", codec=vqlabel.fit(dump, FitConfig(bits=128, epochs=1))[0])
    return folder / "labels.vql"


def measure(vql: Path, size: int, steps: int) -> dict[str, float]:
    labels = vqlabel.open(vql)
    records = (list(StoredBatches(labels)) * steps)[: WARMUP + steps]
    in_memory = {tuple(record): labels[record].half() for record in records}
    student = student_network(labels.shape[1])
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

    sources = {"in memory": lambda record: in_memory[tuple(record)].float(), "from .vql": lambda record: labels[record]}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
    for number, record in enumerate(records):
        for name in sorted(sources, reverse=number % 2 == 1):
            seconds[name].append(step(sources[name], record))
    fetch, whole = ({name: median(time[i] for time in times[WARMUP:]) for name, times in seconds.items()} for i in (0, 1))
    return {
        "step with labels in memory, ms": 1e3 * whole["in memory"],
        "step with labels from .vql, ms": 1e3 * whole["from .vql"],
        "labels in memory, ms": 1e3 * fetch["in memory"],
        "labels from .vql, ms": 1e3 * fetch["from .vql"],
        f"labels' share of a step, percent (at most {MAX_SHARE})": 100
        * (fetch["from .vql"] - fetch["in memory"])
        / whole["in memory"],
    }


if __name__ == "__main__":
    main()
