"""Side information of a record -> the latent that its label is predicted to have, before any code."""

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

ARRAYS = ("image", "partner", *CONTEXT_FIELDS)  # fields of a `Context`
# Features per field of the context.
WIDTHS = {"mix": 2, "crop": 5, "flip": 1, "partner_crop": 5, "partner_flip": 1, "box": 4}


class PriorInputs(NamedTuple):
    """Inputs of the prior for n records."""

    image: Tensor  # [n] int64
    partner: Tensor  # [n] int64; equal to `image` without mixing
    share: Tensor  # [n, 1] float32, lambda: the share of `image`; 1 without mixing
    features: Tensor  # [n, F] float32, of magnitude about 1

    def rows(self, index: Tensor | slice) -> Self:
        """The inputs of the records `index`."""
        return type(self)(*(values[index] for values in self))


class Prior(nn.Module):
    """A learned vector per image; the vectors, their lambda-mix, crops, flips and box go through one hidden layer.

        latent = W mix + outside(gelu(inside(mix, image, partner, features)))

    The first term is linear in the image vectors, so that labels of an image with few training labels are predicted by
    their mean.
    """

    def __init__(self, config: PriorConfig, latent: int) -> None:
        super().__init__()
        self.mixing = "mix" in config.fields
        width = config.image_width
        self.images = nn.Parameter(0.1 * torch.randn(config.images, width))
        self.mixed = nn.Linear(width, latent, bias=False)
        self.inside = nn.Linear((3 if self.mixing else 1) * width + sum(WIDTHS[f] for f in config.fields), config.hidden)
        self.outside = nn.Linear(config.hidden, latent)

    def forward(self, inputs: PriorInputs) -> Tensor:
        """[n, d_h] predicted latents."""
        image = F.embedding(inputs.image, self.images)
        if not self.mixing:
            return self._latent(image, image, inputs.features)
        partner = F.embedding(inputs.partner, self.images)
        mix = torch.lerp(partner, image, inputs.share)
        return self._latent(mix, mix, image, partner, inputs.features)

    def _latent(self, mix: Tensor, *hidden_inputs: Tensor) -> Tensor:
        latent: Tensor = self.mixed(mix) + self.outside(F.gelu(self.inside(torch.cat(hidden_inputs, 1))))
        return latent


def describe_context(context: Context) -> tuple[tuple[str, ...], int, int]:
    """Properties of a dump's contexts: fields, number of images (0: unknown), pixels along a view (1 without boxes)."""
    fields = tuple(name for name in CONTEXT_FIELDS if getattr(context, name) is not None)
    if context.partner is None:  # without the partner, lambda and box predict nothing
        fields = tuple(name for name in fields if name in ("crop", "flip"))
    images = 0
    if context.image is not None and len(context.image):
        images = 1 + max(int(context.image.max()), 0 if context.partner is None else int(context.partner.max()))
    view = int(context.box.max(initial=1)) if "box" in fields and context.box is not None else 1
    return fields, images, max(1, min(MAX_VIEW, view))


def read_prior_inputs(config: PriorConfig, context: Context | None, device: torch.device) -> PriorInputs:
    """The prior's inputs on `device`.

    Raises:
        UsageError: the records lack a field that the prior was fitted with, have an unknown image index, or hold NaN or
            Inf.
    """
    if torch.compiler.is_compiling() and context is not None:
        arrays = [getattr(context, name) for name in ARRAYS]
        tensors = [None if array is None else torch.from_numpy(array) for array in arrays]
        values = _read_in_graph(" ".join(config.fields), config.images, config.view, tensors)
    else:
        arrays_read = _read(config.fields, config.images, config.view, context)
        values = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays_read]
    return PriorInputs(*(tensor.to(device) for tensor in values))


@torch.library.custom_op("vqlabel::read_prior_inputs", mutates_args=())
def _read_in_graph(fields: str, images: int, view: int, arrays: list[Tensor | None]) -> list[Tensor]:
    """`_read` as one node of a compiled graph, because tracing cannot branch on values."""
    context = Context(**{name: None if x is None else x.numpy() for name, x in zip(ARRAYS, arrays, strict=True)})
    inputs = _read(fields.split(), images, view, context)
    return [torch.tensor(array, device="cpu") for array in inputs]  # copies: an output must not alias an input


@_read_in_graph.register_fake
def _shapes_in_graph(fields: str, images: int, view: int, arrays: list[Tensor | None]) -> list[Tensor]:
    n = next(len(x) for x in arrays if x is not None)
    index = torch.empty(n, dtype=torch.int64, device="cpu")
    share = torch.empty(n, 1, dtype=torch.float32, device="cpu")
    return [index, index.clone(), share, share.new_empty(n, sum(WIDTHS[name] for name in fields.split()))]


def _read(fields: Sequence[str], images: int, view: int, context: Context | None) -> tuple[NDArray[np.generic], ...]:
    """The arrays of `PriorInputs`, checked against the prior's number of images."""
    if context is None:
        raise UsageError("the codec's prior needs the records' context, and got none; pass it, such as dataset.context(index)")
    missing = ["image"] if context.image is None else [n for n in fields if getattr(context, n) is None]
    if missing or context.image is None:
        raise UsageError(
            f"the codec's prior needs {', '.join(missing)} of every record, and these have none; fit on this dump, or with --no-prior"
        )
    partner = context.image if context.partner is None or "mix" not in fields else context.partner
    largest = max(int(context.image.max(initial=-1)), int(partner.max(initial=-1)))
    if largest >= images:
        raise UsageError(
            f"image {largest} is unknown to the codec's prior, which has {images}; fit on this dump, or with --no-prior"
        )
    columns = [_features(view, name, np.asarray(getattr(context, name))) for name in fields]
    features = np.concatenate(columns, 1) if columns else np.empty((len(partner), 0), np.float32)
    share = np.ones(len(partner), np.float32) if context.mix is None or "mix" not in fields else context.mix
    if not np.isfinite(features).all():
        raise UsageError("a lambda or a crop of these records is NaN or Inf; correct or drop these records")
    return context.image, partner, share[:, None], features


def _features(view: int, name: str, value: NDArray[np.generic]) -> NDArray[np.float32]:
    """[n, WIDTHS[name]] features of magnitude about 1. Source: docs/format.md, "codec.*"."""
    x = value.astype(np.float32)
    if name.endswith("flip"):
        return x[:, None] - 0.5
    if name == "mix":
        return np.stack([x, x * (1 - x)], 1)
    if name == "box":
        return np.asarray(np.clip(x / view, 0, 2) - 0.5, np.float32)
    with np.errstate(over="ignore"):  # of a forged crop, whose result is clipped
        area = np.clip(x[:, 2:3] * x[:, 3:4], 1e-4, 4)
    return np.concatenate([np.clip(x, -2, 2) - 0.5, 0.5 * np.log(area) + 0.5], 1)
