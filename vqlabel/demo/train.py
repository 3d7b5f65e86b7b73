"""Glyph images -> a trained teacher -> its dump in SRe2L's layout -> a student trained from labels alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqlabel.codecs.precision import quick_matmul
from vqlabel.demo.network import conv_net
from vqlabel.demo.views import Augmentation, apply_augmentation, draw_augmentation

Batch = tuple[Tensor, Augmentation, Tensor]  # images [n, size, size] uint8, their augmentation, teacher logits [n, C]


def train_teacher(
    images: Tensor, classes: Tensor, *, epochs: int = 20, batch: int = 256, width: int = 64, seed: int = 0
) -> nn.Module:
    """Train on augmented views; the target has both classes of a view, each with its share of the view's area.

    Args:
        images: [n, size, size] uint8.
        classes: [n] int64 in [0, C).
    """
    rng = np.random.default_rng(seed)
    outputs, size = int(classes.max()) + 1, images.shape[-1]

    def examples() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in _shuffled(rng, len(images), batch):
            augmentation = draw_augmentation(rng, len(rows), size)
            own = F.one_hot(classes[rows], outputs).float()
            yield (
                apply_augmentation(images[rows], augmentation),
                torch.lerp(own[augmentation.mix_index], own, augmentation.mix_lam),
            )

    steps = epochs * -(-len(images) // batch)
    return _minimise(conv_net(outputs, width, size, seed), examples, steps=steps, temperature=1)


@torch.inference_mode()
def dump_labels(teacher: nn.Module, images: Tensor, folder: Path, *, epochs: int = 20, batch: int = 100, seed: int = 0) -> None:
    """Label a view of every image in every epoch and write a dump in SRe2L's layout.

    `epoch_E/batch_B.tar` is a `torch.save` of [coords, flip, mix_index, mix_lam, mix_bbox, logits float16 [n, C]], the
    fields of `Augmentation` first; `sampler_indices_epoch.json` maps an epoch to the order of its images.

    Args:
        images: [n, size, size] uint8.
    """
    rng = np.random.default_rng(seed)
    order: dict[str, list[int]] = {}
    for epoch in range(epochs):
        epoch_folder = folder / f"epoch_{epoch}"
        epoch_folder.mkdir(parents=True)
        order[str(epoch)] = []
        for number, rows in enumerate(_shuffled(rng, len(images), batch)):
            augmentation = draw_augmentation(rng, len(rows), images.shape[-1])
            logits = teacher(apply_augmentation(images[rows], augmentation)).half()
            crop = [augmentation.coords, augmentation.flip]
            mix = [augmentation.mix_index, augmentation.mix_lam, list(augmentation.mix_bbox)]
            torch.save([*crop, *mix, logits], epoch_folder / f"batch_{number}.tar")
            order[str(epoch)] += rows.tolist()
    (folder / "sampler_indices_epoch.json").write_text(json.dumps(order))


def train_student(
    batches: Callable[[], Iterable[Batch]], *, steps: int, width: int = 32, temperature: float = 2, seed: int = 0
) -> nn.Module:
    """Train from scratch from the teacher's logits alone: KL at `temperature`, on the views that the teacher labelled.

    Args:
        batches: returns an iterator over the labelled batches; called again when it is exhausted.
        steps: number of training steps, one batch each.
    """

    def examples() -> Iterator[tuple[Tensor, Tensor]]:
        for images, augmentation, logits in batches():
            yield apply_augmentation(images, augmentation), (logits.float() / temperature).softmax(1)

    images, _, logits = next(iter(batches()))
    model = conv_net(logits.shape[1], width, images.shape[-1], seed)
    return _minimise(model, examples, steps=steps, temperature=temperature)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Top-1 accuracy on images [n, size, size] uint8 of classes [n] int64, in 0..1."""
    predicted = [model(part[:, None] / 255).argmax(1) for part in torch.split(images, 500)]
    return float((torch.cat(predicted) == classes).float().mean())


def _minimise(
    model: nn.Module,
    examples: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    *,
    steps: int,
    temperature: float,
    peak: float = 4e-3,
) -> nn.Module:
    """Minimise the cross entropy to target probabilities [n, C]: KL up to a constant, times T^2 (Hinton et al. 2015).

    Args:
        examples: returns an iterator over views [n, 1, size, size] and targets; called again when it is exhausted.
        peak: largest learning rate of the one-cycle schedule.
    """
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    for views, targets in islice(_repeat(examples), steps):
        with quick_matmul(views.device):
            logits = model(views)
        loss = temperature**2 * F.cross_entropy(logits.float() / temperature, targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return model.eval()


def _repeat(examples: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The examples, over and over."""
    while True:
        yield from examples()


def _shuffled(rng: np.random.Generator, n: int, batch: int) -> Iterator[Tensor]:
    """0..n-1 in random order, `batch` at a time."""
    yield from torch.split(torch.from_numpy(rng.permutation(n)), batch)
