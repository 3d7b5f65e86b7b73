"""A VQAE at one rate: labels -> codes by search against the decoder, codes -> labels, and its stored tensors."""

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
from vqlabel.codecs.vqae.exact_top import join_exact, split_exact
from vqlabel.codecs.vqae.prior import PriorInputs, read_prior_inputs
from vqlabel.codecs.vqae.sizes import bits_of
from vqlabel.codecs.weights import expand, rounded, shrink
from vqlabel.labels import Context
from vqlabel.metrics.distortion import as_logits

GAIN_DEFAULTS = {"decoder.center": 0.0, "decoder.contrast": 1.0}  # values of calibrated labels, for which neither tensor is stored


class SingleRateVqae(LabelCodec):
    """Residual or grouped codebooks, a decoder, and a prior if records have side information that predicts labels.

    Rate: m * ceil(log2 k) bits per label, plus ids and levels of exact classes; at a variable rate a count per label,
    and up to m codes, chosen for the rate-distortion multiplier `config.price`. Encoding evaluates codes by the
    decoder: no encoder is trained or stored.
    """

    config: VqaeConfig
    gain_limited = False  # whether the fit left labels calibrated: see `debias.set_gain`
    shares_images = False  # whether the image vectors are the stored ones of a codec of more slots

    def __init__(self, config: VqaeConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)

    @classmethod
    def build_sharing(cls, config: VqaeConfig, tensors: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> Self:
        """Build from stored tensors, and from float32 weights `shared` with another rate of the codec.

        Raises:
            BadContainer: a tensor is missing, of another shape or type, or not finite.
        """
        with torch.device("meta"):  # shapes only: sizes that a file declares must not allocate memory
            codec = cls(config)
        state = dict(shared)
        for name, declared in codec.state_dict().items():
            shape = tuple(declared.shape)
            if name in shared:
                continue
            if not declared.numel():  # codebooks of 0 slots
                state[name] = torch.empty(shape, dtype=torch.float32, device="cpu")
            elif name in GAIN_DEFAULTS and not tensors.keys() & GAIN_DEFAULTS.keys():
                state[name] = torch.full(shape, GAIN_DEFAULTS[name], dtype=torch.float32, device="cpu")
            else:
                state[name] = expand(name, tensors, shape, bits_of(name, config.weight_bits))
        codec.load_state_dict(state, assign=True)
        return codec

    @property
    def gain(self) -> float:
        """Factor on the decoded labels' distance from their mean; 1: calibrated."""
        return float(self.decoder.contrast[-1])

    def calibrate(self) -> None:
        """Set the gain of this rate to 1, without a tail gain."""
        self.config = replace(self.config, lift=False)
        self.decoder.lift = None
        self.decoder.center.zero_()
        self.decoder.contrast.fill_(1)

    def forget_prior(self) -> None:
        """Remove the prior from configuration and decoder."""
        self.config = replace(self.config, prior=None)
        self.decoder.prior = None

    def stored_bits(self, codes: Tensor) -> float:
        if not self.config.variable:
            return super().stored_bits(codes)
        counts = codes[:, :1].cpu().numpy().astype(np.uint32)
        return int(counts.sum()) * self.config.code_bits + stored_count_bits(counts, self.config.count_bits)

    def rounded_decoder(self) -> dict[str, Tensor]:
        """The decoder's weights as storage rounds them. Shared image vectors are already rounded; rounding is not
        idempotent, so they are left alone.
        """
        return {
            name: weight
            if self.shares_images and name == "prior.images"
            else rounded(weight, bits_of(name, self.config.weight_bits))
            for name, weight in self.decoder.named_parameters()
        }

    def round(self) -> None:
        """Round the decoder's weights as storage does."""
        self.decoder.load_state_dict(self.rounded_decoder(), strict=False)  # buffers are not rounded here

    def prior_inputs(self, context: Context | None) -> PriorInputs | None:
        """The prior's inputs on its device; None without a prior."""
        return None if self.config.prior is None else read_prior_inputs(self.config.prior, context, self.decoder.out.device)

    def check_context(self, context: Context | None) -> None:
        self.prior_inputs(context)

    def _encode(self, labels: Tensor, context: Context | None) -> Tensor:
        """Codes of the slots, then ids and levels of exact classes: see `CodeSearch`; the effort sets beam width and
        sweeps.

        A fit chooses codes at the normal effort, so that its decoder is calibrated for the codes that `pack` chooses.
        """
        codes = [self.choose(labels, self.prior_inputs(context))]
        if self.config.head:
            codes += split_exact(as_logits(labels, self.config.domain), self.config.head, self.config.temperature)
        return torch.cat(codes, 1).int()

    @torch.no_grad()
    def choose(self, labels: Tensor, prior_inputs: PriorInputs | None, slots: int | None = None) -> Tensor:
        """[n, slots] int64 codes of labels [n, C], for the first `slots` slots only.

        At a variable rate they are those of all slots: [n, 1 + m], the count first, zeros beyond it.
        """
        return self._chooser().choose(labels, prior_inputs, self.effort, slots)

    def prefix_losses(self, labels: Tensor, prior_inputs: PriorInputs | None) -> Tensor:
        """[n, m + 1] what the first j codes add to the loss of a label: `CodeSearch.prefix_losses`."""
        return self._chooser().prefix_losses(labels, prior_inputs)

    def _chooser(self) -> CodeChooser:
        return CodeChooser(self.config, self.decoder)

    def _decode(self, codes: Tensor, context: Context | None) -> Tensor:
        slots, exact = self.config.variable + self.config.slots, self.config.head
        logits = self.decoder.debiased(codes[:, :slots], self.prior_inputs(context))
        if exact:
            ids, levels = codes[:, slots : slots + exact].long(), codes[:, slots + exact :]
            logits = join_exact(logits, ids, levels, self.config.temperature)
        return F.softmax(logits, 1) if self.config.domain == "probs" else logits

    def decoder_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, weight in self.decoder.state_dict(prefix="decoder.").items():
            stored = weight.numel() and (name not in GAIN_DEFAULTS or bool((self.decoder.contrast != 1).any()))
            tensors |= {} if not stored else shrink(name, weight.cpu(), bits_of(name, self.config.weight_bits))
        return tensors
