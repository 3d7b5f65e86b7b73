"""A dump that does not record its images, and the folder of images -> its order: the simulated shuffle, verified.

SRe2L and CDA iterate over ImageFolder's sorted files with RandomSampler(generator.manual_seed(42)), epoch after epoch.
PyTorch before 1.11 draws one permutation per epoch; later versions draw two and use the first. Both give the same epoch
0, and different later epochs. Which version it was, and whether these are the images at all, is decided by the labels:
see `order_evidence`.
"""

from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.batch import LabelBatch
from vqlabel.labels.class_map import teacher_classes
from vqlabel.labels.image_set import ImageSet, image_names
from vqlabel.labels.images import class_folders, list_images
from vqlabel.labels.layouts.tree import SEED, Indices, Shuffle
from vqlabel.labels.order_evidence import DRAWS_IN_WORDS, Evidence, refuse_mixed_orders, sample_agreement
from vqlabel.labels.source import LabelSource

MIN_Z = 3.0  # standard deviations above chance by which labels must agree with an order that the dump records
MAX_EPOCHS = 10_000  # finding epoch E draws the permutations of all epochs before it


class ShuffledOrder:
    """The simulated order of a dump, in batches of `size`.

    One epoch's permutation is in memory; going back restarts the simulation.

    Raises:
        BadLabels: the dump has an epoch above MAX_EPOCHS - 1.
    """

    def __init__(self, source: LabelSource, images: int, size: int, draws: int, seed: int) -> None:
        epochs = source.places[-1].epoch + 1
        if epochs > MAX_EPOCHS:
            raise BadLabels(f"{source.path}: has epoch {epochs - 1}; the order can be found for up to {MAX_EPOCHS} epochs")
        self._path, self._images, self._size, self.draws = source.path, images, size, draws
        self._shuffle = Shuffle(images, epochs, draws, seed)

    def assign_images(self, batch: LabelBatch) -> LabelBatch:
        """The batch with the image of each record.

        Raises:
            BadLabels: the batch has another number of records than the order gives it.
        """
        epoch, number = batch.place
        start = number * self._size
        stop = min(start + self._size, self._images)
        if len(batch) != stop - start:
            raise BadLabels(
                f"{self._path}: batch {number} of epoch {epoch} has {len(batch)} labels, but with {self._images} images in batches of "
                f"{self._size} it must have {stop - start}: regenerate it"
            )
        return replace(batch, image=self._shuffle.order_of(epoch)[start:stop].copy())


class OrderedSource(LabelSource):
    """A dump that does not record its images, with the order that was found for it.

    Attributes:
        order_evidence: how well labels and images agree in this order.
    """

    def __init__(self, source: LabelSource, order: ShuffledOrder, evidence: Evidence) -> None:
        self.path, self.places, self.about = source.path, source.places, replace(source.about, order="explicit")
        self.notes = source.notes
        self.order_evidence, self.evidence = evidence, evidence.summary
        self._source, self._order = source, order

    def files_of(self, index: int) -> tuple[Path, ...]:
        return self._source.files_of(index)

    def _load(self, index: int) -> tuple[LabelBatch, str]:
        batch, name = self._source.load(index)
        return self._order.assign_images(batch), name


def with_images(
    source: LabelSource, images: Path, class_map: str | PathLike[str] | None = None, digest: str = "names"
) -> LabelSource:
    """The source with its order found or, if the dump records one, verified; its `evidence` is a sentence on it.

    Args:
        images: the images that were labelled, in one folder per class, as ImageFolder reads them.
        class_map: JSON, class folder -> the teacher's class; None: class i is the i-th folder.
        digest: what the images are recognised by later: their "names", or also their "bytes".

    Raises:
        UsageError: the folder has other images, or its classes are not those of the labels.
        BadLabels: the labels do not agree with their images.
    """
    if source.order == "none":
        source = find_order(source, images, class_map=class_map)
    else:
        source.evidence = verify_order(source, images, class_map=class_map).summary
    files = [image.path for image in list_images(images)]
    known = ImageSet.of(image_names(files, images), files if digest == "bytes" else None)
    source.about = replace(source.about, images=known)
    return source


