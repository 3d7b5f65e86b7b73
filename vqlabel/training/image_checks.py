"""Checks before views are rendered: the images are the labelled ones, a view's size is known, a batch fits memory."""

import warnings
from collections.abc import Sequence
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels.image_set import ImageSet
from vqlabel.views.image_folder import ImageFolder
from vqlabel.views.recipe import DrawnColumns
from vqlabel.views.render_pil import Images, rgb_image
from vqlabel.vql.file import VqlFile
from vqlabel.vql.seeded import DrawnPart

MAX_BATCH_BYTES = 1 << 33  # float32 views of one batch: 14,000 views of 224 pixels; a file may declare larger batches
MAX_VIEW_SIDE = 4096  # pixels: 0.2 GB for one float32 view; a file may declare a larger side
CHECKED_IMAGES = 256  # images whose aspect ratio is compared with the recipe's; more take longer to open


def require_folder_indices(file: VqlFile) -> None:
    """Refuse a folder for a file whose image indices count its own list of names, not the sorted files of a folder."""
    if file.columns.has("names"):
        raise UsageError(
            f"{file.container.path}: identifies its images by name, not by their index in a folder; pass a list of images in the order "
            "of the file's names"
        )


def check_images(file: VqlFile, images: Images) -> None:
    """Refuse images that are not those of the labels; see `require_labelled_images`."""
    if not file.columns.has("image"):
        return
    if isinstance(images, ImageFolder):
        require_labelled_images(file, images.folder, images.names, images.files, depth=4)
    else:
        require_labelled_images(file, "the list of images", count=len(images), depth=4)
    _require_recorded_shapes(file, images)


def require_labelled_images(
    file: VqlFile,
    where: str | PathLike[str],
    names: Sequence[str] | None = None,
    files: Sequence[str | PathLike[str]] | None = None,
    *,
    count: int = 0,
    depth: int = 2,
) -> None:
    """Compare images with those that the labels of a file belong to; warn if the file records too little to decide.

    Args:
        file: the labels.
        where: folder or description of the images, for messages.
        names: names of the images (`image_names`); None: unknown, `count` is compared instead.
        files: paths of the images, read if the file records a digest of their bytes.
        count: number of images, if `names` is None.
        depth: stack frames from here to the caller that the warning is attributed to.

    Raises:
        UsageError: these are other images.
    """
    path, recorded = file.container.path, file.images
    try:
        images = ImageSet(count=count) if names is None else ImageSet.of(names)
        if recorded is None:
            doubt: str | None = "neither the number nor the names of the labelled images are recorded, so any folder passes"
        else:
            doubt = recorded.require_same(where, images, names, files)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if doubt is not None:
        remedy = "" if names is None else "; files packed with --images or written by relabel record the names"
        warnings.warn(f"{path}: {doubt}{remedy}", stacklevel=1 + depth)


def _require_recorded_shapes(file: VqlFile, images: Images) -> None:
    """Refuse an image whose aspect ratio differs from the one that the recipe records; smaller copies agree up to
    rounding.

    Checks CHECKED_IMAGES evenly spaced images.
    """
    sizes = file.columns.sizes if isinstance(file.columns, DrawnColumns | DrawnPart) else np.empty((0, 2), np.int64)
    if not len(sizes):
        return
    checked: NDArray[np.int64] = np.unique(np.linspace(0, len(images) - 1, CHECKED_IMAGES).astype(np.int64))
    for index in checked.tolist():
        height, width = images.size(index) if isinstance(images, ImageFolder) else rgb_image(images, index).size[::-1]
        recorded_height, recorded_width = sizes[index if len(sizes) > 1 else 0].tolist()
        if abs(height * recorded_width - width * recorded_height) > recorded_height + recorded_width:
            raise UsageError(
                f"{file.container.path}: image {index} has {height} x {width} pixels, the labelled image had {recorded_height} x "
                f"{recorded_width}; pass the images that were labelled, in their order"
            )


def view_side(file: VqlFile, size: int | None) -> int:
    """Side of a view in pixels: the recipe's, which `size` must equal if given, else `size`.

    Raises:
        BadLabels: the file was packed from an array [n, C], which has no image indices.
        UsageError: the side is unknown, differs from the recipe's, or exceeds MAX_VIEW_SIDE.
    """
    side = file.recipe.view if file.recipe else size or 0
    require(side, "size", size, "must be given: the file does not record the size of the teacher's views")
    require(size in (None, side), "size", size, f"must be {side}, the size in the file's recipe; resize in `transform`")
    check_view_memory(1, side)
    if file.columns.order == "none" and file.source.get("layout") == "arrays":
        raise BadLabels(
            "the labels come from an array [n, C], which does not record their images; save it as [epochs, n, C], where row i of every "
            "epoch is the label of image i, and pack it again"
        )
    return side


def check_view_memory(count: int, side: int) -> None:
    """Refuse a batch of `count` float32 views of `side` pixels that takes more than MAX_BATCH_BYTES.

    Raises:
        UsageError: the batch or the side is too large.
    """
    require(side <= MAX_VIEW_SIDE, "side of a view", side, f"must be at most {MAX_VIEW_SIDE} pixels")
    size, largest = 12 * count * side**2, MAX_BATCH_BYTES // (12 * side**2)
    sizes = f"{size / 1e9:.1f} GB requested, limit {MAX_BATCH_BYTES / 1e9:.1f} GB"
    limit = f"must be at most {largest} at {side} pixels a side ({sizes}); request fewer records"
    require(size <= MAX_BATCH_BYTES, "number of views", count, limit)
