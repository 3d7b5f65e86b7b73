"""The configuration of a codec, without torch: the streams of its codes, and the side information that it needs."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from vqlabel.bitstream.codings import FIXED, ZSTD, Coding
from vqlabel.config import JsonConfig, check_labels
from vqlabel.container.overhead import NARROW_CHUNK_ROWS
from vqlabel.errors import require

CODES, COUNTS = "codes", "counts"  # streams of a `.vql`
NO_CODES = (1,)  # width of a label without codes: one zero bit, so that the number of records is bounded by the bytes of a file
CHUNK_CODES = NARROW_CHUNK_ROWS  # rows per chunk if a row is one code, or a label without codes


@dataclass(frozen=True, slots=True)
class CodeStream:
    """One stream of codes in the container.

    Attributes:
        bits: stored width of every field of a row.
        codings: codings of a chunk, of which the smallest result is stored.
        chunk_rows: rows per chunk; None: the container's default.
    """

    name: str
    bits: tuple[int, ...]
    codings: tuple[Coding, ...] = (FIXED, ZSTD)
    chunk_rows: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A stream with a number of rows for each label, which follows from one of the label's counts.

    Column i of a field is stored for labels whose count is above first + i.

    Attributes:
        stream: its name.
        count: column of the count among a label's fields.
        fields: columns of the rows' first, second ... field, equally many.
        first: number of columns that belong to other streams of this count.
    """

    stream: str
    count: int
    fields: tuple[slice, ...]
    first: int = 0

    @property
    def columns(self) -> int:
        """The most rows of a label."""
        return int(self.fields[0].stop - self.fields[0].start)


class ImagePrior(Protocol):
    """A prior trained on labels of particular images, which it does not generalise beyond."""

    @property
    def images(self) -> int:
        """Number of images."""
        ...

    @property
    def view(self) -> int:
        """Pixels along a view."""
        ...

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the side information that it uses."""
        ...


class CodecConfig(JsonConfig):
    """Resolved configuration of a codec, as a `.vql` and a codec file store it (docs/format.md, "codec.*").

    Attributes:
        kind: name of the codec.
        codings: codings of a chunk of codes, also at a variable rate; code counts are always fixed or zstd.
        keeps_level: whether decoded logits keep the label's mean over classes, which matters to squared error but not
            to softmax.
        lossless: whether labels are decoded bit for bit; such a codec trains nothing.
        has_lower_rates: whether a fitted codec can also encode at lower rates, each with a distortion of its own.
        fit_options: fields of `FitConfig` that change this codec, besides budgets, temperature, seed and device; None:
            all.
    """

    codings: ClassVar[tuple[Coding, ...]] = (FIXED, ZSTD)
    keeps_level: ClassVar[bool] = False
    lossless: ClassVar[bool] = False
    has_lower_rates: ClassVar[bool] = False
    fit_options: ClassVar[tuple[str, ...] | None] = None
    classes: int
    domain: str

    @property
    def widths(self) -> list[int]:
        """[m] stored width of every field of a label; at a variable rate the first field is the code count."""
        raise NotImplementedError

    @property
    def class_ids(self) -> slice:
        """Fields of a label that are distinct class indices."""
        return slice(0)

    @property
    def indices(self) -> list[tuple[slice, int]]:
        """Fields of a label that index a table, and the table's size."""
        return [(self.class_ids, self.classes)]

    @property
    def max_codes(self) -> int | None:
        """At a variable rate, the maximum number of codes of a label; None: a fixed rate."""
        return None

    @property
    def streams(self) -> tuple[CodeStream, ...]:
        """The streams of codes, in writing order."""
        widths = self.widths
        if self.max_codes is not None:
            codes = CodeStream(CODES, tuple(widths[1:2]), codings=self.codings, chunk_rows=CHUNK_CODES)
            return codes, CodeStream(COUNTS, tuple(widths[:1]))  # fixed or zstd, as `stored_count_bits` computes
        if not widths:
            return (CodeStream(CODES, NO_CODES, chunk_rows=CHUNK_CODES),)
        return (CodeStream(CODES, tuple(widths), codings=self.codings),)

    @property
    def runs(self) -> tuple[Run, ...]:
        """Streams with a number of rows per label, of the labels of documents; the other fields are the counts."""
        return ()

    @property
    def count_limits(self) -> tuple[int, ...]:
        """The largest values of a label's counts, which are its first fields."""
        return ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the side information that encode and decode need, fields of `Context`; "views": the pixels."""
        return ()

    @property
    def reach(self) -> int:
        """Tokens before token t, and after token t + 1, that row t of a document depends on."""
        return 0

    @property
    def image_prior(self) -> ImagePrior | None:
        """The prior that restricts the codec to labels of the images that it was fitted on; None: no restriction."""
        return None

    @property
    def codebooks(self) -> tuple[int, int] | None:
        """(number of codebooks, codes in each) if the first codes of a label are codebook indices, else None."""
        return None

    @property
    def kept_classes(self) -> int | None:
        """Number of a label's largest classes that are stored; None: all."""
        return None

    @property
    def holds_sets(self) -> bool:
        """Whether classes that are not stored decode to no value: a logit of NOWHERE, a probability of 0."""
        return False

    @property
    def exact_dtype(self) -> str | None:
        """Dtype of the labels ("F16", "BF16" or "F32") if the codec is lossless; None: it is not."""
        return None

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures of the students for which the codec was fitted."""
        return (1.0,)


def check_top_classes(config: Any) -> None:
    """Raises UsageError unless labels are one distribution with at least k classes."""
    check_labels(config.classes, config.domain)
    limit = f"is for vqae and raw: {config.kind} keeps the largest classes of one distribution"
    require(config.domain != "sigmoid", "domain", config.domain, limit)
    require(1 <= config.k <= config.classes, "k", config.k, f"must be 1..{config.classes} (the number of classes)")
