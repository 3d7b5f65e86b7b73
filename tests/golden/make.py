"""Makes the golden files that are missing beside it, once per layout: `python tests/golden/make.py`. No test runs this.

A published layout never changes: where a golden file would come out different, the format needs a new minor or major
version and new golden files beside these, not instead of them.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vqlabel
from vqlabel.codecs import CODECS, LabelCodec
from vqlabel.codecs.raw.config import RawConfig
from vqlabel.codecs.sparse.codec import SparseCodec
from vqlabel.codecs.sparse.config import SparseConfig
from vqlabel.codecs.topk.config import TopkConfig
from vqlabel.codecs.vqae.config import CONTEXT_FIELDS, PriorConfig, VqaeConfig
from vqlabel.labels import About, LabelBatch, LabelSource, Place, Support
from vqlabel.labels.batch import NOWHERE
from vqlabel.labels.topk import sparse_labels, topk
from vqlabel.views import Recipe
from vqlabel.views.recipe import DrawnColumns

HERE = Path(__file__).parent
CLASSES, IMAGES, BATCH, EPOCHS = 12, 10, 5, 4


class Views(LabelSource):
    """Forty views of ten images, with every column that a dump can have."""

    path, about = HERE, About(layout="sre2l", classes=CLASSES, domain="logits", dtype="F16", order="explicit")
    places = tuple(Place(epoch, batch) for epoch in range(EPOCHS) for batch in range(IMAGES // BATCH))

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        rng = np.random.default_rng(at)
        image = np.random.default_rng(1000 + self.places[at].epoch).permutation(IMAGES)[at % 2 * BATCH :][:BATCH]
        teacher = np.random.default_rng(7).standard_normal((IMAGES, CLASSES)) * 4
        logits = teacher[image] + rng.standard_normal((BATCH, CLASSES))
        crops = [[rng.integers(0, 40), rng.integers(0, 30), rng.integers(8, 60), rng.integers(8, 70)] for _ in range(BATCH)]
        sides = [[100 + i % 3, 101 + i % 2] * 2 for i in image.tolist()]  # images of several sizes
        shares = [[float(Fraction(int(v), side)) for v, side in zip(*pair, strict=True)] for pair in zip(crops, sides, strict=True)]
        return LabelBatch(
            labels=logits.astype(np.float16),
            place=self.places[at],
            image=image.astype(np.int64),
            crop=np.array(shares, np.float32),
            flip=rng.integers(0, 2, BATCH).astype(bool),
            mix_index=rng.permutation(BATCH).astype(np.int64),
            mix_lam=float(rng.random()),
            mix_box=tuple(int(v) for v in rng.integers(0, 224, 4)),
        ), f"batch {at}"


class PriorInputs(LabelSource):
    """Four logits of every label are known, of classes that come together; enough labels for an entropy coder."""

    path, places = HERE, (Place(0, 0),)
    about = About(layout="lpqld", classes=CLASSES, domain="logits", dtype="F16", order="rows", support=Support(k=4, rest="zero"))

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        rng = np.random.default_rng(9)
        first = rng.integers(0, CLASSES, 2000)
        logits = rng.standard_normal((2000, CLASSES)) - np.abs(np.arange(CLASSES) - first[:, None])
        ids, values = topk(logits.astype(np.float16), 4)
        labels = sparse_labels(ids, values, CLASSES, "known", NOWHERE)
        return LabelBatch(labels=labels, place=self.places[at], image=np.arange(2000)), "known"


class Smoothed(LabelSource):
    """Probabilities in bf16 of few different values, which zstd compresses well.

    Row i of an epoch is image i; crops are no fractions.
    """

    path, about = HERE, About(layout="arrays", classes=CLASSES, domain="probs", dtype="BF16", order="rows")
    places = tuple(Place(epoch, 0) for epoch in range(EPOCHS))

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        labels = np.full((IMAGES, CLASSES), 1 / 32, np.float32)
        labels[np.arange(IMAGES), (np.arange(IMAGES) * 7 + at) % CLASSES] = 21 / 32
        crop = np.random.default_rng(at).random((IMAGES, 4)).astype(np.float32)
        return LabelBatch(labels=labels, place=self.places[at], image=np.arange(IMAGES), crop=crop), f"epoch {at}"


class Outside(LabelSource):
    """Views of layouts other than SRe2L's: names, partners outside the records, cutout, patches, RandAugment, seeds."""

    path, names = HERE, tuple(f"n{at % 3}/{at} é.JPEG" for at in range(IMAGES))
    about = About(layout="lpld", classes=CLASSES, domain="logits", dtype="F16", order="explicit", names=names)
    places = tuple(Place(epoch, 0) for epoch in range(EPOCHS))

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        rng = np.random.default_rng(100 + at)
        return LabelBatch(
            labels=rng.standard_normal((BATCH, CLASSES)).astype(np.float16),
            place=self.places[at],
            image=rng.permutation(IMAGES)[:BATCH],
            crop=rng.random((BATCH, 4)).astype(np.float32),
            flip=rng.integers(0, 2, BATCH).astype(bool),
            mix_lam=float(rng.random()),
            mix_box=tuple(int(v) for v in rng.integers(0, 224, 4)),
            partner_image=rng.integers(0, IMAGES, BATCH),
            partner_crop=rng.random((BATCH, 4)).astype(np.float32),
            partner_flip=rng.integers(0, 2, BATCH).astype(bool),
            cutout=rng.random((BATCH, 7)).astype(np.float32),
            patches=np.stack([[rng.permutation(3), rng.permutation(3)] for _ in range(BATCH)]),
            ops=rng.integers(0, 8, (BATCH, 2, 3)).astype(np.float32),
            seed=rng.integers(-(2**31), 2**31, BATCH),
        ), f"epoch {at}"


