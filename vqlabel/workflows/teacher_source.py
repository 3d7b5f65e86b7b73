"""Images, a recipe and a teacher -> a dump whose labels are computed when they are read."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqlabel.dtypes import numpy_type
from vqlabel.errors import BadLabels, UsageError, VqlabelError, require
from vqlabel.labels import About, LabelBatch, LabelSource
from vqlabel.labels.checks import check_domain
from vqlabel.labels.layouts.tree import DRAWS, SEED, Shuffle
from vqlabel.views.image_folder import ImageFolder
from vqlabel.views.image_list import ImageList
from vqlabel.views.recipe import DrawnColumns, Recipe, ReorderedColumns
from vqlabel.views.render_pil import render
from vqlabel.vql.seeded import digest
from vqlabel.workflows.teachers import Teacher, TeacherFailed
from vqlabel.workflows.user_code import sha256_of

DTYPES = ("F16", "F32")  # of the labels


class TeacherSource(LabelSource):
    """A dump whose labels a teacher computes when they are read.

    Args:
        pictures: the images that the recipe draws from.
        dtype: of the labels: "F16" or "F32".
        device: where the teacher runs.
        image_digest: what identifies the images when a student is trained: their "names", or also their "bytes".

    Attributes:
        drawn: places and augmentation of all records.

    Raises:
        UsageError: the teacher returns no logits for views of this size.
    """

    def __init__(
        self,
        pictures: ImageFolder | ImageList,
        teacher: Teacher,
        recipe: Recipe,
        *,
        dtype: str = "F16",
        device: str = "cpu",
        image_digest: str = "names",
    ) -> None:
        require(dtype in DTYPES, "dtype", dtype.lower(), "must be f16 or f32")
        self.path = pictures.folder
        sizes = pictures.sizes()
        images = pictures.image_set(image_digest)
        self.drawn = DrawnColumns(recipe, sizes[:1] if (sizes == sizes[0]).all() else sizes, images)
        self.places = self.drawn.places
        self.teacher, self._pictures, self._device = teacher.to(device), pictures, device
        try:
            classes = self.teacher(torch.zeros(1, 3, recipe.view, recipe.view, device=device)).shape[1]
        except TeacherFailed as error:
            raise UsageError(f"{error}; it must accept any number of views of the size --view") from error
        self.about = About(
            layout="relabel", classes=classes, domain="logits", dtype=dtype, order="explicit", images=images, view=recipe.view
        )

    def shuffle_as_sre2l(self) -> None:
        """Order the images as SRe2L's script, with PyTorch 1.11 or later, reads the labels; views stay the recipe's."""
        shuffle = Shuffle(self.drawn.recipe.images, self.drawn.recipe.epochs)
        self.drawn = ReorderedColumns(self.drawn, shuffle.order_of, f"SRe2L's script (seed {SEED}, {DRAWS} permutations an epoch)")

    @cached_property
    def made_by(self) -> dict[str, str]:
        """The teacher that a file records: its name, and the sha256 of its weights, mean and deviation."""
        return {"teacher": self.teacher.name, "teacher_sha256": sha256_of(self.teacher.state_dict())}

    def key(self) -> dict[str, Any]:
        """All that the labels depend on; the journal of an interrupted run is continued only if it has the same key."""
        views = {
            "recipe": self.drawn.recipe.to_dict(),
            "digest": digest(self.drawn),
            "images": f"{len(self._pictures)} with the digest {self._pictures.digest()}",
        }
        return {**self.made_by, "scale": self.teacher.scale, "bgr": self.teacher.bgr, **views, "dtype": self.dtype}

    def read_from(self, first: int) -> Iterator[tuple[LabelBatch, torch.Tensor]]:
        """Yield the batches from index `first` on, each with its views [n, 3, view, view].

        The next views are rendered while the teacher runs.
        """
        with ThreadPoolExecutor(1) as pool:
            ahead: Future[torch.Tensor] | None = pool.submit(self._views, first) if first < len(self) else None
            for index in range(first, len(self)):
                assert ahead is not None
                views = ahead.result()
                ahead = pool.submit(self._views, index + 1) if index + 1 < len(self) else None
                yield self._labelled(index, views), views

    def _load(self, index: int) -> tuple[LabelBatch, str]:
        return self._labelled(index, self._views(index)), f"the teacher's labels of batch {index}"

    def _views(self, index: int) -> torch.Tensor:
        """[n, 3, view, view] float32 in 0..1; contiguous, since some networks flatten it with `Tensor.view`."""
        drawn = self.drawn.batch(index, np.empty((0, 0), np.float32))
        views = torch.from_numpy(render(self._pictures, drawn, self.drawn.recipe.view)).permute(0, 3, 1, 2).contiguous()
        return views / 255 if views.dtype == torch.uint8 else views

    def _labelled(self, index: int, views: torch.Tensor) -> LabelBatch:
        """The batch at `places[index]` with the teacher's labels of its views."""
        try:
            logits = self.teacher(views.to(self._device)).cpu().numpy()
        except TeacherFailed as error:
            raise UsageError(f"{error}, though it accepted one such view of zeros: it must accept any number of views") from error
        with np.errstate(over="ignore"):
            labels = logits.astype(numpy_type(self.dtype))
        self._check_logits(logits, labels, f"teacher {self.teacher.name}, batch {index}")
        return self.drawn.batch(index, labels)

    def _check_logits(self, logits: NDArray[np.floating], labels: NDArray[np.floating], name: str) -> None:
        """Check logits [n, C] of the teacher, and the same as labels of `dtype`.

        Raises:
            VqlabelError: a logit is -inf or NaN, or overflows `dtype`.
            UsageError: these are probabilities.
        """
        masked = np.isneginf(logits)
        if masked.any() and np.isfinite(logits[~masked]).all():
            row, column = (int(i) for i in np.argwhere(masked)[0])
            raise VqlabelError(
                f"{name}, view {row}: the logit of class {column} is -inf; let the network return -10000 for a masked class: its probability "
                "is 0, too"
            )
        if not np.isfinite(labels).all():
            raise VqlabelError(
                f"{name}: returns NaN, or a logit outside the range of {self.dtype.lower()}; check --mean and --std, or try --dtype f32"
            )
        try:
            check_domain(labels, "logits", name)
        except BadLabels:
            raise UsageError(
                f"{name}: returns probabilities; labels must be logits, before softmax: pass a network without softmax"
            ) from None
