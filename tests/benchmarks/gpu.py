"""Fit, pack, decode and train on a GPU against the CPU; decoding speed against memory bandwidth and a training step.

    pip install vqlabel-*.whl; python gpu.py [--device cuda] [--toy] [--json]

Takes less than five minutes, on synthetic labels, without internet access. Exit code 1 if a result differs from the
CPU's. `--toy` takes seconds; `--device cpu` compares the CPU with itself.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vqlabel
from vqlabel import FitConfig
from vqlabel.codecs import LabelCodec
from vqlabel.codecs.precision import bf16_products, multiplies_bf16
from vqlabel.training import kl

MAX_LABEL_ERROR = 1e-4  # share of the largest logit by which labels of the same codes may differ
MAX_KL_CHANGE = 0.02  # share of a KL by which that of another fit, or of other codes, may be higher
MIN_EQUAL_CODES = 0.99  # share of labels whose codes must be equal: rounding may break ties differently
REPEATS = 20


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of the synthetic data and networks."""

    classes: int = 1000
    images: int = 1000
    epochs: int = 10  # views of every image
    bits: int = 64
    passes: int = 4  # of a fit over the labels
    batch: int = 256  # labels of a training step
    decoded: int = 8192  # labels decoded at once, for the bandwidth
    view: int = 224
    steps: int = 8
    width: int = 64  # channels of ResNet-18's first stage


TOY = Size(classes=20, images=40, epochs=6, bits=9, passes=1, batch=16, decoded=64, view=32, steps=2, width=8)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A result and its reference; `passed` None: reported only."""

    name: str
    value: float
    reference: str
    passed: bool | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device found; pass --device cpu to compare the CPU with itself")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(device, Path(folder), TOY if options.toy else Size())
    print(json.dumps([asdict(row) for row in rows]) if options.json else table(rows, device))
    sys.exit(any(row.passed is False for row in rows))


def table(rows: list[Row], device: torch.device) -> str:
    """The machine, then one line per result."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    lines = [f"torch {torch.__version__}, {device}: {name}, bf16 products: {multiplies_bf16(device)}"]
    for row in rows:
        verdict = {None: "", True: "ok", False: "DIFFERS"}[row.passed]
        lines.append(f"{row.name:58} {row.value:>12.6g}  {row.reference:34} {verdict}")
    return "\n".join(lines)


def measure(device: torch.device, folder: Path, size: Size) -> list[Row]:
    """All rows of the table."""
    dump = write_dump(folder / "dump.npy", size)
    codec, rows = compare_fits(dump, device, size)
    rows += compare_files(dump, codec, device, folder)
    file = folder / "cpu.vql"
    rows += compare_labels(file, device, size)
    return rows + measure_speed(file, device, size) + compare_training(file, device, size)


