"""The vector-quantized autoencoder (arXiv 2603.03808): latent d_h in slots, one codebook of k vectors a slot, a small decoder."""

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqlabel.codecs.base import FitHooks, LabelCodec, LabelSample, take
from vqlabel.codecs.distortion import as_logits, hellinger_features, rank_candidates
from vqlabel.codecs.precision import quick_matmul
from vqlabel.codecs.quantizer import search
from vqlabel.codecs.storage import SCALE, expand, shrink
from vqlabel.codecs.train import fit_vqae, resolve
from vqlabel.config import FitConfig, VqaeConfig
from vqlabel.errors import BadLabels
from vqlabel.labels import Context

ENCODE_CHUNK = 1024  # labels encoded at a time: what one of them needs stays in the processor's cache
BEAMS = {"fast": 1, "normal": 2, "best": 8}  # code sequences that the search keeps
JUDGED = ("best",)  # efforts in which the decoder itself, by its KL, chooses between the sequences; else the nearest is taken


class Encoder(nn.Module):
    """Label -> latent: PCA of its Hellinger features, in which a plain distance is KL at the student's temperatures.

    `codebooks` [m, k, d_c] are those of the search; the decoder has its own, free to move while it trains.
    """

    offset: Tensor
    basis: Tensor
    codebooks: Tensor

    def __init__(self, config: VqaeConfig) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.register_buffer("basis", torch.zeros(len(config.temperature), config.classes, config.latent))
        self.register_buffer("offset", torch.zeros(config.latent))
        self.register_buffer("codebooks", torch.zeros(config.slots, config.codebook_size, config.code_width))

    def forward(self, logits: Tensor) -> Tensor:
        """[n, C] centred logits -> [n, d_h]. The features are never whole in memory: each temperature adds its part."""
        latent = -self.offset.expand(len(logits), -1)
        for t, basis in zip(self.temperature, self.basis, strict=True):
            with quick_matmul(logits.device):
                part = hellinger_features(logits, t) @ basis
            latent = latent + part
        return latent


class Decoder(nn.Module):
    """Codes -> logits: the code vectors are summed (residual) or joined (grouped) to a latent z, then W (z + MLP(z)) + b."""

    first: Tensor

    def __init__(self, config: VqaeConfig) -> None:
        super().__init__()
        self.residual = config.quantizer == "residual"
        self.codebook = nn.Parameter(torch.zeros(config.slots, config.codebook_size, config.code_width))
        self.inside = nn.Linear(config.latent, config.hidden)
        self.outside = nn.Linear(config.hidden, config.latent)
        self.out = nn.Linear(config.latent, config.classes)
        self.place_slots()

    def place_slots(self) -> None:
        """Remember at which row of the joined codebooks each slot's vectors begin."""
        slots, k, _ = self.codebook.shape
        self.register_buffer("first", k * torch.arange(slots), persistent=False)

    def latent(self, codes: Tensor) -> Tensor:
        """[n, m] -> [n, d_h]."""
        rows = codes.long() + self.first
        if self.residual:
            return F.embedding_bag(rows, self.codebook.flatten(0, 1), mode="sum")
        return F.embedding(rows, self.codebook.flatten(0, 1)).flatten(1)

    def forward(self, codes: Tensor) -> Tensor:
        """[n, m] -> [n, C] logits, of no particular shift."""
        z = self.latent(codes)
        logits: Tensor = self.out(z + self.outside(F.gelu(self.inside(z))))
        return logits


class VqaeCodec(LabelCodec):
    """Encoder, residual or grouped quantizer, decoder. Rate: m * ceil(log2 k) bits per label."""

    kind = "vqae"
    config: VqaeConfig

    def __init__(self, config: VqaeConfig, *, with_encoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)
        self.encoder = Encoder(config) if with_encoder else None
        self.effort = "normal"

    @classmethod
    def fit(cls, sample: LabelSample, config: FitConfig, hooks: FitHooks) -> Self:
        largest = float(sample.seen.abs().max())
        if largest > torch.finfo(torch.float16).max:
            raise BadLabels(
                f"a label holds {largest:.3g}; the decoder travels in halves, which end at 65504: clamp the labels "
                "(a masked class needs no less than -100)"
            )
        with torch.random.fork_rng(devices=[]):  # the layers draw their first weights from the global generator
            torch.default_generator.manual_seed(config.seed)
            codec = cls(resolve(config, len(sample.seen), sample.classes, sample.domain))
        fit_vqae(codec, sample, config, hooks)
        return codec

    @classmethod
    def build(cls, config: VqaeConfig, tensors: Mapping[str, Tensor]) -> Self:
        with torch.device("meta"):  # shapes only: nothing is allocated from the numbers of a file
            codec = cls(config, with_encoder=any(name.startswith("encoder.") for name in tensors))
        state = {}
        for name, want in codec.state_dict().items():
            shape = tuple(want.shape)
            if name.startswith("decoder.") and want.dim() > 1:
                take(tensors, name + SCALE, shape[:-1])
            take(tensors, name, shape)
            state[name] = expand(name, dict(tensors))
        codec.load_state_dict(state, assign=True)
        codec.decoder.place_slots()
        return codec

    def set_effort(self, effort: str) -> None:
        super().set_effort(effort)
        self.effort = effort

    @property
    def code_bits(self) -> list[int]:
        return [self.config.code_bits] * self.config.slots

    @property
    def codebook_size(self) -> int | None:
        return self.config.codebook_size

    @torch.no_grad()
    def encode(self, labels: Tensor, context: Context | None = None) -> Tensor:
        """The nearest code sequence that a beam search finds; at the best effort, the one of several whose decoded label has the least KL."""
        self.check_labels(labels)
        assert self.encoder is not None, "a codec read from a .vql decodes only"
        codes = []
        for part in labels.split(ENCODE_CHUNK):
            logits = as_logits(part, self.config.domain)
            found = search(self.encoder(logits), self.encoder.codebooks, self.config.quantizer, BEAMS[self.effort])  # [n, b, m]
            if found.shape[1] > 1 and self.effort in JUDGED:
                n, b, m = found.shape
                with quick_matmul(logits.device):
                    decoded = self.decoder(found.view(n * b, m)).view(n, b, -1)
                loss = rank_candidates(logits, decoded.float(), self.config.temperature)
                found = found.gather(1, loss.argmin(1)[:, None, None].expand(-1, 1, m))
            codes.append(found[:, 0].int())
        return torch.cat(codes)

    def decode(self, codes: Tensor, context: Context | None = None) -> Tensor:
        logits: Tensor = self.decoder(codes)
        return logits if self.config.domain == "logits" else F.softmax(logits, 1)

    def decoder_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, weight in self.decoder.state_dict(prefix="decoder.").items():
            tensors |= shrink(name, weight.cpu())
        return tensors

    def encoder_tensors(self) -> dict[str, Tensor]:
        if self.encoder is None:
            return {}
        return {name: weight.cpu().contiguous() for name, weight in self.encoder.state_dict(prefix="encoder.").items()}
