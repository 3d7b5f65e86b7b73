"""Number of classes -> a small network on 32 x 32 pixels, the students of `student_benchmark.py`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqlabel.errors import require

WIDTH = 32  # channels of the first block of the ResNet
PATCH, PATCHES, EMBEDDING, LAYERS = 8, 16, 64, 4  # of the ViT: side in pixels, patches per view, width and depth


class _Block(nn.Module):
    """Two convolutions and a projected shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.main = nn.Sequential(*first, nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.skip(x))


class _ViT(nn.Module):
    """A pre-norm transformer on patches, whose mean is classified."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, EMBEDDING, PATCH, PATCH)
        self.position = nn.Parameter(0.02 * torch.randn(1, PATCHES, EMBEDDING))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(EMBEDDING, 2, 2 * EMBEDDING, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(LAYERS)
        )
        self.head = nn.Sequential(nn.LayerNorm(EMBEDDING), nn.Linear(EMBEDDING, classes))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head[1](self.head[0](tokens).mean(1))  # type: ignore[no-any-return]


def _resnet(classes: int) -> nn.Module:
    stem = [nn.Conv2d(3, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    blocks = [_Block(WIDTH, WIDTH, 1), _Block(WIDTH, 2 * WIDTH, 2), _Block(2 * WIDTH, 4 * WIDTH, 2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * WIDTH, classes)]
    return nn.Sequential(*stem, *blocks, *head)


def _conv(classes: int) -> nn.Module:
    """Three convolutions."""
    layers: list[nn.Module] = [nn.BatchNorm2d(3)]
    for inputs, outputs, size, stride, padding in ((3, 48, 4, 4, 0), (48, 96, 3, 2, 1), (96, 192, 3, 2, 1)):
        layers += [nn.Conv2d(inputs, outputs, size, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, classes))


NETWORKS = {"resnet": _resnet, "conv": _conv, "vit": _ViT}


def student_network(classes: int, kind: str = "resnet") -> nn.Module:
    """[n, 3, 32, 32] float32 -> [n, classes] logits; weights are drawn from torch's global generator.

    Args:
        kind: one of NETWORKS.

    Raises:
        UsageError: another kind.
    """
    require(kind in NETWORKS, "network", kind, f"must be one of {', '.join(NETWORKS)}")
    return NETWORKS[kind](classes).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def student_input(views: Tensor) -> Tensor:
    """[n, H, W, 3] uint8 -> [n, 3, H, W] float32 of about zero mean and unit variance."""
    return ((views.permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.25).contiguous(memory_format=torch.channels_last)
