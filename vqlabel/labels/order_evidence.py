"""An order of images, and a sample of a dump's labels -> how often labels agree with the classes of their images.

A label agrees if its largest class is the class of its image, or of the image mixed in. Images of one class cannot be
told apart by this: any permutation within the classes agrees as often.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.batch import LabelBatch
from vqlabel.labels.layouts.tree import Indices
from vqlabel.labels.source import LabelSource
from vqlabel.labels.sparse import Labels, SparseLabels
from vqlabel.labels.topk import topk

MAX_LABELS, MAX_BATCHES = 5000, 250  # size of the sample
CLEAR_Z = 6.0  # standard deviations above chance that a guessed order needs
PART_HITS = 64  # the sample is also judged in parts, each large enough for so many labels to agree
DRAWS_IN_WORDS = {1: "one permutation per epoch (PyTorch before 1.11)", 2: "two permutations per epoch (PyTorch 1.11 or later)"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """How many labels agree with the classes of the images that an order gives them.

    Attributes:
        order: the order, in words.
        draws: permutations per epoch of RandomSampler; None if both numbers give the same order, or the dump records
            its order.
        labels: size of the sample.
        agreement: share of the labels that agree.
        other: share that agree under the other number of draws; None if `draws` is.
        chance: share that agree if every label is paired with the images of every other.
    """

    order: str
    draws: int | None
    labels: int
    agreement: float
    other: float | None
    chance: float

    @property
    def z(self) -> float:
        """Agreement above chance, in standard deviations of as many Bernoulli trials."""
        variance = max(self.chance * (1 - self.chance), 1 / self.labels)
        return (self.agreement - self.chance) / float(np.sqrt(variance / self.labels))

    @property
    def clear(self) -> bool:
        """Whether the agreement decides for this order.

        It must be three times chance (or half way from chance to 1, where chance is large), CLEAR_Z standard deviations
        above chance, and twice as far above chance as under the other order.
        """
        enough = self.agreement >= min(3 * self.chance, (1 + self.chance) / 2)
        separated = self.other is None or self.agreement - self.chance > 2 * (self.other - self.chance)
        return self.z > CLEAR_Z and enough and separated

    @property
    def summary(self) -> str:
        """All figures in one sentence."""
        agreement = f"{percent(self.agreement)} of {self.labels:,} labels agree with the classes of their images"
        other = "" if self.draws is None or self.other is None else f", {percent(self.other)} with {DRAWS_IN_WORDS[3 - self.draws]}"
        return f"{self.order}: {agreement}{other}, {percent(self.chance)} by chance"


class SampledAgreement(NamedTuple):
    """The agreement of a sample of n labels under one order."""

    epoch: Indices  # [n] ascending
    hits: NDArray[np.bool_]  # [n] whether the label agrees
    chance: float

    @property
    def agreement(self) -> float:
        """Share of the labels that agree."""
        return float(self.hits.mean())

    def evidence(self, order: str, draws: int | None = None, other: float | None = None) -> Evidence:
        """As `Evidence` for an order in words; see its attributes."""
        return Evidence(order=order, draws=draws, labels=len(self.hits), agreement=self.agreement, other=other, chance=self.chance)


def percent(share: float) -> str:
    """0.123 -> "12.3 %"."""
    return f"{100 * share:.1f} %"


def sample_agreement(
    source: LabelSource,
    batches: Sequence[int],
    image_class: Indices,
    orders: Sequence[Callable[[LabelBatch], LabelBatch]],
    max_labels: int = MAX_LABELS,
    max_batches: int = MAX_BATCHES,
) -> list[SampledAgreement]:
    """The agreement of a random sample of labels under each order.

    Args:
        batches: indices of the batches to sample from: one from each of up to `max_batches` equal stretches.
        image_class: [N] the teacher's class of every image.
        orders: each gives a batch its images.

    Raises:
        UsageError: a label belongs to an image of which there is no class.
    """
    rng = np.random.default_rng(0)
    stretches = np.array_split(np.asarray(batches), min(len(batches), max_batches))
    epochs, top_classes = list[Indices](), list[Indices]()
    shown: list[list[Indices]] = [[] for _ in orders]
    for stretch in stretches:
        batch = source.read(int(rng.choice(stretch)))
        rows = rng.permutation(len(batch))[: max_labels // len(stretches)]
        epochs.append(np.full(len(rows), batch.place.epoch))
        top_classes.append(_top_class(batch.labels[rows]))
        for order, classes in zip(orders, shown, strict=True):
            classes.append(_classes_shown(order(batch), image_class, source)[rows])
    epoch, top_class = np.concatenate(epochs), np.concatenate(top_classes)
    return [SampledAgreement(epoch, *agreement(top_class, np.concatenate(classes), source.classes)) for classes in shown]


def _top_class(labels: Labels) -> Indices:
    """[n] the largest class of every label."""
    return topk(labels, 1)[0][:, 0] if isinstance(labels, SparseLabels) else labels.argmax(1)


def _classes_shown(batch: LabelBatch, image_class: Indices, source: LabelSource) -> Indices:
    """[n, 2] the class of each record's image, and of the image mixed in, or of the image again if none is."""
    context = batch.context()
    assert context.image is not None
    images = np.stack([context.image, context.image if context.partner is None else context.partner], 1)
    if images.max() >= len(image_class):
        raise UsageError(
            f"{source.path}: has labels of image {images.max()}, but the folder has {len(image_class)} images: pass the folder with all of them"
        )
    return image_class[images]


def agreement(top_class: Indices, shown: Indices, classes: int) -> tuple[NDArray[np.bool_], float]:
    """Which labels agree with their images, and how many would by chance.

    Args:
        top_class: [n] the largest class of each label.
        shown: [n, 2] the classes of the two images of each label.
        classes: C.

    Returns:
        [n] whether each label agrees, and the share of all n² pairs of a label and a record's images that do.
    """
    first, second = shown.T
    showing = np.bincount(first, minlength=classes) + np.bincount(second[second != first], minlength=classes)
    chance = np.bincount(top_class, minlength=classes) @ showing / len(top_class) ** 2
    return (shown == top_class[:, None]).any(1), float(chance)


def refuse_mixed_orders(source: LabelSource, sample: SampledAgreement, evidence: Evidence) -> None:
    """Raises BadLabels if some epochs agree hardly above chance: a resumed run shuffles from the seed again."""
    least = evidence.chance + (evidence.agreement - evidence.chance) / 4
    parts = max(1, int(sample.hits.sum()) // PART_HITS)
    for hits, epoch in zip(np.array_split(sample.hits, parts), np.array_split(sample.epoch, parts), strict=True):
        if hits.mean() < least:
            raise BadLabels(
                f"{source.path}: {percent(hits.mean())} of the labels of epochs {epoch[0]} to {epoch[-1]} agree with the classes of their "
                f"images, but {percent(evidence.agreement)} of all: these epochs have another order (a resumed run?); regenerate them, or "
                "leave them out"
            )
