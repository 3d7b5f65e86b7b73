"""A `.vql` in SRe2L's training script: the dataset class that the script imports, for its whole batches.

    from vqlabel.training.sre2l import ImageFolder_FKD_MIX      # below the script's own import of relabel.utils_fkd

SRe2L's own reader takes a batch for the one that begins with the same image in a shuffle it repeats, inside a PyTorch that was edited by
hand. This one takes the batch of the epoch whose images are all the same in the same order, or refuses, in any PyTorch since 2.6, edited or not.
"""

import inspect
from collections.abc import Callable, Iterator
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from vqlabel.dtypes import torch_type
from vqlabel.errors import UsageError
from vqlabel.labels.image_set import image_names
from vqlabel.labels.images import class_folders, list_images
from vqlabel.training.dataset import VqlDataset
from vqlabel.training.views import Whole, held_against, stored_epochs
from vqlabel.views.image_folder import pillow
from vqlabel.vql.decode import narrow

if TYPE_CHECKING:
    from PIL.Image import Image

NEEDED = ("image", "crop", "flip")
UNKNOWN = ("partner_image", "cutout", "patches", "ops", "seed")  # columns that the script cannot replay


class WrongSetting(UsageError, ValueError):
    """A setting of the script that the file does not allow; SRe2L's reader raises ValueError for these."""


