"""Synthetic dumps for benchmarks: LPLD's tree of random labels."""

from pathlib import Path

import numpy as np

from vqlabel.labels import About, LabelBatch, Place, writing


def random_dump(folder: Path, classes: int = 1000, images: int = 500, epochs: int = 16) -> Path:
    """Logits of rank 32; the views of an image share most of their label."""
    rng = np.random.default_rng(0)
    image_vectors, class_vectors = rng.normal(size=(images, 32)), rng.normal(size=(32, classes))
    about = About(layout="lpld", classes=classes, domain="logits", dtype="F16", order="explicit")
    with writing(folder, about, "lpld") as writer:
        for epoch in range(epochs):
            for number, image in enumerate(np.split(rng.permutation(images), images // 100)):
                logits = (image_vectors[image] + 0.5 * rng.normal(size=(100, 32))) @ class_vectors
                writer.add(LabelBatch(labels=logits.astype(np.float16), place=Place(epoch, number), image=image))
    return folder
