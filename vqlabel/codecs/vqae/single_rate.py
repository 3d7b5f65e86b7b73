"""A VQAE at one rate: labels -> codes by search against the decoder, codes -> labels, and the tensors that a file holds of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.bitstream import stored_count_bits
from vqlabel.codecs.base import LabelCodec
from vqlabel.codecs.vqae.choose import CodeChooser
from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.codecs.vqae.decoder import Decoder
from vqlabel.codecs.vqae.exact_top import join, split
from vqlabel.codecs.vqae.prior import PriorInputs, read_prior_inputs
from vqlabel.codecs.vqae.sizes import bits_of
from vqlabel.codecs.weights import expand, rounded, shrink
from vqlabel.labels import Context
from vqlabel.metrics.distortion import as_logits

SPREAD = {"decoder.center": 0.0, "decoder.contrast": 1.0}  # what they are where a file has neither


class SingleRateVqae(LabelCodec):
    """Residual or grouped codebooks, decoder, and a prior where the file knows more of a label than its place.

    Rate: m * ceil(log2 k) bits per label, and those of the head where it has one: codes of the slots, ids, levels. Where slots are
    variable, a count, and as many codes as pay at `config.price`. It encodes by trying what its decoder makes of codes: no encoder is
    trained or stored.
    """

    config: VqaeConfig
    gain_limited = False  # whether a fit left its labels calibrated because no gain in reach made them unbiased
    shares_images = False  # whether its image vectors are the stored ones of a codec of more slots

    def __init__(self, config: VqaeConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)

    @classmethod
    def build_sharing(cls, config: VqaeConfig, tensors: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> Self:
        """From stored tensors, and weights that another rate of the codec has in memory."""
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

    @property
    def gain(self) -> float:
        """How far its labels lie from their mean over calibrated ones; 1: calibrated."""
        return float(self.decoder.contrast[-1])

    def calibrate(self) -> None:
        """Set the gain of this rate to 1."""
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

    def known(self, context: Context | None) -> PriorInputs | None:
        """The prior's inputs, on its device; None without a prior."""
        return None if self.config.prior is None else read_prior_inputs(self.config.prior, context, self.decoder.out.device)

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

    @torch.no_grad()
    def choose(self, labels: Tensor, known: PriorInputs | None, slots: int | None = None) -> Tensor:
        """[n, slots] int64 codes of labels [n, C], of the first `slots` slots only, for side information that was read before.

        Where the number of codes varies they are those of all slots: [n, 1 + m], the count first, zeros beyond it.
        """
        return self._chooser().choose(labels, known, self.effort, slots)

    def prefix_losses(self, labels: Tensor, known: PriorInputs | None) -> Tensor:
        """[n, m + 1] what the first j codes add to the loss of a label: `Encoder.prefix_losses`."""
        return self._chooser().prefix_losses(labels, known)

    def _chooser(self) -> CodeChooser:
        return CodeChooser(self.config, self.decoder)

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
