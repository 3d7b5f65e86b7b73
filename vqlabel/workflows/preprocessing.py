"""A library's own transform of images -> what it does to the pixels of a view, or a refusal. Its resizing and cropping are the recipe's here."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vqlabel.errors import UsageError

IMAGENET = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # mean and deviation that torchvision's and most of timm's teachers expect
GEOMETRY = (
    "do_resize",
    "do_center_crop",
    "do_pad",
)  # steps of a processor that decide which pixels there are, not what they become
PIXELS = ("do_rescale", "do_normalize", "do_flip_channel_order")
HARMLESS = ("do_convert_rgb", "do_convert_annotations", "do_reduce_labels")  # nothing that changes an RGB image
TOLERANCE = 1e-3  # of numbers of about unit size; processors compute in other orders


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """(scale * view - mean) / deviation, of views in 0..1, channel by channel; `bgr`: the channels are swapped first."""

    mean: tuple[float, ...] = IMAGENET[0]
    deviation: tuple[float, ...] = IMAGENET[1]
    scale: float = 1.0
    bgr: bool = False


def of_transform(transform: Any, name: str, given: bool) -> Preprocessing:
    """Of the transform of torchvision's weights; `given`: the user names mean and deviation.

    Raises:
        UsageError: it has no mean and deviation, and the user names none.
    """
    mean, deviation = getattr(transform, "mean", None), getattr(transform, "std", None)
    if mean is None or deviation is None:
        if not given:
            raise UsageError(f"{name}: the transform of its weights has no mean and std; pass --mean and --std")
        return Preprocessing()
    return Preprocessing(mean=tuple(mean), deviation=tuple(deviation))


def of_processor(processor: Any, name: str) -> Preprocessing:
    """Of an image processor of transformers.

    Raises:
        UsageError: it does something else to pixels than rescale, normalise and swap their channels.
    """
    steps = {step for step in dir(processor) if step.startswith("do_") and getattr(processor, step, None) is True}
    odd = sorted(steps - {*GEOMETRY, *PIXELS, *HARMLESS})
    if odd:
        raise UsageError(f"{name}: its image processor has {', '.join(odd)}, which is not done here; {_INSTEAD}")
    normalised, rescaled = (getattr(processor, step, True) is True for step in ("do_normalize", "do_rescale"))
    factor = (getattr(processor, "rescale_factor", None) or 1 / 255) if rescaled else 1.0
    found = Preprocessing(
        mean=_numbers(processor.image_mean) if normalised else (0.0,) * 3,
        deviation=_numbers(processor.image_std) if normalised else (1.0,) * 3,
        scale=1.0 if factor == 1 / 255 else 255 * factor,
        bgr=getattr(processor, "do_flip_channel_order", None) is True,
    )
    if callable(processor):
        _hold_against(processor, found, name)
    return found


_INSTEAD = "wrap model and processor in a function of your own, and name it: --teacher module:function"


def _numbers(values: Any) -> tuple[float, ...]:
    found = tuple(float(value) for value in np.atleast_1d(values))
    return found * 3 if len(found) == 1 else found


def _hold_against(processor: Any, found: Preprocessing, name: str) -> None:
    """Raises UsageError where the processor makes something else of an image of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    still = {step: False for step in GEOMETRY if getattr(processor, step, None) is True}
    try:
        theirs = np.asarray(processor(images=pixels, return_tensors="np", **still)["pixel_values"], np.float64)
    except Exception as error:  # it is the library's code, which raises what it likes
        raise UsageError(f"{name}: its image processor fails on an image of 32 x 32 ({str(error)[:200]}); {_INSTEAD}") from None
    view = pixels[:, :, ::-1] if found.bgr else pixels
    ours = ((found.scale * (view / 255) - np.array(found.mean)) / np.array(found.deviation)).transpose(2, 0, 1)[None]
    if theirs.shape != ours.shape or not np.allclose(theirs, ours, rtol=TOLERANCE, atol=TOLERANCE):
        raise UsageError(f"{name}: its image processor does more to pixels than rescale, normalise and swap channels; {_INSTEAD}")
