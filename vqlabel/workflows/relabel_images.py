"""Images, a teacher and options -> the source that `relabel` labels: what the command line builds from its options."""

from os import PathLike
from typing import Any, TypedDict

from torch import nn

from vqlabel.errors import WrongType
from vqlabel.labels.memory import ArrayLike
from vqlabel.type_checks import check_type
from vqlabel.views.image_folder import ImageFolder
from vqlabel.views.image_list import ImageList
from vqlabel.views.recipe import Recipe
from vqlabel.workflows.preprocessing import IMAGENET
from vqlabel.workflows.teacher_source import TeacherSource
from vqlabel.workflows.teachers import Teacher, load_teacher

Images = TeacherSource | str | PathLike[str] | ArrayLike | list[Any]
DEFAULTS = {"epochs": 300, "batch": 128, "view": 224, "mix": "cutmix", "scale": (0.08, 1.0), "flip": 0.5, "patches": 1, "seed": 0}


class RelabelOptions(TypedDict, total=False):
    """The recipe of the views, and the teacher's normalisation; defaults are those of `vqlabel relabel`."""

    epochs: int  # views of each image: 300
    batch: int  # views that are mixed with each other: 128
    view: int  # pixels along a view: 224
    mix: str  # "cutmix" (default), "mixup" or "none"
    scale: tuple[float, float]  # range of a crop's area, as a fraction of the image's: (0.08, 1)
    flip: float  # probability of a horizontal flip: 0.5
    patches: int  # strips along each side of an image that are shuffled before the crop: 1, unshuffled
    seed: int  # of the views: 0
    mean: tuple[float, ...] | None  # of pixels in 0..1; None: the library's of a named teacher, else ImageNet's
    std: tuple[float, ...] | None
    dtype: str  # of the labels: "f16" (default) or "f32"
    image_digest: str  # "names" (default) or "bytes"


def as_teacher_source(images: Images, teacher: nn.Module | str | None, device: str, options: Any) -> TeacherSource:
    """The source of the labels.

    Raises:
        WrongType: options or a teacher beside a `TeacherSource`, no teacher beside images, or an unknown option.
        UsageError: a value is out of its range.
    """
    unknown = [name for name in options if name not in RelabelOptions.__annotations__]
    if unknown:
        raise WrongType(f"unknown argument {unknown[0]!r}; options are {', '.join(RelabelOptions.__annotations__)}")
    if isinstance(images, TeacherSource):
        if teacher is not None or options:
            raise WrongType(
                f"{'teacher' if teacher is not None else next(iter(options))}: must be left out, a TeacherSource has it"
            )
        return images
    if teacher is None:
        raise WrongType(
            "teacher is None; pass the network, a torch.nn.Module, or its name as for --teacher: relabel(images, out, teacher=net)"
        )
    recipe = {name: options.get(name, default) for name, default in DEFAULTS.items()}
    recipe["scale"] = check_type("scale", recipe["scale"], tuple[float, float])
    pictures = ImageFolder(images) if isinstance(images, str | PathLike) else ImageList(images)
    mean, std = options.get("mean"), options.get("std")
    return TeacherSource(
        pictures,
        _loaded(teacher, mean, std, device),
        Recipe(images=len(pictures), **recipe),
        dtype=str(options.get("dtype", "f16")).upper(),
        device=device,
        image_digest=options.get("image_digest", "names"),
    )


def _loaded(teacher: nn.Module | str, mean: Any, std: Any, device: str) -> Teacher:
    mean, std = (check_type(name, value, tuple[float, ...] | None) for name, value in (("mean", mean), ("std", std)))
    if isinstance(teacher, str):
        return load_teacher(teacher, mean=mean, deviation=std, device=device)
    if isinstance(teacher, Teacher):
        return teacher
    means, deviations = (values * 3 if len(values) == 1 else values for values in (mean or IMAGENET[0], std or IMAGENET[1]))
    if not len(means) == len(deviations) == 3 or min(deviations) <= 0:
        raise WrongType(f"mean and std are {means} and {deviations}; they must be one number, or three, and std above 0")
    return Teacher(teacher.eval(), type(teacher).__qualname__, means, deviations)
