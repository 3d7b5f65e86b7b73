"""The resolved configuration of a VQAE for tokens, and of its prior."""

from dataclasses import dataclass
from typing import ClassVar

from vqlabel.bitstream.codings import ANS, FIXED, ZSTD
from vqlabel.codecs.config import CHUNK_CODES, CODES, COUNTS, CodecConfig, CodeStream, Run
from vqlabel.config import LEVEL_BITS, MAX_SLOTS, JsonConfig, check_labels
from vqlabel.errors import require

IDS = "ids"  # stream of exact ids and their levels
MAX_IDS = 64  # exact ids per label
MAX_WINDOW = 4096  # tokens
MAX_HIDDEN = 1 << 15


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPriorConfig(JsonConfig):
    """Sizes of the prior, a transformer with local attention over the tokens of a document."""

    kind: ClassVar[str] = "token_prior"
    width: int  # features of a token
    layers: int
    heads: int
    window: int  # tokens on each side that a layer attends to; row t depends on layers * window tokens on each side
    future: bool  # whether row t, the distribution of token t + 1, depends on token t + 1 and later ones

    def _check(self) -> None:
        for name, low, high in (("width", 2, 4096), ("layers", 1, 16), ("heads", 1, 64), ("window", 1, MAX_WINDOW)):
            require(low <= getattr(self, name) <= high, name, getattr(self, name), f"must be {low}..{high}")
        limit = f"must be a multiple of twice the heads ({self.heads})"
        require(self.width % (2 * self.heads) == 0, "width", self.width, limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenVqaeConfig(CodecConfig):
    """A VQAE whose labels are next-token distributions, each with its own number of codes and of exact ids.

    Field names are those of the stored JSON (docs/format.md, "codec.*").
    """

    kind: ClassVar[str] = "token_vqae"
    classes: int  # V, tokens of the vocabulary
    domain: str  # hidden
    hidden: int  # d, numbers of a hidden state of the teacher
    latent: int  # d_h: directions of the hidden states that labels keep, at most d
    slots: int  # m, the maximum number of codes per label; 0: the prior and exact ids alone
    codebook_size: int  # k
    ids: int  # M, the maximum number of exact ids per label
    weight_bits: int  # bits of a stored number
    prior: TokenPriorConfig | None
    head: str = "embedded"  # whether the output map is in the file: embedded | referenced
    price: float = 0.0  # rate-distortion multiplier lambda in nats per bit: the KL that a bit must remove

    def _check(self) -> None:
        require(self.domain == "hidden", "domain", self.domain, "must be hidden")
        check_labels(self.classes, "logits")
        require(1 <= self.hidden <= MAX_HIDDEN, "hidden", self.hidden, f"must be 1..{MAX_HIDDEN}")
        require(1 <= self.latent <= self.hidden, "latent", self.latent, f"must be 1..{self.hidden}, the numbers of a hidden state")
        require(0 <= self.slots <= MAX_SLOTS, "slots", self.slots, f"must be 0..{MAX_SLOTS}")
        require(2 <= self.codebook_size <= 1 << 16, "codebook_size", self.codebook_size, "must be 2..65536")
        most = min(MAX_IDS, self.classes - 1)
        require(0 <= self.ids <= most, "ids", self.ids, f"must be 0..{most}")
        require(2 <= self.weight_bits <= 8, "weight_bits", self.weight_bits, "must be 2..8")
        require(self.head in ("embedded", "referenced"), "head", self.head, "must be embedded or referenced")
        require(0 <= self.price < float("inf"), "price", self.price, "must be 0 or above")

    @property
    def code_bits(self) -> int:
        """Bits of one stored code: ceil(log2 k)."""
        return (self.codebook_size - 1).bit_length()

    @property
    def id_bits(self) -> int:
        """Bits of one stored id: ceil(log2 V)."""
        return (self.classes - 1).bit_length()

    @property
    def count_bits(self) -> tuple[int, int]:
        """Bits of the numbers of codes and of exact ids of a label."""
        return max(1, self.slots.bit_length()), max(1, self.ids.bit_length())

    @property
    def widths(self) -> list[int]:
        """[2 + m + 2 M]: numbers of codes and of ids, codes, ids, levels."""
        return [*self.count_bits, *[self.code_bits] * self.slots, *[self.id_bits] * self.ids, *[LEVEL_BITS] * self.ids]

    @property
    def class_ids(self) -> slice:
        return slice(2 + self.slots, 2 + self.slots + self.ids)

    @property
    def indices(self) -> list[tuple[slice, int]]:
        return [(slice(2, 2 + self.slots), self.codebook_size), (self.class_ids, self.classes)]

    @property
    def streams(self) -> tuple[CodeStream, ...]:
        return (
            CodeStream(COUNTS, self.count_bits, (FIXED, ZSTD, ANS)),
            CodeStream(CODES, (self.code_bits,), chunk_rows=CHUNK_CODES),
            CodeStream(IDS, (self.id_bits, LEVEL_BITS)),
        )

    @property
    def runs(self) -> tuple[Run, ...]:
        codes, ids = slice(2, 2 + self.slots), self.class_ids
        return Run(CODES, 0, (codes,)), Run(IDS, 1, (ids, slice(ids.stop, ids.stop + self.ids)))

    @property
    def count_limits(self) -> tuple[int, int]:
        return self.slots, self.ids

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.prior is None else ("documents",)

    @property
    def reach(self) -> int:
        """Tokens before token t, and after token t + 1, that row t depends on."""
        return 0 if self.prior is None else self.prior.layers * self.prior.window

    @property
    def codebooks(self) -> tuple[int, int]:
        return self.slots, self.codebook_size
