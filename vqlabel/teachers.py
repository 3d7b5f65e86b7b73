"""A name or a file -> a teacher: a module that makes labels [n, C] of views [n, 3, size, size] in 0..1."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqlabel.errors import MissingExtra, UsageError, VqlabelError, require

IMAGENET = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # mean and deviation that torchvision's and most of timm's teachers expect
FORMS = "module:function, a TorchScript or torch.export file, timm:NAME, torchvision:NAME or transformers:NAME"


class Teacher(nn.Module):
    """Views in 0..1, normalised, through a network in eval mode.

    Attributes:
        name: as the user gave it.
    """

    def __init__(self, network: Any, name: str, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        super().__init__()
        self.network, self.name = network, name
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1))

    @torch.inference_mode()
    def forward(self, views: Tensor) -> Tensor:
        """[n, 3, size, size] float32 -> [n, C] float32 logits.

        Raises:
            UsageError: the network fails, or gives something else.
        """
        try:
            found = self.network((views - self.mean) / self.deviation)
        except (VqlabelError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # it is the user's code, which raises what it likes
            reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
            raise UsageError(
                f"teacher {self.name}: fails on views {list(views.shape)} ({reason}); it must take any number of views, as large as --view says"
            ) from error
        found = getattr(found, "logits", found)
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(views):
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(f"teacher {self.name}: gives {shape} for {len(views)} views; it must give logits [{len(views)}, C]")
        return found.float()


def load_teacher(
    name: str, *, mean: tuple[float, ...] | None = None, deviation: tuple[float, ...] | None = None, device: str = "cpu"
) -> Teacher:
    """A teacher by its name.

    Args:
        name: "module:function", which returns a torch.nn.Module (or is one); the folder that vqlabel runs in is looked in too. A file made by
            torch.jit.save or torch.export.save. "timm:NAME", "torchvision:NAME" or "transformers:NAME" where these are installed.
            Only load what you trust: a module is code, and so is a network in a file.
        mean, deviation: three numbers each, or one; by which views in 0..1 are normalised. None: the model's own where timm says them,
            else ImageNet's.

    Raises:
        UsageError: there is no such teacher.
        MissingExtra: its library is not installed.
    """
    kind, _, what = name.partition(":")
    own: tuple[Any, Any] = (None, None)
    if Path(name).is_file():
        network = _from_file(Path(name), device)
    elif kind in _LIBRARIES and what:
        try:
            network, own = _LIBRARIES[kind](what)
        except ImportError:
            raise MissingExtra(kind, extra="teachers") from None
        except (KeyError, ValueError, RuntimeError, OSError) as error:
            raise UsageError(f"--teacher {name}: {kind} has no such model ({str(error).splitlines()[0][:200]})") from None
    elif what:
        network = _from_module(kind, what)
    else:
        raise UsageError(f"--teacher {name}: no such file; name {FORMS}")
    if hasattr(network, "eval") and not isinstance(
        network, torch.fx.GraphModule
    ):  # an exported graph is in eval mode, and cannot change
        network.eval()
    mean, deviation = _three("mean", mean or own[0] or IMAGENET[0]), _three("deviation", deviation or own[1] or IMAGENET[1])
    require(all(v > 0 for v in deviation), "std", deviation, "must be above 0")
    return Teacher(network, name, mean, deviation).to(device)


def _from_file(path: Path, device: str) -> Any:
    try:
        if path.suffix == ".pt2":
            return torch.export.load(path).module()
        return torch.jit.load(str(path), map_location=device)
    except Exception as error:  # torch raises nearly anything on foreign bytes
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UsageError(f"--teacher {path}: neither TorchScript nor, by .pt2, a torch.export file ({reason})") from None


def _from_module(module: str, function: str) -> Any:
    """What `module:function` returns, with the present folder among those that modules are looked for in."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module), function)
        network = made() if callable(made) and not isinstance(made, nn.Module) else made
    except Exception as error:  # it is the user's code, which raises what it likes
        raise UsageError(f"--teacher {module}:{function}: {type(error).__name__}: {str(error)[:300]}; name {FORMS}") from error
    require(
        isinstance(network, nn.Module),
        "teacher",
        f"{module}:{function}",
        f"must give a torch.nn.Module, not {type(network).__name__}",
    )
    return network


def _timm(name: str) -> tuple[nn.Module, tuple[Any, Any]]:
    import timm  # type: ignore[import-not-found, unused-ignore]

    model = timm.create_model(name, pretrained=True)
    return model, (model.pretrained_cfg.get("mean"), model.pretrained_cfg.get("std"))


def _torchvision(name: str) -> tuple[nn.Module, tuple[Any, Any]]:
    from torchvision.models import get_model  # type: ignore[import-not-found, unused-ignore]

    return get_model(name, weights="DEFAULT"), (None, None)


def _transformers(name: str) -> tuple[nn.Module, tuple[Any, Any]]:
    from transformers import AutoImageProcessor, AutoModelForImageClassification  # type: ignore[import-not-found, unused-ignore]

    processor = AutoImageProcessor.from_pretrained(name)
    return AutoModelForImageClassification.from_pretrained(name), (processor.image_mean, processor.image_std)


_LIBRARIES = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}


def _three(field: str, values: Any) -> tuple[float, ...]:
    found = tuple(float(v) for v in values)
    require(len(found) in (1, 3), field, found, "must be one number, or three: red, green, blue")
    return found * 3 if len(found) == 1 else found
