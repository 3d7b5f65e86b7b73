"""Codes and tokens -> latents -> logits: a prior and one code vector per slot, summed, through the output map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqlabel.codecs.hidden_labels import OutputHead
from vqlabel.codecs.token_vqae.config import TokenVqaeConfig
from vqlabel.codecs.token_vqae.prior import TokenPrior
from vqlabel.labels.text.documents import Documents


class TokenDecoder(nn.Module):
    """Logits of a label: (prior + sum of its code vectors) @ out + bias; the published format fixes the names.

    hidden = latent @ projection + center, and `out` and `bias` are those of the head after that map. `out` is in the
    file, or made of the head's own weights by `attach`.
    """

    def __init__(self, config: TokenVqaeConfig) -> None:
        super().__init__()
        self.config = config
        self.prior = None if config.prior is None else TokenPrior(config.prior, config.latent)
        self.codebook = nn.Parameter(torch.zeros(config.slots, config.codebook_size, config.latent))
        out = torch.zeros(config.latent, config.classes)
        self.out: Tensor
        if config.head == "embedded":
            self.out = nn.Parameter(out)
        else:
            self.register_buffer("out", out, persistent=False)
        self.bias = nn.Parameter(torch.zeros(config.classes))
        self.projection = nn.Parameter(torch.zeros(config.latent, config.hidden))
        self.center = nn.Parameter(torch.zeros(config.hidden))

    @torch.no_grad()
    def attach(self, head: OutputHead) -> None:
        """Make `out` of the head that the file names by its hash."""
        out = self.projection @ head.weight.T * head.scale
        if isinstance(self.out, nn.Parameter):
            self.out.copy_(out)
        else:
            self.out = out

    def hidden(self, latent: Tensor) -> Tensor:
        """[n, d_h] latents -> [n, d] hidden states of the teacher."""
        return torch.addmm(self.center, latent, self.projection)

    def predict(self, documents: Documents) -> Tensor:
        """[n, d_h] latents of the prior for all labels of some documents; zeros without a prior."""
        if self.prior is None or not documents.rows:
            return self.out.new_zeros(documents.rows, len(self.out))
        tokens, document, position = (
            torch.tensor(x, device=self.out.device) for x in (documents.tokens, documents.document, documents.position)
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