def find_order(
    source: LabelSource, images: Path, *, class_map: str | PathLike[str] | None = None, seed: int = SEED
) -> OrderedSource:
    """Find the order of a dump that does not record one; arguments as of `with_images`.

    Raises:
        UsageError: the dump records its order.
        BadLabels: the labels agree with neither of the two orders, or with one not clearly more often, or some epochs
            have another order.
    """
    if source.order != "none":
        raise UsageError(f"{source.path}: the dump records the image of each label, so there is no order to find")
    image_class = image_classes(images, class_map, source.classes)
    size = _batch_size(source, len(image_class), images)
    later = [index for index, place in enumerate(source.places) if place.epoch]  # epoch 0 is the same under both numbers of draws
    candidates = [ShuffledOrder(source, len(image_class), size, draws, seed) for draws in ((2, 1) if later else (2,))]
    samples = sample_agreement(source, later or range(len(source)), image_class, [order.assign_images for order in candidates])
    (best, order), *others = sorted(zip(samples, candidates, strict=True), key=lambda pair: -pair[0].agreement)
    if others:
        evidence = best.evidence(f"{DRAWS_IN_WORDS[order.draws]}, after epoch 0", order.draws, others[0][0].agreement)
    else:
        evidence = best.evidence("epoch 0, which all versions of PyTorch shuffle alike")
    if not evidence.clear:
        raise BadLabels(
            f"{source.path}: the shuffle of {images} with seed {seed} is not its order ({evidence.summary}): these are other images, the "
            "classes are in another order (pass --class-map), or the labels were made with another seed"
        )
    refuse_mixed_orders(source, best, evidence)
    return OrderedSource(source, order, evidence)


def verify_order(source: LabelSource, images: Path, *, class_map: str | PathLike[str] | None = None) -> Evidence:
    """Check the order that a dump records against the images; arguments as of `with_images`.

    Raises:
        UsageError: the dump identifies its images by name.
        BadLabels: the labels agree no more often than by chance.
    """
    if source.about.names is not None:
        raise UsageError(
            f"{source.path}: identifies its images by name, so a folder of images cannot verify their order; leave --images out"
        )
    image_class = image_classes(images, class_map, source.classes)
    (sample,) = sample_agreement(source, range(len(source)), image_class, [lambda batch: batch])
    evidence = sample.evidence("the order that the dump records")
    if evidence.z < MIN_Z:
        raise BadLabels(
            f"{source.path}: its labels do not belong to {images} ({evidence.summary}): these are other images, or the classes are in "
            "another order (pass --class-map)"
        )
    return evidence


def image_classes(folder: Path, class_map: str | PathLike[str] | None, classes: int) -> Indices:
    """[N] the teacher's class of every image, in ImageFolder's order.

    Raises:
        UsageError: there are no class folders, or images of fewer than two classes; see `teacher_classes`.
    """
    folders = class_folders(folder)
    if not folders:
        raise UsageError(f"{folder}: contains no folders; pass the images that were labelled, in one folder per class")
    index = {name: i for i, name in enumerate(folders)}
    folder_of_image = [index[image.folder] for image in list_images(folder) if image.folder]
    image_class = teacher_classes(folder, folders, class_map, classes)[np.array(folder_of_image, np.int64)]
    if len(np.unique(image_class)) < 2:
        raise UsageError(
            f"{folder}: its {len(image_class)} images are of one class at most, so labels cannot tell their order; leave --images out"
        )
    return image_class


def _batch_size(source: LabelSource, images: int, folder: Path) -> int:
    """The number of labels of a full batch, which is that of the first batch.

    Raises:
        UsageError: the last batch ends before or after the last image. RandomSampler's loader may drop an incomplete
            last batch, so fewer images than a batch may be left over.
    """
    size = len(source.read(0))
    last = max(range(len(source)), key=lambda index: source.places[index].batch)
    labels = source.places[last].batch * size + len(source.read(last))
    if labels != images and not (labels % size == 0 and labels < images < labels + size):
        raise UsageError(
            f"{folder}: has {images} images, but {source.path} has {labels} labels per epoch: pass the images that were labelled"
        )
    return size
