"""Teachers of libraries: their preprocessing; errors on unreachable hubs, weights without a network, and scripts."""

import socket
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vqlabel.errors import MissingExtra, UsageError
from vqlabel.workflows.teachers import load_teacher

VIEWS = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Showing(nn.Module):
    """Returns its input pixels as logits."""

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return views.flatten(1)


def shown(name: str, **how: Any) -> torch.Tensor:
    return load_teacher(name, **how)(VIEWS).view_as(VIEWS)


def normalised(mean: tuple[float, ...], deviation: tuple[float, ...], views: torch.Tensor = VIEWS) -> torch.Tensor:
    return (views - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


class Processor:
    """An image processor as in transformers: attributes, and the steps that they describe."""

    def __init__(self, **values: Any) -> None:
        usual = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
        self.__dict__.update({**usual, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], **values})

    def __call__(self, images: Any, return_tensors: str, do_resize: bool) -> dict[str, Any]:
        assert return_tensors == "np" and not do_resize
        pixels = images.astype(np.float32) * (self.rescale_factor if self.do_rescale else 1)
        if self.do_normalize:
            pixels = (pixels - np.array(self.image_mean)) / np.array(self.image_std)
        pixels = pixels[:, :, ::-1] if getattr(self, "do_flip_channel_order", False) else pixels
        return {"pixel_values": self.finish(pixels.transpose(2, 0, 1)[None])}

    def finish(self, pixels: Any) -> Any:
        return pixels


class Offset(Processor):
    def finish(self, pixels: Any) -> Any:
        return pixels - 1


