"""A recipe, its seed and the sizes of the images -> every view of every epoch, at 0 bits a label. NumPy only.

The views are those of RandomResizedCrop, a horizontal flip, and CutMix or mixup; patches of the image may be shuffled
before the crop, as in RDED. Only integers and operations that IEEE
754 rounds correctly are used, so no version of a library changes a view. docs/augmentation.md, "Recipe rrc 1", is the
definition.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import require
from vqlabel.labels import Context, LabelBatch
from vqlabel.labels.image_set import ImageSet
from vqlabel.labels.places import Places
from vqlabel.labels.schema import MAX_BATCHES
from vqlabel.labels.sparse import Labels
from vqlabel.philox import below, bits, shuffled, uniform
from vqlabel.views.crops import MAX_SIDE, to_fractions

NAME, VERSION = "rrc", 1
MIXES = ("none", "cutmix", "mixup")
ORDER, VIEW, PARTNER, MIX = range(1, 5)  # purposes of random bits
TRIES = 10  # draws for a crop that fits the image
POSITION, FLIP, PATCHES = TRIES, TRIES + 1, TRIES + 2  # draws of a view after its tries; patches take one per strip
RATIOS = np.rint((4 / 3) ** ((2 * np.arange(256) + 1) / 256 - 1) * 65536) / 65536  # width / height, uniform in their logarithm
MAX_BATCH_IMAGES = 1 << 16  # opening a file draws the columns of two batches, 2 us a view
MAX_PATCHES = 16  # strips along a side: as many random numbers a view, of up to 65,536 views of a batch at once
ORDER_CACHE = 1 << 24  # image indices of epochs that are cached, 4 bytes each
CHUNK = 2048  # views drawn at a time, so that their random bits stay in a core's cache
_RANGES = (
    ("seed", 0, (1 << 53) - 1), ("images", 1, 1 << 24), ("epochs", 1, MAX_BATCHES), ("batch", 1, 1 << 24), ("view", 1, MAX_SIDE),
    ("patches", 1, MAX_PATCHES),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The random augmentation of a dump, and the seed that it was drawn from.

    Raises:
        UsageError: a field is of another type or out of its range, or the recipe is unknown.
    """

    name: str = NAME
    version: int = VERSION
    seed: int  # below 2^53, so that JSON holds it
    images: int  # N; an epoch contains each of them once
    epochs: int
    batch: int  # images; the last batch of an epoch may be shorter
    view: int  # pixels along a view
    scale: tuple[float, float] = (0.08, 1.0)  # range of a crop's area over that of the image
    flip: float = 0.5  # probability of a horizontal flip
    mix: str = "none"  # one of MIXES
    patches: int = 1  # strips along each side of an image, whose columns and rows are shuffled before the crop; 1: unshuffled

    def __post_init__(self) -> None:
        known = (self.name, self.version) == (NAME, VERSION) and type(self.version) is int
        require(
            known,
            "recipe",
            f"{self.name} {self.version}",
            f"must be {NAME} {VERSION}; a newer version of vqlabel may support others",
        )
        for name, low, high in _RANGES:
            value = getattr(self, name)
            require(type(value) is int and low <= value <= high, name, value, f"must be an integer in {low}..{high}")
        pair = type(self.scale) is tuple and len(self.scale) == 2 and all(type(v) in (int, float) for v in self.scale)
        require(
            pair and 0 < self.scale[0] <= self.scale[1] <= 1, "scale", self.scale, "must be two numbers in 0..1, the smaller first"
        )
        require(type(self.flip) in (int, float) and 0 <= self.flip <= 1, "flip", self.flip, "must be a number in 0..1")
        require(self.mix in MIXES, "mix", self.mix, f"must be one of {', '.join(MIXES)}")
        require(min(self.batch, self.images) <= MAX_BATCH_IMAGES, "batch", self.batch, f"must be at most {MAX_BATCH_IMAGES} images")
        batches = self.epochs * self.batches
        require(
            batches <= MAX_BATCHES,
            "epochs",
            self.epochs,
            f"makes {batches} batches; the limit is {MAX_BATCHES}: use larger batches",
        )

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return -(-self.images // self.batch)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-compatible values; without `patches` if it is 1, as in files from before that field."""
        values = {**asdict(self), "scale": list(self.scale)}
        if self.patches == 1:
            del values["patches"]
        return values

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Inverse of `to_dict`.

        Raises:
            UsageError: `values` has other fields, or a value out of its range.
        """
        names = [field.name for field in fields(cls) if field.name != "patches"]
        is_valid = isinstance(values, dict) and values.keys() - {"patches"} == set(names) and values.get("patches") != 1
        require(is_valid, "recipe", str(values)[:200], f"must have the fields {', '.join(names)}")
        assert isinstance(values, dict)
        scale = values["scale"]
        return cls(**{**values, "scale": tuple(scale) if isinstance(scale, list) else scale})


class DrawnColumns:
    """Places and augmentation of records that follow a recipe, drawn instead of read; interface as of `ColumnReader`.

    Args:
        sizes: [images, 2] height and width of every image in pixels, or [1, 2] if all have one size.
        images: identity of the images; None: unknown.

    Attributes:
        places: [B] (epoch, batch) of every batch.
        starts: [B + 1] first record of every batch; the last entry is the number of records.
        order: "explicit".
        sizes: int64, shaped as given.
        images: as given.

    Raises:
        UsageError: sizes of another shape, or outside 1..MAX_SIDE - 1.
    """

    order, names = "explicit", None

    def __init__(self, recipe: Recipe, sizes: NDArray[np.integer], images: ImageSet | None = None) -> None:
        self.recipe, self.sizes, self.images = recipe, np.asarray(sizes, np.int64), images
        is_valid = self.sizes.shape in ((recipe.images, 2), (1, 2))
        require(
            is_valid,
            "sizes",
            list(self.sizes.shape),
            f"must be [{recipe.images}, 2], a height and a width for every image, or [1, 2]",
        )
        invalid = self.sizes[~((self.sizes >= 1) & (self.sizes < MAX_SIDE)).all(1)]
        require(not len(invalid), "size", invalid[:1].tolist(), f"must be a height and a width in 1..{MAX_SIDE - 1} pixels")
        epoch, batch = np.divmod(np.arange(recipe.epochs * recipe.batches), recipe.batches)
        self.places = Places(epoch, batch)
        self.starts = np.append(epoch * recipe.images + batch * recipe.batch, recipe.epochs * recipe.images)
        self._order = lru_cache(max(2, ORDER_CACHE // recipe.images))(self._draw_order)

    def has(self, name: str) -> bool:
        """Whether records have the column."""
        mixed = {"none": (), "mixup": ("mix_index", "mix_lam"), "cutmix": ("mix_index", "mix_lam", "mix_box")}
        shuffled_patches = ("patches",) if self.recipe.patches > 1 else ()
        return name in ("image", "crop", "flip", *shuffled_patches, *mixed[self.recipe.mix])

    def batch_of(self, record: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n] record numbers -> [n] batch numbers, counted through all epochs."""
        epoch, slot = np.divmod(record, self.recipe.images)
        return np.asarray(epoch * self.recipe.batches + slot // self.recipe.batch)

    def batch(self, number: int, labels: Labels) -> LabelBatch:
        """The batch at `places[number]`, with these labels [b, C]."""
        record = np.arange(self.starts[number], self.starts[number + 1])
        image = self.image(record)
        crop, flip = self._draw_views(record, image)
        patches = self._draw_patches(record, image) if self.recipe.patches > 1 else None
        batch = LabelBatch(labels=labels, place=self.places[number], image=image, crop=crop, flip=flip, patches=patches)
        if self.recipe.mix == "none":
            return batch
        index, (lam, box) = self._draw_partners(np.array([number])), self._draw_mix(np.array([number]))
        mixed = replace(batch, mix_index=index[0, : len(record)], mix_lam=float(lam[0]))
        return mixed if box is None else replace(mixed, mix_box=tuple(box[0].tolist()))

    def image(self, record: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n] record numbers -> [n] image indices."""
        epoch, slot = np.divmod(record, self.recipe.images)
        image = np.empty(len(record), np.int64)
        for number in np.unique(epoch).tolist():
            inside = epoch == number
            image[inside] = self._order(number)[slot[inside]]
        return image

    def crop(self, record: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n] record numbers -> [n, 4] top, left, height, width as fractions of the image's sides."""
        return self._draw_views(record, self.image(record))[0]

    def context(self, record: NDArray[np.int64]) -> Context:
        """[n] record numbers -> the context that a codec's prior may use."""
        image = self.image(record)
        crop, flip = self._draw_views(record, image)
        own = Context(image=image, crop=crop, flip=flip)
        if self.recipe.mix == "none":
            return own
        batch, row = np.unique(self.batch_of(record), return_inverse=True)
        start, (lam, box) = self.starts[batch][row], self._draw_mix(batch)
        other = start + self._draw_partners(batch)[row, record - start]
        partner = self.image(other)
        crop, flip = self._draw_views(other, partner)
        mixed = replace(own, partner=partner, partner_crop=crop, partner_flip=flip, mix=lam[row].astype(np.float32))
        return mixed if box is None else replace(mixed, box=box[row])

    def _size(self, image: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.sizes[image if len(self.sizes) > 1 else np.zeros_like(image)]

    def _draw_order(self, epoch: int) -> NDArray[np.int32]:
        """[N] image of each record of the epoch."""
        return shuffled(self.recipe.seed, ORDER, epoch, self.recipe.images).astype(np.int32)

    def _draw_views(self, record: NDArray[np.int64], image: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """[n, 4] top, left, height, width as fractions of integer pixels; [n] whether the view is flipped."""
        if len(record) > CHUNK:
            parts = [
                self._draw_views(record[start : start + CHUNK], image[start : start + CHUNK])
                for start in range(0, len(record), CHUNK)
            ]
            return np.concatenate([crop for crop, _ in parts]), np.concatenate([flip for _, flip in parts])
        side = self._size(image)
        first, second = bits(self.recipe.seed, VIEW, record // self.recipe.images, image, np.arange(FLIP + 1)[:, None])  # [12, n]
        low, high = self.recipe.scale
        area = side.prod(1) * (low + (high - low) * uniform(first[:TRIES]))
        ratio = RATIOS[(second[:TRIES] >> np.uint64(56)).astype(np.int64)]
        tried = np.rint(np.sqrt(np.stack([area / ratio, area * ratio], 2))).astype(np.int64)  # [10, n, 2]
        fits = ((tried >= 1) & (tried <= side)).all(2)
        some = fits.any(0)[:, None]
        extent = np.where(some, tried[fits.argmax(0), np.arange(len(image))], largest_central(side))
        free = side - extent
        start = np.stack([below(first[POSITION], free[:, 0] + 1), below(second[POSITION], free[:, 1] + 1)], 1)
        start = np.where(some, start, free // 2)
        pixels = np.concatenate([start, extent], 1).astype(np.uint32)
        return to_fractions(pixels, side), uniform(first[FLIP]) < self.recipe.flip

    def _draw_patches(self, record: NDArray[np.int64], image: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n, 2, patches] order of the columns of patches, then of the rows."""
        draws = PATCHES + np.arange(self.recipe.patches)
        keys = bits(self.recipe.seed, VIEW, (record // self.recipe.images)[:, None], image[:, None], draws)
        return np.argsort(np.stack(keys, 1), axis=2, kind="stable")

    def _draw_partners(self, batch: NDArray[np.int64]) -> NDArray[np.int64]:
        """[batches, slots] slot of the view mixed into that of each slot; short batches use the first columns."""
        epoch, number = np.divmod(batch, self.recipe.batches)
        slot = np.arange(min(self.recipe.batch, self.recipe.images))
        key, _ = bits(self.recipe.seed, PARTNER, epoch[:, None], number[:, None], slot)
        length = self.starts[batch + 1] - self.starts[batch]
        key[slot >= length[:, None]] = np.iinfo(np.uint64).max  # they come last, because the sort is stable
        return np.argsort(key, axis=1, kind="stable")

    def _draw_mix(self, batch: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64] | None]:
        """[batches] lambda; for CutMix also [batches, 4] row0, col0, row1, col1 of the box, whose area gives lambda."""
        epoch, number = np.divmod(batch, self.recipe.batches)
        first, second = bits(self.recipe.seed, MIX, epoch, number, np.arange(2)[:, None])
        lam, view = uniform(first[0]), self.recipe.view
        if self.recipe.mix == "mixup":
            return lam, None
        half = np.floor(view * np.sqrt(1 - lam)).astype(np.int64)[:, None] // 2
        center = np.stack([below(first[1], view), below(second[1], view)], 1)
        box = np.concatenate([center - half, center + half], 1).clip(0, view)
        return 1 - (box[:, 2:] - box[:, :2]).prod(1) / view**2, box


class ReorderedColumns(DrawnColumns):
    """A recipe's views in another order of images: crops and flips are those of the recipe, the batches differ.

    Args:
        order_of: epoch -> [N] image indices in their order.
        order_name: name of the order, for the recipe file beside a dump.
    """

    def __init__(self, drawn: DrawnColumns, order_of: Callable[[int], NDArray[np.integer]], order_name: str) -> None:
        self._order_of, self.order_name = order_of, order_name
        super().__init__(drawn.recipe, drawn.sizes, drawn.images)

    def _draw_order(self, epoch: int) -> NDArray[np.int32]:
        return self._order_of(epoch).astype(np.int32)


def largest_central(side: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n, 2] height and width of images -> [n, 2] of the largest central crop with an aspect ratio in 3/4..4/3."""
    return np.minimum(side, np.rint(side[:, ::-1] * 4 / 3).astype(np.int64))
