"""A codec from outside the package: one registry entry suffices for fit, pack, stats, unpack and training."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from paths import ROOT
from torch import Tensor

import vqlabel
from vqlabel.codecs import CODECS, LabelCodec
from vqlabel.codecs.config import CodecConfig
from vqlabel.codecs.registry import CodecEntry
from vqlabel.errors import UsageError
from vqlabel.labels import Context
from vqlabel.views.image_folder import ImageFolder
from vqlabel.views.recipe import Recipe
from vqlabel.workflows.relabel import relabel
from vqlabel.workflows.teacher_source import TeacherSource
from vqlabel.workflows.teachers import Teacher

SIZE, IMAGES, CLASSES = 8, 6, 5


def register(name: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch, parts: str) -> None:
    """Register `module` as vqlabel/codecs/NAME.py for the duration of a test."""
    monkeypatch.setitem(sys.modules, f"vqlabel.codecs.{name}", module)
    monkeypatch.setitem(CODECS, name, CodecEntry(*(f"{name}:{part}" for part in parts.split())))


def test_the_codec_of_the_contributing_page_fits_packs_and_unpacks(
    dump: Path, logits: NDArray[np.float16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    block = next(text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "UniformCodec" in text)
    module = ModuleType("vqlabel.codecs.uniform")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block, "CONTRIBUTING.md", "exec"), vars(module))
    register("uniform", module, monkeypatch, "UniformConfig UniformCodec fit")
    config = vqlabel.FitConfig(codec="uniform", bits=8 * logits.shape[2])
    codec, report = vqlabel.fit(dump, config, out=tmp_path / "c.safetensors")
    assert report["held_out"]["top1_agreement"] > 0.9
    assert vqlabel.pack(dump, tmp_path / "a.vql", codec=tmp_path / "c.safetensors")["code_bits"] == 8 * logits.shape[2]
    step = float(codec.decoder_tensors()["ends"].diff()) / 255
    labels = vqlabel.open(tmp_path / "a.vql")[:]
    np.testing.assert_allclose(labels.numpy(), logits.reshape(len(labels), -1), atol=step / 2 + 1e-3)
    assert vqlabel.verify(tmp_path / "a.vql")["bytes"] == (tmp_path / "a.vql").stat().st_size
    assert vqlabel.stats(tmp_path / "a.vql", against=dump)["same_dump"]
    vqlabel.unpack(tmp_path / "a.vql", tmp_path / "a.npy")


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelConfig(CodecConfig):
    kind: ClassVar[str] = "pixel"
    classes: int
    domain: str

    @property
    def widths(self) -> list[int]:
        return [8]

    @property
    def needs(self) -> tuple[str, ...]:
        return ("views",)


class PixelCodec(LabelCodec):
    """Decodes to the view's mean pixel times the class index, plus the code in hundredths."""

    config: PixelConfig

    def __init__(self, config: PixelConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def build(cls, config: PixelConfig, tensors: Mapping[str, Tensor]) -> Self:
        return cls(config)

    def _predicted(self, context: Context | None) -> Tensor:
        assert context is not None
        return context.views.mean((1, 2, 3))[:, None] * torch.arange(self.config.classes)

    def _encode(self, labels: Tensor, context: Context | None) -> Tensor:
        return (100 * (labels.float() - self._predicted(context)).mean(1, keepdim=True)).round().clamp(0, 255).int()

    def _decode(self, codes: Tensor, context: Context | None) -> Tensor:
        return self._predicted(context) + codes.float() / 100


class MeanPixel(torch.nn.Module):
    """A teacher whose logits are the mean pixel times the class index, plus 0.5."""

    def forward(self, views: Tensor) -> Tensor:
        return views.mean((1, 2, 3))[:, None] * torch.arange(CLASSES) + 0.5


def test_a_codec_that_needs_pixels_decodes_through_vql_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed (extra student): no view can be drawn")
    (tmp_path / "images").mkdir()
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    module: Any = ModuleType("vqlabel.codecs.pixel")
    module.PixelConfig, module.PixelCodec = PixelConfig, PixelCodec
    register("pixel", module, monkeypatch, "PixelConfig PixelCodec none")
    recipe = Recipe(seed=1, images=IMAGES, epochs=2, batch=3, view=SIZE, mix="cutmix")
    teacher = Teacher(MeanPixel(), "mean", (0.0,) * 3, (1.0,) * 3)
    source = TeacherSource(ImageFolder(tmp_path / "images"), teacher, recipe)
    relabel(source, tmp_path / "a.vql", codec=PixelCodec(PixelConfig(classes=CLASSES, domain="logits")))
    views = vqlabel.VqlViews(tmp_path / "a.vql", tmp_path / "images")
    batch = views[0:12]
    want = batch.views.mean((1, 2, 3))[:, None] * torch.arange(CLASSES) + 0.5
    torch.testing.assert_close(batch.labels, want, atol=2e-3, rtol=0)
    assert bool(batch.labels.std(0).gt(0)[1:].all())
    with pytest.raises(
        UsageError, match=r"its codec decodes labels from the pixels of their views: open it with vqlabel\.VqlViews"
    ):
        vqlabel.open(tmp_path / "a.vql")[0]
    np.save(tmp_path / "dump.npy", want.numpy())
    with pytest.raises(UsageError, match=r"codec pixel needs the pixels of the views, which a dump does not have"):
        vqlabel.pack(tmp_path / "dump.npy", tmp_path / "b.vql", codec=PixelCodec(PixelConfig(classes=CLASSES, domain="logits")))
