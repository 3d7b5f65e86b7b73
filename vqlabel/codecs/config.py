"""What a reader of codes must know of a codec, without torch: the streams that its codes are stored in, and what it needs to decode."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from vqlabel.bitstream.codings import FIXED, ZSTD, Coding
from vqlabel.config import JsonConfig, check_labels
from vqlabel.container.overhead import NARROW_CHUNK_ROWS
from vqlabel.errors import require

CODES, COUNTS = "codes", "counts"  # streams of a `.vql`
NO_CODES = (1,)  # a label without codes is stored as one zero bit, so that bytes back the number of records
CHUNK_CODES = NARROW_CHUNK_ROWS  # rows in a chunk if a row is one code, or a label without codes


@dataclass(frozen=True, slots=True)
class CodeStream:
    """One stream of codes in the container.

    Attributes:
        bits: stored width of every field of a row.
        per_label: whether a row is a label; else it is one code of a label.
        codings: ways to store a chunk, of `container`; the smallest is taken.
        chunk_rows: rows a chunk; None: the container's default.
    """

    name: str
    bits: tuple[int, ...]
    per_label: bool = True
    codings: tuple[Coding, ...] = (FIXED, ZSTD)
    chunk_rows: int | None = None


class ImagePrior(Protocol):
    """A prior that was trained on the labels of certain images."""

    @property
    def images(self) -> int:
        """Number of the images."""
        ...

    @property
    def view(self) -> int:
        """Pixels along a view."""
        ...

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the side information that it takes."""
        ...


class CodecConfig(JsonConfig):
    """Resolved configuration of a codec, as a `.vql` and a codec file store it (docs/format.md, "codec.*").

    Attributes:
        kind: name of the codec.
        codings: ways to store a chunk of codes.
        keeps_level: whether decoded logits keep the label's mean over classes, which softmax ignores and squared error does not.
    """

    codings: ClassVar[tuple[Coding, ...]] = (FIXED, ZSTD)
    keeps_level: ClassVar[bool] = False
    classes: int
    domain: str

    @property
    def widths(self) -> list[int]:
        """[m] stored width of every field of a label; where labels have different numbers of codes, the count is the first."""
        raise NotImplementedError

    @property
    def class_ids(self) -> slice:
        """Fields of a label that are class indices, each class at most once."""
        return slice(0)

    @property
    def indices(self) -> list[tuple[slice, int]]:
        """Fields of a label that index a table, and the size of the table."""
        return [(self.class_ids, self.classes)]

    @property
    def max_codes(self) -> int | None:
        """Where labels have different numbers of codes, the largest; None: all have as many."""
        return None

    @property
    def streams(self) -> tuple[CodeStream, ...]:
        """The streams of codes, in the order in which they are written."""
        widths = self.widths
        if self.max_codes is not None:
            codes = CodeStream(CODES, tuple(widths[1:2]), per_label=False, chunk_rows=CHUNK_CODES)
            return codes, CodeStream(COUNTS, tuple(widths[:1]))
        if not widths:
            return (CodeStream(CODES, NO_CODES, chunk_rows=CHUNK_CODES),)
        return (CodeStream(CODES, tuple(widths), codings=self.codings),)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the side information that encode and decode need, fields of `Context`; "views": the pixels."""
        return ()

    @property
    def image_prior(self) -> ImagePrior | None:
        """The prior that ties the codec to the images whose labels it was fitted to."""
        return None

    @property
    def codebooks(self) -> tuple[int, int] | None:
        """(number of codebooks, codes of each) where the first codes of a label are indices of codebooks; None: they are not."""
        return None

    @property
    def kept_classes(self) -> int | None:
        """Classes of a label that are stored, the largest ones; None: all."""
        return None

    @property
    def holds_sets(self) -> bool:
        """Whether a decoded label holds some of the classes and nothing for the others: a logit of NOWHERE, a probability of 0."""
        return False

    @property
    def exact_dtype(self) -> str | None:
        """Type of the labels ("F16", "BF16" or "F32") where decoded ones are the encoded ones bit for bit; None: they are not."""
        return None

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The students' temperatures that decoded labels are meant for."""
        return (1.0,)


def check_top_classes(config: Any) -> None:
    """Raises UsageError unless the k largest classes of one distribution can be kept."""
    check_labels(config.classes, config.domain)
    want = f"is for vqae and raw: {config.kind} keeps the largest classes of one distribution"
    require(config.domain != "sigmoid", "domain", config.domain, want)
    require(1 <= config.k <= config.classes, "k", config.k, f"must be 1..{config.classes} (the number of classes)")
