"""What are small labels worth to a student? Train one from raw labels and one from each `.vql`, and judge them on new images.

    python examples/what_labels_are_worth.py DUMP --images train/ --val val/ --val-labels val.npy --view 224 \
        [--ratio 1000 500 125] [--temperature 1] [--passes 4] [--seeds 0 1 2] [--labels name=labels.npy] [--top-k 10] [--keep 0.1]

DUMP     SRe2L's tree, with LPLD's order file: which view of which image each label belongs to; --view: side of those views, pixels
--images its images: the sorted files of a folder and its subfolders
--val    new images that no label was made of, in one folder a class; --val-labels: the same teacher's logits for them, sorted likewise
--columns JSON, class folder -> the teacher's class, where these are not the sorted folders themselves

Every student is a ResNet of three blocks on 32 x 32 pixels; it sees the very views that the teacher saw, and as many steps, whatever the labels.
One row a student: KL(teacher || student) in nats on the new images, at the student's best scale, and top-1 on their classes.
Bits per label are all of the file but augmentation and order. Needs pillow.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import vqlabel
from vqlabel.labels import open_labels

SIZE, BATCH = 32, 100


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dump", type=Path)
    p.add_argument("--images", type=Path, required=True)
    p.add_argument("--val", type=Path, required=True)
    p.add_argument("--val-labels", type=Path, required=True)
    p.add_argument("--columns", type=Path)
    p.add_argument("--view", type=int, required=True)
    p.add_argument("--ratio", type=float, nargs="*", default=[1000, 500, 125])
    p.add_argument("--no-prior", type=float, nargs="*", default=[], help="ratios at which to code without the prior")
    p.add_argument("--contrast", type=float, help="of vqlabel's labels; 1: calibrated ones, with the least KL")
    p.add_argument("--labels", nargs="*", default=[], help="name=file.npy: labels of any other origin, in the dump's order")
    p.add_argument("--top-k", type=int, nargs="*", default=[])
    p.add_argument("--keep", type=float, nargs="*", default=[], help="shares of the dump to train on")
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--passes", type=int, default=4)
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    a = p.parse_args()
    source = open_labels(a.dump)
    views = torch.cat([replay(batch, files_of(a.images), a.view) for batch in source])
    raw = torch.cat([torch.from_numpy(batch.labels) for batch in source])
    val = torch.stack([picture(file, None) for file in files_of(a.val)])
    folders = sorted({file.parent.name for file in files_of(a.val)})
    columns = json.loads(a.columns.read_text()) if a.columns else {name: at for at, name in enumerate(folders)}
    truth = torch.tensor([folders.index(file.parent.name) for file in files_of(a.val)])
    judged = (val, torch.from_numpy(np.load(a.val_labels)).float(), truth, torch.tensor([columns[name] for name in folders]))
    print("| labels | bits per label | KL to the teacher | over raw | top-1 % |\n| --- | --- | --- | --- | --- |", flush=True)
    base = None
    for name, bits, labels, share in rivals(a, raw):
        found = [judge(train(views[: int(share * len(views))], labels, a, seed), *judged) for seed in a.seeds]
        kl, top1 = np.array(found).T
        base = base or kl.mean()
        spread = f"{kl.mean():.3f} ± {kl.std():.3f} | {100 * (kl.mean() / base - 1):+.1f} % | {top1.mean():.1f} ± {top1.std():.1f}"
        print(f"| {name} | {bits} | {spread} |", flush=True)


def rivals(a, raw):
    """(name, bits per label, labels [n, C], share of the dump), raw labels first."""
    yield "raw fp16", 16 * raw.shape[1], raw, 1.0
    with tempfile.TemporaryDirectory() as folder:
        for ratio, prior in [(r, None) for r in a.ratio] + [(r, False) for r in a.no_prior]:
            config = vqlabel.FitConfig(ratio=ratio, prior=prior, temperature=(a.temperature,), contrast=a.contrast)
            target = Path(folder, f"{ratio:g}{prior}.vql")
            vqlabel.pack(a.dump, target, codec=vqlabel.fit(a.dump, config)[0])
            size = vqlabel.stats(target)["bytes"]
            bits = 8 * (size["codes"] + size["codec"] + size["container"]) / len(raw)
            yield f"vqlabel, 1/{ratio:g}" + (", no prior" if prior is False else ""), f"{bits:.1f}", decoded(target), 1.0
    for given in a.labels:
        name, _, file = given.partition("=")
        yield name, "", torch.from_numpy(np.load(file)), 1.0
    for k in a.top_k:
        value, index = raw.topk(k, 1)
        yield f"top-{k}, re-normalised", 32 * k, torch.full_like(raw, -1e4).scatter_(1, index, value), 1.0
    for share in a.keep:
        yield f"raw labels of {share:g} of the views", f"{16 * raw.shape[1] * share:.0f}", raw, share


def decoded(path: Path) -> Tensor:
    labels = vqlabel.open(path)
    return torch.cat([labels[at : at + 2000].half() for at in range(0, len(labels), 2000)])


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))


def picture(file: Path, crop) -> Tensor:
    """[32, 32, 3] uint8: the image, or what a crop (top, left, height, width, as shares) shows of it."""
    with Image.open(file) as image:
        image = image.convert("RGB")
    top, left, height, width = (0, 0, 1, 1) if crop is None else crop
    box = tuple(np.clip([left, top, left + width, top + height], 0, 1) * np.array([image.width, image.height] * 2))
    return torch.from_numpy(np.array(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)))


def replay(batch, files: list[Path], view: int) -> Tensor:
    """[n, 32, 32, 3] uint8: the views that the labels of this batch were made of, small."""
    views = torch.stack([picture(files[i], crop) for i, crop in zip(batch.image, batch.crop, strict=True)])
    views = torch.where(torch.from_numpy(np.array(batch.flip, bool))[:, None, None, None], views.flip(2), views)
    if batch.mix_index is not None and batch.mix_box is not None:  # CutMix
        row0, col0, row1, col1 = (round(edge * SIZE / view) for edge in batch.mix_box)
        views[:, row0:row1, col0:col1] = views[torch.from_numpy(np.array(batch.mix_index)), row0:row1, col0:col1].clone()
    elif batch.mix_index is not None:  # mixup
        other = views[torch.from_numpy(np.array(batch.mix_index))].float()
        views = torch.lerp(other, views.float(), batch.mix_lam).round().to(torch.uint8)
    return views


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        first = [nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
        self.main = nn.Sequential(*first, nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside))
        self.skip = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.skip(x))


def train(views: Tensor, labels: Tensor, a, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    stem = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    body = [Block(32, 32, 1), Block(32, 64, 2), Block(64, 128, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    student = nn.Sequential(*stem, *body, nn.Linear(128, labels.shape[1])).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(student.parameters(), 2e-3, weight_decay=0.01)
    steps = a.passes * (len(labels) // BATCH)  # as many however few views there are
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for step in range(steps):
        at = step % (len(views) // BATCH) * BATCH
        target = F.softmax(labels[at : at + BATCH].float() / a.temperature, 1)
        out = student(pixels(views[at : at + BATCH]))
        loss = F.kl_div(F.log_softmax(out / a.temperature, 1), target, reduction="batchmean") * a.temperature**2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return student.eval()


def pixels(views: Tensor) -> Tensor:
    return ((views.permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.25).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def judge(student: nn.Module, views: Tensor, teacher: Tensor, truth: Tensor, columns: Tensor) -> tuple[float, float]:
    """KL to the teacher in nats, top-1 in percent."""
    out = torch.cat([student(pixels(part)) for part in views.split(500)])
    log_p = F.log_softmax(teacher, 1)
    scales = np.geomspace(0.3, 4, 27)
    kl = min(float((log_p.exp() * (log_p - F.log_softmax(out * float(s), 1))).sum(1).mean()) for s in scales)
    return kl, 100 * float((out[:, columns].argmax(1) == truth).float().mean())


if __name__ == "__main__":
    main()
