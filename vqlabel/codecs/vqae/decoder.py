"""Codes and side information -> logits: a prior and slots of k code vectors each, summed, through a low-rank output map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqlabel.codecs.precision import quick_addmm
from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.codecs.vqae.prior import Prior, PriorInputs


class Decoder(nn.Module):
    """Codes, and what is known -> logits: out(prior + z) + bias; z is the sum (residual) or the join (grouped) of the code vectors.

    All codes add to the logits, so that a slot's best code can be found exactly (`Encoder`), and so that leaving the last slots out is
    a decoder still. Of variable labels the first column is no code but their count, how many of those that follow it add up. Called, it
    gives the calibrated logits that training and encoding go by; `spread` gives those that students get.
    """

    def __init__(self, config: VqaeConfig) -> None:
        super().__init__()
        self.residual, self.variable = config.quantizer == "residual", config.variable
        self.prior = None if config.prior is None else Prior(config.prior, config.latent)
        self.codebook = nn.Parameter(torch.zeros(config.slots, config.codebook_size, config.code_width))
        self.out = nn.Parameter(torch.zeros(config.latent, config.classes))
        self.bias = nn.Parameter(torch.zeros(config.classes))
        self.center: Tensor
        self.contrast: Tensor
        self.lift: Tensor | None
        self.register_buffer("lift", torch.zeros(config.latent, config.latent) if config.lift else None)
        self.register_buffer("center", torch.zeros(config.latent))  # the mean latent
        self.register_buffer("contrast", torch.ones(config.slots + 1))  # of the first j slots: how much further from it

    def forward(self, codes: Tensor, known: PriorInputs | None = None, quick: bool = False) -> Tensor:
        """[n, j] codes of the first j slots, or [n, 1 + m] counts and codes -> [n, C] calibrated logits, of no particular shift; `quick`
        for training, which tolerates a product in bf16.
        """
        return (quick_addmm if quick else torch.addmm)(self.bias, self.latent(codes, known), self.out)

    def spread(self, codes: Tensor, known: PriorInputs | None = None) -> Tensor:
        """The same logits, moved from their mean until they are unbiased: `set_gain`."""
        return self.with_gain(self.latent(codes, known), self.contrast[-1 if self.variable else codes.shape[1]])

    def with_gain(self, z: Tensor, contrast: Tensor | float) -> Tensor:
        """[n, d_h] latents -> [n, C] logits, `contrast` times as far from their mean, and the directions of `lift` further."""
        if self.lift is not None:
            z = torch.addmm(z, z - self.center, self.lift)
        return torch.addmm(self.bias, torch.lerp(self.center, z, contrast), self.out)

    def latent(self, codes: Tensor, known: PriorInputs | None = None) -> Tensor:
        """[n, j], or [n, 1 + m] counts and codes -> [n, d_h], prior and codes."""
        z = None if known is None or self.prior is None else self.prior(known)
        if codes.shape[1]:
            z = self._coded(codes) if z is None else z + self._coded(codes)
        return self.out.new_zeros(len(codes), len(self.out)) if z is None else z

    def _coded(self, codes: Tensor) -> Tensor:
        slots, k, width = self.codebook.shape
        share = None
        if self.variable:
            codes = codes.long()
            share = (torch.arange(slots, device=codes.device) < codes[:, :1]).to(self.codebook.dtype)
            codes = codes[:, 1:]
        used = codes.shape[1]
        rows = codes.long() + k * torch.arange(used, device=codes.device)
        if self.residual:
            return F.embedding_bag(rows, self.codebook.view(slots * k, width), mode="sum", per_sample_weights=share)
        z = F.embedding(rows, self.codebook.view(slots * k, width)).flatten(1)
        return F.pad(z, (0, (slots - used) * width))

    def books(self) -> Tensor:
        """[m, k, d_h]: what each code of a slot adds to the latent."""
        if self.residual:
            return self.codebook
        width, whole = self.codebook.shape[2], len(self.out)
        return torch.stack([F.pad(book, (at * width, whole - (at + 1) * width)) for at, book in enumerate(self.codebook)])
