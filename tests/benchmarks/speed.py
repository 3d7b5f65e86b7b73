"""Speed and memory of pack, unpack and reading, against torch.load and faiss' residual quantizer in the same run.

    python tests/benchmarks/speed.py [DUMP] [--bits 128] [--json]

DUMP is SRe2L's tree. Without it, a random tree of 8,000 labels is written and a note goes to stderr; its speeds and
memory ratios are meaningful, its distortion is not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from dumps import random_dump

import vqlabel
from vqlabel.config import FitConfig
from vqlabel.labels import open_labels
from vqlabel.labels.layouts.tree import ORDER_FILE, find_batches, write_order
from vqlabel.labels.layouts.unpickle import unpickle
from vqlabel.vql.file import VqlFile

REPEATS = 3
TIMES_LARGER = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", nargs="?", type=Path)
    parser.add_argument("--bits", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dump = options.dump or random_dump(Path(folder) / "random")
        if options.dump is None:
            print("no DUMP given; a random dump is measured", file=sys.stderr)
        results = measure(dump, Path(folder), options.bits)
    if options.json:
        print(json.dumps(results))
    else:
        for name, value in results.items():
            print(f"{name:48} {value:>12,.3f}" if isinstance(value, float) else f"{name:48} {value:>12}")


def measure(dump: Path, folder: Path, bits: int) -> dict[str, Any]:
    codec_file, vql, out = folder / "codec.safetensors", folder / "labels.vql", folder / "labels.npy"
    began = time.perf_counter()
    codec, _ = vqlabel.fit(dump, FitConfig(bits=bits), out=codec_file)
    fit_seconds = time.perf_counter() - began
    pack = fastest(lambda: vqlabel.pack(dump, vql, codec=codec, overwrite=True))
    records = VqlFile(vql).records
    unpack = fastest(lambda: vqlabel.unpack(vql, out, overwrite=True))
    loading = fastest(lambda: [unpickle(file) for file in find_batches(dump).values()])
    faiss_encode, faiss_decode = faiss_seconds(dump, bits, records)
    opening = fastest(lambda: VqlFile(vql))
    labels = vqlabel.open(vql)
    rng = np.random.default_rng(0)
    batch = fastest(lambda: labels[rng.integers(0, records, 1024)])
    larger = repeated(dump, folder / "larger")
    return {
        "labels": records,
        "fit, seconds": fit_seconds,
        "pack, labels/s": records / pack,
        "pack, share of torch.load's speed": loading / pack,
        "pack, times faiss RQ encode's speed": faiss_encode / pack,
        "unpack, labels/s": records / unpack,
        "unpack, times torch.load's speed": loading / unpack,
        "unpack, share of faiss RQ decode's speed": faiss_decode / unpack,
        "open, ms": 1e3 * opening,
        "random batch of 1,024 decoded, ms": 1e3 * batch,
        "pack, peak MB": peak_mb("pack", dump, "--codec", codec_file, "-o", vql, "--overwrite"),
        "unpack, peak MB": peak_mb("unpack", vql, "-o", out, "--overwrite"),
        f"pack, peak MB at {TIMES_LARGER} times the labels": peak_mb(
            "pack", larger, "--codec", codec_file, "-o", vql, "--overwrite"
        ),
        f"unpack, peak MB at {TIMES_LARGER} times the labels": peak_mb("unpack", vql, "-o", out, "--overwrite"),
        "pack of the larger dump, labels/s": TIMES_LARGER
        * records
        / fastest(lambda: vqlabel.pack(larger, vql, codec=codec, overwrite=True), repeats=1),
    }


def fastest(action: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Seconds of the fastest of several runs, after a warm-up run."""
    seconds = []
    for _ in range(repeats + (repeats > 1)):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def peak_mb(*arguments: object) -> float:
    """Peak resident memory of one command in its own process."""
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    command = [sys.executable, "-c", code, sys.executable, "-m", "vqlabel", *map(str, arguments)]
    kilobytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return kilobytes / (1e3 if sys.platform != "darwin" else 1e6)


def faiss_seconds(dump: Path, bits: int, records: int, width: int = 128) -> tuple[float, float]:
    """PCA to 128 components and faiss' default residual quantizer: seconds to encode and decode all labels."""
    labels = torch.cat([torch.from_numpy(batch.labels).float() for batch in open_labels(dump)])
    mean = labels.mean(0)
    basis = torch.svd_lowrank(labels[:8000] - mean, q=width)[2]
    quantizer = faiss.ResidualQuantizer(width, bits // 8, 8)
    quantizer.train(((labels[:8000] - mean) @ basis).contiguous().numpy())
    codes = quantizer.compute_codes(((labels - mean) @ basis).contiguous().numpy())
    encode = fastest(lambda: quantizer.compute_codes(((labels - mean) @ basis).contiguous().numpy()), repeats=1)
    decode = fastest(lambda: (torch.from_numpy(quantizer.decode(codes)) @ basis.T + mean).half(), repeats=1)
    assert len(codes) == records
    return encode, decode


def repeated(dump: Path, folder: Path) -> Path:
    """A dump with every epoch TIMES_LARGER times, as links."""
    folder.mkdir()
    source = open_labels(dump)
    epochs = sorted({place.epoch for place in source.places})
    order: dict[int, list[int]] = {}
    for batch in source:
        if batch.image is not None:
            order.setdefault(batch.place.epoch, []).extend(batch.image.tolist())
    order_of_links: dict[int, list[int]] = {}
    for number in range(TIMES_LARGER * len(epochs)):
        epoch = epochs[number % len(epochs)]
        (folder / f"epoch_{number}").symlink_to((dump / f"epoch_{epoch}").resolve())
        if order:
            order_of_links[number] = order[epoch]
    if order_of_links:
        write_order(folder / ORDER_FILE, order_of_links)
    return folder


if __name__ == "__main__":
    main()
