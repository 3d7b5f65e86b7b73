"""A folder -> the images in it, in the order in which torchvision's ImageFolder numbers them. Nothing is decoded."""

import os
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # ImageFolder's


class ImageFile(NamedTuple):
    """One image and the folder, of those in the top one, that it lies in; "" where it lies in the top one itself."""

    path: Path
    folder: str


def class_folders(top: str | PathLike[str]) -> list[str]:
    """The folders in `top`, sorted: ImageFolder's classes. None where there is no such folder."""
    return sorted(entry.name for entry in Path(top).iterdir() if entry.is_dir()) if Path(top).is_dir() else []


def list_images(top: str | PathLike[str]) -> list[ImageFile]:
    """Every image below `top`: folders sorted, in each all files below it. Files in `top` itself only where no folder has an image:
    ImageFolder leaves them out, and one that strayed there would shift all numbers.

    Symbolic links are followed.
    """
    places = list[tuple[str, list[str], str]]()
    for folder in class_folders(top):
        found = sorted((root, names) for root, _, names in os.walk(os.path.join(top, folder), followlinks=True))
        places += [(root, names, folder) for root, names in found]
    below = _images(places)
    if below or not os.path.isdir(top):
        return below
    return _images([(os.fspath(top), [name for name in os.listdir(top) if os.path.isfile(os.path.join(top, name))], "")])


def _images(places: Iterable[tuple[str, list[str], str]]) -> list[ImageFile]:
    """Of (folder, names in it, class), the files that are images, sorted within a folder."""
    return [
        ImageFile(Path(root, name), folder)
        for root, names, folder in places
        for name in sorted(names)
        if name.lower().endswith(SUFFIXES)
    ]
