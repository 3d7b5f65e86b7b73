"""Dumps to measure on where there is no real one: SRe2L's tree of random labels."""

from pathlib import Path

import numpy as np

from vqlabel.labels import LabelBatch, Place
from vqlabel.labels.sre2l import write_batch, write_order


def random_dump(folder: Path, classes: int = 1000, images: int = 500, epochs: int = 16) -> Path:
    """Views of an image share most of their label, whose logits have rank 32."""
    rng = np.random.default_rng(0)
    classes_of, views = rng.normal(size=(images, 32)), rng.normal(size=(32, classes))
    order: dict[int, list[int]] = {}
    for epoch in range(epochs):
        image = rng.permutation(images)
        order[epoch] = image.tolist()
        for number, at in enumerate(np.split(image, images // 100)):
            logits = (classes_of[at] + 0.5 * rng.normal(size=(100, 32))) @ views
            write_batch(folder, LabelBatch(labels=logits.astype(np.float16), place=Place(epoch, number), image=at))
    write_order(folder, order)
    return folder
