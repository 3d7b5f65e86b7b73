"""The vector-quantized autoencoder (arXiv 2603.03808): slots of k code vectors each, summed on a prior, through a low-rank output map."""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqlabel.bitstream import stored_count_bits
from vqlabel.codecs.base import FitHooks, LabelCodec, LabelSample
from vqlabel.codecs.precision import quick_addmm
from vqlabel.codecs.vqae.binary_search import BinaryEncoder
from vqlabel.codecs.vqae.exact_top import hide, join, split
from vqlabel.codecs.vqae.fit.train import NothingKnown, facts_of, fit_vqae
from vqlabel.codecs.vqae.prior import Known, Prior, read_context
from vqlabel.codecs.vqae.search import Encoder
from vqlabel.codecs.vqae.sizing import bits_of, resolve
from vqlabel.codecs.weights import expand, rounded, shrink
from vqlabel.config import FitConfig, VqaeConfig
from vqlabel.errors import BadContainer, BadLabels, UsageError, require
from vqlabel.labels import Context
from vqlabel.metrics.distortion import as_logits, soft_target

ENCODE_CHUNK = 512  # beginnings of labels encoded at a time: what one of them needs stays in the processor's cache
SWEEPS = {"fast": 0, "normal": 1, "best": 4}  # times that every code is chosen again, given all others
BEAM = {"fast": 1, "normal": 1, "best": 8}  # beginnings of a label's codes that are gone on with, before
PRIOR, IMAGES = "decoder.prior.", "decoder.prior.images"  # the vectors that all rates of a codec share
RATE = "rate.{}."  # before the names of the tensors of so many slots in a codec file
LIFT = "decoder.lift"
SPREAD = {"decoder.center": 0.0, "decoder.contrast": 1.0}  # what they are where a file has neither


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

    def forward(self, codes: Tensor, known: Known | None = None, quick: bool = False) -> Tensor:
        """[n, j] codes of the first j slots, or [n, 1 + m] counts and codes -> [n, C] calibrated logits, of no particular shift; `quick`
        for training, which tolerates a product in bf16.
        """
        return (quick_addmm if quick else torch.addmm)(self.bias, self.latent(codes, known), self.out)

    def spread(self, codes: Tensor, known: Known | None = None) -> Tensor:
        """The same logits, moved from their mean until they are unbiased: `set_contrast`."""
        return self.contrasted(self.latent(codes, known), self.contrast[-1 if self.variable else codes.shape[1]])

    def contrasted(self, z: Tensor, contrast: Tensor | float) -> Tensor:
        """[n, d_h] latents -> [n, C] logits, `contrast` times as far from their mean, and the directions of `lift` further."""
        if self.lift is not None:
            z = torch.addmm(z, z - self.center, self.lift)
        return torch.addmm(self.bias, torch.lerp(self.center, z, contrast), self.out)

    def latent(self, codes: Tensor, known: Known | None = None) -> Tensor:
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


