"""A name or a file -> a teacher: a module that maps views [n, 3, size, size] in 0..1 to logits [n, C]."""

import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from vqlabel.errors import UsageError, VqlabelError, require
from vqlabel.workflows.preprocessing import IMAGENET, Preprocessing, of_processor, of_transform
from vqlabel.workflows.user_code import import_library, one_line, user_object

FORMS = "module:function, a TorchScript or torch.export file, timm:NAME, torchvision:NAME or transformers:NAME"
OFFLINE = {  # how to load a model without a network
    "timm": "timm:local-dir:FOLDER, with config.json and weights in it, or a model in the cache ($HF_HOME)",
    "torchvision": "put the weights in $TORCH_HOME/hub/checkpoints, by default ~/.cache/torch/hub/checkpoints",
    "transformers": "transformers:FOLDER, with config.json, weights and preprocessor_config.json in it, or a model in the cache ($HF_HOME)",
}
# Names of exception types of huggingface_hub, and of urllib, requests and httpx, which are not imported here.
NOT_CACHED = {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}
UNREACHABLE = {
    "URLError", "ConnectionError", "ConnectError", "Timeout", "TimeoutError", "TimeoutException", "ProxyError", "gaierror", "MaxRetryError",
}  # fmt: skip
UNREACHABLE_WORDS = (
    "couldn't connect",
    "could not connect",
    "connection error",
    "name resolution",
    "name or service not known",
    "offline mode",
)


class TeacherFailed(UsageError):
    """A network raises an exception on its input views."""


class Teacher(nn.Module):
    """Views in 0..1, preprocessed, through a network in eval mode.

    Attributes:
        name: as the user gave it.
        scale, bgr, mean, deviation: see `Preprocessing`.
    """

    def __init__(
        self, network: Any, name: str, mean: tuple[float, ...], deviation: tuple[float, ...], scale: float = 1.0, bgr: bool = False
    ) -> None:
        super().__init__()
        self.network, self.name, self.scale, self.bgr = network, name, scale, bgr
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1))

    @torch.inference_mode()
    def forward(self, views: Tensor) -> Tensor:
        """[n, 3, size, size] float32 -> [n, C] float32 logits.

        Raises:
            TeacherFailed: the network raises an exception.
            UsageError: it returns something other than logits [n, C].
        """
        try:
            output = self.network(self.preprocess(views))
        except (VqlabelError, MemoryError, torch.OutOfMemoryError):
            raise
        except SystemExit as error:
            raise UsageError(
                f"teacher {self.name}: its forward ends the program (SystemExit {error.code}); raise an error instead"
            ) from error
        except Exception as error:  # the user's code may raise anything
            raise TeacherFailed(f"teacher {self.name}: fails on views {list(views.shape)} ({one_line(error)})") from error
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(views):
            shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UsageError(
                f"teacher {self.name}: returns {shape} for {len(views)} views; it must return logits [{len(views)}, C]"
            )
        return logits.float()

    def preprocess(self, views: Tensor) -> Tensor:
        """Views [n, 3, size, size] in 0..1 -> the input of the network."""
        views = views.flip(1) if self.bgr else views
        return ((views if self.scale == 1 else views * self.scale) - self.mean) / self.deviation


def load_teacher(
    name: str, *, mean: tuple[float, ...] | None = None, deviation: tuple[float, ...] | None = None, device: str = "cpu"
) -> Teacher:
    """Load a teacher. Load only what you trust: modules and networks in files can run any code.

    Args:
        name: "module:function", a function that returns a torch.nn.Module, or a module object; modules are also
            searched in the current folder. Or the path of a file that torch.jit.save or torch.export.save wrote. Or
            "timm:NAME", "torchvision:NAME" or "transformers:NAME", if that library is installed.
        mean, deviation: normalisation of views in 0..1, three numbers each, or one. None: those of the model's library,
            else ImageNet's.

    Raises:
        UsageError: there is no such teacher, its hub cannot be reached, or its preprocessing is not supported.
        MissingExtra: its library is not installed.
    """
    kind, _, what = name.partition(":")
    own = Preprocessing()
    if Path(name).is_file():
        network = _from_file(Path(name), device)
    elif kind in _LIBRARIES and what:
        network, own = _from_library(kind, what, given=mean is not None and deviation is not None)
    elif what:
        network = _from_module(kind, what)
    else:
        raise UsageError(f"--teacher {name}: no such file; name {FORMS}")
    exported = isinstance(network, torch.fx.GraphModule)  # such a graph is in eval mode, and raises if that is set
    if hasattr(network, "eval") and not exported:
        network.eval()
    mean, deviation = _three("mean", mean or own.mean), _three("deviation", deviation or own.deviation)
    require(all(v > 0 for v in deviation), "std", deviation, "must be above 0")
    return Teacher(network, name, mean, deviation, own.scale, own.bgr).to(device)


