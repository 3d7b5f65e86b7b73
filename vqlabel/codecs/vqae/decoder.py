"""Codes and side information -> logits: a prior and one code vector per slot, summed, through a low-rank output map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqlabel.codecs.precision import quick_addmm
from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.codecs.vqae.prior import Prior, PriorInputs


class Decoder(nn.Module):
    """Logits of codes and prior inputs: out(prior + z) + bias; z is the sum (residual) or concatenation (grouped) of
    the code vectors.

    Logits are linear in the code vectors, so that `CodeSearch` finds a slot's best code exactly, and the first slots
    alone are still a decoder. At a variable rate the first column of the codes is their count, and only that many codes
    are summed. `forward` gives calibrated logits, which training and encoding use; `debiased` gives those for students.

    The published file format fixes the names of the buffers. In prose, `center` is the mean latent, `contrast[j]` the
    gain if j slots are decoded, and `lift` the matrix of the tail gain; in the configuration, `head` is the number of
    exact classes and `price` the rate-distortion multiplier lambda.
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
        self.register_buffer("center", torch.zeros(config.latent))
        self.register_buffer("contrast", torch.ones(config.slots + 1))

    def forward(self, codes: Tensor, prior_inputs: PriorInputs | None = None, quick: bool = False) -> Tensor:
        """Calibrated logits.

        Args:
            codes: [n, j] of the first j slots; at a variable rate [n, 1 + m] counts and codes.
            quick: multiply in bf16 where the device does so natively; for training, which tolerates it.

        Returns:
            [n, C], up to a constant per label.
        """
        return (quick_addmm if quick else torch.addmm)(self.bias, self.latent(codes, prior_inputs), self.out)

    def debiased(self, codes: Tensor, prior_inputs: PriorInputs | None = None) -> Tensor:
        """`forward`, rescaled about the mean label by the gain of these slots: `set_gain`."""
        return self.with_gain(self.latent(codes, prior_inputs), self.contrast[-1 if self.variable else codes.shape[1]])

    def with_gain(self, z: Tensor, gain: Tensor | float) -> Tensor:
        """[n, d_h] latents -> [n, C] logits of latents rescaled about their mean by the tail gain and `gain`."""
        if self.lift is not None:
            z = torch.addmm(z, z - self.center, self.lift)
        return torch.addmm(self.bias, torch.lerp(self.center, z, gain), self.out)

    def latent(self, codes: Tensor, prior_inputs: PriorInputs | None = None) -> Tensor:
        """[n, j] codes, or [n, 1 + m] counts and codes -> [n, d_h] latents of prior and codes."""
        z = None if prior_inputs is None or self.prior is None else self.prior(prior_inputs)
        if codes.shape[1]:
            z = self._code_latent(codes) if z is None else z + self._code_latent(codes)
        return self.out.new_zeros(len(codes), len(self.out)) if z is None else z

    def _code_latent(self, codes: Tensor) -> Tensor:
        """[n, d_h] sum or concatenation of the code vectors."""
        slots, k, width = self.codebook.shape
        used = None
        if self.variable:
            codes = codes.long()
            used = (torch.arange(slots, device=codes.device) < codes[:, :1]).to(self.codebook.dtype)
            codes = codes[:, 1:]
        count = codes.shape[1]
        rows = codes.long() + k * torch.arange(count, device=codes.device)
        if self.residual:
            return F.embedding_bag(rows, self.codebook.view(slots * k, width), mode="sum", per_sample_weights=used)
        z = F.embedding(rows, self.codebook.view(slots * k, width)).flatten(1)
        return F.pad(z, (0, (slots - count) * width))

    def books(self) -> Tensor:
        """[m, k, d_h] what each code of a slot adds to the latent."""
        if self.residual:
            return self.codebook
        width, latent = self.codebook.shape[2], len(self.out)
        padded = [F.pad(book, (slot * width, latent - (slot + 1) * width)) for slot, book in enumerate(self.codebook)]
        return torch.stack(padded)
