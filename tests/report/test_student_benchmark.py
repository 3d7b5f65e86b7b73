"""Students of a dump's labels: what they see, what is refused, and `vqlabel compare --student`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vqlabel.cli import app
from vqlabel.errors import BadLabels, MissingExtra, UsageError
from vqlabel.labels import LabelBatch, LabelSource, Place, open_labels
from vqlabel.report.rate_distortion import compare
from vqlabel.report.student_benchmark import Lesson


@dataclass
class School:
    dump: Path
    images: Path
    val: Path
    labels: Path
    columns: Path

    def lesson(self, **other: Any) -> Lesson:
        given = {"images": self.images, "val": self.val, "val_labels": self.labels, "columns": self.columns, "view": 100, **other}
        return Lesson(open_labels(given.pop("dump", self.dump)), given.pop("images"), given.pop("val"), **given)


@pytest.fixture(scope="module")
def school(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> School:
    """60 images of one colour each, all views of SRe2L's tree, 6 new images of two classes."""
    root, rng = tmp_path_factory.mktemp("school"), np.random.default_rng(0)
    for folder, images in (("images/all", 60), ("val/ant", 3), ("val/bee", 3)):
        (root / folder).mkdir(parents=True)
        for at in range(images):
            colour = (at, 255 - at, 7) if "images" in folder else tuple(rng.integers(0, 255, 3))
            Image.new("RGB", (64, 48), tuple(map(int, colour))).save(root / folder / f"{at:03}.png")
    np.save(root / "val.npy", rng.normal(size=(6, 40)).astype(np.float32))
    (root / "columns.json").write_text(json.dumps({"ant": 3, "bee": 39}))
    return School(tree, root / "images", root / "val", root / "val.npy", root / "columns.json")


def test_every_view_is_of_the_image_that_its_label_is_of(school: School) -> None:
    lesson = school.lesson()
    assert lesson.views.shape == (360, 32, 32, 3)
    done = 0
    for batch in open_labels(school.dump):
        views = lesson.views[done : done + len(batch)]
        done += len(batch)
        assert batch.image is not None
        assert batch.mix_index is not None
        for view, own, slot in zip(views, batch.image, batch.mix_index, strict=True):
            assert set(view[..., 0].unique().tolist()) <= {int(own), int(batch.image[slot])}
        if batch.mix_box is not None:
            row0, col0, row1, col1 = (round(edge * 32 / 100) for edge in batch.mix_box)
            inside = torch.zeros(32, 32, dtype=torch.bool)
            inside[row0:row1, col0:col1] = True
            assert (views[0][..., 0][~inside] == int(batch.image[0])).all()


class FourViews(LabelSource):
    """Of one image: whole, flipped, its left half, and the whole one mixed with that half."""

    path, layout, classes, domain, dtype, places, order = Path("four"), "four", 40, "logits", "F16", (Place(0, 0),), "explicit"

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        whole, half = (0, 0, 1, 1), (0, 0, 1, 0.5)
        batch = LabelBatch(
            labels=np.zeros((4, 40), np.float16), place=self.places[0], image=np.zeros(4, np.int64),
            crop=np.array([whole, whole, half, whole], np.float32), flip=np.array([False, True, False, False]),
            mix_index=np.array([0, 1, 2, 2]), mix_lam=0.75,
        )  # fmt: skip
        return batch, "four"


def test_views_are_cropped_flipped_and_mixed_as_their_records_say(school: School, tmp_path: Path) -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32, 0], pixels[:, 32:, 1] = 200, 100  # red to the left, green to the right
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "one.png")
    given = {"val_labels": school.labels, "columns": school.columns}
    whole, flipped, left, mixed = Lesson(FourViews(), tmp_path / "images", school.val, **given).views.float()
    assert whole[:, :12, 0].eq(200).all()
    assert whole[:, 20:, 1].eq(100).all()
    assert torch.equal(flipped, whole.flip(1))
    assert left[..., 0].eq(200).all()
    torch.testing.assert_close(mixed, 0.75 * whole + 0.25 * left, atol=0.5, rtol=0)


