"""A small causal transformer, the student of `student.py`: drawn at random, or the first layers of given weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqlabel.errors import UsageError, require

WAVELENGTH = 1e4  # tokens; of the slowest rotation of rotary positions
EMBEDDING_SCALE = 0.02  # standard deviation of embeddings and of an untied output head at the start


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig:
    """Sizes of a student.

    Raises:
        UsageError: a size is below 1, or the width is no multiple of twice the heads.
    """

    vocabulary: int  # V
    width: int  # d
    layers: int = 2
    heads: int = 4
    tied: bool = True  # whether the output head is the embedding

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "heads"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        limit = f"must be a multiple of twice the heads ({self.heads})"
        require(self.width % (2 * self.heads) == 0, "width", self.width, limit)


class CausalStudent(nn.Module):
    """Tokens [b, L] int64 -> hidden states [b, L, d]; logits are hidden states @ `out` [d, V].

    Pre-norm blocks of attention, with rotary positions and normalised queries and keys, and a feed-forward layer of
    squared ReLUs.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)
        self.head = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        for part in (self.embedding, self.head):
            if part is not None:
                nn.init.normal_(part.weight, std=EMBEDDING_SCALE)

    @classmethod
    def draw(cls, config: StudentConfig, seed: int = 0) -> Self:
        """A student with random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config)

    @classmethod
    def of_weights(cls, weights: Mapping[str, Tensor], *, layers: int = 2, heads: int = 4) -> Self:
        """A student that starts from the first layers of a model of this architecture; the tensors are copied.

        Args:
            weights: tensors by their names here, such as "embedding.weight" [V, d]; of "head.weight" [V, d] if the head
                is not tied; of further layers, which are left out.

        Raises:
            UsageError: a tensor is missing or has another shape.
        """
        require("embedding.weight" in weights, "weights", sorted(weights), 'must have "embedding.weight" [V, d]')
        vocabulary, width = weights["embedding.weight"].shape
        tied = "head.weight" not in weights
        student = cls.draw(StudentConfig(vocabulary=vocabulary, width=width, layers=layers, heads=heads, tied=tied))
        for name, tensor in student.state_dict().items():
            given = weights.get(name)
            if given is None or given.shape != tensor.shape:
                shape = "none" if given is None else f"shape {list(given.shape)}"
                raise UsageError(f"weights: tensor {name} must have shape {list(tensor.shape)}, found {shape}")
            tensor.copy_(given)
        return student

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.rms_norm(self.embedding(tokens), (self.config.width,))
        half = self.config.width // self.config.heads // 2
        angle = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * WAVELENGTH ** (
            -torch.arange(half, device=tokens.device) / half
        )
        rotation = angle.cos(), angle.sin()
        for block in self.blocks:
            x = block(x, rotation)
        hidden: Tensor = self.norm(x)
        return hidden

    @property
    def out(self) -> Tensor:
        """[d, V] output map."""
        return (self.embedding if self.head is None else self.head).weight.T


class _Block(nn.Module):
    """Attention and a feed-forward layer, each added to its input."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.norm_attention, self.norm_hidden = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.mixed = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.hidden, self.back = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        nn.init.zeros_(self.mixed.weight)
        nn.init.zeros_(self.back.weight)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """[b, L, d] -> [b, L, d]."""
        qkv = self.qkv(self.norm_attention(x)).view(*x.shape[:2], 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = (_rotate(F.rms_norm(side, side.shape[-1:]), rotation) for side in (query, key))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mixed(attended.transpose(1, 2).reshape(x.shape))
        added: Tensor = x + self.back(F.relu(self.hidden(self.norm_hidden(x))).square())
        return added


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """[b, heads, L, w], cosines and sines [L, w / 2] -> [b, heads, L, w]."""
    cos, sin = rotation
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
