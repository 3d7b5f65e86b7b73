"""Labels -> codes with the lowest loss of the decoder's logits; no search is trained or stored."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.codecs.vqae.decoder import Decoder
from vqlabel.codecs.vqae.exact_top import mask
from vqlabel.codecs.vqae.prior import PriorInputs
from vqlabel.codecs.vqae.search import CodeSearch
from vqlabel.codecs.vqae.sigmoid_search import SigmoidCodeSearch
from vqlabel.metrics.distortion import as_logits, soft_target

ENCODE_CHUNK = 512  # hypotheses searched at a time, so that their probabilities stay in the processor's cache
SWEEPS = {"fast": 0, "normal": 1, "best": 4}  # effort -> times that every code is chosen again, given all others
BEAM_WIDTH = {"fast": 1, "normal": 1, "best": 8}  # effort -> hypotheses per label before the sweeps


class CodeChooser:
    """Chooses codes for labels by the loss of the decoder's logits."""

    def __init__(self, config: VqaeConfig, decoder: Decoder) -> None:
        self.config, self.decoder = config, decoder

    def choose(self, labels: Tensor, prior_inputs: PriorInputs | None, effort: str, slots: int | None = None) -> Tensor:
        """[n, slots] int64 codes of labels [n, C], for the first `slots` slots; at a variable rate [n, 1 + m]."""
        config = self.config
        slots = config.slots if slots is None else slots
        if not slots:
            return torch.empty(len(labels), 0, dtype=torch.long, device=labels.device)
        search, sweeps, beam_width = self._search(slots), SWEEPS[effort], 1 if config.variable else BEAM_WIDTH[effort]
        codes = [torch.empty(0, config.variable + slots, dtype=torch.long, device=labels.device)]
        for predicted, target in self._search_inputs(labels, prior_inputs, ENCODE_CHUNK // beam_width):
            if config.variable:
                codes.append(search.variable(predicted, target, sweeps, config.price * config.code_bits))
            else:
                codes.append(search(predicted, target, sweeps, beam_width))
        return torch.cat(codes)

    def prefix_losses(self, labels: Tensor, prior_inputs: PriorInputs | None) -> Tensor:
        """[n, m + 1] what the first j codes add to the loss of a label: `CodeSearch.prefix_losses`."""
        search = self._search(self.config.slots)
        losses = [search.prefix_losses(predicted, target) for predicted, target in self._search_inputs(labels, prior_inputs)]
        return torch.cat([torch.zeros(0, self.config.slots + 1, device=labels.device), *losses])

    def _search(self, slots: int) -> CodeSearch:
        if self.config.domain == "sigmoid":
            return SigmoidCodeSearch(self.decoder.books()[:slots], self.decoder.out, self.config.temperature)
        return CodeSearch(self.decoder.books()[:slots], self.decoder.out, self.decoder.bias, self.config.temperature)

    def _search_inputs(
        self, labels: Tensor, prior_inputs: PriorInputs | None, chunk: int = ENCODE_CHUNK
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`chunk` labels at a time: logits [b, C] decoded without codes, and soft targets [b, C]; for sigmoid labels
        their logits.
        """
        config = self.config
        for start in range(0, len(labels), chunk):
            logits = as_logits(labels[start : start + chunk], config.domain)
            no_codes = torch.empty(len(logits), 0, dtype=torch.long, device=logits.device)
            rows = None if prior_inputs is None else prior_inputs.rows(slice(start, start + chunk))
            predicted = self.decoder(no_codes, rows)
            if config.head:
                ids = logits.topk(config.head, 1).indices
                logits, predicted = mask(logits, ids), mask(predicted, ids)
            yield predicted, logits if config.domain == "sigmoid" else soft_target(logits, config.temperature)
