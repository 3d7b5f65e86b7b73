"""Labels -> codes: every code of a slot is tried against what the decoder makes of it; no encoder is trained or stored."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vqlabel.codecs.vqae.binary_search import BinaryEncoder
from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.codecs.vqae.decoder import Decoder
from vqlabel.codecs.vqae.exact_top import hide
from vqlabel.codecs.vqae.prior import PriorInputs
from vqlabel.codecs.vqae.search import Encoder
from vqlabel.metrics.distortion import as_logits, soft_target

ENCODE_CHUNK = 512  # beginnings of labels encoded at a time: what one of them needs stays in the processor's cache
SWEEPS = {"fast": 0, "normal": 1, "best": 4}  # times that every code is chosen again, given all others
BEAM = {"fast": 1, "normal": 1, "best": 8}  # beginnings of a label's codes that are gone on with, before


class CodeChooser:
    """Chooses codes for labels by the loss of the decoder's logits."""

    def __init__(self, config: VqaeConfig, decoder: Decoder) -> None:
        self.config, self.decoder = config, decoder

    def choose(self, labels: Tensor, known: PriorInputs | None, effort: str, slots: int | None = None) -> Tensor:
        """`encode` for a context that was read before, and for a codec of the first `slots` slots only: [n, slots] int64.

        Variable labels are of all slots: [n, 1 + m].
        """
        config = self.config
        slots = config.slots if slots is None else slots
        if not slots:
            return torch.empty(len(labels), 0, dtype=torch.long, device=labels.device)
        encoder, sweeps, beam = self._encoder(slots), SWEEPS[effort], 1 if config.variable else BEAM[effort]
        codes = [torch.empty(0, config.variable + slots, dtype=torch.long, device=labels.device)]
        for expected, pull in self._asked(labels, known, ENCODE_CHUNK // beam):
            if config.variable:
                codes.append(encoder.variable(expected, pull, sweeps, config.price * config.code_bits))
            else:
                codes.append(encoder(expected, pull, sweeps, beam))
        return torch.cat(codes)

    def prefix_losses(self, labels: Tensor, known: PriorInputs | None) -> Tensor:
        """[n, m + 1] what the first j codes add to the loss of a label: `Encoder.prefix_losses`."""
        encoder = self._encoder(self.config.slots)
        losses = [encoder.prefix_losses(expected, pull) for expected, pull in self._asked(labels, known)]
        return torch.cat([torch.zeros(0, self.config.slots + 1, device=labels.device), *losses])

    def _encoder(self, slots: int) -> Encoder:
        if self.config.domain == "sigmoid":
            return BinaryEncoder(self.decoder.books()[:slots], self.decoder.out, self.config.temperature)
        return Encoder(self.decoder.books()[:slots], self.decoder.out, self.decoder.bias, self.config.temperature)

    def _asked(self, labels: Tensor, known: PriorInputs | None, chunk: int = ENCODE_CHUNK) -> Iterator[tuple[Tensor, Tensor]]:
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
