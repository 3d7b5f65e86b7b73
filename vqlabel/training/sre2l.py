"""A `.vql` in SRe2L's training script: a drop-in replacement for the script's dataset class.

    from vqlabel.training.sre2l import ImageFolder_FKD_MIX      # below the script's own import of relabel.utils_fkd

SRe2L's own reader needs a patched PyTorch, repeats a shuffle, and identifies a stored batch by its first image. This
one identifies a batch of the epoch by all of its images in order, refuses any other, and works with PyTorch since 2.6,
patched or not.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate
from torch.utils.data._utils.collate import default_collate_fn_map

from vqlabel.dtypes import torch_type
from vqlabel.errors import UsageError
from vqlabel.labels.image_set import image_names
from vqlabel.labels.images import class_folders, list_images
from vqlabel.training.dataset import VqlDataset
from vqlabel.training.image_checks import require_labelled_images
from vqlabel.training.samplers import stored_epochs
from vqlabel.views.image_folder import pillow
from vqlabel.vql.decode import narrow

if TYPE_CHECKING:
    from PIL.Image import Image

REQUIRED_COLUMNS = ("image", "crop", "flip")
UNSUPPORTED_COLUMNS = ("partner_image", "cutout", "patches", "ops", "seed")  # augmentation that the script cannot replay


class WrongSetting(UsageError, ValueError):
    """A setting of the script that the file does not support. Also a ValueError, as SRe2L's reader raises for these."""


@dataclass(frozen=True, slots=True)
class WholeBatch:
    """A complete batch, which DataLoader's default collate passes through unchanged."""

    batch: Any


default_collate_fn_map[WholeBatch] = lambda batches, *, collate_fn_map=None: batches[0].batch


