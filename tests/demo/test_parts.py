"""The parts of the demo: glyphs, views, the dump in SRe2L's layout, training."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("matplotlib")

from vqlabel.demo.glyphs import DISTILLED_FACES, HELD_OUT_FACES, TEACHER_FACES, Glyphs, make_glyphs
from vqlabel.demo.train import Batch, accuracy, dump_labels, train_student, train_teacher
from vqlabel.demo.views import Augmentation, apply_augmentation, draw_augmentation
from vqlabel.errors import MissingExtra

CLASSES, SIZE, EPOCHS, BATCH = 10, 24, 2, 16


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """A second thread makes networks this small slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def glyphs() -> Glyphs:
    return make_glyphs(SIZE)


@pytest.fixture(scope="module")
def few(glyphs: Glyphs) -> tuple[torch.Tensor, torch.Tensor]:
    """The first ten characters in the teacher's faces."""
    images, classes = glyphs.examples(TEACHER_FACES)
    return torch.from_numpy(images[classes < CLASSES]), torch.from_numpy(classes[classes < CLASSES])


@pytest.fixture(scope="module")
def teacher(few: tuple[torch.Tensor, torch.Tensor]) -> torch.nn.Module:
    return train_teacher(*few, epochs=40, batch=20, width=8)


@pytest.fixture(scope="module")
def dump(teacher: torch.nn.Module, few: tuple[torch.Tensor, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "dump"
    dump_labels(teacher, few[0], folder, epochs=EPOCHS, batch=BATCH, seed=1)
    return folder


def read_batches(folder: Path, images: torch.Tensor) -> Iterator[Batch]:
    for epoch, order in json.loads((folder / "sampler_indices_epoch.json").read_text()).items():
        for number, rows in enumerate(torch.split(torch.tensor(order), BATCH)):
            fields = torch.load(folder / f"epoch_{epoch}" / f"batch_{number}.tar", weights_only=True)
            coords, flip, index, lam, bbox, logits = fields
            yield (
                images[rows],
                Augmentation(coords=coords, flip=flip, mix_index=index, mix_lam=lam, mix_bbox=tuple(bbox)),
                logits,
            )


def test_glyphs_are_a_thousand_distinct_characters_in_every_face(glyphs: Glyphs) -> None:
    assert glyphs.images.shape == (len(glyphs.faces), 1000, SIZE, SIZE)
    assert glyphs.images.dtype == np.uint8
    assert len(set(glyphs.characters)) == len(glyphs.characters) == 1000
    for face in glyphs.images:
        assert face.any((1, 2)).all()
        assert len(np.unique(face.reshape(1000, -1), axis=0)) == 1000


def test_the_held_out_faces_are_in_no_training_data() -> None:
    assert set(DISTILLED_FACES) <= set(TEACHER_FACES)
    assert not set(HELD_OUT_FACES) & set(TEACHER_FACES)


def test_examples_pair_each_image_with_its_character(glyphs: Glyphs) -> None:
    images, classes = glyphs.examples(HELD_OUT_FACES)
    assert (images[1000 + 7] == glyphs.images[glyphs.faces.index(HELD_OUT_FACES[1]), 7]).all()
    assert classes[1000 + 7] == 7


def test_without_matplotlib_the_error_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"matplotlib.*vqlabel\[demo\]"):
        make_glyphs(SIZE)


def test_the_same_seed_gives_the_same_views() -> None:
    images = torch.randint(256, (32, SIZE, SIZE), dtype=torch.uint8)
    first, second = (draw_augmentation(np.random.default_rng(3), 32, SIZE) for _ in range(2))
    other = draw_augmentation(np.random.default_rng(4), 32, SIZE)
    assert torch.equal(apply_augmentation(images, first), apply_augmentation(images, second))
    assert not torch.equal(apply_augmentation(images, first), apply_augmentation(images, other))


def test_crops_are_whole_pixels_inside_the_image() -> None:
    pixels = draw_augmentation(np.random.default_rng(0), 1000, SIZE, min_area=0.25).coords * SIZE
    corners, sides = torch.split(pixels, 2, dim=1)
    assert torch.equal(pixels, pixels.round())
    assert corners.min() == 0
    assert (corners + sides).max() == SIZE
    assert sides.min() >= SIZE // 2


def test_a_view_is_cropped_resized_flipped_and_patched() -> None:
    images = torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8)
    augmentation = Augmentation(
        coords=torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0.25, 0.5, 0.5, 0.5]]),
        flip=torch.tensor([False, True, False]),
        mix_index=torch.tensor([1, 0, 2]),
        mix_lam=0.75,
        mix_bbox=(0, 0, 12, 12),
    )
    views = apply_augmentation(images, augmentation)[:, 0]
    same, mirrored = images[0] / 255, images[1].flip(1) / 255
    torch.testing.assert_close(views[0, 12:], same[12:], atol=1e-5, rtol=0)
    torch.testing.assert_close(views[0, :12, :12], mirrored[:12, :12], atol=1e-5, rtol=0)
    torch.testing.assert_close(views[1, 12:], mirrored[12:], atol=1e-5, rtol=0)
    crop = F.interpolate(images[None, 2:, 6:18, 12:] / 255, size=(SIZE, SIZE), mode="bilinear")[0, 0]
    torch.testing.assert_close(views[2, 1:-1, 1:-1], crop[1:-1, 1:-1], atol=1e-5, rtol=0)


