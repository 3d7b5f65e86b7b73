"""Overhead of `relabel`: labels per second written to a `.vql`, against the teacher alone on the same views.

    python tests/benchmarks/relabel.py IMAGES --teacher module:function --view 224 [--codec codec.safetensors]
        [--epochs 2] [--batch 100] [--mean 0.5] [--std 0.5] [--times 3]

Runs alternate; the best of --times is reported. "teacher alone" runs the network on views in memory; "views and
teacher" renders them first, in the same thread. Peak memory is that of the whole run.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from vqlabel.codecs import load_codec
from vqlabel.views import ImageFolder, Recipe
from vqlabel.workflows.relabel import relabel
from vqlabel.workflows.teacher_source import TeacherSource
from vqlabel.workflows.teachers import load_teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--codec", type=Path)
    for name, default in (("view", 224), ("epochs", 2), ("batch", 100), ("times", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("mean", "std"):
        parser.add_argument(f"--{name}", type=float, nargs="+")
    options = parser.parse_args()
    pictures = ImageFolder(options.images, cache=True)
    recipe = Recipe(seed=0, images=len(pictures), epochs=options.epochs, batch=options.batch, view=options.view, mix="cutmix")
    source = TeacherSource(pictures, load_teacher(options.teacher, mean=options.mean, deviation=options.std), recipe)
    codec = None if options.codec is None else load_codec(options.codec)[0]
    count = int(source.drawn.starts[-1])
    rendered = [source._views(number) for number in range(min(4, len(source)))]
    list(pictures)  # decodes all images

    def alone() -> None:
        for number in range(len(source)):
            views = rendered[number % len(rendered)]
            source.teacher(views[: len(source.drawn.batch(number, np.empty((0, 0))).flip)])

    def both() -> None:
        for number in range(len(source)):
            source.teacher(source._views(number))

    def whole() -> None:
        with tempfile.TemporaryDirectory() as folder:
            relabel(source, Path(folder) / "a.vql", codec=codec)

    seconds: dict[str, float] = {}
    for _ in range(options.times):
        for name, run in (("teacher alone", alone), ("views and teacher", both), ("relabel", whole)):
            began = time.perf_counter()
            run()
            seconds[name] = min(seconds.get(name, np.inf), time.perf_counter() - began)
    print("| | labels per second | share of the teacher alone |\n| --- | --- | --- |")
    for name, duration in seconds.items():
        print(f"| {name} | {count / duration:.1f} | {100 * seconds['teacher alone'] / duration:.1f} % |")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
