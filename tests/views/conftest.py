"""Images of several sizes, and a recipe written again from docs/augmentation.md in plain Python."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

SIZES = ((37, 50), (50, 33), (24, 24), (9, 70), (1, 1), (64, 48))  # height, width


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Noise on gradients: pixels differ from their neighbours, and regions from each other."""
    rng, found = np.random.default_rng(0), []
    for height, width in SIZES:
        slope = np.stack(np.broadcast_arrays(np.arange(height)[:, None], np.arange(width)[None], 20), -1) * 2
        found.append(Image.fromarray((slope + rng.integers(0, 100, slope.shape)).clip(0, 255).astype(np.uint8)))
    return found


Draw = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def draw_by_hand() -> Draw:
    """One batch of recipe rrc 1, view by view, with Python integers and math.sqrt only."""

    def random_words(seed: int, purpose: int, epoch: int, item: int, draw: int) -> list[int]:
        words, keys, most = [draw, item, epoch, purpose], [seed % 2**32, seed >> 32], 2**32
        for _ in range(10):
            first, second = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
            words = [second // most ^ words[1] ^ keys[0], second % most, first // most ^ words[3] ^ keys[1], first % most]
            keys = [(keys[0] + 0x9E3779B9) % most, (keys[1] + 0xBB67AE85) % most]
        return [words[0] + most * words[1], words[2] + most * words[3]]

    def share(number: int) -> float:
        return (number >> 11) / 2**53

    def crop(seed: int, scale: tuple[float, float], epoch: int, image: int, height: int, width: int) -> tuple[int, int, int, int]:
        for attempt in range(10):
            first, second = random_words(seed, 2, epoch, image, attempt)
            area = height * width * (scale[0] + (scale[1] - scale[0]) * share(first))
            ratio = round((4 / 3) ** ((2 * (second >> 56) + 1) / 256 - 1) * 65536) / 65536
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                first, second = random_words(seed, 2, epoch, image, 10)
                return math.floor(share(first) * (height - h + 1)), math.floor(share(second) * (width - w + 1)), h, w
        h, w = (round(width / 0.75), width) if width / height < 3 / 4 else (height, round(height * (4 / 3)))
        h, w = min(h, height), min(w, width)
        return (height - h) // 2, (width - w) // 2, h, w

    def draw(recipe: Any, sizes: Any, epoch: int, number: int) -> dict[str, Any]:
        seed, view = recipe.seed, recipe.view
        order = sorted(range(recipe.images), key=lambda image: random_words(seed, 1, epoch, image, 0)[0])
        image = order[number * recipe.batch : (number + 1) * recipe.batch]
        found: dict[str, Any] = {
            "image": image,
            "pixels": [crop(seed, recipe.scale, epoch, i, *sizes[i]) for i in image],
            "flip": [share(random_words(seed, 2, epoch, i, 11)[0]) < recipe.flip for i in image],
        }
        if recipe.patches > 1:
            keys = [[random_words(seed, 2, epoch, i, 12 + strip) for strip in range(recipe.patches)] for i in image]
            found["patches"] = [
                [sorted(range(recipe.patches), key=lambda strip: words[strip][side]) for side in (0, 1)] for words in keys
            ]
        if recipe.mix == "none":
            return found
        found["index"] = sorted(range(len(image)), key=lambda slot: random_words(seed, 3, epoch, number, slot)[0])
        lam = share(random_words(seed, 4, epoch, number, 0)[0])
        if recipe.mix == "cutmix":
            half = int(view * math.sqrt(1 - lam)) // 2
            row, column = (math.floor(share(word) * view) for word in random_words(seed, 4, epoch, number, 1))
            box = [min(max(edge, 0), view) for edge in (row - half, column - half, row + half, column + half)]
            found["box"], lam = tuple(box), 1 - (box[2] - box[0]) * (box[3] - box[1]) / view**2
        return {**found, "lam": lam}

    return draw
