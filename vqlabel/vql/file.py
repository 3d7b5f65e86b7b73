"""A `.vql` file as records, label type, codec configuration, columns and codes; no label is decoded. No torch."""

from functools import cached_property
from itertools import groupby
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.codecs.config import CODES, COUNTS, CodecConfig
from vqlabel.codecs.registry import codec_config
from vqlabel.container import ContainerReader
from vqlabel.dtypes import LABEL_TYPES
from vqlabel.errors import BadContainer, UsageError
from vqlabel.labels import About, Support
from vqlabel.labels.image_set import ImageSet, WholeEpochs
from vqlabel.labels.schema import MAX_IMAGES
from vqlabel.views.recipe import DrawnColumns, Recipe
from vqlabel.vql.in_words import in_bytes
from vqlabel.vql.ragged_codes import VARIABLE_SLOTS, RaggedCodes
from vqlabel.vql.seeded import DrawnPart, read_columns
from vqlabel.vql.text.table import TABLE

CODEC = "codec."
SIGMOID_LABELS = "sigmoid_labels"  # in `vql.requires`: labels are logits of independent classes


class VqlFile:
    """An open `.vql`.

    Attributes:
        records: n.
        label: `vql.label`: classes, domain, dtype of the dump ("F16", "BF16" or "F32") and shift_preserved.
        codec: `vql.codec`: kind and config, unchecked.
        config: the checked configuration, from which the widths of codes follow.
        columns: places and augmentation.
        source: `vql.source`.
        container: the file as streams, tensors and metadata.

    Args:
        seal: see `ContainerReader`.

    Raises:
        UsageError: the file does not exist, or has labels of documents.
        BadContainer: the file is damaged, forged or from a newer version.
    """

    def __init__(self, path: str | PathLike[str], seal: bytes | None = None) -> None:
        self.container = ContainerReader(path, seal)
        if TABLE in self.container.requires:
            raise UsageError(f"{path}: has labels of documents, not of images; open it with vqlabel.open_text")
        self.label = self.container.json_object("vql.label", {"classes": int, "domain": str, "dtype": str, "shift_preserved": bool})
        self.codec = self.container.json_object("vql.codec", {"kind": str, "config": dict})
        try:
            self.config: CodecConfig = codec_config(self.codec["kind"], self.codec["config"])
        except BadContainer as error:
            raise BadContainer(f"{path}: {error}") from None
        self._check_label()
        self._ragged = self._ragged_codes()
        self._check_widths()
        self.records = self.container.streams[COUNTS if self._ragged else CODES].rows
        self.columns = read_columns(self.container, self.container.json_object("vql.columns"), self.records)
        self.source = self.container.json_object("vql.source")

    def _check_label(self) -> None:
        """Raises BadContainer if `vql.label` contradicts the codec's configuration or `vql.requires`."""
        agree = all(getattr(self.config, key) == self.label[key] for key in ("classes", "domain"))
        if self.label["dtype"] not in LABEL_TYPES or not agree:
            raise BadContainer(
                f"{self.container.path}: vql.label is {str(self.label)[:120]}, the codec's configuration "
                f"{str(self.codec['config'])[:120]}; damaged or forged"
            )
        if (self.label["domain"] == "sigmoid") != (SIGMOID_LABELS in self.container.requires):
            raise BadContainer(
                f"{self.container.path}: vql.requires is {self.container.requires}, the labels' domain {self.label['domain']}; damaged or forged"
            )

    @cached_property
    def about(self) -> About:
        """Properties of the dump as a whole, as the file records them.

        Raises:
            BadContainer: a property is invalid.
        """
        support, details = self.label.get("support"), self.source.get("details", {})
        temperature = self.source.get("temperature")
        is_valid = isinstance(details, dict) and type(temperature) in (type(None), int, float)
        if not (is_valid and (support is None or _is_support(support, self.classes))):
            raise BadContainer(
                f"{self.container.path}: vql.source is {str(self.source)[:200]}, the label's support {support!r}; damaged or forged"
            )
        return About(
            layout=str(self.source.get("layout")),
            classes=self.classes,
            domain=self.label["domain"],
            dtype=self.label["dtype"],
            order=self.columns.order,
            temperature=temperature,
            support=None if support is None else Support(**support),
            names=self.columns.names,
            images=self.images,
            view=self.recipe.view if self.recipe else None,
            details=details,
        )

    @property
    def pruned(self) -> dict[str, Any] | None:
        """The keep, by and seed of a pruned dump, as `Pruned` records them; None: not pruned, or an invalid record."""
        details = self.source.get("details")
        pruned = details.get("pruned") if isinstance(details, dict) else None
        types = {"keep": (int, float), "by": (str,), "seed": (int,)}
        if not isinstance(pruned, dict) or any(type(pruned.get(name)) not in allowed for name, allowed in types.items()):
            return None
        return pruned if 0 < pruned["keep"] <= 1 else None

    @property
    def recipe(self) -> Recipe | None:
        """The recipe that draws the views; None: views are stored."""
        return self.columns.recipe if isinstance(self.columns, DrawnColumns | DrawnPart) else None

    @cached_property
    def images(self) -> ImageSet | None:
        """Which images the labels are of, as the header records them; else a set of as many images as the recipe, the
        names or the first epoch imply. None: unknown.

        Raises:
            BadContainer: header and recipe differ in the number of images.
        """
        drawn = self.recipe.images if self.recipe else None
        if "vql.images" in self.container.metadata:
            images = ImageSet.from_dict(self.container.json_object("vql.images"), self.container.path)
            if drawn not in (None, images.count):
                raise BadContainer(
                    f"{self.container.path}: its recipe draws from {drawn} images, vql.images has {images.count}; damaged or forged"
                )
            return images
        names = self.columns.names
        count = drawn if drawn is not None else self._count_of_first_epoch() if names is None else len(names)
        return None if count is None else ImageSet(count=count)

    def _count_of_first_epoch(self) -> int | None:
        """Number of images, if the first epoch shows every image once; else None."""
        if not (self.columns.has("image") and self.columns.places):
            return None
        epoch, starts, whole_epochs = self.columns.places[0].epoch, self.columns.starts, WholeEpochs()
        later = np.flatnonzero(self.columns.places.epoch != epoch)
        end = starts[int(later[0]) if len(later) else len(starts) - 1]
        if end - starts[0] <= MAX_IMAGES:  # a longer epoch shows an image twice
            image = self.columns.image(np.arange(starts[0], end))
            assert image is not None  # the columns have "image"
            whole_epochs.add(epoch, image)
        return whole_epochs.images()

    def __repr__(self) -> str:
        return f"VqlFile({self.summary})"

    @property
    def summary(self) -> str:
        """ "'labels.vql': 32,000 labels x 1,000 classes, 32 epochs, logits, vqae 36 bits, 536 kB"."""
        return (
            f"{str(self.container.path)!r}: {self.records:,} labels x {self.classes:,} classes, {self.epochs:,} epochs, "
            f"{self.label['domain']}, {self.codec['kind']} {self.label_bits:.10g} bits, {in_bytes(self.container.size)}"
        )

    @property
    def epochs(self) -> int:
        """Number of stored epochs."""
        return len(np.unique(self.columns.places.epoch)) if len(self.columns.places) else 0

    @property
    def classes(self) -> int:
        """C."""
        return int(self.label["classes"])

    @property
    def counted(self) -> bool:
        """Whether the rate is variable: each label has its own number of codes, and a count before them."""
        return self._ragged is not None

    @property
    def code_bits(self) -> tuple[int, ...]:
        """[m] stored width of each code in bits; [1 + m] at a variable rate, the count first."""
        return tuple(self.config.widths)

    @property
    def label_bits(self) -> float:
        """Code bits per label: the sum of the widths.

        At a variable rate, or if codes are entropy-coded, the stored bits of the mean label.
        """
        codes = self.container.streams[CODES]
        if self._ragged:
            stored = codes.rows * codes.bits[0] + 8 * self.container.stored(COUNTS)
        elif codes.coding.entropy_coder:
            stored = 8 * self.container.stored(CODES)
        else:
            return sum(self.code_bits)
        return round(stored / max(1, self.records), 4)

    def codes(self, start: int, stop: int) -> NDArray[np.unsignedinteger]:
        """Codes of records start:stop.

        Returns:
            [stop - start, m] uint8, uint16 or uint32, writable; at a variable rate [stop - start, 1 + m]: count, codes,
            zeros.

        Raises:
            BadContainer: a code is not below the size of its codebook.
        """
        return self._checked(self._ragged.rows(start, stop) if self._ragged else self.container.rows(CODES, start, stop))

    def take_codes(self, index: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        """Codes of the records at `index` [n], each in [0, records): as those of `codes`."""
        return self._checked(self._ragged.take(index) if self._ragged else self.container.take(CODES, index))

    def _checked(self, codes: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        """Every read passes this check: on a GPU, an index outside its codebook makes all later calls fail."""
        tables = self.config.indices if self.config.widths else [(slice(None), 1)]  # labels without codes store one zero bit
        for slots, size in tables:
            largest = int(codes[:, slots].max(initial=0))
            if largest >= size:
                raise BadContainer(
                    f"{self.container.path}: code {largest} is outside 0..{size - 1} ({str(self.codec['config'])[:200]}); damaged or forged"
                )
        return codes[:, : len(self.code_bits)]

    def _ragged_codes(self) -> RaggedCodes | None:
        """The reader of codes at a variable rate; None at a fixed rate. Header and configuration must agree on it."""
        slots = self.config.max_codes
        if (slots is not None) != (VARIABLE_SLOTS in self.container.requires):
            raise BadContainer(
                f"{self.container.path}: vql.requires is {self.container.requires}, the codec's slots are "
                f"{'fixed' if slots is None else 'variable'}; damaged or forged"
            )
        return None if slots is None else RaggedCodes(self.container, slots)

    def _check_widths(self) -> None:
        """Raises BadContainer if a stream of codes is missing or has other fields than the codec declares."""
        for expected in reversed(self.config.streams):
            stream = self.container.streams.get(expected.name)
            if stream is None:
                raise BadContainer(f"{self.container.path}: has no {expected.name}; damaged or forged")
            if stream.bits != expected.bits:
                raise BadContainer(
                    f"{self.container.path}: {expected.name} of {_runs(stream.bits)} bits, the codec's are {_runs(expected.bits)}; "
                    "damaged or forged"
                )


def _is_support(values: object, classes: int) -> bool:
    """Whether JSON is a `Support` of labels with this number of classes."""
    return (
        isinstance(values, dict)
        and set(values) == {"k", "rest"}
        and type(values["k"]) is int
        and 1 <= values["k"] <= classes
        and values["rest"] in ("zero", "uniform")
    )


def _runs(bits: tuple[int, ...]) -> str:
    """(5, 5, 16) -> "2 x 5, 1 x 16"; the first four runs."""
    runs = [f"{len(list(run))} x {width}" for width, run in groupby(bits)]
    return ", ".join(runs[:4]) + ", ..." * (len(runs) > 4)