class VqaeCodec(LabelCodec):
    """Residual or grouped codebooks, decoder, and a prior where the file knows more of a label than its place.

    Rate: m * ceil(log2 k) bits per label, and those of the head where it has one: codes of the slots, ids, levels. Where slots are
    variable, a count, and as many codes as pay at `config.price`. It encodes by trying what its decoder makes of codes: no encoder is
    trained or stored.

    Attributes:
        cheaper: number of slots -> the codec for that rate, which shares the image vectors and has all else of its own. They lie in the
            codec file, never in a `.vql`.
    """

    kind = "vqae"
    config: VqaeConfig
    contrast_limited = False  # whether a fit left its labels calibrated because no contrast in reach made them unbiased
    shares_images = False  # whether its image vectors are the stored ones of a codec of more slots

    def __init__(self, config: VqaeConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)
        self.cheaper: dict[int, Self] = {}

    @property
    def uses_context(self) -> bool:  # type: ignore[override]
        return self.config.prior is not None

    @property
    def counted(self) -> bool:  # type: ignore[override]
        return self.config.variable

    @classmethod
    def _fit(cls, sample: LabelSample, config: FitConfig, hooks: FitHooks) -> Self:
        if sample.support is not None and sample.domain == "logits":
            raise UsageError(
                f"{sample.support.k} logits of each label are known and the other classes have none, which vqae cannot learn; use codec sparse "
                "(the default for such labels) or topk"
            )
        largest = float(sample.seen.abs().max())
        if largest > torch.finfo(torch.float16).max:
            raise BadLabels(
                f"a label holds {largest:.3g}; the decoder travels in halves, which end at 65504: clamp the labels "
                "(a masked class needs no less than -100)"
            )
        codec, without, resumed = cls._begun(sample, config), replace(config, prior=False), hooks.resumed
        chosen = (
            not codec.config.slots and config.slots is None and config.bits is None
        )  # by the rule for budgets, that the prior be all
        if not (chosen and resumed is not None and not resumed["has prior"]):
            try:
                fit_vqae(codec, sample, config, hooks)
                return codec
            except NothingKnown:
                if not chosen:
                    raise
                resumed = None
        codec = cls._begun(sample, without)
        fit_vqae(codec, sample, without, replace(hooks, resumed=resumed))
        return codec

    @classmethod
    def _begun(cls, sample: LabelSample, config: FitConfig) -> Self:
        with torch.random.fork_rng(devices=[]):  # the layers draw their first weights from the global generator
            torch.default_generator.manual_seed(config.seed)
            return cls(resolve(config, facts_of(sample)))

    @classmethod
    def build(cls, config: VqaeConfig, tensors: Mapping[str, Tensor]) -> Self:
        codec = cls._of(config, tensors, {})
        prior = {name: weight for name, weight in codec.state_dict().items() if name.startswith(PRIOR)}
        for slots, own in sorted(_by_rate(tensors).items()):
            if config.quantizer != "residual" or config.variable or not 1 <= slots < config.slots:
                raise BadContainer(f"a rate of {slots} slots beside one of {config.slots} ({config.quantizer}); damaged or forged")
            networked = any(name.startswith(PRIOR) for name in own)  # else it is a file whose rates share the whole prior
            shared = {name: weight for name, weight in prior.items() if name == IMAGES or not networked}
            lift = any(name.startswith(LIFT) for name in own)  # a rate below may be calibrated
            codec.cheaper[slots] = cls._of(replace(config, slots=slots, lift=lift), own, shared).eval()
        return codec

    @classmethod
    def _of(cls, config: VqaeConfig, tensors: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> Self:
        """From stored tensors, and weights that another codec has."""
        with torch.device("meta"):  # shapes only: nothing is allocated from the numbers of a file
            codec = cls(config)
        state = dict(shared)
        for name, want in codec.state_dict().items():
            shape = tuple(want.shape)
            if name in shared:
                continue
            if not want.numel():  # codebooks of 0 slots
                state[name] = torch.empty(shape, dtype=torch.float32, device="cpu")
            elif name in SPREAD and not tensors.keys() & SPREAD.keys():
                state[name] = torch.full(shape, SPREAD[name], dtype=torch.float32, device="cpu")
            else:
                state[name] = expand(name, tensors, shape, bits_of(name, config.weight_bits))
        codec.load_state_dict(state, assign=True)
        return codec

    def prefix(self, slots: int) -> Self:
        """The codec of `slots` slots: cheaper labels from the same fit. It is the one that was fitted for that rate, where one was, else
        all parts of this one with its first `slots` slots.

        Raises:
            UsageError: it has fewer slots, its slots are groups of one latent, or none is left and there is no prior; or every label has
                a number of slots of its own, and this is not their most.
        """
        config = self.config
        own = not config.variable or slots == config.slots
        require(
            own,
            "slots",
            slots,
            f"must be {config.slots}: every label has as many of them as pay, at a price found for {config.rate:g} bits",
        )
        require(
            config.quantizer == "residual", "quantizer", config.quantizer, "must be residual for a part of the slots to be a label"
        )
        least = 0 if config.prior is not None else 1
        require(least <= slots <= config.slots, "slots", slots, f"must be {least}..{config.slots}, what the codec was fitted with")
        part = copy.deepcopy(self.cheaper[slots]) if slots in self.cheaper else self.cut(slots)
        part.cheaper = {fewer: codec for fewer, codec in self.cheaper.items() if fewer < slots}
        part.set_effort(self.effort)
        return part.to(self.decoder.out.device)

    def cut(self, slots: int) -> Self:
        """This codec without all slots but the first."""
        with torch.random.fork_rng(devices=[]):  # it draws weights, which are replaced
            part = type(self)(replace(self.config, slots=slots))
        state = self.state_dict()
        state["decoder.codebook"] = state["decoder.codebook"][:slots]
        state["decoder.contrast"] = state["decoder.contrast"][: slots + 1]
        part.load_state_dict(state)
        part.set_effort(self.effort)
        return part.to(self.decoder.out.device).eval()

    @property
    def contrast(self) -> float:
        """How far its labels lie from their mean over calibrated ones; 1: calibrated."""
        return float(self.decoder.contrast[-1])

    def calibrated(self) -> Self:
        """The codec with a contrast of 1: the same codes, and the labels of the least KL instead of those for students."""
        other = copy.deepcopy(self)
        other.calibrate()
        other.cheaper = {slots: codec.calibrated() for slots, codec in self.cheaper.items()}
        return other

    def calibrate(self) -> None:
        """Set the contrast of this rate to 1."""
        self.config = replace(self.config, lift=False)
        self.decoder.lift = None
        self.decoder.center.zero_()
        self.decoder.contrast.fill_(1)

    def forget_prior(self) -> None:
        """Go on without a prior that was not worth its bytes."""
        self.config = replace(self.config, prior=None)
        self.decoder.prior = None

    def stored_bits(self, codes: Tensor) -> float:
        if not self.config.variable:
            return super().stored_bits(codes)
        counts = codes[:, :1].cpu().numpy().astype(np.uint32)
        return int(counts.sum()) * self.config.code_bits + stored_count_bits(counts, self.config.count_bits)

    def rounded_decoder(self) -> dict[str, Tensor]:
        """The decoder's weights as they will be after storage. What another codec stores is so already; rounded twice, it is something else."""
        return {
            name: weight
            if self.shares_images and name == "prior.images"
            else rounded(weight, bits_of(name, self.config.weight_bits))
            for name, weight in self.decoder.named_parameters()
        }

    def round(self) -> None:
        """Make the decoder's weights what they will be after storage."""
        self.decoder.load_state_dict(self.rounded_decoder(), strict=False)  # the buffers stay as they are

    def known(self, context: Context | None) -> Known | None:
        """The prior's inputs, on its device; None without a prior."""
        return None if self.config.prior is None else read_context(self.config.prior, context, self.decoder.out.device)

    def check_context(self, context: Context | None) -> None:
        self.known(context)

    def _encode(self, labels: Tensor, context: Context | None) -> Tensor:
        """For every slot in turn the code with the least loss, after as many beginnings and then again as often as the effort says: see
        `Encoder`. Variable labels have no beam.

        Of variable labels [n, 1 + m]: the count first, then the codes, 0 beyond it.

        A fit chooses codes at the normal effort, so that its decoder is calibrated for the codes that `pack` will choose.
        """
        codes = [self.choose(labels, self.known(context))]
        if self.config.head:
            codes += split(as_logits(labels, self.config.domain), self.config.head, self.config.temperature)
        return torch.cat(codes, 1).int()

    def choose(self, labels: Tensor, known: Known | None, slots: int | None = None) -> Tensor:
        """`encode` for a context that was read before, and for a codec of the first `slots` slots only: [n, slots] int64.

        Variable labels are of all slots: [n, 1 + m].
        """
        config = self.config
        slots = config.slots if slots is None else slots
        if not slots:
            return torch.empty(len(labels), 0, dtype=torch.long, device=labels.device)
        encoder, sweeps, beam = self._encoder(slots), SWEEPS[self.effort], 1 if config.variable else BEAM[self.effort]
        codes = [torch.empty(0, config.variable + slots, dtype=torch.long, device=labels.device)]
        for expected, pull in self._asked(labels, known, ENCODE_CHUNK // beam):
            if config.variable:
                codes.append(encoder.variable(expected, pull, sweeps, config.price * config.code_bits))
            else:
                codes.append(encoder(expected, pull, sweeps, beam))
        return torch.cat(codes)

    @torch.no_grad()
    def prefix_losses(self, labels: Tensor, known: Known | None) -> Tensor:
        """[n, m + 1] what the first j codes add to the loss of a label: `Encoder.prefix_losses`."""
        encoder = self._encoder(self.config.slots)
        losses = [encoder.prefix_losses(expected, pull) for expected, pull in self._asked(labels, known)]
        return torch.cat([torch.zeros(0, self.config.slots + 1, device=labels.device), *losses])

    def _encoder(self, slots: int) -> Encoder:
        if self.config.domain == "sigmoid":
            return BinaryEncoder(self.decoder.books()[:slots], self.decoder.out, self.config.temperature)
        return Encoder(self.decoder.books()[:slots], self.decoder.out, self.decoder.bias, self.config.temperature)

    def _asked(self, labels: Tensor, known: Known | None, chunk: int = ENCODE_CHUNK) -> Iterator[tuple[Tensor, Tensor]]:
        """What an `Encoder` is called with, `chunk` labels at a time: logits without a code, and the labels' pull, or for a `BinaryEncoder` theirs."""
        config = self.config
        for at in range(0, len(labels), chunk):
            logits = as_logits(labels[at : at + chunk], config.domain)
            none = torch.empty(len(logits), 0, dtype=torch.long, device=logits.device)
            expected = self.decoder(none, None if known is None else known.rows(slice(at, at + chunk)))
            if config.head:
                ids = logits.topk(config.head, 1).indices
                logits, expected = hide(logits, ids), hide(expected, ids)
            yield expected, logits if config.domain == "sigmoid" else soft_target(logits, config.temperature)

    def _decode(self, codes: Tensor, context: Context | None) -> Tensor:
        slots, head = self.config.variable + self.config.slots, self.config.head
        logits = self.decoder.spread(codes[:, :slots], self.known(context))
        if head:
            logits = join(logits, codes[:, slots : slots + head].long(), codes[:, slots + head :], self.config.temperature)
        return F.softmax(logits, 1) if self.config.domain == "probs" else logits

    def decoder_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, weight in self.decoder.state_dict(prefix="decoder.").items():
            said = weight.numel() and (name not in SPREAD or bool((self.decoder.contrast != 1).any()))
            tensors |= {} if not said else shrink(name, weight.cpu(), bits_of(name, self.config.weight_bits))
        return tensors

    def file_tensors(self) -> dict[str, Tensor]:
        tensors = self.decoder_tensors()
        for slots, codec in self.cheaper.items():
            own = {name: tensor for name, tensor in codec.decoder_tensors().items() if not name.startswith(IMAGES)}
            tensors |= {RATE.format(slots) + name: tensor for name, tensor in own.items()}
        return tensors


def _by_rate(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Slots of a cheaper rate -> its tensors by the names that they have in a codec of its own."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if rate := re.fullmatch(r"rate\.(\d{1,4})\.(.+)", name):
            found.setdefault(int(rate[1]), {})[rate[2]] = tensor
    return found
