"""Images, a teacher and budgets -> labels of seeded views, codecs, `.vql` files, and what students learn from each of them.

    python examples/train_a_student.py IMAGES --teacher module:function --val VAL --work work/ --view 160 [--mean 0.5 ...]

IMAGES   a folder of images; the teacher labels --epochs views of each, --view pixels wide, into --work, which is for one set of options
--val    new images, a folder a class; --columns: JSON, folder -> the teacher's class, where that is not the folder's number
--ratio  whole files so many times smaller than the raw dump, its augmentation included; `tune` looks --minutes for the codec of each

A row a kind of labels: bytes of the whole file; KL(teacher || student) in nats and top-1 on the new images, of students at --temperature, then with
LPQLD's temperatures (the teacher's from 20 to 2, the student's calibrated on held-out labels). Files are fitted for --temperature, and serve both.
Students see small copies of the very views, --passes times as many as there are. Needs pillow and matplotlib (extras `student` and `plot`).
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
from vqlabel.training.losses import StepSchedule, StudentTemperature, kl
from vqlabel.views import ImageFolder, Recipe
from vqlabel.vql.seeded import read_recipe, recipe_file
from vqlabel.workflows.relabel import TeacherSource
from vqlabel.workflows.teachers import load_teacher
from vqlabel.workflows.tune import tune

SMALL, HELD = nn.AdaptiveAvgPool2d(32), 2  # what a student sees of a view; batches that calibration keeps


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("images", type=Path)
    p.add_argument("--teacher", required=True)
    for name in ("val", "work", "columns", "plot"):
        p.add_argument(f"--{name}", type=Path, required=name in ("val", "work"))
    for name, usual in (("mean", None), ("std", None), ("ratio", [125, 500, 1000]), ("seeds", [0, 1, 2])):
        p.add_argument(f"--{name}", type=int if name == "seeds" else float, nargs="+", default=usual)
    for name, usual in (("view", 224), ("epochs", 40), ("batch", 100), ("passes", 4), ("temperature", 1.0), ("minutes", 3.0)):
        p.add_argument(f"--{name}", type=type(usual), default=usual)
    a = p.parse_args()
    a.work.mkdir(exist_ok=True)
    a.dump, a.count = a.work / "dump", len(pictures := ImageFolder(a.images, cache=True))
    teacher = load_teacher(a.teacher, mean=a.mean, deviation=a.std)
    if not a.dump.exists():
        recipe = Recipe(seed=0, images=a.count, epochs=a.epochs, batch=a.batch, view=a.view, mix="cutmix")
        vqlabel.relabel(TeacherSource(pictures, teacher, recipe), a.dump, layout="lpld")
    a.bytes = a.count * a.epochs * (2 * open_labels(a.dump).classes + 25)  # fp16 logits, and what SRe2L stores of a view
    seen = vqlabel.VqlViews(packed(a, "raw", codec="raw"), pictures, transform=SMALL)
    views = torch.empty(len(seen), 3, 32, 32, dtype=torch.half)
    for at in range(0, len(seen), a.batch):
        views[at : at + a.batch] = seen[range(at, min(at + a.batch, len(seen)))].views
    new = new_images(a, teacher)
    print("| labels | bytes | of the dump | KL | top-1 % | KL, DKR and CA | top-1 %, DKR and CA |\n" + "| --- " * 7 + "|")
    axes = Figure(figsize=(8, 5)).subplots(subplot_kw={"xscale": "log", "xlabel": "bytes of the file", "ylabel": "top-1 %"})
    for name, path in kinds(a):
        found = [np.array([judge(learn(a, path, views, falling, seed), *new) for seed in a.seeds]) for falling in (False, True)]
        size = path.stat().st_size
        shown = " | ".join(f"{mean:.3f} ± {std:.3f}" for one in found for mean, std in zip(one.mean(0), one.std(0), strict=True))
        print(f"| {name} | {size:,} | 1/{a.bytes / size:.0f} | {shown} |", flush=True)
        for one, marker in zip(found, "ox", strict=True):  # x: with DKR and CA
            axes.errorbar(size, one[:, 1].mean(), one[:, 1].std(), fmt=marker, label=name if marker == "o" else None)
    axes.legend(fontsize="xx-small")
    axes.figure.savefig(a.plot or a.work / "students.png")


def kinds(a):
    """(name, file of such labels)."""
    yield "raw", packed(a, "raw", codec="raw")
    yield "raw, 1/10 of the batches", packed(a, "raw10", keep=0.1, codec="raw")
    yield "top-10", packed(a, "top10", codec="topk", slots=10)
    for ratio, keep in ((ratio, keep) for ratio in a.ratio for keep in (1, 0.1)):
        name = f"vqlabel, 1/{ratio:g}{', 1/10 of the batches' * (keep < 1)}"
        yield name, packed(a, f"{ratio:g}_{keep}_{a.temperature:g}", ratio, keep, temperature=(a.temperature,))


def packed(a, name, ratio=None, keep=1, **config):
    """A `.vql` `ratio` times smaller than the dump, with the seed of its views in it; made once."""
    path, source, drawn = a.work / f"{name}.vql", Pruned(open_labels(a.dump), keep, "batch"), read_recipe(recipe_file(a.dump))
    if not path.exists():
        if ratio:  # a budget does not count 700 bytes of recipe and tables, sizes, which batches were kept
            config["bytes"] = int(a.bytes / ratio) - 700 - 3 * len(drawn.sizes) - 2 * len(source) * (keep < 1)
        fit = (lambda *of: tune(*of, minutes=a.minutes)) if ratio else vqlabel.fit
        vqlabel.pack(source, path, codec=fit(source, vqlabel.FitConfig(**config))[0], drawn=drawn)
    return path


def learn(a, path, views, falling, seed):
    """A student of the labels in a file, every one beside its own view."""
    labels, per_epoch = vqlabel.open(path), -(-a.count // a.batch)
    stored = [(views[a.count * at.place.epoch + a.batch * at.place.batch :], at.labels) for at in labels.batches()]
    stored, held = (stored[:-HELD], stored[-HELD:]) if falling else (stored, [])
    torch.manual_seed(seed)
    student, steps = make_student(labels.shape[1]), a.passes * per_epoch * a.epochs
    T, own = StepSchedule(every=max(1, steps // per_epoch // 10)), StudentTemperature()
    optimizer = torch.optim.AdamW(student.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for step in range(steps):
        seen, target = stored[step % len(stored)]
        t, tau = (T.temperature(1 + step // per_epoch), own.tau) if falling else (a.temperature, None)
        optimizer.zero_grad()
        kl(student(seen[: len(target)].float()), target, t, student_temperature=tau, squared=not falling).backward()
        optimizer.step()
        schedule.step()
        if held and (step + 1) % per_epoch == 0:
            for seen, target in held:
                own.update(student.eval()(seen[: len(target)].float()).detach(), target, t)
            own.step()
            student.train()
    return student.eval()


def new_images(a, teacher):
    """Small copies of images that no label was made of, what the teacher says of them, the class of every folder, the folder of every image."""
    new = ImageFolder(a.val)
    large = [torch.from_numpy(np.array(image.resize((a.view, a.view)))).permute(2, 0, 1) for image in new]
    says = torch.cat([teacher(torch.stack(large[at : at + 100]) / 255) for at in range(0, len(large), 100)])
    known = json.loads(a.columns.read_text()) if a.columns else {name: at for at, name in enumerate(new.classes)}
    small = torch.cat([SMALL(one[None] / 255) for one in large])
    return small, says, torch.tensor([known[name] for name in new.classes]), torch.from_numpy(new.targets)


@torch.no_grad()
def judge(student, small, says, classes, targets):
    """KL to the teacher at the student's best scale, top-1 in percent."""
    out = torch.cat([student(part.float()) for part in small.split(500)])
    apart = (kl(out * scale, says, 1.0) for scale in np.geomspace(0.1, 10, 41))
    return min(apart).item(), 100 * (out[:, classes].argmax(1) == targets).float().mean().item()


def make_student(classes):
    blocks = [
        nn.Sequential(nn.Conv2d(inside, outside, size, stride, padding, bias=False), nn.BatchNorm2d(outside), nn.ReLU())
        for inside, outside, size, stride, padding in ((3, 48, 4, 4, 0), (48, 96, 3, 2, 1), (96, 192, 3, 2, 1))
    ]
    student = nn.Sequential(nn.BatchNorm2d(3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, classes))
    return student.to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