def write_dump(path: Path, size: Size) -> Path:
    """fp16 logits [epochs, images, classes] of rank 32 with a little noise; views of an image have similar labels."""
    rng = np.random.default_rng(0)
    rank = min(32, size.classes // 2)
    image, classes = rng.normal(size=(size.images, rank)), rng.normal(size=(rank, size.classes))
    views = image + 0.5 * rng.normal(size=(size.epochs, size.images, rank))
    np.save(path, (0.7 * views @ classes + 0.1 * rng.normal(size=(size.epochs, size.images, size.classes))).astype(np.float16))
    return path


def compare_fits(dump: Path, device: torch.device, size: Size) -> tuple[LabelCodec, list[Row]]:
    """The CPU's codec is fitted in float32, the device's in its own precision."""
    settings = {"codec": "vqae", "bits": size.bits, "epochs": size.passes, "codebook_size": 8 if size is TOY else None}
    with bf16_products(False):
        (codec, reference), seconds = timed(lambda: vqlabel.fit(dump, FitConfig(**settings)))
    (_, report), device_seconds = timed(lambda: vqlabel.fit(dump, FitConfig(**settings, device=str(device))))
    rows = [Row(name="fit, seconds", value=device_seconds, reference=f"CPU, one thread: {seconds:.4g}")]
    for name in ("kl_T1", "kl_T4", "kl_T20"):
        a, b = reference["held_out"][name], report["held_out"][name]
        rows.append(
            Row(
                name=f"fit, held-out {name}",
                value=b,
                reference=f"CPU: {a:.6g}, {MAX_KL_CHANGE:.0%} more at most",
                passed=b <= (1 + MAX_KL_CHANGE) * a,
            )
        )
    return codec, rows


def compare_files(dump: Path, codec: LabelCodec, device: torch.device, folder: Path) -> list[Row]:
    """Files that the same codec packs on both."""
    _, seconds = timed(lambda: vqlabel.pack(dump, folder / "cpu.vql", codec=codec))
    _, device_seconds = timed(lambda: vqlabel.pack(dump, folder / "device.vql", config=FitConfig(device=str(device)), codec=codec))
    everything = range(len(vqlabel.open(folder / "cpu.vql")))
    reference, codes = (vqlabel.open(folder / f"{name}.vql").codes(everything) for name in ("cpu", "device"))
    equal = float((reference == codes).all(1).float().mean())
    rows = [
        Row(name="pack, seconds", value=device_seconds, reference=f"CPU, all threads: {seconds:.4g}"),
        Row(
            name="pack, share of labels with the same codes",
            value=equal,
            reference=f">= {MIN_EQUAL_CODES}",
            passed=equal >= MIN_EQUAL_CODES,
        ),
    ]
    figures = [
        vqlabel.stats(folder / f"{name}.vql", against=dump, device=where)["distortion"]
        for name, where in (("cpu", "cpu"), ("device", str(device)))
    ]
    a, b = (next(value for key, value in sorted(part.items()) if key.startswith("kl")) for part in figures)
    rows.append(
        Row(
            name="pack, KL of the file to the dump",
            value=b,
            reference=f"CPU: {a:.6g}, {MAX_KL_CHANGE:.0%} more at most",
            passed=b <= (1 + MAX_KL_CHANGE) * a,
        )
    )
    return rows


def compare_labels(file: Path, device: torch.device, size: Size) -> list[Row]:
    """Decoded labels: plain, with the precision settings of training scripts, and compiled; and a loss of them."""
    here, there = vqlabel.open(file), vqlabel.open(file, device)
    record = np.arange(min(size.batch, len(here)))
    codes, context = here.codes(record), here.context(record)
    reference = here.decoder(codes, context)
    limit = MAX_LABEL_ERROR * max(1.0, float(reference.abs().max()))
    decoder, codes = there.decoder, codes.to(device)
    plain = decoder(codes, context)
    compiled = torch.compile(decoder, fullgraph=True, backend="inductor" if device.type == "cuda" else "eager")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast(device.type, torch.bfloat16):
            under_autocast = decoder(codes, context)
    finally:
        torch.set_float32_matmul_precision(before)
    rows = []
    for name, labels in (
        ("decode", plain),
        ("decode under autocast and TF32", under_autocast),
        ("decode, compiled as one graph", compiled(codes, context)),
    ):
        error = float((labels.cpu() - reference).abs().max())
        rows.append(Row(name=f"{name}, largest difference", value=error, reference=f"<= {limit:.3g}", passed=error <= limit))
    student = torch.randn(len(record), size.classes, generator=torch.Generator().manual_seed(0))
    a, b = float(kl(student, reference, 4.0)), float(kl(student.to(device), plain, 4.0))
    rows.append(
        Row(
            name="KL loss of a student at T = 4",
            value=b,
            reference=f"CPU: {a:.6g}",
            passed=abs(a - b) <= MAX_LABEL_ERROR * max(1.0, abs(a)),
        )
    )
    return rows


def measure_speed(file: Path, device: torch.device, size: Size) -> list[Row]:
    """Decoding writes [n, C] float32, and so do a fill and a copy, which measure the bandwidth."""
    data = vqlabel.open(file, device)
    record = np.arange(size.decoded) % len(data)
    codes, context, decoder = data.codes(record).to(device), data.context(record), data.decoder
    target, source = torch.empty(size.decoded, size.classes, device=device), torch.ones(size.decoded, size.classes, device=device)
    written = target.numel() * target.element_size() / 1e9
    rows = []
    operations: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("decode", lambda: decoder(codes, context)), ("fill", lambda: target.fill_(1)), ("copy", lambda: target.copy_(source)),
    )  # fmt: skip
    for name, work in operations:
        seconds = mean_seconds(work, device)
        rows.append(
            Row(name=f"{name} of [{size.decoded}, {size.classes}] float32, GB/s written", value=written / seconds, reference="")
        )
    step = training_step(ResNet18(size.classes, size.width).to(device), device, size)
    labels = decoder(codes[: size.batch], context.rows(slice(size.batch)))
    of_step = mean_seconds(lambda: step(labels), device, REPEATS // 4)
    of_decode = mean_seconds(lambda: decoder(codes[: size.batch], context.rows(slice(size.batch))), device)
    rows.append(Row(name=f"ResNet-18 step of {size.batch} views of {size.view}, ms", value=1e3 * of_step, reference=""))
    rows.append(
        Row(
            name=f"decode of its {size.batch} labels, ms", value=1e3 * of_decode, reference=f"{of_decode / of_step:.2%} of the step"
        )
    )
    return rows


def compare_training(file: Path, device: torch.device, size: Size) -> list[Row]:
    """Losses of the same steps with labels that the device decodes, and that the CPU decodes."""
    here, decoder, losses = vqlabel.open(file), vqlabel.open(file, device).decoder, []
    for decode in (lambda rows: here[rows].to(device), lambda rows: decoder(here.codes(rows).to(device), here.context(rows))):
        torch.manual_seed(0)
        step = training_step(ResNet18(size.classes, size.width).to(device), device, size)
        batches = np.array_split(np.arange(size.steps * size.batch) % len(here), size.steps)
        losses.append(np.array([step(decode(rows)) for rows in batches]))
    change = float(np.abs(losses[0] / losses[1] - 1).max())
    return [
        Row(
            name=f"training, {size.steps} steps: largest difference of a loss",
            value=change,
            reference=f"<= {MAX_KL_CHANGE:.0%}",
            passed=change <= MAX_KL_CHANGE,
        )
    ]


def training_step(student: nn.Module, device: torch.device, size: Size) -> Callable[[Tensor], float]:
    """A training step on random views in bf16: labels [n, C] -> the loss."""
    views = torch.randn(size.batch, 3, size.view, size.view, generator=torch.Generator().manual_seed(0)).to(device)
    student, views = student.to(memory_format=torch.channels_last), views.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)

    def step(labels: Tensor) -> float:
        with torch.autocast(device.type, torch.bfloat16):
            loss = kl(student(views), labels.detach(), 4.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


class ResNet18(nn.Module):
    """He et al., arXiv 1512.03385."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        blocks, last = [], width
        for stage, stride in enumerate((1, 2, 2, 2)):
            for number in range(2):
                blocks.append(Block(last, width << stage, stride if number == 0 else 1))
                last = width << stage
        self.blocks, self.out = nn.Sequential(*blocks), nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = convolution(inputs, outputs, 3, stride), convolution(outputs, outputs, 3, 1)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and its seconds."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def mean_seconds(work: Callable[[], Any], device: torch.device, repeats: int = REPEATS) -> float:
    """Mean seconds of one call, after a warm-up call."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    wait()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    return (time.perf_counter() - began) / repeats


if __name__ == "__main__":
    main()
