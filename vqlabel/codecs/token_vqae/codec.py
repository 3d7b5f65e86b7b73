"""Documents and their labels -> codes and exact ids; codes, ids and the documents' tokens -> labels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.documents import DocumentCodec, check_rows
from vqlabel.codecs.hidden_labels import HiddenLabels, OutputHead
from vqlabel.codecs.precision import float32_arithmetic
from vqlabel.codecs.token_vqae.choose import Choices, TokenSearch, search_rows
from vqlabel.codecs.token_vqae.config import TokenVqaeConfig
from vqlabel.codecs.token_vqae.decoder import TokenDecoder
from vqlabel.codecs.token_vqae.exact_ids import add_exact
from vqlabel.codecs.weights import expand, rounded, shrink
from vqlabel.errors import UsageError
from vqlabel.labels.text.documents import Documents

OUTPUT = ("out", "projection", "center")  # weights that map latents to hidden states and logits


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedLabels:
    """n decoded labels: latents, and exact ids; logits exist only for the rows that are asked for.

    Attributes:
        latent: [n, d_h] float32.
        out: [d_h, V] float32 output map; bias: [V] float32.
        ids: [n, M] int64; levels: [n, M] as stored; counts: [n] ids of each label.
    """

    latent: Tensor
    out: Tensor
    bias: Tensor
    ids: Tensor
    levels: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.latent)

    @property
    def vocabulary(self) -> int:
        """V."""
        return int(self.out.shape[1])

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """The labels at a slice, an index or a mask."""
        return replace(self, latent=self.latent[rows], ids=self.ids[rows], levels=self.levels[rows], counts=self.counts[rows])

    @torch.no_grad()
    def logits(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """[rows, V] float32, up to a constant per label."""
        with float32_arithmetic(self.latent.device):
            logits = torch.addmm(self.bias, self.latent[rows], self.out)
            return add_exact(logits, self.ids[rows], self.levels[rows], self.counts[rows])

    def probs(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """[rows, V] float32."""
        return F.softmax(self.logits(rows), 1)


class TokenVqae(DocumentCodec):
    """A VQAE whose prior reads tokens, and whose labels have any number of codes and of exact ids.

    Rate: codes of ceil(log2 k) bits and ids of ceil(log2 V) + 5, as many of each as lower the KL by `config.price`
    nats per bit; and two counts per label.
    """

    config: TokenVqaeConfig

    def __init__(self, config: TokenVqaeConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = TokenDecoder(config)

    @classmethod
    def build(cls, config: TokenVqaeConfig, tensors: Mapping[str, Tensor]) -> Self:
        with torch.device("meta"):  # shapes only: sizes that a file declares must not allocate memory
            codec = cls(config)
        state = {}
        for name, declared in codec.state_dict().items():
            shape = tuple(declared.shape)
            if not declared.numel():  # codebooks of 0 slots
                state[name] = torch.empty(shape, dtype=torch.float32, device="cpu")
            else:
                state[name] = expand(name, tensors, shape, config.weight_bits)
        codec.load_state_dict(state, assign=True)
        if config.head == "referenced":
            codec.decoder.out = torch.empty(0, config.classes, device="cpu")  # until `attach`
        return codec.eval()

    def attach(self, head: OutputHead) -> None:
        """Give the codec the head that its file only names.

        Raises:
            UsageError: the head has another size.
        """
        self.check_head(head)
        self.decoder.attach(head)

    def check_head(self, head: OutputHead) -> None:
        """Raises UsageError unless the head has the size of the codec's."""
        shape, expected = tuple(head.weight.shape), (self.config.classes, self.config.hidden)
        if shape != expected:
            raise UsageError(f"the head is {list(shape)}; the codec was fitted for {list(expected)} (vocabulary, hidden state)")

    def _require_head(self) -> None:
        if not len(self.decoder.out):
            raise UsageError("the codec names its output head and does not contain it: pass the model's head")

    def with_config(self, config: TokenVqaeConfig) -> Self:
        """A codec with these weights and another price or number of exact ids."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.config = config
        return other

    def drop_prior(self) -> None:
        """Remove the prior from configuration and decoder."""
        self.config = replace(self.config, prior=None)
        self.decoder.prior = None

    @torch.no_grad()
    def round(self) -> None:
        """Round the trained weights as storage does. Those of the output were rounded before training; rounding is not
        idempotent.
        """
        for name, weight in self.decoder.named_parameters():
            if name not in OUTPUT:
                weight.copy_(rounded(weight, self.config.weight_bits))

    def decoder_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, weight in self.decoder.state_dict(prefix="decoder.").items():
            tensors |= shrink(name, weight.cpu(), self.config.weight_bits) if weight.numel() else {}
        return tensors

    @torch.no_grad()
    def encode(self, labels: HiddenLabels, documents: Documents) -> Tensor:
        """As `DocumentCodec.encode`; the fields [n, 2 + m + 2 M] are counts of codes and ids, codes, ids, levels."""
        return self.choices(labels, documents).stored(self.config, self.config.price).int()

    @torch.no_grad()
    def choices(self, labels: HiddenLabels, documents: Documents) -> Choices:
        """All numbers of codes and ids of every label, with their KL."""
        check_rows(len(labels), documents, "labels")
        self._require_head()
        with float32_arithmetic(self.decoder.out.device):
            latent = self.decoder.predict(documents)
            search, size = TokenSearch(self.config, self.decoder), search_rows(self.config.classes)
            parts = [
                search(latent[start : start + size], labels.probs(slice(start, start + size)).to(latent.device))
                for start in range(0, len(latent), size)
            ]
        return Choices.join(parts)

    @torch.no_grad()
    def decode(self, fields: Tensor, documents: Documents) -> DecodedLabels:
        check_rows(len(fields), documents, "rows of codes")
        self._require_head()
        slots, most = self.config.slots, self.config.ids
        counts, ids, fields = fields[:, 0], fields[:, 1], fields.long()
        with float32_arithmetic(self.decoder.out.device):
            latent = self.decoder.predict(documents) + self.decoder.code_latent(fields[:, 2 : 2 + slots], counts)
        return DecodedLabels(
            latent=latent,
            out=self.decoder.out.detach(),
            bias=self.decoder.bias.detach(),
            ids=fields[:, 2 + slots : 2 + slots + most],
            levels=fields[:, 2 + slots + most :],
            counts=ids,
        )

    @torch.no_grad()
    def hidden_states(self, decoded: DecodedLabels) -> Tensor | None:
        return self.decoder.hidden(decoded.latent)
