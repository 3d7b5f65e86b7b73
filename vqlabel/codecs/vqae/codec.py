"""The vector-quantized autoencoder (arXiv 2603.03808) with nested rates: one fit also gives codecs of fewer slots."""

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

PRIOR, IMAGES = "decoder.prior.", "decoder.prior.images"  # image vectors are shared by all rates of a codec
RATE = "rate.{}."  # prefix of a nested rate's tensors in a codec file, with its number of slots
LIFT = "decoder.lift"


class VqaeCodec(SingleRateVqae):
    """A VQAE and its nested rates.

    Attributes:
        nested: number of slots -> the codec fitted for that rate, which shares the image vectors and nothing else. A
            codec file stores all of them, a `.vql` only the one that it needs.
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
                raise BadContainer(
                    f"a nested rate of {slots} slots in a codec of {config.slots} ({config.quantizer}) slots; damaged or forged"
                )
            has_network = any(name.startswith(PRIOR) for name in own)  # in older files all rates share the whole prior
            shared = {name: weight for name, weight in prior.items() if name == IMAGES or not has_network}
            lift = any(name.startswith(LIFT) for name in own)  # a nested rate may be calibrated
            codec.nested[slots] = cls.build_sharing(replace(config, slots=slots, lift=lift), own, shared).eval()
        return codec

    @property
    def _min_slots(self) -> int:
        """Least number of slots of a nested rate: 0 with a prior, which then predicts the label alone."""
        return 0 if self.config.prior is not None else 1

    def at_rate(self, *, bits: int | None = None, slots: int | None = None) -> Self:
        config = self.config
        if config.variable and slots is None:
            require(
                bits == config.rate,
                "bits",
                bits,
                f"must be left out: this codec has a variable rate of {config.rate:g} bits on average",
            )
            return self
        if slots is None:
            assert bits is not None
            width, exact_bits = config.code_bits, sum(config.head_bits)
            high = exact_bits + width * config.slots
            low = min(high, exact_bits + width * (bits > 0 or config.prior is None))  # 0 bits: the prior alone
            require(
                low <= bits <= high, "bits", bits, f"must be {low}..{high}, the codec's {config.slots} slots of {width} bits each"
            )
            slots = (bits - exact_bits) // width
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
        """The codec of the first `slots` slots: the nested one fitted for that rate, else this one truncated.

        Raises:
            UsageError: the codec has fewer slots; its slots are groups of one latent; `slots` is 0 without a prior; or
                the codec has a variable rate, and `slots` is not its maximum.
        """
        config = self.config
        require(
            not config.variable or slots == config.slots,
            "slots",
            slots,
            f"must be {config.slots}, the maximum: this codec has a variable rate of {config.rate:g} bits on average",
        )
        require(config.quantizer == "residual", "quantizer", config.quantizer, "must be residual to decode from fewer slots")
        limit = f"must be {self._min_slots}..{config.slots}, the slots that the codec was fitted with"
        require(self._min_slots <= slots <= config.slots, "slots", slots, limit)
        codec = copy.deepcopy(self.nested[slots]) if slots in self.nested else self.truncate(slots)
        codec.nested = {fewer: nested for fewer, nested in self.nested.items() if fewer < slots}
        codec.set_effort(self.effort)
        return codec.to(self.decoder.out.device)

    def truncate(self, slots: int) -> Self:
        """This codec with its first `slots` slots only, without nested rates."""
        with torch.random.fork_rng(devices=[]):  # construction draws weights, which are replaced
            codec = type(self)(replace(self.config, slots=slots))
        state = self.state_dict()
        state["decoder.codebook"] = state["decoder.codebook"][:slots]
        state["decoder.contrast"] = state["decoder.contrast"][: slots + 1]
        codec.load_state_dict(state)
        codec.set_effort(self.effort)
        return codec.to(self.decoder.out.device).eval()

    def calibrated(self) -> Self:
        """The codec with a gain of 1, also at its nested rates: the same codes, and the labels with the lowest KL."""
        calibrated = copy.deepcopy(self)
        calibrated.calibrate()
        calibrated.nested = {slots: codec.calibrated() for slots, codec in self.nested.items()}
        return calibrated

    def file_tensors(self) -> dict[str, Tensor]:
        tensors = self.decoder_tensors()
        for slots, codec in self.nested.items():
            own = {name: tensor for name, tensor in codec.decoder_tensors().items() if not name.startswith(IMAGES)}
            tensors |= {RATE.format(slots) + name: tensor for name, tensor in own.items()}
        return tensors


def _tensors_by_rate(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Slots of a nested rate -> its tensors, by their names without the prefix."""
    by_slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if rate := re.fullmatch(r"rate\.(\d{1,4})\.(.+)", name):
            by_slots.setdefault(int(rate[1]), {})[rate[2]] = tensor
    return by_slots
