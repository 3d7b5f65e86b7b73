"""A folder of images -> its image files in the order in which torchvision's ImageFolder numbers them.

No image is decoded.
"""

import os
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # the extensions that ImageFolder accepts


class ImageFile(NamedTuple):
    """One image, and the name of its class folder; "" for an image in the top folder itself."""

    path: Path
    folder: str


def class_folders(top: str | PathLike[str]) -> list[str]:
    """The sorted names of the subfolders of `top`, which are ImageFolder's classes; empty if `top` is not a folder."""
    return sorted(entry.name for entry in Path(top).iterdir() if entry.is_dir()) if Path(top).is_dir() else []


def list_images(top: str | PathLike[str]) -> list[ImageFile]:
    """All images below `top`: class folders sorted by name, and in each all images at any depth.

    Images in `top` itself count only if no class folder has an image: ImageFolder ignores them, and a stray one would
    shift all indices. Symbolic links are followed.
    """
    folders = list[tuple[str, list[str], str]]()
    for folder in class_folders(top):
        walked = sorted((root, names) for root, _, names in os.walk(os.path.join(top, folder), followlinks=True))
        folders += [(root, names, folder) for root, names in walked]
    images = _image_files(folders)
    if images or not os.path.isdir(top):
        return images
    return _image_files([(os.fspath(top), [name for name in os.listdir(top) if os.path.isfile(os.path.join(top, name))], "")])


def _image_files(folders: Iterable[tuple[str, list[str], str]]) -> list[ImageFile]:
    """(folder, file names in it, class folder) -> the image files, sorted within each folder."""
    return [
        ImageFile(Path(root, name), class_folder)
        for root, names, class_folder in folders
        for name in sorted(names)
        if name.lower().endswith(SUFFIXES)
    ]
