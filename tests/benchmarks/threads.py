"""Wall and processor time of fit and pack for several numbers of threads, alone and beside a busy process.

    python tests/benchmarks/threads.py [--labels 16000] [--bits 32] [--json]

For an otherwise idle machine. The other process keeps one processor busy. Beside it, a command may take 1.5 times the
processor time that it takes alone, and 1.5 times the wall time that its share of the processors allows; exit code 1 if
the number of threads that vqlabel chooses takes more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vqlabel.threads import available_processors

MAX_SLOWDOWN = 1.5
BUSY = "import numpy as np; a = np.ones((400, 400), np.float32)\nwhile True: a @ a"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=16_000)
    parser.add_argument("--bits", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.labels, 1000, options.bits, (None, 1, 2, available_processors()))
    if options.json:
        print(json.dumps(rows))
    else:
        print(
            f"{available_processors()} processors\n{'':8}{'threads':>9}{'alone':>16}{'beside a busy one':>22}{'wall':>8}{'processor':>11}"
        )
        for row in rows:
            alone, beside = (f"{row[name]['wall']:.1f} / {row[name]['processor']:.1f} s" for name in ("alone", "beside"))
            print(
                f"{row['command']:8}{row['threads'] or 'auto':>9}{alone:>16}{beside:>22}{row['wall']:>8.2f}{row['processor']:>11.2f}"
            )
        print("alone, beside: wall / processor time; wall: relative to its share of the processors; processor: relative to alone")
    sys.exit(any(row["threads"] is None and max(row["wall"], row["processor"]) > MAX_SLOWDOWN for row in rows))


def measure(
    folder: Path, labels: int, classes: int, bits: int, numbers: tuple[int | None, ...], kind: str = "vqae"
) -> list[dict[str, Any]]:
    """A row for each command and number of threads; None: the number that vqlabel chooses."""
    dump, codec = folder / "dump.npy", folder / "a.codec"
    rng = np.random.default_rng(0)
    views = np.tile(rng.normal(size=(labels // 8, 16)), (8, 1)) + 0.5 * rng.normal(size=(labels // 8 * 8, 16))
    np.save(dump, (views @ rng.normal(size=(16, classes))).astype(np.float16))
    commands = {
        "fit": ["fit", dump, "-o", codec, "--codec", kind, "--bits", bits, "--epochs", 2, "--overwrite"],
        "pack": ["pack", dump, "-o", folder / "a.vql", "--codec", codec, "--overwrite"],
    }
    rows = []
    for name, command in commands.items():
        for threads in dict.fromkeys(numbers):
            words = [*map(str, command), *([] if threads is None else ["--threads", str(threads)])]
            alone = run(words)
            with busy_process():
                beside = run(words)
            used = alone["processor"] / alone["wall"]  # mean number of busy processors
            share = min(1.0, available_processors() / (used + 1))
            rows.append({
                "command": name, "threads": threads, "alone": alone, "beside": beside,
                "wall": beside["wall"] / (alone["wall"] / share), "processor": beside["processor"] / alone["processor"],
            })  # fmt: skip
    return rows


def run(words: list[str]) -> dict[str, float]:
    """Wall and processor seconds of the command in its own process."""
    began, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-m", "vqlabel", *words], check=True, capture_output=True)
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall": time.perf_counter() - began, "processor": processor}


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that keeps one processor busy."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