def test_lambda_is_the_share_of_a_view_outside_the_patch() -> None:
    for seed in range(20):
        augmentation = draw_augmentation(np.random.default_rng(seed), 4, SIZE)
        row0, col0, row1, col1 = augmentation.mix_bbox
        assert 0 <= row0 <= row1 <= SIZE
        assert 0 <= col0 <= col1 <= SIZE
        assert augmentation.mix_lam == pytest.approx(1 - (row1 - row0) * (col1 - col0) / SIZE**2)
        assert not augmentation.flip.any()


def test_the_dump_has_sre2l_layout(dump: Path, few: tuple[torch.Tensor, torch.Tensor]) -> None:
    n = len(few[0])
    order = json.loads((dump / "sampler_indices_epoch.json").read_text())
    assert [sorted(order[str(epoch)]) for epoch in range(EPOCHS)] == [list(range(n))] * EPOCHS
    assert order["0"] != order["1"]
    assert len(list(dump.glob("epoch_*/batch_*.tar"))) == EPOCHS * n // BATCH
    fields = torch.load(dump / "epoch_1" / "batch_0.tar", weights_only=True)
    coords, flip, index, lam, bbox, logits = fields
    assert (coords.shape, coords.dtype) == ((BATCH, 4), torch.float32)
    assert (flip.shape, flip.dtype) == ((BATCH,), torch.bool)
    assert (sorted(index.tolist()), index.dtype) == (list(range(BATCH)), torch.int64)
    assert type(lam) is float
    assert type(bbox) is list
    assert [type(edge) for edge in bbox] == [int] * 4
    assert (logits.shape, logits.dtype) == ((BATCH, CLASSES), torch.float16)


def test_the_same_seed_writes_the_same_dump(
    dump: Path, teacher: torch.nn.Module, few: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    dump_labels(teacher, few[0], tmp_path, epochs=EPOCHS, batch=BATCH, seed=1)
    names = [file.relative_to(dump) for file in sorted(dump.rglob("*.*"))]
    assert [(tmp_path / name).read_bytes() for name in names] == [(dump / name).read_bytes() for name in names]


def test_the_teacher_gives_the_dumped_logits_for_the_recorded_views(
    dump: Path, teacher: torch.nn.Module, few: tuple[torch.Tensor, torch.Tensor]
) -> None:
    for images, augmentation, logits in read_batches(dump, few[0]):
        assert torch.equal(teacher(apply_augmentation(images, augmentation)).half(), logits)


def test_a_teacher_learns_ten_characters_and_generalizes_to_held_out_faces(
    teacher: torch.nn.Module, few: tuple[torch.Tensor, torch.Tensor], glyphs: Glyphs
) -> None:
    images, classes = (torch.from_numpy(part) for part in glyphs.examples(HELD_OUT_FACES))
    assert not teacher.training
    assert accuracy(teacher, *few) > 0.9
    assert accuracy(teacher, images[classes < CLASSES], classes[classes < CLASSES]) > 0.5


def test_longer_training_lowers_the_kl_of_the_student_to_its_labels(dump: Path, few: tuple[torch.Tensor, torch.Tensor]) -> None:
    batches = list(read_batches(dump, few[0]))

    def kl(steps: int) -> float:
        student = train_student(lambda: batches, steps=steps, width=8)
        views = torch.cat([apply_augmentation(images, augmentation) for images, augmentation, _ in batches])
        labels = torch.cat([logits for *_, logits in batches]).float()
        with torch.inference_mode():
            log_q = student(views).log_softmax(1)
        return float(F.kl_div(log_q, labels.log_softmax(1), log_target=True, reduction="batchmean"))

    assert kl(100) < 0.5 * kl(2)
    assert kl(2) == kl(2)
