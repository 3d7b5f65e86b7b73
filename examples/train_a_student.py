"""Images, a teacher and budgets -> labels of seeded views, codecs, `.vql` files, and the scores of students.

    python examples/train_a_student.py IMAGES --teacher module:function --val VAL --work work/ --view 160 \
        [--mean 0.5 ...]

IMAGES       a folder of images; the teacher labels --epochs views of each, --view pixels wide
--work       folder for the dump and the .vql files; existing files are reused, so name another folder for other options
--val        new images, one folder per class
--class-map  JSON, folder of --val -> class of the teacher; by default class i is the i-th folder
--ratio      target compression ratios of whole files against the raw dump with augmentation
--minutes    time that `tune` searches for each codec

Prints one row per kind of labels: bytes of the whole file; KL(teacher || student) in nats and top-1 on the new images,
for students at --temperature and for students with LPQLD's temperatures (DKR: the teacher's falls from 20 to 2; CA: the
student's is calibrated on held-out labels). Files are fitted for T = 1 and serve both. Students see the views
at 32 x 32 pixels, --passes times each. Needs pillow and matplotlib (extras `student`, `plot`).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import vqlabel
from vqlabel.labels import open_labels
from vqlabel.labels.pruning import Pruned
from vqlabel.training import StepSchedule, StudentTemperature, kl
from vqlabel.views import ImageFolder, Recipe
from vqlabel.vql.seeded import read_recipe, recipe_file
from vqlabel.workflows.teacher_source import TeacherSource
from vqlabel.workflows.teachers import load_teacher
from vqlabel.workflows.tune import tune

SMALL = nn.AdaptiveAvgPool2d(32)  # a view -> the input of a student
HELD_OUT = 2  # batches of labels on which CA calibrates the student's temperature


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("images", type=Path)
    p.add_argument("--teacher", required=True)
    for name in ("val", "work", "class-map", "plot"):
        p.add_argument(f"--{name}", type=Path, required=name in ("val", "work"))
    for name, default in (("mean", None), ("std", None), ("ratio", [125, 500, 1000]), ("seeds", [0, 1, 2])):
        p.add_argument(f"--{name}", type=int if name == "seeds" else float, nargs="+", default=default)
    for name, default in (("view", 224), ("epochs", 40), ("batch", 100), ("passes", 4), ("temperature", 1.0), ("minutes", 3.0)):
        p.add_argument(f"--{name}", type=type(default), default=default)
    a = p.parse_args()
    a.work.mkdir(exist_ok=True)
    a.dump, a.count = a.work / "dump", len(pictures := ImageFolder(a.images, cache=True))
    teacher = load_teacher(a.teacher, mean=a.mean, deviation=a.std)
    if not a.dump.exists():
        recipe = Recipe(seed=0, images=a.count, epochs=a.epochs, batch=a.batch, view=a.view, mix="cutmix")
        vqlabel.relabel(TeacherSource(pictures, teacher, recipe), a.dump, layout="lpld")
    a.bytes = a.count * a.epochs * (2 * open_labels(a.dump).classes + 25)  # fp16 logits, and SRe2L's record of a view
    labelled = vqlabel.VqlViews(packed(a, "raw", codec="raw"), pictures, transform=SMALL)
    views = torch.empty(len(labelled), 3, 32, 32, dtype=torch.half)
    for start in range(0, len(labelled), a.batch):
        views[start : start + a.batch] = labelled[range(start, min(start + a.batch, len(labelled)))].views
    new = new_images(a, teacher)
    print("| labels | bytes | of the dump | KL | top-1 % | KL, DKR and CA | top-1 %, DKR and CA |\n" + "| --- " * 7 + "|")
    axes = Figure(figsize=(8, 5)).subplots(subplot_kw={"xscale": "log", "xlabel": "bytes of the file", "ylabel": "top-1 %"})
    for name, path in label_files(a):
        scores = [np.array([score(train(a, path, views, lpqld, seed), *new) for seed in a.seeds]) for lpqld in (False, True)]
        size = path.stat().st_size
        cells = " | ".join(f"{mean:.3f} ± {std:.3f}" for s in scores for mean, std in zip(s.mean(0), s.std(0), strict=True))
        print(f"| {name} | {size:,} | 1/{a.bytes / size:.0f} | {cells} |", flush=True)
        for s, marker in zip(scores, "ox", strict=True):  # x: with DKR and CA
            axes.errorbar(size, s[:, 1].mean(), s[:, 1].std(), fmt=marker, label=name if marker == "o" else None)
    axes.legend(fontsize="xx-small")
    axes.figure.savefig(a.plot or a.work / "students.png")


def label_files(a):
    """(name, .vql file) of every kind of labels."""
    yield "raw", packed(a, "raw", codec="raw")
    yield "raw, 1/10 of the batches", packed(a, "raw10", keep=0.1, codec="raw")
    yield "top-10", packed(a, "top10", codec="topk", slots=10)
    for ratio, keep in ((ratio, keep) for ratio in a.ratio for keep in (1, 0.1)):
        name = f"vqlabel, 1/{ratio:g}{', 1/10 of the batches' * (keep < 1)}"
        yield name, packed(a, f"{ratio:g}_{keep}", ratio, keep)


def packed(a, name, ratio=None, keep=1, **config):
    """A `.vql` with seeded views, `ratio` times smaller than the dump; an existing file is reused."""
    path, source, drawn = a.work / f"{name}.vql", Pruned(open_labels(a.dump), keep, "batch"), read_recipe(recipe_file(a.dump))
    if not path.exists():
        if ratio:  # the budget of a fit excludes 700 bytes of recipe and tables, image sizes, and the list of kept batches
            config["bytes"] = int(a.bytes / ratio) - 700 - 3 * len(drawn.sizes) - 2 * len(source) * (keep < 1)
        fit = (lambda *of: tune(*of, minutes=a.minutes)) if ratio else vqlabel.fit
        vqlabel.pack(source, path, codec=fit(source, vqlabel.FitConfig(**config))[0], augmentation=drawn)
    return path


def train(a, path, views, lpqld, seed):
    """Train a student from the labels in a file and their views; `lpqld`: with DKR and CA."""
    labels, per_epoch = vqlabel.open(path), -(-a.count // a.batch)
    batches = [(views[a.count * b.place.epoch + a.batch * b.place.batch :], b.labels) for b in labels.batches()]
    batches, held_out = (batches[:-HELD_OUT], batches[-HELD_OUT:]) if lpqld else (batches, [])
    torch.manual_seed(seed)
    student, steps = make_student(labels.shape[1]), a.passes * per_epoch * a.epochs
    schedule_of_teacher, of_student = StepSchedule(every=max(1, steps // per_epoch // 10)), StudentTemperature()
    optimizer = torch.optim.AdamW(student.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for step in range(steps):
        x, target = batches[step % len(batches)]
        t, tau = (schedule_of_teacher.temperature(1 + step // per_epoch), of_student.tau) if lpqld else (a.temperature, None)
        optimizer.zero_grad()
        kl(student(x[: len(target)].float()), target, t, student_temperature=tau, squared=not lpqld).backward()
        optimizer.step()
        schedule.step()
        if held_out and (step + 1) % per_epoch == 0:
            for x, target in held_out:
                of_student.update(student.eval()(x[: len(target)].float()).detach(), target, t)
            of_student.step()
            student.train()
    return student.eval()


def new_images(a, teacher):
    """Of --val: images of 32 x 32 pixels, the teacher's logits, the class of each folder, the folder of each image."""
    new = ImageFolder(a.val)
    large = [torch.from_numpy(np.array(image.resize((a.view, a.view)))).permute(2, 0, 1) for image in new]
    logits = torch.cat([teacher(torch.stack(large[start : start + 100]) / 255) for start in range(0, len(large), 100)])
    class_of = json.loads(a.class_map.read_text()) if a.class_map else {name: number for number, name in enumerate(new.classes)}
    small = torch.cat([SMALL(image[None] / 255) for image in large])
    return small, logits, torch.tensor([class_of[name] for name in new.classes]), torch.from_numpy(new.targets)


@torch.no_grad()
def score(student, small, teacher_logits, classes, targets):
    """KL to the teacher at the best scale of the student's logits, top-1 in percent."""
    logits = torch.cat([student(part.float()) for part in small.split(500)])
    kls = (kl(logits * scale, teacher_logits, 1.0) for scale in np.geomspace(0.1, 10, 41))
    return min(kls).item(), 100 * (logits[:, classes].argmax(1) == targets).float().mean().item()


def make_student(classes):
    blocks = [
        nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        for inputs, outputs, size, stride, padding in ((3, 48, 4, 4, 0), (48, 96, 3, 2, 1), (96, 192, 3, 2, 1))
    ]
    student = nn.Sequential(nn.BatchNorm2d(3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, classes))
    return student.to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