def _from_file(path: Path, device: str) -> Any:
    try:
        if path.suffix == ".pt2" and not _is_torchscript(path):
            return torch.export.load(path).module()
        return torch.jit.load(str(path), map_location=device)
    except Exception as error:  # torch may raise anything on bytes of other formats
        _refuse_weights(path)
        raise UsageError(
            f"--teacher {path}: neither TorchScript nor, with suffix .pt2, a torch.export file ({one_line(error)})"
        ) from None


def _is_torchscript(path: Path) -> bool:
    """Whether torch.jit.save wrote the file, by its members; the suffix does not decide."""
    try:
        with zipfile.ZipFile(path) as members:
            return any(name.endswith("/constants.pkl") for name in members.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _refuse_weights(path: Path) -> None:
    """Raises UsageError if a file has weights without a network, or a pickled network."""
    try:
        content = None if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # as in `_from_file`
        if isinstance(error, UnpicklingError) and not _is_torchscript(path):
            raise UsageError(
                f"--teacher {path}: a pickled network, which can run any code, or a damaged file; if you trust it, write a function that loads it "
                "(torch.load(..., weights_only=False)), and pass --teacher module:function"
            ) from None
        return
    if path.suffix == ".safetensors" or isinstance(content, dict):
        raise UsageError(
            f"--teacher {path}: a state dict, which has weights and no network; write a function that builds the network and loads them "
            "(network.load_state_dict(torch.load(...))), and pass --teacher module:function"
        )


def _from_module(module: str, function: str) -> Any:
    """The network that `module:function` returns or is."""
    name = f"{module}:{function}"
    network = user_object(
        name, lambda target: target() if callable(target) and not isinstance(target, nn.Module) else target, FORMS
    )
    require(isinstance(network, nn.Module), "teacher", name, f"must be or return a torch.nn.Module, not {type(network).__name__}")
    return network


def _from_library(kind: str, what: str, given: bool) -> tuple[nn.Module, Preprocessing]:
    """A library's model and its preprocessing; `given`: the user gives mean and deviation."""
    name = f"--teacher {kind}:{what}"
    import_library(kind, name)
    try:
        return _LIBRARIES[kind](what, given)
    except VqlabelError:
        raise
    except Exception as error:  # hubs and their clients may raise anything
        _refuse(kind, name, error)


def _refuse(kind: str, name: str, error: Exception) -> NoReturn:
    """Raises UsageError: the hub cannot be reached, or there is no such model."""
    if _is_unreachable(error):
        raise UsageError(
            f"{name}: is not in the cache, and the hub cannot be reached ({one_line(error)}); without a network: {OFFLINE[kind]}"
        ) from None
    raise UsageError(f"{name}: {kind} cannot load such a model ({one_line(error)})") from None


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether an exception or one of its causes is a failed connection; an HTTP response such as 404 is not."""
    while error is not None:
        types = {base.__name__ for base in type(error).__mro__}
        if types & NOT_CACHED:
            return True
        if types & {"HTTPError", "HTTPStatusError"}:
            return False
        if types & UNREACHABLE or any(words in str(error).lower() for words in UNREACHABLE_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _timm(name: str, _given: bool) -> tuple[nn.Module, Preprocessing]:
    import timm  # type: ignore[import-not-found, unused-ignore]

    model = timm.create_model(name, pretrained=True)
    config = model.pretrained_cfg
    return model, Preprocessing(mean=config.get("mean") or IMAGENET[0], deviation=config.get("std") or IMAGENET[1])


def _torchvision(name: str, given: bool) -> tuple[nn.Module, Preprocessing]:
    from torchvision.models import get_model, get_model_weights  # type: ignore[import-not-found, unused-ignore]

    weights = get_model_weights(name).DEFAULT
    return get_model(name, weights=weights), of_transform(weights.transforms(), f"torchvision:{name}", given)


def _transformers(name: str, given: bool) -> tuple[nn.Module, Preprocessing]:
    from transformers import AutoImageProcessor, AutoModelForImageClassification  # type: ignore[import-not-found, unused-ignore]

    folder = Path(name).expanduser()
    if not folder.is_dir() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise UsageError(f"--teacher transformers:{name}: no such folder")
    if folder.is_dir():
        name = str(folder)
        if not (folder / "preprocessor_config.json").is_file():
            require(
                given,
                "preprocessor_config.json",
                None,
                f"must be in {folder}, for the normalisation of views; or pass --mean and --std",
            )
            return AutoModelForImageClassification.from_pretrained(name), Preprocessing()
    own = of_processor(AutoImageProcessor.from_pretrained(name), f"transformers:{name}")
    return AutoModelForImageClassification.from_pretrained(name), own


_LIBRARIES = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}


def _three(field: str, values: Any) -> tuple[float, ...]:
    """One number for all channels, or one for each -> three."""
    numbers = tuple(float(v) for v in values)
    require(len(numbers) in (1, 3), field, numbers, "must be one number, or three: red, green, blue")
    return numbers * 3 if len(numbers) == 1 else numbers