class Grey(Processor):
    def finish(self, pixels: Any) -> Any:
        return pixels.mean(1, keepdims=True)


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Install a library whose models return their pixels, with this processor."""

    def install(processor: Any) -> None:
        def processed(_name: str) -> Any:
            if isinstance(processor, Exception):
                raise processor
            return processor

        library: Any = ModuleType("transformers")
        library.AutoImageProcessor = SimpleNamespace(from_pretrained=processed)
        library.AutoModelForImageClassification = SimpleNamespace(from_pretrained=lambda _name: Showing())
        monkeypatch.setitem(sys.modules, "transformers", library)

    return install


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ({}, normalised((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))),
        ({"do_normalize": False}, VIEWS),
        ({"rescale_factor": 1 / 127.5}, normalised((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 2 * VIEWS)),
        ({"do_rescale": False, "do_normalize": False}, 255 * VIEWS),
        ({"do_flip_channel_order": True, "do_normalize": False}, VIEWS.flip(1)),
        ({"image_mean": 0.5, "image_std": 0.5}, 2 * VIEWS - 1),
    ],
)
def test_pixels_equal_those_of_the_image_processor(
    values: dict[str, Any], want: torch.Tensor, transformers: Callable[[Any], None]
) -> None:
    transformers(Processor(**values))
    torch.testing.assert_close(shown("transformers:some/model"), want)
    transformers(SimpleNamespace(**vars(Processor(**values))))  # which cannot be called
    torch.testing.assert_close(shown("transformers:some/model"), want)


def test_the_users_mean_and_deviation_replace_the_librarys(transformers: Callable[[Any], None]) -> None:
    transformers(Processor(do_flip_channel_order=True, do_normalize=False))
    torch.testing.assert_close(shown("transformers:some/model", mean=(0.5,), deviation=(0.5,)), 2 * VIEWS.flip(1) - 1)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (
            Offset(),
            "does more to pixels than rescale, normalise and reverse channels; write a function that returns a network with this preprocessing",
        ),
        (Grey(), "does more to pixels than rescale"),
        (Processor(do_flip_channel_order=True), "does more to pixels than rescale"),  # normalised before the swap
        (Processor(do_grayscale=True), "its image processor has do_grayscale, which is not supported"),
    ],
)
def test_a_processor_with_unsupported_steps_is_refused(processor: Any, message: str, transformers: Callable[[Any], None]) -> None:
    transformers(processor)
    with pytest.raises(UsageError, match=message):
        load_teacher("transformers:some/model")


def test_a_folder_without_a_processor_needs_mean_and_deviation(transformers: Callable[[Any], None], tmp_path: Path) -> None:
    transformers(OSError("preprocessor_config.json is missing"))
    with pytest.raises(UsageError, match=r"preprocessor_config\.json is None; it must be in .* or pass --mean and --std"):
        load_teacher(f"transformers:{tmp_path}")
    torch.testing.assert_close(shown(f"transformers:{tmp_path}", mean=(0.5,), deviation=(0.5,)), 2 * VIEWS - 1)
    with pytest.raises(UsageError, match=r"transformers:/no/such/folder: no such folder"):
        load_teacher("transformers:/no/such/folder")


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    def install(transform: Any) -> None:
        weights = SimpleNamespace(transforms=lambda: transform)
        models: Any = ModuleType("torchvision.models")
        models.get_model_weights = lambda _name: SimpleNamespace(DEFAULT=weights)
        models.get_model = lambda _name, weights: Showing() if weights is not None else None
        library: Any = ModuleType("torchvision")
        library.models = models
        monkeypatch.setitem(sys.modules, "torchvision", library)
        monkeypatch.setitem(sys.modules, "torchvision.models", models)

    return install


def test_torchvisions_normalisation_is_that_of_its_weights(torchvision: Callable[[Any], None]) -> None:
    torchvision(SimpleNamespace(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5], crop_size=[480]))
    torch.testing.assert_close(shown("torchvision:efficientnet_v2_l"), 2 * VIEWS - 1)
    torchvision(SimpleNamespace())
    with pytest.raises(UsageError, match="the transform of its weights has no mean and std; pass --mean and --std"):
        load_teacher("torchvision:a_detector")
    torch.testing.assert_close(shown("torchvision:a_detector", mean=(0.0,), deviation=(1.0,)), VIEWS)


class LocalEntryNotFoundError(urllib.error.HTTPError):
    """As huggingface_hub raises it without a connection: a subclass of its HTTP error."""

    def __init__(self) -> None:
        super().__init__("", 0, "An error happened while trying to locate the file on the Hub", None, None)  # type: ignore[arg-type]


def from_connection() -> Exception:
    error = OSError("We couldn't load the files")
    error.__cause__ = socket.gaierror(-2, "Name or service not known")
    return error


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("<urlopen error>"),
        from_connection(),
        LocalEntryNotFoundError(),
        ConnectionResetError(),
        TimeoutError(),
    ],
)
@pytest.mark.parametrize(
    ("kind", "ways"),
    [("timm", "timm:local-dir:FOLDER"), ("torchvision", r"\$TORCH_HOME/hub/checkpoints"), ("transformers", "transformers:FOLDER")],
)
def test_an_unreachable_hub_is_reported_with_the_remedies(
    kind: str, ways: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise error

    library, models = ModuleType(kind), ModuleType(f"{kind}.models")
    for name in ("create_model", "AutoModelForImageClassification"):
        setattr(library, name, unreachable)
    library.AutoImageProcessor = SimpleNamespace(from_pretrained=unreachable)  # type: ignore[attr-defined]
    models.get_model_weights, models.get_model = lambda _: SimpleNamespace(DEFAULT=None), unreachable  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, kind, library)
    monkeypatch.setitem(sys.modules, f"{kind}.models", models)
    with pytest.raises(UsageError, match=rf"{kind}:resnet18: is not in the cache, and the hub cannot be reached \(.*{ways}"):
        load_teacher(f"{kind}:resnet18")


def test_an_unknown_model_is_not_reported_as_a_network_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (urllib.error.HTTPError("", 404, "Not Found", None, None), RuntimeError("Unknown model (resnet19)")):  # type: ignore[arg-type]

        def unknown(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        library: Any = ModuleType("timm")
        library.create_model = unknown
        monkeypatch.setitem(sys.modules, "timm", library)
        with pytest.raises(UsageError, match=r"timm:resnet19: timm cannot load such a model \("):
            load_teacher("timm:resnet19")


def test_a_broken_library_is_not_reported_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for broken in ("raise RuntimeError('operator torchvision::nms does not exist')", "import no_such_dependency"):
        (tmp_path / "torchvision.py").write_text(broken)
        monkeypatch.delitem(sys.modules, "torchvision", raising=False)
        with pytest.raises(UsageError, match="torchvision is installed, but cannot be imported"):
            load_teacher("torchvision:resnet18")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vqlabel\[teachers\]'"):
        load_teacher("torchvision:resnet18")


@pytest.mark.parametrize("name", ["weights.pt", "checkpoint.pth", "model.safetensors"])
def test_weights_without_a_network_are_reported_as_such(name: str, tmp_path: Path) -> None:
    weights = nn.Linear(2, 3).state_dict()
    if name.endswith("safetensors"):
        from safetensors.torch import save_file

        save_file(weights, tmp_path / name)
    else:
        torch.save(weights if name == "weights.pt" else {"state_dict": weights, "epoch": 3}, tmp_path / name)
    with pytest.raises(UsageError, match=rf"{name}: a state dict, which has weights and no network; .* --teacher module:function"):
        load_teacher(str(tmp_path / name))


def test_a_pickled_network_is_reported_and_torchscript_loads_with_any_suffix(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / "pickled.pt")
    with pytest.raises(UsageError, match=r"pickled.pt: a pickled network, which can run any code.*--teacher module:function"):
        load_teacher(str(tmp_path / "pickled.pt"))
    torch.jit.trace(nn.Flatten(), torch.zeros(1, 3, 2, 2)).save(str(tmp_path / "traced.pt2"))
    assert load_teacher(str(tmp_path / "traced.pt2"))(torch.zeros(5, 3, 2, 2)).shape == (5, 12)


def test_a_module_that_parses_the_command_line_gets_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vqlabel", "relabel", "images"])
    (tmp_path / "lenient.py").write_text(
        "import argparse, torch\nparser = argparse.ArgumentParser()\nparser.add_argument('--arch', default='conv3')\n"
        "args = parser.parse_args()\ndef make():\n    parser.parse_args()\n    return torch.nn.Flatten()\n"
    )
    assert load_teacher("lenient:make")(VIEWS).shape == (2, 192)
    assert sys.argv == ["vqlabel", "relabel", "images"]
    (tmp_path / "strict.py").write_text(
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--subset', required=True)\nparser.parse_args()\n"
    )
    with pytest.raises(UsageError, match=r"strict:make: ends the program \(SystemExit 2\) when it is imported or called"):
        load_teacher("strict:make")
    assert sys.argv == ["vqlabel", "relabel", "images"]
