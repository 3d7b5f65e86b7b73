"""What a `.vql` file says, without decoding a label: records, label type, codec, columns, codes. No torch."""

from functools import cached_property
from itertools import groupby
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.bitstream.codings import ANS
from vqlabel.codecs.config import CODES, COUNTS, CodecConfig
from vqlabel.codecs.registry import codec_config
from vqlabel.container import ContainerReader
from vqlabel.errors import BadContainer
from vqlabel.labels import About, Support
from vqlabel.labels.image_set import ImageSet, WholeEpochs
from vqlabel.labels.schema import MAX_IMAGES
from vqlabel.views.recipe import DrawnColumns, Recipe
from vqlabel.vql.ragged_codes import VARIABLE_SLOTS, RaggedCodes
from vqlabel.vql.seeded import DrawnPart, read_columns

CODEC = "codec."
SIGMOID_LABELS = "sigmoid_labels"  # in `vql.requires`: labels are logits of classes that each have a probability of their own


class VqlFile:
    """An opened `.vql`.

    Attributes:
        records: n.
        label: classes, domain, dtype ("F16", "BF16", "F32": the dump's) and shift_preserved.
        codec: kind and config, as the header has them.
        config: the same, checked: the widths of codes follow from it.
        columns: places and augmentation.
        container: the checked file below.

    Args:
        seal: see `ContainerReader`.

    Raises:
        UsageError: no such file.
        BadContainer: the file is damaged, forged or from a newer version.
    """

    def __init__(self, path: str | PathLike[str], seal: bytes | None = None) -> None:
        self.container = ContainerReader(path, seal)
        self.label = self._json("vql.label", {"classes": int, "domain": str, "dtype": str, "shift_preserved": bool})
        self.codec = self._json("vql.codec", {"kind": str, "config": dict})
        try:
            self.config: CodecConfig = codec_config(self.codec["kind"], self.codec["config"])
        except BadContainer as error:
            raise BadContainer(f"{path}: {error}") from None
        if self.label["dtype"] not in ("F16", "BF16", "F32") or any(
            getattr(self.config, key) != self.label[key] for key in ("classes", "domain")
        ):
            raise BadContainer(
                f"{path}: vql.label is {str(self.label)[:120]}, the codec's configuration {str(self.codec['config'])[:120]}; "
                "damaged or forged"
            )
        if (self.label["domain"] == "sigmoid") != (SIGMOID_LABELS in self.container.requires):
            raise BadContainer(
                f"{path}: vql.requires is {self.container.requires}, the labels' domain {self.label['domain']}; damaged or forged"
            )
        self._ragged = self._ragged_codes()
        self._check_widths()
        self.records = self.container.streams[COUNTS if self._ragged else CODES].rows
        self.columns = read_columns(self.container, self._json("vql.columns", {}), self.records)
        self.source = self._json("vql.source", {})

    def _json(self, key: str, want: dict[str, type]) -> dict[str, Any]:
        value = self.container.json_object(key)
        if any(type(value.get(name)) is not kind for name, kind in want.items()):
            raise BadContainer(f"{self.container.path}: metadata {key!r} is {str(value)[:80]}; damaged or forged")
        return value

    @cached_property
    def about(self) -> About:
        """What the file says of the dump as a whole."""
        support, layout, details = self.label.get("support"), str(self.source.get("layout")), self.source.get("details", {})
        temperature = self.source.get("temperature")
        good = (
            isinstance(details, dict)
            and type(temperature) in (type(None), int, float)
            and (
                support is None
                or (
                    isinstance(support, dict)
                    and set(support) == {"k", "rest"}
                    and type(support["k"]) is int
                    and 1 <= support["k"] <= self.label["classes"]
                    and support["rest"] in ("zero", "uniform")
                )
            )
        )
        if not good:
            raise BadContainer(
                f"{self.container.path}: vql.source is {str(self.source)[:200]}, the label's support {support!r}; damaged or forged"
            )
        return About(
            layout=layout,
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
        """What was kept of a dump, as `Pruned` records it: keep, by and seed; None: all, or it is not recorded so."""
        details = self.source.get("details")
        found = details.get("pruned") if isinstance(details, dict) else None
        kinds = {"keep": (int, float), "by": (str,), "seed": (int,)}
        if not isinstance(found, dict) or any(type(found.get(name)) not in kind for name, kind in kinds.items()):
            return None
        return found if 0 < found["keep"] <= 1 else None

    @property
    def recipe(self) -> Recipe | None:
        """By which the views are drawn; None: they are stored."""
        return self.columns.recipe if isinstance(self.columns, DrawnColumns | DrawnPart) else None

    @cached_property
    def images(self) -> ImageSet | None:
        """Which images the labels are of: as the header records it; else as many as the recipe or the first epoch implies. None: unknown."""
        drawn = self.recipe.images if self.recipe else None
        if "vql.images" in self.container.metadata:
            found = ImageSet.from_dict(self.container.json_object("vql.images"), self.container.path)
            if drawn not in (None, found.count):
                raise BadContainer(
                    f"{self.container.path}: its recipe draws from {drawn} images, vql.images has {found.count}; damaged or forged"
                )
            return found
        if drawn is None and (names := self.columns.names) is not None:
            drawn = len(names)
        if drawn is None and self.columns.has("image") and self.columns.places:
            epoch, starts, whole = self.columns.places[0].epoch, self.columns.starts, WholeEpochs()
            others = np.flatnonzero(self.columns.places.epoch != epoch)
            last = int(others[0]) if len(others) else len(starts) - 1
            if starts[last] - starts[0] <= MAX_IMAGES:  # more are no whole epoch
                image = self.columns.image(np.arange(starts[0], starts[last]))
                assert image is not None  # `has` said so
                whole.add(epoch, image)
            drawn = whole.images()
        return None if drawn is None else ImageSet(count=drawn)

    @property
    def classes(self) -> int:
        """C."""
        return int(self.label["classes"])

    @property
    def counted(self) -> bool:
        """Whether labels have numbers of codes of their own, and a count in front of them."""
        return self._ragged is not None

    @property
    def code_bits(self) -> tuple[int, ...]:
        """[m] stored width of each code; [1 + m] where the first is the count of variable labels."""
        return tuple(self.config.widths)

    @property
    def label_bits(self) -> float:
        """Code bits of a label: the widths of its codes; where codes are entropy-coded, and of variable labels, what the mean label takes."""
        codes = self.container.streams[CODES]
        if self._ragged:
            stored = codes.rows * codes.bits[0] + 8 * self.container.stored(COUNTS)
        elif codes.coding is ANS:
            stored = 8 * self.container.stored(CODES)
        else:
            return sum(self.code_bits)
        return round(stored / max(1, self.records), 4)

    def codes(self, start: int, stop: int) -> NDArray[np.unsignedinteger]:
        """[stop - start, m] of uint8, uint16 or uint32, checked against the codebook's size; writable.

        Of variable labels [stop - start, 1 + m]: the count of a label, its codes, 0 beyond them.
        """
        return self._checked(self._ragged.rows(start, stop) if self._ragged else self.container.rows(CODES, start, stop))

    def take_codes(self, index: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        """[n, m] codes, or [n, 1 + m], of the records at `index`, each in [0, records)."""
        return self._checked(self._ragged.take(index) if self._ragged else self.container.take(CODES, index))

    def _checked(self, codes: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        """An index outside its codebook poisons a GPU process, so none leaves this place."""
        tables = self.config.indices if self.config.widths else [(slice(None), 1)]  # of labels without a code the bit is 0
        for slots, size in tables:
            most = int(codes[:, slots].max(initial=0))
            if most >= size:
                raise BadContainer(
                    f"{self.container.path}: code {most} leaves 0..{size - 1} ({str(self.codec['config'])[:200]}); damaged or forged"
                )
        return codes[:, : len(self.code_bits)]

    def _ragged_codes(self) -> RaggedCodes | None:
        """How codes are read where labels have different numbers of them; header and configuration must agree on that."""
        most = self.config.max_codes
        if (most is not None) != (VARIABLE_SLOTS in self.container.requires):
            raise BadContainer(
                f"{self.container.path}: vql.requires is {self.container.requires}, the codec's slots are "
                f"{'fixed' if most is None else 'variable'}; damaged or forged"
            )
        return None if most is None else RaggedCodes(self.container, most)

    def _check_widths(self) -> None:
        """Before a code is read: refuse streams whose fields are not the codec's."""
        for expected in reversed(self.config.streams):
            stream = self.container.streams.get(expected.name)
            if stream is None:
                raise BadContainer(f"{self.container.path}: has no {expected.name}; damaged or forged")
            if stream.bits != expected.bits:
                raise BadContainer(
                    f"{self.container.path}: {expected.name} of {_runs(stream.bits)} bits, the codec's are {_runs(expected.bits)}; "
                    "damaged or forged"
                )


def _runs(bits: tuple[int, ...]) -> str:
    """(5, 5, 16) -> "2 x 5, 1 x 16"; the first runs where there are many."""
    runs = [f"{len(list(run))} x {width}" for width, run in groupby(bits)]
    return ", ".join(runs[:4]) + ", ..." * (len(runs) > 4)
