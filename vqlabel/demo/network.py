"""Width -> a small convolutional classifier: the demo's teacher (wide) and student (narrow)."""

from __future__ import annotations

import torch
from torch import nn


def conv_net(classes: int, width: int, size: int, seed: int) -> nn.Sequential:
    """[n, 1, size, size] float32 in [0, 1] -> [n, classes] logits.

    Args:
        classes: C.
        width: channels of the first layers; the last layer has four times as many.
        size: side of the images, pixels, a multiple of 8.
        seed: of the initial weights; the state of torch's global generator is not changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *_layer(1, width, stride=2),
            *_layer(width, width),
            *_layer(width, 2 * width, stride=2),
            *_layer(2 * width, 2 * width),
            *_layer(2 * width, 4 * width, stride=2),
            nn.Flatten(),  # no pooling: the position of an accent distinguishes characters
            nn.Linear(4 * width * (size // 8) ** 2, classes),
        )


def _layer(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
