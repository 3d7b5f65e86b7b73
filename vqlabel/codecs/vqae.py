"""The vector-quantized autoencoder (arXiv 2603.03808): slots of k code vectors each, summed on a prior, through a low-rank output map."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqlabel.codecs.base import FitHooks, LabelCodec, LabelSample
from vqlabel.codecs.distortion import as_logits, hellinger_features, teacher_pull
from vqlabel.codecs.precision import quick_matmul
from vqlabel.codecs.prior import Known, Prior, read_context
from vqlabel.codecs.quantizer import search
from vqlabel.codecs.refine import Refiner
from vqlabel.codecs.sizing import bits_of, resolve
from vqlabel.codecs.storage import expand, rounded, shrink, take
from vqlabel.codecs.train import facts_of, fit_vqae
from vqlabel.config import FitConfig, VqaeConfig
from vqlabel.errors import BadLabels, require
from vqlabel.labels import Context

ENCODE_CHUNK = 1024  # labels encoded at a time: what one of them needs stays in the processor's cache
BEAMS = {"fast": 1, "normal": 2, "best": 4}  # code sequences that the search keeps
REFINED = {"fast": 0, "normal": 4, "best": 1024}  # last slots whose codes the decoder chooses again, by its own loss
SWEEPS = {"fast": 0, "normal": 1, "best": 2}


class Encoder(nn.Module):
    """Label -> latent: PCA of its Hellinger features, in which a plain distance is KL at the student's temperatures.

    With a prior, of what the features are more than the predicted label's. `codebooks` [m, k, d_c] are those of the search; the
    decoder has its own, free to move while it trains.
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

    def features(self, logits: Tensor, expected: Tensor | None, temperature: float) -> Tensor:
        """[n, C] of one temperature."""
        found = hellinger_features(logits, temperature)
        return found if expected is None else found.sub_(hellinger_features(expected, temperature))

    def forward(self, logits: Tensor, expected: Tensor | None) -> Tensor:
        """[n, C] logits, and the prior's -> [n, d_h]. The features are never whole in memory: each temperature adds its part."""
        latent = -self.offset.expand(len(logits), -1)
        for t, basis in zip(self.temperature, self.basis, strict=True):
            with quick_matmul(logits.device):
                part = self.features(logits, expected, t) @ basis
            latent = latent + part
        return latent


class Decoder(nn.Module):
    """Codes, and what is known -> logits: out(prior + z) + bias; z is the sum (residual) or the join (grouped) of the code vectors.

    All codes add to the logits, so that a slot's best code can be found exactly (`refine`), and so that leaving the last slots out is
    a decoder still.
    """

    def __init__(self, config: VqaeConfig) -> None:
        super().__init__()
        self.residual = config.quantizer == "residual"
        self.prior = None if config.prior is None else Prior(config.prior, config.latent)
        self.codebook = nn.Parameter(torch.zeros(config.slots, config.codebook_size, config.code_width))
        self.out = nn.Parameter(torch.zeros(config.latent, config.classes))
        self.bias = nn.Parameter(torch.zeros(config.classes))

    def forward(self, codes: Tensor, known: Known | None = None) -> Tensor:
        """[n, j] codes of the first j slots -> [n, C] logits, of no particular shift."""
        expected = None if known is None or self.prior is None else self.prior(known)
        if codes.shape[1]:
            z = self.latent(codes)
            return self.logits(z if expected is None else expected + z)
        return self.bias.expand(len(codes), -1) if expected is None else self.logits(expected)

    def logits(self, latent: Tensor) -> Tensor:
        """[n, d_h] -> [n, C]."""
        return torch.addmm(self.bias, latent, self.out)

    def latent(self, codes: Tensor) -> Tensor:
        """[n, j] -> [n, d_h]."""
        slots, k, width = self.codebook.shape
        used = codes.shape[1]
        rows = codes.long() + k * torch.arange(used, device=codes.device)
        if self.residual:
            return F.embedding_bag(rows, self.codebook.view(slots * k, width), mode="sum")
        z = F.embedding(rows, self.codebook.view(slots * k, width)).flatten(1)
        return F.pad(z, (0, (slots - used) * width))

    def books(self) -> Tensor:
        """[m, k, d_h]: what each code of a slot adds to the latent."""
        if self.residual:
            return self.codebook
        width, whole = self.codebook.shape[2], len(self.out)
        return torch.stack([F.pad(book, (at * width, whole - (at + 1) * width)) for at, book in enumerate(self.codebook)])