class Drawn(LabelSource):
    """What a recipe draws, `keep` of its batches."""

    path, about = HERE, About(layout="lpld", classes=CLASSES, domain="logits", dtype="F16", order="explicit")

    def __init__(self, drawn: DrawnColumns, keep: slice) -> None:
        self._drawn, self._at = drawn, range(len(drawn.places))[keep]
        self.places = tuple(drawn.places[keep])

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        first, end = self._drawn.starts[self._at[at] :][:2]
        labels = np.random.default_rng(200 + at).standard_normal((end - first, CLASSES)).astype(np.float16)
        return self._drawn.batch(self._at[at], labels), f"batch {at}"


RECIPE = Recipe(seed=17, images=IMAGES, epochs=EPOCHS, batch=4, view=160, mix="cutmix")  # 4, 4 and 2 of an epoch
DRAWN = DrawnColumns(RECIPE, np.array([[60 + i, 90 - i] for i in range(IMAGES)]))
PRIOR = PriorConfig(images=IMAGES, image_width=3, hidden=5, fields=CONTEXT_FIELDS, view=224)


def untrained(
    quantizer: str,
    codebook_size: int,
    code_width: int,
    slots: int = 3,
    weight_bits: int = 8,
    prior: PriorConfig | None = None,
    head: int = 0,
    lift: bool = False,
    variable: bool = False,
) -> LabelCodec:
    """A vqae codec of random weights, which no change to the training can change."""
    config = VqaeConfig(
        classes=CLASSES,
        domain="logits",
        slots=slots,
        codebook_size=codebook_size,
        latent=6,
        code_width=code_width,
        quantizer=quantizer,
        weight_bits=weight_bits,
        prior=prior,
        temperature=(1.0, 4.0),
        head=head,
        lift=lift,
        variable=variable,
        rate=8.0 if variable else 0.0,
        price=0.5 if variable else 0.0,  # some labels have no code, some all
    )
    codec, rng = CODECS["vqae"].codec(config), np.random.default_rng(3)
    with torch.no_grad():
        for _, weight in sorted(codec.state_dict().items()):
            weight.copy_(torch.from_numpy(rng.standard_normal(weight.shape)))
    return codec


def sparse(domain: str, gaps: tuple[int, ...], neighbours: int = 0, rest_bits: int = 0, **options: Any) -> LabelCodec:
    """A sparse codec; with neighbours each class has those whose ids are next to its own."""
    widths = (*gaps, *[0] * (12 - len(gaps)))
    config = SparseConfig(classes=CLASSES, domain=domain, gaps=widths, rest_bits=rest_bits, neighbours=neighbours, **options)
    near = (np.arange(CLASSES)[:, None] + [1, 11, 2][:neighbours]) % CLASSES
    return SparseCodec(config, torch.from_numpy(near) if neighbours else None)


