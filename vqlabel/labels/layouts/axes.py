"""The shape of an array of labels -> its number of epochs, images and classes, and the meaning of each axis."""

import math
from typing import NamedTuple

from vqlabel.errors import BadLabels, UsageError

MAX_CLASSES = 1 << 20  # a forged shape must not allocate one row that fills the memory
EPOCHS = ("epochs", "views", "crops")  # three names of one axis: the labels of an image under different augmentation
IMAGES_FIRST = "images,views,classes"
FORMS = f"images,classes; epochs,images,classes; or {IMAGES_FIRST}"


class ArrayLayout(NamedTuple):
    """The meaning of an array's shape."""

    stored: tuple[int, ...]  # the shape without unused axes of length 1: two or three axes, classes last
    epochs: int
    images: int  # labels per epoch
    images_first: bool  # stored as [images, epochs, C] instead of [epochs, images, C]
    kept: tuple[int, ...]  # the axes of the array that `stored` consists of

    @property
    def by_image(self) -> bool:
        """Whether label i of every epoch belongs to image i; otherwise the array is a list of records."""
        return len(self.stored) == 3

    @property
    def classes(self) -> int:
        """C."""
        return self.stored[-1]


def read_axes(text: str | None) -> tuple[str, ...] | None:
    """Parse --axes: "images,views,classes" -> ("images", "epochs", "classes"); views and crops count as epochs.

    Raises:
        UsageError: another name, or an order of axes that is not supported.
    """
    if text is None:
        return None
    names = tuple("epochs" if name.strip() in EPOCHS else name.strip() for name in text.split(","))
    if "teachers" in names:
        raise UsageError(
            f"--axes {text}: a dump has one teacher; save the labels of each teacher to a file of its own, or their mean: "
            f"np.save('mean.npy', labels.mean({names.index('teachers')}))"
        )
    if names not in (("images", "classes"), ("epochs", "images", "classes"), ("images", "epochs", "classes")):
        raise UsageError(
            f"--axes {text}: must be {FORMS} (crops are views); for another order transpose the array and save it again"
        )
    return names


def read_shape(shape: tuple[int, ...], name: str, axes: tuple[str, ...] | None = None) -> ArrayLayout:
    """The layout of an array of labels; [n, 1, C] and [n, C, 1, 1] are read as [n, C].

    Args:
        shape: as stored.
        name: of the array, for messages.
        axes: what `read_axes` returned; None: [n, C] or [epochs, n, C].

    Raises:
        BadLabels: labels cannot have this shape.
    """
    kept, dimensions = list(range(len(shape))), 2 if axes is None else len(axes)
    for axis in reversed(kept[1:]):
        if len(kept) > dimensions and shape[axis] == 1:
            kept.remove(axis)
    stored = tuple(shape[axis] for axis in kept)
    if axes is not None and len(stored) != dimensions:
        raise BadLabels(f"{name}: shape {list(shape)} has {len(stored)} axes longer than 1, but --axes names {dimensions}")
    if len(stored) not in (2, 3) or math.prod(stored) < 1 or min(stored) < 1 or not 2 <= stored[-1] <= MAX_CLASSES:
        raise BadLabels(
            f"{name}: shape {list(shape)}; labels must be [n, C] or [epochs, n, C] with C in 2..{MAX_CLASSES}, and not empty"
            + _remedy(shape)
        )
    if len(stored) == 2:
        return ArrayLayout(stored, 1, stored[0], False, tuple(kept))
    images_first = axes is not None and axes[0] == "images"
    return ArrayLayout(stored, stored[images_first], stored[not images_first], images_first, tuple(kept))


def _remedy(shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return "; stack the labels of all images into one array: np.stack"
    if len(shape) == 4 and shape[0] == 2 and shape[2] == shape[3]:
        return (
            f". It looks like a label map of ReLabel: {shape[1]} values and {shape[1]} classes for each of {shape[2]} x {shape[3]} "
            "positions of one image; pool the positions of each view to one label [C]"
        )
    if len(shape) == 4:
        return "; pool a label map (a label for each position of an image) to one label per image"
    return ""
