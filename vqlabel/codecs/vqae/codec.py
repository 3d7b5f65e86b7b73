"""The vector-quantized autoencoder (arXiv 2603.03808) with nested rates: cheaper labels from the same fit, by fewer slots."""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from vqlabel.codecs.base import LabelCodec
from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.codecs.vqae.single_rate import SingleRateVqae
from vqlabel.errors import BadContainer, require

PRIOR, IMAGES = "decoder.prior.", "decoder.prior.images"  # the vectors that all rates of a codec share
RATE = "rate.{}."  # before the names of the tensors of so many slots in a codec file
LIFT = "decoder.lift"


class VqaeCodec(SingleRateVqae):
    """A VQAE and its lower rates.

    Attributes:
        nested: number of slots -> the codec for that rate, which shares the image vectors and has all else of its own. They lie in the
            codec file, never in a `.vql`.
    """

    def __init__(self, config: VqaeConfig) -> None:
        super().__init__(config)
        self.nested: dict[int, Self] = {}

    @classmethod
    def build(cls, config: VqaeConfig, tensors: Mapping[str, Tensor]) -> Self:
        codec = cls.build_sharing(config, tensors, {})
        prior = {name: weight for name, weight in codec.state_dict().items() if name.startswith(PRIOR)}
        for slots, own in sorted(_tensors_by_rate(tensors).items()):
            if config.quantizer != "residual" or config.variable or not 1 <= slots < config.slots:
                raise BadContainer(f"a rate of {slots} slots beside one of {config.slots} ({config.quantizer}); damaged or forged")
            networked = any(name.startswith(PRIOR) for name in own)  # else it is a file whose rates share the whole prior
            shared = {name: weight for name, weight in prior.items() if name == IMAGES or not networked}
            lift = any(name.startswith(LIFT) for name in own)  # a rate below may be calibrated
            codec.nested[slots] = cls.build_sharing(replace(config, slots=slots, lift=lift), own, shared).eval()
        return codec

    @property
    def rates(self) -> list[int]:
        if self.config.quantizer != "residual" or self.config.variable:
            return [sum(self.code_bits)]
        own, width = sum(self.config.head_bits), self.config.code_bits
        least = 0 if self.config.prior is not None else 1
        return [own + width * slots for slots in range(self.config.slots, least - 1, -1)]

    def at_rate(self, *, bits: int | None = None, slots: int | None = None) -> Self:
        config = self.config
        if config.variable and slots is None:
            require(bits == config.rate, "bits", bits, f"must be left out: labels of this codec have {config.rate:g} on average")
            return self
        if slots is None:
            assert bits is not None
            width, exact = config.code_bits, sum(config.head_bits)
            most = exact + width * config.slots
            least = min(most, exact + width * (bits > 0 or config.prior is None))  # of 0 bits all is left to the prior
            limit = f"must be {least}..{most}, the codec's {config.slots} slots of {width} bits each"
            require(least <= bits <= most, "bits", bits, limit)
            slots = (bits - exact) // width
        codec = self.at_slots(slots)
        codec.fitted_on = self.fitted_on
        return codec

    def fit_figures(self, measure: Callable[[LabelCodec], dict[str, float]]) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        if self.gain != 1:
            figures |= {"gain": self.gain, "calibrated": measure(self.calibrated())}
        if self.gain_limited:
            figures["gain_limited"] = True
        if self.nested:
            lower = [self.nested[slots] for slots in sorted(self.nested)]
            figures["rates"] = {str(sum(codec.code_bits)): measure(codec) for codec in lower}
        return figures

    def at_slots(self, slots: int) -> Self:
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
        part = copy.deepcopy(self.nested[slots]) if slots in self.nested else self.truncate(slots)
        part.nested = {fewer: codec for fewer, codec in self.nested.items() if fewer < slots}
        part.set_effort(self.effort)
        return part.to(self.decoder.out.device)

    def truncate(self, slots: int) -> Self:
        """This codec without all slots but the first."""
        with torch.random.fork_rng(devices=[]):  # it draws weights, which are replaced
            part = type(self)(replace(self.config, slots=slots))
        state = self.state_dict()
        state["decoder.codebook"] = state["decoder.codebook"][:slots]
        state["decoder.contrast"] = state["decoder.contrast"][: slots + 1]
        part.load_state_dict(state)
        part.set_effort(self.effort)
        return part.to(self.decoder.out.device).eval()

    def calibrated(self) -> Self:
        """The codec with a gain of 1: the same codes, and the labels of the least KL instead of those for students."""
        other = copy.deepcopy(self)
        other.calibrate()
        other.nested = {slots: codec.calibrated() for slots, codec in self.nested.items()}
        return other

    def file_tensors(self) -> dict[str, Tensor]:
        tensors = self.decoder_tensors()
        for slots, codec in self.nested.items():
            own = {name: tensor for name, tensor in codec.decoder_tensors().items() if not name.startswith(IMAGES)}
            tensors |= {RATE.format(slots) + name: tensor for name, tensor in own.items()}
        return tensors


def _tensors_by_rate(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Slots of a cheaper rate -> its tensors by the names that they have in a codec of its own."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if rate := re.fullmatch(r"rate\.(\d{1,4})\.(.+)", name):
            found.setdefault(int(rate[1]), {})[rate[2]] = tensor
    return found
