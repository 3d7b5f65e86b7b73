"""Fixtures of the tests of views and samplers; the constants are in view_dumps.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vqlabel
from tests.training.view_dumps import CLASSES, HEIGHT, IMAGES, SIZE, WIDTH, Batches, Pack, draw_batches
from vqlabel.codecs.raw.codec import RawCodec
from vqlabel.codecs.raw.config import RawConfig
from vqlabel.labels import open_labels
from vqlabel.training import VqlViews


@pytest.fixture(scope="module")
def image_folder(draw_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of noise, in two classes."""
    return draw_images(tmp_path_factory.mktemp("images"), IMAGES, HEIGHT, WIDTH, lambda index: f"class_{index // 6}")


@pytest.fixture(scope="module")
def pack_views(write_dump: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Pack batches, or a source, losslessly into a `.vql`."""

    def pack(batches: Any, layout: str = "lpld", **options: Any) -> Path:
        folder = tmp_path_factory.mktemp("packed")
        source = open_labels(write_dump(folder / "dump", batches, layout)) if isinstance(batches, list) else batches
        codec = RawCodec(RawConfig(classes=CLASSES, domain="logits", dtype="F16"))
        vqlabel.pack(source, folder / "labels.vql", codec=codec, **options)
        return folder / "labels.vql"

    return pack


@pytest.fixture(scope="module")
def view_batches() -> Batches:
    """The labels as batches."""
    return draw_batches()


@pytest.fixture(scope="module")
def view_file(view_batches: Batches, pack_views: Pack) -> Path:
    """The labels as a `.vql`."""
    return pack_views(view_batches)


@pytest.fixture
def view_dataset(view_file: Path, image_folder: Path) -> VqlViews:
    """The views of the labels."""
    return VqlViews(view_file, image_folder, SIZE)
