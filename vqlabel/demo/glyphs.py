"""The fonts in matplotlib -> a 1,000-class image data set: characters are classes, typefaces the images of a class."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqlabel.errors import MissingExtra

CLASSES = 1000
TEACHER_FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
)
DISTILLED_FACES = ("DejaVuSans", "DejaVuSerif")  # two images per class, for the students
HELD_OUT_FACES = ("DejaVuSansMono", "DejaVuSansMono-Bold")  # a family outside all training data
MAX_COSINE = 0.96  # of the pixels of two glyphs, from which on they count as the same glyph


@dataclass(frozen=True, kw_only=True, slots=True)
class Glyphs:
    """All characters in all faces."""

    images: np.ndarray  # [faces, classes, size, size] uint8, 255 is ink
    characters: str  # [classes], in the order of their code points
    faces: tuple[str, ...]

    def examples(self, faces: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The images of some faces, [n, size, size] uint8, and their classes, [n] int64."""
        images = np.concatenate([self.images[self.faces.index(face)] for face in faces])
        return images, np.tile(np.arange(len(self.characters)), len(faces))


def make_glyphs(size: int = 24) -> Glyphs:
    """Render the first 1,000 characters that all faces have and that differ visibly from those chosen before.

    Excluded are glyphs that are empty or touch the border of the image, and glyphs that nearly equal an earlier one in
    at least one face (Latin A, Greek Alpha, Cyrillic A).

    Args:
        size: side of the square images, pixels.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib import get_data_path
        from matplotlib.ft2font import FT2Font
    except ModuleNotFoundError as error:
        raise MissingExtra("matplotlib", extra="demo") from error
    faces = TEACHER_FACES + HELD_OUT_FACES
    paths = [Path(get_data_path(), "fonts", "ttf", f"{face}.ttf") for face in faces]
    drawable = set.intersection(*(set(FT2Font(path).get_charmap()) for path in paths))
    candidates = [chr(point) for point in sorted(drawable) if unicodedata.category(chr(point))[0] in "LNPS"]
    images = np.stack([_render(candidates, path, size) for path in paths])
    chosen = _distinct(images)[:CLASSES]
    return Glyphs(images=images[:, chosen], characters="".join(candidates[index] for index in chosen), faces=faces)


def _render(characters: Sequence[str], path: Path, size: int) -> np.ndarray:
    """Characters on a common baseline, centred horizontally: [characters, size, size] uint8."""
    from PIL import Image, ImageDraw, ImageFont  # comes with matplotlib

    font = ImageFont.truetype(path, round(0.7 * size))
    images = np.empty((len(characters), size, size), np.uint8)
    for image, character in zip(images, characters, strict=True):
        canvas = Image.new("L", (size, size))
        ImageDraw.Draw(canvas).text((size / 2, round(0.72 * size)), character, fill=255, font=font, anchor="ms")
        image[:] = np.asarray(canvas)
    return images


def _distinct(images: np.ndarray) -> list[int]:
    """Indices of the candidates in [faces, candidates, size, size] to keep: complete, and unlike all earlier ones."""
    inner = images[:, :, 1:-1, 1:-1]
    complete = (inner.sum((2, 3)) == images.sum((2, 3))).all(0) & images.any((2, 3)).all(0)
    cosine = np.zeros((images.shape[1],) * 2, np.float32)
    for face in images.reshape(*images.shape[:2], -1).astype(np.float32):
        face /= np.maximum(np.linalg.norm(face, axis=1, keepdims=True), 1)
        np.maximum(cosine, face @ face.T, out=cosine)
    kept: list[int] = []
    for index in np.flatnonzero(complete):
        if not (cosine[index, kept] >= MAX_COSINE).any():
            kept.append(int(index))
    return kept