def test_the_same_labels_and_seed_teach_the_same_student(school: School) -> None:
    lesson = school.lesson()
    same, again, other = (lesson.learn(lesson.raw, passes=2, seed=seed) for seed in (0, 0, 1))
    assert same == again != other
    assert 0 <= same["top1"] <= 100
    assert same["kl_teacher"] > 0
    assert set(school.lesson(val_labels=None).learn(lesson.raw, passes=1)) == {"top1"}


def test_compare_trains_a_student_from_every_methods_labels(school: School) -> None:
    found = compare(school.dump, (24,), methods=["vqae", "raw", "hard"], lesson=school.lesson(), passes=2, temperature=(1,))
    how = found["student"]
    assert (how["passes"], how["temperature"], how["views"], how["new_images"]) == (2, 1, 360, 6)
    taught = {p["method"]: p["student"] for p in found["points"] if "student" in p}
    assert {p["part"] for p in found["points"] if "student" in p} == {"all-in"}
    assert taught["raw"] == pytest.approx(how["raw"], rel=1e-3)
    assert taught["vqae"] != taught["hard"] != how["raw"]


def test_the_command_shows_and_draws_what_students_got(school: School, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    command = [
        "compare", school.dump, "--bits", 24, "--methods", "hard", "--student", school.images, "--val", school.val, "--val-labels",
        school.labels, "--class-map", school.columns, "--view", 100, "--passes", 1, "--plot", tmp_path / "students.png",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "students: 1 passes over 360 views at T = 20, seed 0; judged on 6 new images" in result.stdout
    assert "kl_teacher" in result.stdout.rpartition("students:")[2]
    assert (tmp_path / "students.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_a_lesson_is_refused(school: School, tmp_path: Path, dump: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "a.png").write_bytes((school.images / "all" / "000.png").read_bytes())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG, not really")
    np.save(tmp_path / "short.npy", np.zeros((5, 40), np.float32))
    (tmp_path / "columns.json").write_text('{"ant": 40}')
    for error, message, other in (
        (BadLabels, "do not say which image", {"dump": dump}),
        (UsageError, "not a folder with images", {"images": tmp_path / "none"}),
        (UsageError, "1 images; the dump's labels are of", {"images": tmp_path / "few"}),
        (UsageError, "not a readable image", {"val": tmp_path / "broken", "columns": None, "val_labels": None}),
        (UsageError, r"must be \(6, 40\)", {"val_labels": tmp_path / "short.npy"}),
        (UsageError, "no readable .npy", {"val_labels": school.columns}),
        (UsageError, r"folder 'ant' is class 40; it must be 0\.\.39", {"columns": tmp_path / "columns.json"}),
        (UsageError, "no readable JSON", {"columns": school.labels}),
        (UsageError, "view is 0", {"view": 0}),
    ):
        with pytest.raises(error, match=message):
            school.lesson(**other)
    with pytest.raises(UsageError, match="labels is 3"):
        school.lesson().learn(torch.zeros(3, 40))
    with pytest.raises(UsageError, match="keep is"):
        school.lesson().learn(torch.zeros(360, 40), keep=0.01)


def test_a_student_of_no_pass_is_refused(school: School) -> None:
    with pytest.raises(UsageError, match="passes is 0"):
        compare(school.dump, (24,), methods=["hard"], lesson=school.lesson(), passes=0)


def test_student_and_val_go_together(school: School) -> None:
    result = CliRunner().invoke(app, ["compare", str(school.dump), "--student", str(school.images)])
    assert result.exit_code == 2
    assert "--student and --val go together" in result.stderr


def test_without_pillow_the_error_says_what_to_install(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vqlabel\[student\]'"):
        school.lesson()
