"""`tune` against its budget, and against an exhaustive search of its grid.

    python tests/benchmarks/tuning.py [DUMP ...] [--random 100 10000] [--ratio 500] [--minutes 10] [--temperature 1]
        [--exhaustive]

--random measures synthetic dumps of these numbers of classes: 8,000 labels, 16 views of 500 images. Prints a row per
dump: bytes relative to the budget, held-out KL of the tuned codec, time. --exhaustive runs a quick fit of every shape
of the grid that `tune` searches (slots x bits per number x codebook size) and compares the best of them with the shape
that tune chose.
"""

import argparse
import itertools
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from dumps import random_dump

from vqlabel.codecs.vqae.fit.budget import DEFAULT_WEIGHT_BITS
from vqlabel.config import FitConfig
from vqlabel.errors import UsageError
from vqlabel.labels import open_labels
from vqlabel.workflows.sample import read_sample
from vqlabel.workflows.tune import tune
from vqlabel.workflows.tune_search import SHARES, SMALL, WEIGHT_BITS, Search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path, nargs="*")
    parser.add_argument("--random", type=int, nargs="*", default=[], metavar="CLASSES")
    parser.add_argument("--ratio", type=float, default=500)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0])
    parser.add_argument("--exhaustive", action="store_true")
    options = parser.parse_args()
    print(
        "| dump | budget, bytes | used | slots | bits per number | held-out KL | trials | minutes | quick KL | best of the grid | shapes |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        random_dumps = [random_dump(Path(folder) / f"random, {classes:,} classes", classes) for classes in options.random]
        print_rows([*options.dump, *random_dumps], options)


def print_rows(dumps: list[Path], options: argparse.Namespace) -> None:
    for dump in dumps:
        config = FitConfig(ratio=options.ratio, temperature=tuple(options.temperature))
        codec, report = tune(dump, config, minutes=options.minutes)
        chosen = min(report["trials"], key=lambda trial: trial["loss"])
        best, shapes = exhaust(dump, config) if options.exhaustive else ("", "")
        name = f"kl_T{options.temperature[0]:g}"
        print(
            f"| {dump.name} | {report['budget']:,} | {100 * report['bytes'] / report['budget']:.2f} % | {codec.config.slots} "
            f"| {codec.config.weight_bits} | {report['held_out'][name]:.4f} | {len(report['trials'])} | {report['seconds'] / 60:.1f} "
            f"| {chosen['kl'][name]:.4f} | {best} | {shapes} |",
            flush=True,
        )


def exhaust(dump: Path, config: FitConfig) -> tuple[str, int]:
    """KL of the best quick fit of the whole grid, and the number of shapes."""
    sample, _ = read_sample(open_labels(dump))
    search = Search(sample, config, math.inf, lambda _: None)
    budget = int(2 * search.facts.labels * search.facts.classes / config.ratio)
    bits_per_label, base = 8 * budget / search.facts.labels, replace(config, bytes=budget, ratio=None)
    began = time.monotonic()
    for k, weight_bits in itertools.product((256, SMALL), (DEFAULT_WEIGHT_BITS, *WEIGHT_BITS)):
        width = (k - 1).bit_length()
        for slots in range(round(max(SHARES) * bits_per_label / width) + 1):
            try:
                search.run(replace(base, slots=slots, codebook_size=k, weight_bits=weight_bits))
            except UsageError:
                continue
    best = min(search.trials, key=lambda trial: trial.loss)
    print(f"{len(search.trials)} shapes in {(time.monotonic() - began) / 60:.0f} minutes; the best is {best.resolved}")
    return f"{next(iter(best.kl.values())):.4f}", len(search.trials)


if __name__ == "__main__":
    main()
