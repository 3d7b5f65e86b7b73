"""The shape of an array -> how many epochs of how many images, and which axis is which."""

import math
from typing import NamedTuple

from vqlabel.errors import BadLabels, UsageError

CLASSES_MOST = 1 << 20  # so that a forged shape cannot ask for a row that fills the memory
EPOCHS = ("epochs", "views", "crops")  # three names of one axis: labels of an image that differ in its view
IMAGES_FIRST = "images,views,classes"
FORMS = f"images,classes; epochs,images,classes; or {IMAGES_FIRST}"


class Layout(NamedTuple):
    """What a shape means."""

    stored: tuple[int, ...]  # without axes of length 1 that mean nothing: two or three axes, classes last
    epochs: int
    images: int  # labels of an epoch
    images_first: bool  # stored as [images, epochs, C], else as [epochs, images, C]
    kept: tuple[int, ...]  # which axes of the array `stored` are

    @property
    def by_image(self) -> bool:
        """Whether label i of every epoch is of image i; records in order otherwise."""
        return len(self.stored) == 3

    @property
    def classes(self) -> int:
        return self.stored[-1]


def read_axes(text: str | None) -> tuple[str, ...] | None:
    """ "images,views,classes" -> its names, in which views and crops are called epochs.

    Raises:
        UsageError: other names, or another order than such arrays have.
    """
    if text is None:
        return None
    names = tuple("epochs" if name.strip() in EPOCHS else name.strip() for name in text.split(","))
    if "teachers" in names:
        raise UsageError(
            f"--axes {text}: one dump has one teacher; save every teacher's labels to a file of its own, or their mean: "
            f"np.save('mean.npy', labels.mean({names.index('teachers')}))"
        )
    if names not in (("images", "classes"), ("epochs", "images", "classes"), ("images", "epochs", "classes")):
        raise UsageError(
            f"--axes {text}: must be {FORMS} (crops are views); for another order transpose the array and save it again"
        )
    return names


def read_shape(shape: tuple[int, ...], name: str, axes: tuple[str, ...] | None = None) -> Layout:
    """What an array of this shape holds; [n, 1, C] and [n, C, 1, 1] are [n, C].

    Args:
        shape: as stored.
        name: of the array, for messages.
        axes: what `read_axes` gave; None: [n, C] or [epochs, n, C].

    Raises:
        BadLabels: no labels have this shape.
    """
    kept, wanted = list(range(len(shape))), 2 if axes is None else len(axes)
    for at in reversed(kept[1:]):
        if len(kept) > wanted and shape[at] == 1:
            kept.remove(at)
    stored = tuple(shape[at] for at in kept)
    if axes is not None and len(stored) != wanted:
        raise BadLabels(f"{name}: shape {list(shape)} has {len(stored)} axes that are longer than 1; --axes names {wanted}")
    if len(stored) not in (2, 3) or math.prod(stored) < 1 or min(stored) < 1 or not 2 <= stored[-1] <= CLASSES_MOST:
        raise BadLabels(
            f"{name}: shape {list(shape)}; labels are [n, C] or [epochs, n, C] with C in 2..{CLASSES_MOST} and nothing empty"
            + _remedy(shape)
        )
    if len(stored) == 2:
        return Layout(stored, 1, stored[0], False, tuple(kept))
    images_first = axes is not None and axes[0] == "images"
    return Layout(stored, stored[images_first], stored[not images_first], images_first, tuple(kept))


def _remedy(shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return "; stack the labels of all images to one array: np.stack"
    if len(shape) == 4 and shape[0] == 2 and shape[2] == shape[3]:
        return (
            f". It looks like a label map of ReLabel's: {shape[1]} values and {shape[1]} classes for each of {shape[2]} x {shape[3]} "
            "positions of one image; pool the positions of each view to one label [C]"
        )
    if len(shape) == 4:
        return "; a label for each position of an image (a label map) must be pooled to one label of the image"
    return ""
