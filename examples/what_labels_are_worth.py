"""Student scores: train students from raw labels and from compressed ones, and test them on new images.

    python examples/what_labels_are_worth.py DUMP --images train/ --val val/ --val-labels val.npy --view 224 \
        [--ratio 1000 500 125] [--temperature 1] [--passes 4] [--seeds 0 1 2] [--labels name=labels.npy] [--top-k 10] \
        [--keep 0.1] [--network resnet] [--fit-temperature 1]

DUMP         a dump whose records have image, crop and flip, such as SRe2L's tree with LPLD's order file
--view       side in pixels of the views that the teacher labelled
--images     its images: the sorted files of a folder and its subfolders
--val        new images that have no labels in the dump, one folder per class
--val-labels the teacher's logits for the new images, in sorted order
--temperature      of the students' loss
--fit-temperature  that vqlabel's labels are fitted for, such as 1 or 20; by default vqlabel's own, 1
--network    of the students: resnet, conv or vit
--class-map  JSON, folder of --val -> class of the teacher; by default class i is the i-th folder

Students are those of `vqlabel compare --student`: all see the views that the teacher labelled, for the same number of
steps. Prints one row per kind of labels: KL(teacher || student) in nats on the new images, at the best scale of the
student's logits, and top-1. Bits per label count the whole file except augmentation and order. Needs pillow (extra
`student`).
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import vqlabel
from vqlabel.labels import open_labels
from vqlabel.report.student_benchmark import StudentBenchmark


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dump", type=Path)
    p.add_argument("--images", type=Path, required=True)
    p.add_argument("--val", type=Path, required=True)
    p.add_argument("--val-labels", type=Path, required=True)
    p.add_argument("--class-map", type=Path)
    p.add_argument("--view", type=int, required=True)
    p.add_argument("--ratio", type=float, nargs="*", default=[1000, 500, 125])
    p.add_argument("--no-prior", type=float, nargs="*", default=[], help="compression ratios to fit without the prior")
    p.add_argument("--gain", type=float, help="of vqlabel's labels; 1: calibrated labels, which have the least KL")
    p.add_argument("--labels", nargs="*", default=[], help="name=file.npy: labels of another method, in the dump's order")
    p.add_argument("--top-k", type=int, nargs="*", default=[])
    p.add_argument("--keep", type=float, nargs="*", default=[], help="shares of the dump to train on")
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--fit-temperature", type=float, nargs="*")
    p.add_argument("--network", default="resnet")
    p.add_argument("--passes", type=int, default=4)
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    a = p.parse_args()
    benchmark = StudentBenchmark(open_labels(a.dump), a.images, a.val, val_labels=a.val_labels, class_map=a.class_map, view=a.view)
    print("| labels | bits per label | KL to the teacher | over raw | top-1 % |\n| --- | --- | --- | --- | --- |", flush=True)
    raw_kl = None
    for name, bits, labels, keep in label_sets(a, benchmark.raw_labels):
        schedule = {"temperature": a.temperature, "passes": a.passes, "keep": keep, "network": a.network}
        scores = [benchmark.train_and_score(labels, seed=seed, **schedule) for seed in a.seeds]
        kl, top1 = (np.array([score[name] for score in scores]) for name in ("kl_teacher", "top1"))
        raw_kl = raw_kl or kl.mean()
        cells = f"{kl.mean():.3f} ± {kl.std():.3f} | {100 * (kl.mean() / raw_kl - 1):+.1f} % | {top1.mean():.1f} ± {top1.std():.1f}"
        print(f"| {name} | {bits} | {cells} |", flush=True)


def label_sets(a, raw):
    """(name, bits per label, labels [n, C], share of the dump that is used); raw labels first."""
    yield "raw fp16", 16 * raw.shape[1], raw, 1.0
    with tempfile.TemporaryDirectory() as folder:
        for ratio, prior in [(r, None) for r in a.ratio] + [(r, False) for r in a.no_prior]:
            temperature = None if a.fit_temperature is None else tuple(a.fit_temperature)
            config = vqlabel.FitConfig(ratio=ratio, prior=prior, temperature=temperature, gain=a.gain)
            target = Path(folder, f"{ratio:g}{prior}.vql")
            vqlabel.pack(a.dump, target, codec=vqlabel.fit(a.dump, config)[0])
            size = vqlabel.stats(target)["bytes"]
            bits = 8 * (size["codes"] + size["codec"] + size["container"]) / len(raw)
            yield f"vqlabel, 1/{ratio:g}" + (", no prior" if prior is False else ""), f"{bits:.1f}", decoded(target), 1.0
    for option in a.labels:
        name, _, file = option.partition("=")
        yield name, "", torch.from_numpy(np.load(file)), 1.0
    for k in a.top_k:
        value, index = raw.topk(k, 1)
        yield f"top-{k}, re-normalised", 32 * k, torch.full_like(raw, -1e4).scatter_(1, index, value), 1.0
    for share in a.keep:
        yield f"raw labels of {share:g} of the views", f"{16 * raw.shape[1] * share:.0f}", raw, share


def decoded(path: Path) -> Tensor:
    """[N, C] float16."""
    labels = vqlabel.open(path)
    return torch.cat([labels[start : start + 2000].half() for start in range(0, len(labels), 2000)])


if __name__ == "__main__":
    main()