class ImageFolder_FKD_MIX(Dataset[Any]):
    """SRe2L's dataset of images with stored crops and flips. Its DataLoader yields

        (images, targets, flips, coords), mix_index [b], mix_lam, mix_bbox, logits [b, C] in the dump's type

    Args:
        fkd_path: the `.vql`.
        mode: "fkd_load".
        args_epoch: number of epochs of the script; at most the number of stored epochs.
        args_bs: batch size of the script; must equal the stored one.
        root: folder with one subfolder of images per class, as for torchvision's ImageFolder.
        transform: SRe2L's: called with an image, its coords [4] float32 and its flip, bool; returns the view, the flip
            and the coords.
        target_transform: as ImageFolder's.
        loader: as ImageFolder's.

    Attributes:
        classes: as ImageFolder's.
        class_to_idx: as ImageFolder's.
        samples: as ImageFolder's.
        targets: as ImageFolder's.
        max_epoch: number of stored epochs.

    Raises:
        WrongSetting: the file does not support this mode, batch size, number of epochs or --mix-type; the last is
            checked only if the script's `args` are visible in a calling frame.
        UsageError: the labels are probabilities, or belong to views that the script cannot render.
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
            raise WrongSetting(f"mode is {mode!r}; it must be fkd_load: use `vqlabel relabel` to make new labels")
        # not "fkd_load": SRe2L's patched fetch.py calls `load_batch_config` of datasets in that mode
        self.fkd_path, self.mode, self.root = fkd_path, "vql", root
        self.transform, self.target_transform, self.loader = transform, target_transform, loader or load_rgb
        self.classes, self.samples = samples_of(root)
        self.class_to_idx = {name: number for number, name in enumerate(self.classes)}
        self.targets = [target for _, target in self.samples]
        self.labels = VqlDataset(fkd_path)
        self._check_labels()
        files = [file for file, _ in self.samples]
        require_labelled_images(self.labels.file, root, image_names(files, root), files)
        self._epochs = stored_epochs(self.labels.file.columns)
        self.max_epoch = len(self._epochs)
        self._check_settings(args_epoch, args_bs)
        self._check_mixing()
        self._epoch = torch.zeros((), dtype=torch.int64, device="cpu").share_memory_()  # shared with persistent workers
        self._batch_index: tuple[int, dict[bytes, int]] = -1, {}  # epoch; bytes of image indices -> number of the batch

    def _check_labels(self) -> None:
        columns, domain = self.labels.file.columns, self.labels.domain
        if domain != "logits":
            raise UsageError(
                f"{self.fkd_path}: its labels are {domain}; the script divides labels by a temperature, so it needs logits"
            )
        if not columns.has("image"):
            raise UsageError(
                f"{self.fkd_path}: does not record the image of each label; pack the dump again with --images, the folder of labelled images"
            )
        obstacles = [f"no {name}" for name in REQUIRED_COLUMNS if not columns.has(name)]
        obstacles += [name for name in UNSUPPORTED_COLUMNS if columns.has(name)]
        if columns.has("names") and not obstacles:
            obstacles = ["names instead of indices of images"]
        if obstacles:
            raise UsageError(
                f"{self.fkd_path}: its records have {', '.join(obstacles)}, so SRe2L's script cannot render their views; "
                "use vqlabel.VqlViews"
            )

    def _check_settings(self, epochs: int | None, size: int | None) -> None:
        stored = int(self.labels.file.columns.starts[1])
        if epochs is not None and epochs > self.max_epoch:
            raise WrongSetting(f"--epochs is {epochs}; {self.fkd_path} has {self.max_epoch} epochs: pass at most {self.max_epoch}")
        if size is not None and size != stored:
            raise WrongSetting(
                f"--batch-size is {size}; the batches of {self.fkd_path} have {stored} labels: pass {stored}, and "
                "--gradient-accumulation-steps for smaller batches"
            )

    def _check_mixing(self) -> None:
        """Refuse a --mix-type that differs from that of the labels' views.

        The script does not pass --mix-type to its dataset, so `args` is looked up in the calling frames.
        """
        columns, frame = self.labels.file.columns, inspect.currentframe()
        mixed = "cutmix" if columns.has("mix_box") else "mixup" if columns.has("mix_lam") else None
        while frame is not None:
            args: Any = frame.f_locals.get("args", frame.f_globals.get("args"))
            if hasattr(args, "mix_type") and hasattr(args, "fkd_path"):
                if args.mix_type != mixed:
                    how = "without it" if mixed is None else f"with --mix-type {mixed}"
                    raise WrongSetting(
                        f"--mix-type is {args.mix_type}; the labels of {self.fkd_path} belong to views made {how}: pass the same"
                    )
                return
            frame = frame.f_back

    @property
    def epoch(self) -> int:
        """Index of the current epoch among the stored ones."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the current epoch.

        Args:
            epoch: index among the stored epochs, 0..max_epoch-1.

        Raises:
            WrongSetting: the file does not have this epoch.
        """
        if not 0 <= epoch < self.max_epoch:
            raise WrongSetting(f"epoch {epoch} is out of range; {self.fkd_path} has epochs 0:{self.max_epoch}")
        self._epoch.fill_(epoch)

    @property
    def sampler(self) -> "StoredOrder":
        """For DataLoader(sampler=): image indices of the current epoch in stored order, not the script's shuffle."""
        return StoredOrder(self)

    def order(self) -> list[NDArray[np.int64]]:
        """The image indices [n] of every batch of the current epoch.

        Raises:
            UsageError: `root` has fewer images than the labels refer to.
        """
        columns = self.labels.file.columns
        images = list[NDArray[np.int64]]()
        for number in self._epochs[self.epoch].tolist():
            image = columns.image(np.arange(columns.starts[number], columns.starts[number + 1]))
            assert image is not None  # `_check_labels` refuses such files
            if image.max(initial=0) >= len(self.samples):
                raise UsageError(
                    f"{self.root}: has {len(self.samples)} images, but the labels belong to {image.max() + 1} or more: pass the images that "
                    "were labelled"
                )
            images.append(image)
        return images

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: list[int]) -> list[WholeBatch]:
        """The stored batch of these images, as the script's DataLoader yields it."""
        number = self._batch_of(indices)
        batch, first = self.labels.batch_at(number), int(self.labels.file.columns.starts[number])
        assert batch.crop is not None and batch.flip is not None
        samples = [self._sample(*arguments) for arguments in zip(indices, batch.crop, batch.flip, strict=True)]
        labels = narrow(batch.labels, torch_type(self.labels.file.label["dtype"]), self.labels.file, first)
        box = None if batch.mix_box is None else list(batch.mix_box)
        return [WholeBatch([default_collate(samples), batch.mix_index, batch.mix_lam, box, labels])]

    def _sample(self, index: int, crop: Tensor, flip: Tensor) -> tuple[Any, Any, Any, Any]:
        path, target = self.samples[index]
        image, flipped, coords = self.loader(path), flip, crop
        if self.transform is not None:
            image, flipped, coords = self.transform(image, crop, flip)
        return image, target if self.target_transform is None else self.target_transform(target), flipped, coords

    def _batch_of(self, indices: list[int]) -> int:
        """Number of the current epoch's batch of exactly these images in this order."""
        epoch = self.epoch
        if self._batch_index[0] != epoch:
            numbers = self._epochs[epoch].tolist()
            self._batch_index = epoch, {image.tobytes(): number for image, number in zip(self.order(), numbers, strict=True)}
        number = self._batch_index[1].get(np.asarray(indices, np.int64).tobytes())
        if number is None:
            raise UsageError(
                f"{self.fkd_path}: stored epoch {epoch} has no batch of the images {str(indices[:4])[:-1]}, ...]: the script's shuffle "
                "differs from that of the labels, or the labels were pruned; pass sampler=train_dataset.sampler to the DataLoader"
            )
        return number


class StoredOrder(Sampler[int]):
    """A sampler that yields the image indices of the dataset's current epoch, in the order of its labels."""

    def __init__(self, dataset: ImageFolder_FKD_MIX) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return sum(map(len, self._dataset.order()))

    def __iter__(self) -> Iterator[int]:
        return iter(np.concatenate(self._dataset.order()).tolist())


def samples_of(root: str | PathLike[str]) -> tuple[list[str], list[tuple[str, int]]]:
    """The classes, and (file, class index) of every image, as torchvision's ImageFolder lists them.

    Raises:
        UsageError: no class folder contains an image.
    """
    classes = class_folders(root)
    class_index = {name: number for number, name in enumerate(classes)}
    samples = [(str(image.path), class_index[image.folder]) for image in list_images(root) if image.folder]
    if not samples:
        raise UsageError(
            f"{root}: no class folder contains an image; name the folder of the labelled images, with one subfolder per class"
        )
    return classes, samples


def load_rgb(file: str) -> "Image":
    """ImageFolder's default loader: the image in RGB."""
    with pillow().open(file) as image:
        rgb: Image = image.convert("RGB")
    return rgb
