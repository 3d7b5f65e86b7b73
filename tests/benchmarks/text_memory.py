"""Memory of every step on a corpus of documents and on one of several times as many: it must not grow with the corpus.

    python tests/benchmarks/text_memory.py [--documents 1000] [--times 8] [--json]

Hidden states are random (V = 2,000, d = 64, documents of 129 tokens). Each command runs in its own process. Its memory
is the peak of what it allocates, sampled 50 times a second; pages of files that it maps are not counted, since the
system takes them back. "Training" takes one loss and gradient on every document of the file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from safetensors.torch import save_file

import vqlabel
from vqlabel.config import TextFitConfig

VOCABULARY, WIDTH, LENGTH = 2000, 64, 129
SHARPNESS = 6.0  # logit of the next token, on average: hidden states belong to their tokens
SAMPLES_PER_SECOND = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--train", nargs=2, metavar=("VQL", "DUMP"), help="train on a file, and print nothing")
    options = parser.parse_args()
    if options.train:
        train(Path(options.train[0]), Path(options.train[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        small, large = (measure(Path(folder), count) for count in (options.documents, options.documents * options.times))
    results = {name: {"MB": small[name], f"MB, {options.times} x": large[name]} for name in small}
    if options.json:
        print(json.dumps(results))
        return
    for name, peaks in results.items():
        print(f"{name:10} {'  '.join(f'{title} {peak:8.1f}' for title, peak in peaks.items())}")


def measure(folder: Path, documents: int) -> dict[str, float]:
    """Peak memory in MB of pack, stats, verify and training, on a corpus of so many documents."""
    dump, head, out = folder / f"dump{documents}", folder / "head.safetensors", folder / f"{documents}.vql"
    codec = folder / "labels.codec"
    write_corpus(dump, head, documents)
    if not codec.exists():
        config = TextFitConfig(bits=16, slots=2, ids=2, latent=32, width=16, layers=1, labels=4000, epochs=1)
        vqlabel.fit_text(dump, config, head=head, out=codec)
    run = [sys.executable, "-m", "vqlabel"]
    return {
        "pack": peak([*run, "pack", str(dump), "--head", str(head), "--codec", str(codec), "--threads", "1", "-o", str(out)]),
        "stats": peak([*run, "stats", str(out), "--against", str(dump), "--head", str(head), "--threads", "1"]),
        "verify": peak([*run, "verify", str(out)]),
        "training": peak([sys.executable, __file__, "--train", str(out), str(dump)]),
    }


def write_corpus(dump: Path, head: Path, documents: int) -> None:
    """Write tokens.npy, hidden.npy and the head."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32) / WIDTH**0.5
    save_file({"lm_head.weight": torch.from_numpy(weight)}, head)
    dump.mkdir()
    tokens = open_memmap(dump / "tokens.npy", "w+", np.int64, (documents, LENGTH))
    hidden = open_memmap(dump / "hidden.npy", "w+", np.float16, (documents, LENGTH - 1, WIDTH))
    for document in range(documents):
        tokens[document] = rng.integers(0, VOCABULARY, LENGTH)
        hidden[document] = SHARPNESS * weight[tokens[document, 1:]] + 0.5 * rng.normal(size=(LENGTH - 1, WIDTH))


def train(file: Path, dump: Path) -> None:
    """One loss and its gradient on every document, 8 documents at a time."""
    torch.set_num_threads(1)
    labels, tokens = vqlabel.open_text(file), np.load(dump / "tokens.npy", mmap_mode="r")
    weight = torch.randn(VOCABULARY, 16, requires_grad=True)
    for start in range(0, len(tokens), 8):
        batch = labels.of(torch.from_numpy(np.array(tokens[start : start + 8])))
        hidden = torch.randn(*tokens[start : start + 8].shape, 16, requires_grad=True)
        vqlabel.kd_loss(hidden, weight, batch).backward()
        weight.grad = None


def peak(command: list[str]) -> float:
    """MB that a process allocates at its peak.

    Raises:
        SystemExit: it fails.
    """
    highest = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            highest = max(highest, anonymous(process.pid))
            time.sleep(1 / SAMPLES_PER_SECOND)
        if process.returncode:
            assert process.stderr is not None
            raise SystemExit(f"{' '.join(command)}: {process.stderr.read()}")
    return highest / 1e6


def anonymous(process: int) -> int:
    """Bytes of a process's memory that belong to no file; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


if __name__ == "__main__":
    main()
