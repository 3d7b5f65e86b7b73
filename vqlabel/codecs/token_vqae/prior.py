"""Tokens of documents -> the latents that their labels are predicted to have, before any code."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqlabel.codecs.token_vqae.config import TokenPriorConfig

WAVELENGTH = 1e3  # tokens; of the slowest rotation of rotary positions
INPUT_NORM = 4.0  # mean norm of the vectors of tokens


class TokenPrior(nn.Module):
    """A transformer with local attention, over several documents at once.

        u      = blocks(inside(rows of the output map))                        [T, width]
        latent = outside(u_t) without the future
        latent = outside(u_t, u_t+1) + gate(u_t, u_t+1) * row of token t + 1   with it

    Its inputs are the columns of the decoder's output map: no embedding is stored.
    """

    def __init__(self, config: TokenPriorConfig, latent: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.inside = nn.Linear(latent, width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.outside = nn.Linear((1 + config.future) * width, latent)
        self.gate = nn.Linear(2 * width, 1) if config.future else None

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Multiply the latents that it predicts."""
        for layer in (self.outside, self.gate):
            for weight in () if layer is None else layer.parameters():
                weight.mul_(factor)

    def forward(self, tokens: Tensor, document: Tensor, out: Tensor) -> Tensor:
        """Predict the latents of all rows.

        Args:
            tokens: [T] int64, documents one after the other.
            document: [T] int64, index of the document of each token, ascending.
            out: [d_h, V] output map.

        Returns:
            [T - 1, d_h]; row t is of token t + 1, and meaningless where token t + 1 begins another document.
        """
        vectors = out.detach().T[tokens]
        vectors = vectors * (INPUT_NORM / out.detach().norm(dim=0).mean())
        x = self.inside(vectors)
        attention = LocalAttention(document, self.config)
        for block in self.blocks:
            x = block(x, attention)
        x = self.norm(x)
        if self.gate is None:
            past: Tensor = self.outside(x[:-1])
            return past
        both = torch.cat([x[:-1], x[1:]], 1)
        latent: Tensor = self.outside(both) + self.gate(both) * vectors[1:]
        return latent


class LocalAttention:
    """Attention of every token to those of its document at most `window` tokens away, in blocks of `window` tokens.

    Without the future, to those before it and itself.
    """

    def __init__(self, document: Tensor, config: TokenPriorConfig) -> None:
        self.window, self.count, self.heads = config.window, len(document), config.heads
        self.blocks = -(-self.count // self.window)
        position = torch.arange(self.blocks * self.window, device=document.device)
        padded = F.pad(document, (0, len(position) - self.count), value=-1)
        query, key = position.view(self.blocks, self.window, 1), self._around(position, -2 * self.window - 1)[:, None]
        near = (query - key).abs() <= self.window
        same = padded.view(self.blocks, self.window, 1) == self._around(padded, -2)[:, None]
        itself = query == key  # a padded token attends to itself: a row without any key would be NaN
        self.mask = ((near & same & (torch.tensor(config.future) | (key <= query))) | itself)[:, None]
        half = config.width // config.heads // 2
        angle = torch.arange(self.count, device=document.device)[:, None] * WAVELENGTH ** (
            -torch.arange(half, device=document.device) / half
        )
        self.cos, self.sin = angle.cos()[:, None], angle.sin()[:, None]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[T, heads, width / heads] each -> [T, width]."""
        q = self._blocks(self._rotate(query))
        k, v = self._neighbours(self._rotate(key)), self._neighbours(value)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        return mixed.transpose(1, 2).reshape(self.blocks * self.window, -1)[: self.count]

    def _rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, a * self.sin + b * self.cos], -1)

    def _blocks(self, x: Tensor) -> Tensor:
        """[T, heads, w] -> [blocks, heads, window, w]."""
        padded = F.pad(x, (0, 0, 0, 0, 0, self.blocks * self.window - self.count))
        return padded.view(self.blocks, self.window, *x.shape[1:]).transpose(1, 2)

    def _neighbours(self, x: Tensor) -> Tensor:
        """[T, heads, w] -> [blocks, heads, 3 window, w]: of each block with those before and after it."""
        blocks = F.pad(self._blocks(x), (0, 0, 0, 0, 0, 0, 1, 1))
        return torch.cat([blocks[:-2], blocks[1:-1], blocks[2:]], 2)

    def _around(self, x: Tensor, fill: int) -> Tensor:
        """[blocks * window] -> [blocks, 3 window]."""
        blocks = F.pad(x.view(self.blocks, self.window), (0, 0, 1, 1), value=fill)
        return torch.cat([blocks[:-2], blocks[1:-1], blocks[2:]], 1)


class _Block(nn.Module):
    """Attention and a feed-forward layer, each added to its input."""

    def __init__(self, config: TokenPriorConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.norm_attention, self.norm_hidden = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv, self.mixed = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.hidden, self.back = nn.Linear(width, 3 * width, bias=False), nn.Linear(3 * width, width, bias=False)
        nn.init.zeros_(self.mixed.weight)
        nn.init.zeros_(self.back.weight)

    def forward(self, x: Tensor, attention: LocalAttention) -> Tensor:
        """[T, width] -> [T, width]."""
        query, key, value = self.qkv(self.norm_attention(x)).view(len(x), 3, self.heads, -1).unbind(1)
        x = x + self.mixed(attention(query, key, value))
        added: Tensor = x + self.back(F.gelu(self.hidden(self.norm_hidden(x))))
        return added
