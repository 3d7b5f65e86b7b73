"""The source of docs/own-source.md: its labels are the teacher's, of the views that a student is shown."""

from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from torch.utils.data import DataLoader

import vqlabel
from tests.training.view_dumps import CLASSES, IMAGES, SIZE
from vqlabel.codecs.raw.codec import RawCodec
from vqlabel.codecs.raw.config import RawConfig
from vqlabel.training import StoredBatches, VqlViews
from vqlabel.vql.source import VqlSource

CODE = (ROOT / "docs/own-source.md").read_text().partition("```python\n")[2].partition("```")[0]


def teacher(views: torch.Tensor) -> torch.Tensor:
    return views.mean((2, 3)) @ torch.linspace(-3, 3, 3 * CLASSES).view(3, CLASSES)


@pytest.fixture(scope="module")
def source(image_folder: Path) -> Any:
    names: dict[str, Any] = {}
    exec(CODE, names)
    return names["SquaresSource"](image_folder, teacher, size=SIZE, classes=CLASSES, epochs=2, batch=5)


def test_the_source_has_40_lines() -> None:
    assert len([line for line in CODE.splitlines() if line]) <= 40


def test_a_student_sees_the_views_that_the_teacher_labelled(source: Any, image_folder: Path, tmp_path: Path) -> None:
    codec = RawCodec(RawConfig(classes=CLASSES, domain="logits", dtype="F16"))
    vqlabel.pack(source, tmp_path / "labels.vql", codec=codec)
    views = VqlViews(tmp_path / "labels.vql", image_folder, SIZE)
    batches = list(DataLoader(views, batch_sampler=StoredBatches(views)))
    assert [len(batch.views) for batch in batches] == [5, 5, 2]
    assert sorted(torch.cat([batch.image for batch in batches]).tolist()) == list(range(IMAGES))
    for batch in batches:
        assert torch.equal(batch.labels, teacher(batch.views).half().float())
        assert ((batch.views == torch.tensor(128) / 255).all(1).sum((1, 2)) >= 4).all(), "every view has a square"


def test_labels_packed_losslessly_are_a_source_too(source: Any, tmp_path: Path) -> None:
    codec = RawCodec(RawConfig(classes=CLASSES, domain="logits", dtype="F16"))
    vqlabel.pack(source, tmp_path / "raw.vql", codec=codec)
    for batch, want in zip(VqlSource(tmp_path / "raw.vql"), source, strict=True):
        assert (batch.labels == want.labels).all() and (batch.image == want.image).all() and (batch.cutout == want.cutout).all()