def cases() -> Iterator[tuple[str, LabelSource, LabelCodec]]:
    """Name, dump and codec of every golden file; if the dump is `Drawn`, a recipe takes the place of its columns."""
    raw = CODECS["raw"].codec(RawConfig(classes=CLASSES, domain="logits", dtype="F16"))
    yield "raw", Views(), raw
    yield "smoothed", Smoothed(), CODECS["raw"].codec(RawConfig(classes=CLASSES, domain="probs", dtype="BF16"))
    yield "topk", Views(), CODECS["topk"].codec(TopkConfig(classes=CLASSES, domain="logits", k=3))
    yield "sparse", Views(), sparse("logits", k=4, rest="zero", step=0.5, gaps=(0, 1, 1, 1))
    yield "shared", Smoothed(), sparse("probs", k=2, rest="uniform", step=0.25, gaps=(0, 0, 0, 0, 1), rest_bits=6)
    yield "ranked", PriorInputs(), sparse("logits", k=4, rest="zero", step=0.5, gaps=(0, 0, 2, 1), neighbours=3)
    yield "vqae", Views(), untrained("residual", codebook_size=20, code_width=6, slots=5)  # k is no power of two
    yield "grouped", Views(), untrained("grouped", codebook_size=16, code_width=2, weight_bits=5)
    yield "prior", Views(), untrained("residual", codebook_size=16, code_width=6, weight_bits=4, prior=PRIOR)
    yield "alone", Views(), untrained("residual", codebook_size=2, code_width=6, slots=0, weight_bits=7, prior=PRIOR)
    yield "lifted", Views(), untrained("residual", codebook_size=16, code_width=6, weight_bits=5, lift=True)
    yield "head", Views(), untrained("residual", codebook_size=16, code_width=6, slots=2, head=3)  # and a gain, as all since
    yield "variable", Views(), untrained("residual", codebook_size=20, code_width=6, slots=4, weight_bits=6, variable=True)
    yield "outside", Outside(), raw
    yield "seeded", Drawn(DRAWN, slice(None)), raw
    yield "pruned", Drawn(DRAWN, slice(1, None, 2)), raw


COLUMNS = {
    "image": "<i8", "crop": ("<f4", 4), "flip": "?", "mix_index": "<i8", "mix_lam": "<f8", "mix_box": ("<i8", 4),
    "partner_image": "<i8", "partner_crop": ("<f4", 4), "partner_flip": "?", "cutout": ("<f4", 7), "patches": ("<i8", (2, 3)),
    "ops": ("<f4", (2, 3)), "seed": "<i8",
}  # fmt: skip
OLDER = 6  # columns that all dumps have but those of `view_columns`


def records(source: LabelSource) -> np.ndarray:
    """What the columns say, a row per record; what a dump lacks is 0."""
    names = [*COLUMNS] if isinstance(source, Outside) else [*COLUMNS][:OLDER]
    kind = [("epoch", "<i8"), ("batch", "<i8"), *((name, COLUMNS[name]) for name in names)]
    out = np.zeros(sum(map(len, source)), kind)
    at = 0
    for batch in source:
        rows, at = out[at : at + len(batch)], at + len(batch)
        rows["epoch"], rows["batch"] = batch.place
        for name in names:
            value = getattr(batch, name)
            rows[name] = 0 if value is None else value
    return out


# unsummed.codec: the codec of the case vqae, as save_codec wrote it before codec files had a sum, with the report
# {"held": {"labels": 1, "kl_T1": 0.5}}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, source, codec in cases():
        path = HERE / f"{name}.vql"
        if path.exists():  # never made again
            continue
        print(vqlabel.pack(source, path, codec=codec, augmentation=DRAWN if isinstance(source, Drawn) else None))
        np.save(HERE / f"{name}.labels.npy", vqlabel.open(path)[:].numpy())
        np.save(HERE / f"{name}.records.npy", records(source))
