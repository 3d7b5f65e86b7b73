"""Dumps to measure on where there is no real one: LPLD's tree of random labels."""

from pathlib import Path

import numpy as np

from vqlabel.labels import About, LabelBatch, Place, writing


def random_dump(folder: Path, classes: int = 1000, images: int = 500, epochs: int = 16) -> Path:
    """Views of an image share most of their label, whose logits have rank 32."""
    rng = np.random.default_rng(0)
    classes_of, views = rng.normal(size=(images, 32)), rng.normal(size=(32, classes))
    about = About(layout="lpld", classes=classes, domain="logits", dtype="F16", order="explicit")
    with writing(folder, about, "lpld") as writer:
        for epoch in range(epochs):
            for number, at in enumerate(np.split(rng.permutation(images), images // 100)):
                logits = (classes_of[at] + 0.5 * rng.normal(size=(100, 32))) @ views
                writer.add(LabelBatch(labels=logits.astype(np.float16), place=Place(epoch, number), image=at))
    return folder
