"""A library's image transform -> its normalisation of pixels, or an error. The recipe resizes and crops."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vqlabel.errors import UsageError

# Mean and standard deviation of ImageNet's channels, which torchvision's and most of timm's networks expect.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Steps of a processor in transformers: those that choose pixels, those that change their values, and those without
# effect on RGB images.
GEOMETRY = ("do_resize", "do_center_crop", "do_pad")
PIXELS = ("do_rescale", "do_normalize", "do_flip_channel_order")
HARMLESS = ("do_convert_rgb", "do_convert_annotations", "do_reduce_labels")
TOLERANCE = 1e-3  # of normalised pixels, which are near unit size; processors round in another order of operations


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """(scale * view - mean) / deviation for each channel of a view in 0..1; `bgr`: the channels are reversed first."""

    mean: tuple[float, ...] = IMAGENET[0]
    deviation: tuple[float, ...] = IMAGENET[1]
    scale: float = 1.0
    bgr: bool = False


def of_transform(transform: Any, name: str, given: bool) -> Preprocessing:
    """The normalisation of the transform of torchvision's weights.

    Args:
        given: whether the user gives mean and deviation.

    Raises:
        UsageError: neither the transform nor the user has them.
    """
    mean, deviation = getattr(transform, "mean", None), getattr(transform, "std", None)
    if mean is None or deviation is None:
        if not given:
            raise UsageError(f"{name}: the transform of its weights has no mean and std; pass --mean and --std")
        return Preprocessing()
    return Preprocessing(mean=tuple(mean), deviation=tuple(deviation))


def of_processor(processor: Any, name: str) -> Preprocessing:
    """The normalisation of an image processor of transformers.

    Raises:
        UsageError: the processor does more to pixels than rescale, normalise and reverse channels.
    """
    steps = {step for step in dir(processor) if step.startswith("do_") and getattr(processor, step, None) is True}
    unsupported = sorted(steps - {*GEOMETRY, *PIXELS, *HARMLESS})
    if unsupported:
        raise UsageError(f"{name}: its image processor has {', '.join(unsupported)}, which is not supported; {_INSTEAD}")
    normalised, rescaled = (getattr(processor, step, True) is True for step in ("do_normalize", "do_rescale"))
    factor = (getattr(processor, "rescale_factor", None) or 1 / 255) if rescaled else 1.0
    preprocessing = Preprocessing(
        mean=_numbers(processor.image_mean) if normalised else (0.0,) * 3,
        deviation=_numbers(processor.image_std) if normalised else (1.0,) * 3,
        scale=1.0 if factor == 1 / 255 else 255 * factor,
        bgr=getattr(processor, "do_flip_channel_order", None) is True,
    )
    if callable(processor):
        _check_against(processor, preprocessing, name)
    return preprocessing


_INSTEAD = "write a function that returns a network with this preprocessing, and pass --teacher module:function"


def _numbers(values: Any) -> tuple[float, ...]:
    """One number for all channels, or one for each -> three."""
    numbers = tuple(float(value) for value in np.atleast_1d(values))
    return numbers * 3 if len(numbers) == 1 else numbers


def _check_against(processor: Any, preprocessing: Preprocessing, name: str) -> None:
    """Raises UsageError if processor and preprocessing give different results for an image of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    disabled = {step: False for step in GEOMETRY if getattr(processor, step, None) is True}
    try:
        processed = np.asarray(processor(images=pixels, return_tensors="np", **disabled)["pixel_values"], np.float64)
    except Exception as error:  # code of another library may raise anything
        raise UsageError(f"{name}: its image processor fails on an image of 32 x 32 ({str(error)[:200]}); {_INSTEAD}") from None
    view = pixels[:, :, ::-1] if preprocessing.bgr else pixels
    mean, deviation = np.array(preprocessing.mean), np.array(preprocessing.deviation)
    expected = ((preprocessing.scale * (view / 255) - mean) / deviation).transpose(2, 0, 1)[None]
    if processed.shape != expected.shape or not np.allclose(processed, expected, rtol=TOLERANCE, atol=TOLERANCE):
        raise UsageError(
            f"{name}: its image processor does more to pixels than rescale, normalise and reverse channels; {_INSTEAD}"
        )
