"""Codes and tokens -> latents -> logits: a prior and one code vector per slot, summed, through the output map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqlabel.codecs.token_vqae.config import TokenVqaeConfig
from vqlabel.codecs.token_vqae.prior import TokenPrior
from vqlabel.labels.text.documents import Documents


class TokenDecoder(nn.Module):
    """Logits of a label: (prior + sum of its code vectors) @ out + bias; the published format fixes the names."""

    def __init__(self, config: TokenVqaeConfig) -> None:
        super().__init__()
        self.prior = None if config.prior is None else TokenPrior(config.prior, config.latent)
        self.codebook = nn.Parameter(torch.zeros(config.slots, config.codebook_size, config.latent))
        self.out = nn.Parameter(torch.zeros(config.latent, config.classes))
        self.bias = nn.Parameter(torch.zeros(config.classes))

    def predict(self, documents: Documents) -> Tensor:
        """[n, d_h] latents of the prior for all labels of some documents; zeros without a prior."""
        if self.prior is None:
            return self.out.new_zeros(documents.rows, len(self.out))
        tokens, document, position = (
            torch.from_numpy(x).to(self.out.device) for x in (documents.tokens, documents.document, documents.position)
        )
        latent: Tensor = self.prior(tokens, document, self.out)[position]
        return latent

    def code_latent(self, codes: Tensor, counts: Tensor) -> Tensor:
        """[n, d_h] sums of the code vectors.

        Args:
            codes: [n, m]; counts: [n] codes of each label.
        """
        slots, k, width = self.codebook.shape
        if not slots:
            return self.codebook.new_zeros(len(codes), width)
        rows = codes.long() + k * torch.arange(slots, device=codes.device)
        used = (torch.arange(slots, device=codes.device) < counts[:, None]).to(self.codebook.dtype)
        return F.embedding_bag(rows, self.codebook.view(slots * k, width), mode="sum", per_sample_weights=used)

    def logits(self, latent: Tensor) -> Tensor:
        """[n, d_h] -> [n, V]."""
        return torch.addmm(self.bias, latent, self.out)
