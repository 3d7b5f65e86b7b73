"""What a record says besides its label -> the latent that its label is likely to have, before a code is read."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vqlabel.codecs.vqae.config import CONTEXT_FIELDS, PriorConfig
from vqlabel.config import MAX_VIEW
from vqlabel.errors import UsageError
from vqlabel.labels import Context

ARRAYS = ("image", "partner", *CONTEXT_FIELDS)  # all that a context has
# Numbers that a field of the context becomes.
WIDTHS = {"mix": 2, "crop": 5, "flip": 1, "partner_crop": 5, "partner_flip": 1, "box": 4}


class PriorInputs(NamedTuple):
    """A context as the prior takes it."""

    image: Tensor  # [n] int64
    partner: Tensor  # [n] int64; the image itself where nothing is mixed in
    share: Tensor  # [n, 1] float32, lambda: the first image's; 1 where nothing is mixed in
    features: Tensor  # [n, F] float32, of about unit size

    def rows(self, at: Tensor | slice) -> Self:
        """Those of the records `at`."""
        return type(self)(*(part[at] for part in self))


class Prior(nn.Module):
    """One vector per image; theirs and their lambda-mix, with crops, flips and box, through one hidden layer.

        latent = W mix + outside(gelu(inside(mix, image, partner, features)))

    What the mix says is linear in the vectors, so that an image seen rarely is still predicted by its mean label.
    """

    def __init__(self, config: PriorConfig, latent: int) -> None:
        super().__init__()
        self.mixing = "mix" in config.fields
        width = config.image_width
        self.images = nn.Parameter(0.1 * torch.randn(config.images, width))
        self.mixed = nn.Linear(width, latent, bias=False)
        self.inside = nn.Linear((3 if self.mixing else 1) * width + sum(WIDTHS[f] for f in config.fields), config.hidden)
        self.outside = nn.Linear(config.hidden, latent)

    def forward(self, known: PriorInputs) -> Tensor:
        """[n, d_h]."""
        own = F.embedding(known.image, self.images)
        if not self.mixing:
            return self._latent(own, own, known.features)
        partner = F.embedding(known.partner, self.images)
        mix = torch.lerp(partner, own, known.share)
        return self._latent(mix, mix, own, partner, known.features)

    def _latent(self, mix: Tensor, *parts: Tensor) -> Tensor:
        latent: Tensor = self.mixed(mix) + self.outside(F.gelu(self.inside(torch.cat(parts, 1))))
        return latent


def describe_context(context: Context) -> tuple[tuple[str, ...], int, int]:
    """What a dump's contexts have: fields, number of images, pixels along a view (1 where there is no box)."""
    has = tuple(name for name in CONTEXT_FIELDS if getattr(context, name) is not None)
    if context.partner is None:  # lambda alone says nothing
        has = tuple(name for name in has if name in ("crop", "flip"))
    images = 0
    if context.image is not None and len(context.image):
        images = 1 + max(int(context.image.max()), 0 if context.partner is None else int(context.partner.max()))
    view = int(context.box.max(initial=1)) if "box" in has and context.box is not None else 1
    return has, images, max(1, min(MAX_VIEW, view))


def read_prior_inputs(config: PriorConfig, context: Context | None, device: torch.device) -> PriorInputs:
    """The prior's inputs on `device`.

    Raises:
        UsageError: the records lack a field that the prior was fitted with, name an image that it never saw, or hold NaN or Inf.
    """
    if torch.compiler.is_compiling() and context is not None:
        arrays = [getattr(context, name) for name in ARRAYS]
        tensors = [None if array is None else torch.from_numpy(array) for array in arrays]
        parts = _read_in_graph(" ".join(config.fields), config.images, config.view, tensors)
    else:
        parts = [torch.from_numpy(np.ascontiguousarray(part)) for part in _read(config.fields, config.images, config.view, context)]
    return PriorInputs(*(part.to(device) for part in parts))


@torch.library.custom_op("vqlabel::read_prior_inputs", mutates_args=())
def _read_in_graph(fields: str, images: int, view: int, arrays: list[Tensor | None]) -> list[Tensor]:
    """`_read` as one node of a compiled graph: it looks at values, which no tracing can."""
    context = Context(**{name: None if x is None else x.numpy() for name, x in zip(ARRAYS, arrays, strict=True)})
    return [
        torch.tensor(part, device="cpu") for part in _read(fields.split(), images, view, context)
    ]  # copies, for no output may be an input


@_read_in_graph.register_fake
def _shapes_in_graph(fields: str, images: int, view: int, arrays: list[Tensor | None]) -> list[Tensor]:
    n = next(len(x) for x in arrays if x is not None)
    whole = torch.empty(n, dtype=torch.int64, device="cpu")
    share = torch.empty(n, 1, dtype=torch.float32, device="cpu")
    return [whole, whole.clone(), share, share.new_empty(n, sum(WIDTHS[name] for name in fields.split()))]


def _read(fields: Sequence[str], images: int, view: int, context: Context | None) -> tuple[NDArray[np.generic], ...]:
    """The arrays of `PriorInputs`, for a prior of so many images."""
    if context is None:
        raise UsageError("the codec's prior needs the records' context, and got none; pass it, such as dataset.context(index)")
    lacking = ["image"] if context.image is None else [n for n in fields if getattr(context, n) is None]
    if lacking or context.image is None:
        raise UsageError(
            f"the codec's prior needs {', '.join(lacking)} of every record, and these have none; fit on this dump, or with --no-prior"
        )
    partner = context.image if context.partner is None or "mix" not in fields else context.partner
    most = max(int(context.image.max(initial=-1)), int(partner.max(initial=-1)))
    if most >= images:
        raise UsageError(f"image {most} is unknown to the codec's prior, which has {images}; fit on this dump, or with --no-prior")
    parts = [_features(view, name, np.asarray(getattr(context, name))) for name in fields]
    features = np.concatenate(parts, 1) if parts else np.empty((len(partner), 0), np.float32)
    share = np.ones(len(partner), np.float32) if context.mix is None or "mix" not in fields else context.mix
    if not np.isfinite(features).all():
        raise UsageError("a lambda or a crop of these records is NaN or Inf; mend or drop these records")
    return context.image, partner, share[:, None], features


def _features(view: int, name: str, value: NDArray[np.generic]) -> NDArray[np.float32]:
    """[n, WIDTHS[name]] numbers of about unit size."""
    x = value.astype(np.float32)
    if name.endswith("flip"):
        return x[:, None] - 0.5
    if name == "mix":
        return np.stack([x, x * (1 - x)], 1)
    if name == "box":
        return np.asarray(np.clip(x / view, 0, 2) - 0.5, np.float32)
    with np.errstate(over="ignore"):  # of a forged crop; what it becomes is clipped
        area = np.clip(x[:, 2:3] * x[:, 3:4], 1e-4, 4)
    return np.concatenate([np.clip(x, -2, 2) - 0.5, 0.5 * np.log(area) + 0.5], 1)