class ImageFolder_FKD_MIX(Dataset[Any]):
    """SRe2L's dataset of images with stored crops and flips, whose DataLoader yields

        (images, targets, flips, coords), mix_index [b], mix_lam, mix_bbox, logits [b, C] in the dump's type

    Args:
        fkd_path: the `.vql`.
        mode: "fkd_load".
        args_epoch: of the script; at most as many as are stored.
        args_bs: the script's batch size; the stored one.
        root: ImageFolder's: one folder of images a class.
        transform: SRe2L's, called with an image, its coords [4] float32 and its flip, bool; gives the view, the flip and the coords.
        target_transform, loader: as ImageFolder has them.

    Attributes:
        classes, class_to_idx, samples, targets: as ImageFolder has them.
        max_epoch: how many epochs are stored.

    Raises:
        WrongSetting: another mode, batch size, number of epochs or, as far as the script's `args` can be seen, --mix-type than the file allows.
        UsageError: the labels are probabilities, or of views that the script cannot make.
    """

    def __init__(
        self,
        fkd_path: str | PathLike[str],
        mode: str,
        args_epoch: int | None = None,
        args_bs: int | None = None,
        *,
        root: str | PathLike[str],
        transform: Callable[[Any, Tensor, Tensor], tuple[Any, Any, Any]] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        loader: "Callable[[str], Any] | None" = None,
    ) -> None:
        if mode != "fkd_load":
            raise WrongSetting(f"mode is {mode!r}; only fkd_load is known here: new labels are made by `vqlabel relabel`")
        # another mode than "fkd_load": a fetch.py that was edited as SRe2L asks takes labels from such a dataset by itself
        self.fkd_path, self.mode, self.root = fkd_path, "vql", root
        self.transform, self.target_transform, self.loader = transform, target_transform, loader or load_rgb
        self.classes, self.samples = samples_of(root)
        self.class_to_idx = {name: at for at, name in enumerate(self.classes)}
        self.targets = [target for _, target in self.samples]
        self.labels = VqlDataset(fkd_path)
        self._refuse_other_labels()
        files = [file for file, _ in self.samples]
        held_against(self.labels.file, root, image_names(files, root), files)
        self._epochs = stored_epochs(self.labels.file.columns)
        self.max_epoch = len(self._epochs)
        self._refuse_other_settings(args_epoch, args_bs)
        self._refuse_other_mixing()
        self._epoch = torch.zeros((), dtype=torch.int64, device="cpu").share_memory_()  # so that persistent workers see it change
        self._found: tuple[int, dict[bytes, int]] = -1, {}

    def _refuse_other_labels(self) -> None:
        columns, domain = self.labels.file.columns, self.labels.domain
        if domain != "logits":
            raise UsageError(f"{self.fkd_path}: holds {domain}; the script divides logits by its temperature, so it needs logits")
        if not columns.has("image"):
            raise UsageError(
                f"{self.fkd_path}: does not say which image a label is of; pack the dump again with --images, the folder that was labelled"
            )
        odd = [f"no {name}" for name in NEEDED if not columns.has(name)] + [name for name in UNKNOWN if columns.has(name)]
        if odd or columns.has("names"):
            what = ", ".join(odd) or "names instead of numbers of images"
            raise UsageError(
                f"{self.fkd_path}: its records have {what}, so SRe2L's script cannot make their views; use vqlabel.training.views.VqlViews"
            )

    def _refuse_other_settings(self, epochs: int | None, size: int | None) -> None:
        stored = int(self.labels.file.columns.starts[1])
        if epochs is not None and epochs > self.max_epoch:
            raise WrongSetting(f"--epochs is {epochs}; {self.fkd_path} has {self.max_epoch} epochs: train for no more")
        if size is not None and size != stored:
            raise WrongSetting(
                f"--batch-size is {size}; the batches of {self.fkd_path} have {stored} labels: pass {stored}, and "
                "--gradient-accumulation-steps for smaller steps"
            )

    def _refuse_other_mixing(self) -> None:
        """A script tells its dataset all of its settings but --mix-type, and mixes by it what the labels are not of; so its `args` are looked
        for where the dataset is made."""
        columns, frame = self.labels.file.columns, inspect.currentframe()
        mixed = "cutmix" if columns.has("mix_box") else "mixup" if columns.has("mix_lam") else None
        while frame is not None:
            args: Any = frame.f_locals.get("args", frame.f_globals.get("args"))
            if hasattr(args, "mix_type") and hasattr(args, "fkd_path"):
                if args.mix_type != mixed:
                    how = "without it" if mixed is None else f"with --mix-type {mixed}"
                    raise WrongSetting(
                        f"--mix-type is {args.mix_type}; the labels of {self.fkd_path} are of views made {how}: pass the same"
                    )
                return
            frame = frame.f_back

    @property
    def epoch(self) -> int:
        """The stored epoch that is served."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Serve this epoch, counted among the stored ones."""
        if not 0 <= epoch < self.max_epoch:
            raise WrongSetting(f"epoch {epoch} leaves 0..{self.max_epoch - 1}, the epochs of {self.fkd_path}")
        self._epoch.fill_(epoch)

    @property
    def sampler(self) -> "StoredOrder":
        """For DataLoader(sampler=): the images of the epoch as the labels were made of them, whatever shuffle that was."""
        return StoredOrder(self)

    def order(self) -> list[NDArray[np.int64]]:
        """The images of every batch of the epoch."""
        columns = self.labels.file.columns
        found = list[NDArray[np.int64]]()
        for at in self._epochs[self.epoch].tolist():
            image = columns.image(np.arange(columns.starts[at], columns.starts[at + 1]))
            assert image is not None  # `_refuse_other_labels` saw to it
            if image.max(initial=0) >= len(self.samples):
                raise UsageError(
                    f"{self.root}: {len(self.samples)} images; the labels are of {image.max() + 1} or more: name the images they were made of"
                )
            found.append(image)
        return found

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: list[int]) -> list[Whole]:
        """The stored batch of these images, ready."""
        at = self._batch_of(indices)
        batch, first = self.labels._batch(at), int(self.labels.file.columns.starts[at])
        assert batch.crop is not None and batch.flip is not None
        samples = [self._sample(*each) for each in zip(indices, batch.crop, batch.flip, strict=True)]
        labels = narrow(batch.labels, torch_type(self.labels.file.label["dtype"]), self.labels.file, first)
        box = None if batch.mix_box is None else list(batch.mix_box)
        return [Whole([default_collate(samples), batch.mix_index, batch.mix_lam, box, labels])]

    def _sample(self, index: int, crop: Tensor, flip: Tensor) -> tuple[Any, Any, Any, Any]:
        path, target = self.samples[index]
        image, flipped, coords = self.loader(path), flip, crop
        if self.transform is not None:
            image, flipped, coords = self.transform(image, crop, flip)
        return image, target if self.target_transform is None else self.target_transform(target), flipped, coords

    def _batch_of(self, indices: list[int]) -> int:
        """Number of the epoch's batch of these images, all of them and in this order."""
        epoch = self.epoch
        if self._found[0] != epoch:
            self._found = epoch, {image.tobytes(): at for image, at in zip(self.order(), self._epochs[epoch].tolist(), strict=True)}
        at = self._found[1].get(np.asarray(indices, np.int64).tobytes())
        if at is None:
            raise UsageError(
                f"{self.fkd_path}: stored epoch {epoch} has no batch of the images {str(indices[:4])[:-1]}, ...]: the script shuffles "
                "otherwise than the labels were made, or they were pruned; give its DataLoader sampler=train_dataset.sampler"
            )
        return at


class StoredOrder(Sampler[int]):
    """The images of a dataset's current epoch, in the order of its labels."""

    def __init__(self, dataset: ImageFolder_FKD_MIX) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return sum(map(len, self._dataset.order()))

    def __iter__(self) -> Iterator[int]:
        return iter(np.concatenate(self._dataset.order()).tolist())


def samples_of(root: str | PathLike[str]) -> tuple[list[str], list[tuple[str, int]]]:
    """Classes, and (file, class) of every image, as ImageFolder has them.

    Raises:
        UsageError: there is none.
    """
    classes = class_folders(root)
    number = {name: at for at, name in enumerate(classes)}
    samples = [(str(image.path), number[image.folder]) for image in list_images(root) if image.folder]
    if not samples:
        raise UsageError(f"{root}: no folders with images in it; name the images that were labelled, in one folder a class")
    return classes, samples


def load_rgb(file: str) -> "Image":
    """ImageFolder's loader."""
    with pillow().open(file) as image:
        found: Image = image.convert("RGB")
    return found