class VqaeCodec(LabelCodec):
    """Encoder, residual or grouped quantizer, decoder, and a prior where the file knows more of a label than its place.

    Rate: m * ceil(log2 k) bits per label.
    """

    kind = "vqae"
    config: VqaeConfig

    def __init__(self, config: VqaeConfig, *, with_encoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)
        self.encoder = Encoder(config) if with_encoder and config.slots else None

    @property
    def uses_context(self) -> bool:  # type: ignore[override]
        return self.config.prior is not None

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
            codec = cls(resolve(config, facts_of(sample)))
        fit_vqae(codec, sample, config, hooks)
        return codec

    @classmethod
    def build(cls, config: VqaeConfig, tensors: Mapping[str, Tensor]) -> Self:
        with torch.device("meta"):  # shapes only: nothing is allocated from the numbers of a file
            codec = cls(config, with_encoder=any(name.startswith("encoder.") for name in tensors))
        state = {}
        for name, want in codec.state_dict().items():
            shape = tuple(want.shape)
            if not want.numel():  # codebooks of 0 slots
                state[name] = torch.empty(shape)
            elif name.startswith("decoder."):
                state[name] = expand(name, tensors, shape, bits_of(name, config.weight_bits))
            else:
                state[name] = take(tensors, name, shape, torch.float32)
        codec.load_state_dict(state, assign=True)
        return codec

    def prefix(self, slots: int) -> Self:
        """The codec of the first `slots` slots: cheaper labels from the same fit.

        Raises:
            UsageError: it has fewer slots, its slots are groups of one latent, or none is left and there is no prior.
        """
        config = self.config
        require(
            config.quantizer == "residual", "quantizer", config.quantizer, "must be residual for a part of the slots to be a label"
        )
        least = 0 if config.prior is not None else 1
        require(least <= slots <= config.slots, "slots", slots, f"must be {least}..{config.slots}, what the codec was fitted with")
        state = {name: weight[:slots] if "codebook" in name else weight for name, weight in self.state_dict().items()}
        part = type(self)(replace(config, slots=slots), with_encoder=self.encoder is not None)
        part.load_state_dict({name: weight for name, weight in state.items() if slots or not name.startswith("encoder.")})
        return part.eval()

    def forget_prior(self) -> None:
        """Go on without a prior that was not worth its bytes."""
        self.config = replace(self.config, prior=None)
        self.decoder.prior = None

    @property
    def code_bits(self) -> list[int]:
        return [self.config.code_bits] * self.config.slots

    @property
    def codebook_size(self) -> int | None:
        return self.config.codebook_size

    def rounded_decoder(self) -> dict[str, Tensor]:
        """The decoder's weights as they will be after storage."""
        return {name: rounded(weight, bits_of(name, self.config.weight_bits)) for name, weight in self.decoder.named_parameters()}

    def known(self, context: Context | None) -> Known | None:
        """The prior's inputs, on its device; None without a prior."""
        return None if self.config.prior is None else read_context(self.config.prior, context, self.decoder.out.device)

    def check_context(self, context: Context | None) -> None:
        self.known(context)

    @torch.no_grad()
    def encode(self, labels: Tensor, context: Context | None = None) -> Tensor:
        """The nearest code sequence that a beam search finds, then slot by slot the code with the least loss, as far as the effort goes.

        A fit chooses codes at the normal effort, so that its decoder is calibrated for the codes that `pack` will choose.
        """
        self.check_labels(labels)
        return self.choose(labels, self.known(context)).int()

    def choose(self, labels: Tensor, known: Known | None, slots: int | None = None) -> Tensor:
        """`encode` for a context that was read before, and for a codec of the first `slots` slots only: [n, slots] int64."""
        config = self.config
        slots = config.slots if slots is None else slots
        if not slots:
            return torch.empty(len(labels), 0, dtype=torch.long, device=labels.device)
        assert self.encoder is not None, "a codec read from a .vql decodes only"
        order = [*range(max(0, slots - REFINED[self.effort]), slots)] * SWEEPS[self.effort]
        refiner = Refiner(self.decoder.books(), self.decoder.out, self.decoder.bias, config.temperature) if order else None
        codes = [torch.empty(0, slots, dtype=torch.long, device=labels.device)]
        for at in range(0, len(labels), ENCODE_CHUNK):
            logits = as_logits(labels[at : at + ENCODE_CHUNK], config.domain)
            z = (
                None
                if known is None or self.decoder.prior is None
                else self.decoder.prior(known.rows(slice(at, at + ENCODE_CHUNK)))
            )
            books = self.encoder.codebooks[:slots]
            latent = self.encoder(logits, None if z is None else self.decoder.logits(z))
            found = search(latent, books, config.quantizer, BEAMS[self.effort])[:, 0]
            if refiner is not None:
                start = self.decoder.latent(found) if z is None else self.decoder.latent(found) + z
                found = refiner(found, self.decoder.logits(start), teacher_pull(logits, config.temperature), order)
            codes.append(found)
        return torch.cat(codes)

    def decode(self, codes: Tensor, context: Context | None = None) -> Tensor:
        logits: Tensor = self.decoder(codes, self.known(context))
        return logits if self.config.domain == "logits" else F.softmax(logits, 1)

    def decoder_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, weight in self.decoder.state_dict(prefix="decoder.").items():
            tensors |= {} if not weight.numel() else shrink(name, weight.cpu(), bits_of(name, self.config.weight_bits))
        return tensors

    def encoder_tensors(self) -> dict[str, Tensor]:
        if self.encoder is None:
            return {}
        return {name: weight.cpu().contiguous() for name, weight in self.encoder.state_dict(prefix="encoder.").items()}
