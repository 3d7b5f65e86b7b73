"""Number of classes -> a small ResNet on 32 x 32 pixels, the student of `student_benchmark.py`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 32  # channels of the first block


class _Block(nn.Module):
    """Two convolutions and a projected shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.main = nn.Sequential(*first, nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.skip(x))


def student_network(classes: int) -> nn.Module:
    """[n, 3, H, W] float32 -> [n, classes] logits; weights are drawn from torch's global generator."""
    stem = [nn.Conv2d(3, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    blocks = [_Block(WIDTH, WIDTH, 1), _Block(WIDTH, 2 * WIDTH, 2), _Block(2 * WIDTH, 4 * WIDTH, 2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * WIDTH, classes)]
    student = nn.Sequential(*stem, *blocks, *head)
    return student.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def student_input(views: Tensor) -> Tensor:
    """[n, H, W, 3] uint8 -> [n, 3, H, W] float32 of about zero mean and unit variance."""
    return ((views.permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.25).contiguous(memory_format=torch.channels_last)
