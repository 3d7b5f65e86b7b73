"""The student benchmark: views and scores of students, refusals, and `vqlabel compare --student`."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import vqlabel
from vqlabel import FitConfig
from vqlabel.cli import app
from vqlabel.codecs import LabelCodec, load_codec
from vqlabel.errors import BadLabels, MissingExtra, UsageError
from vqlabel.labels import About, LabelBatch, LabelSource, Place, open_labels
from vqlabel.report.rate_distortion import CompareConfig, compare_methods
from vqlabel.report.student_benchmark import StudentBenchmark, StudentJudge

pytestmark = pytest.mark.usefixtures("short_fits")


@dataclass
class Files:
    """The files that a benchmark is read from."""

    dump: Path
    images: Path
    val: Path
    labels: Path
    class_map: Path

    def benchmark(self, **changes: Any) -> StudentBenchmark:
        files = {"dump": self.dump, "images": self.images, "val": self.val}
        options = {**files, "val_labels": self.labels, "class_map": self.class_map, "view": 170, **changes}
        return StudentBenchmark(open_labels(options.pop("dump")), options.pop("images"), options.pop("val"), **options)


@pytest.fixture(scope="module")
def files(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """60 images of one colour each, all views of SRe2L's tree, 6 new images of two classes."""
    root, rng = tmp_path_factory.mktemp("benchmark"), np.random.default_rng(0)
    for folder, images in (("images/all", 60), ("val/ant", 3), ("val/bee", 3)):
        (root / folder).mkdir(parents=True)
        for number in range(images):
            colour = (number, 255 - number, 7) if "images" in folder else tuple(rng.integers(0, 255, 3))
            Image.new("RGB", (64, 48), tuple(map(int, colour))).save(root / folder / f"{number:03}.png")
    np.save(root / "val.npy", rng.normal(size=(6, 40)).astype(np.float32))
    (root / "classes.json").write_text(json.dumps({"ant": 3, "bee": 39}))
    return Files(tree, root / "images", root / "val", root / "val.npy", root / "classes.json")


def test_every_view_shows_the_image_of_its_label(files: Files) -> None:
    benchmark = files.benchmark()
    assert benchmark.views.shape == (360, 32, 32, 3)
    done = 0
    for batch in open_labels(files.dump):
        views = benchmark.views[done : done + len(batch)]
        done += len(batch)
        assert batch.image is not None
        assert batch.mix_index is not None
        for view, own, slot in zip(views, batch.image, batch.mix_index, strict=True):
            assert set(view[..., 0].unique().tolist()) <= {int(own), int(batch.image[slot])}
        if batch.mix_box is not None:
            row0, col0, row1, col1 = (round(edge * 32 / 170) for edge in batch.mix_box)
            inside = torch.zeros(32, 32, dtype=torch.bool)
            inside[row0:row1, col0:col1] = True
            assert (views[0][..., 0][~inside] == int(batch.image[0])).all()


class FourViews(LabelSource):
    """Four views of one image: whole, flipped, its left half, and the whole image mixed with that half."""

    path, places = Path("four"), (Place(0, 0),)
    about = About(layout="four", classes=40, domain="logits", dtype="F16", order="explicit")

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        whole, half = (0, 0, 1, 1), (0, 0, 1, 0.5)
        batch = LabelBatch(
            labels=np.zeros((4, 40), np.float16), place=self.places[0], image=np.zeros(4, np.int64),
            crop=np.array([whole, whole, half, whole], np.float32), flip=np.array([False, True, False, False]),
            mix_index=np.array([0, 1, 2, 2]), mix_lam=0.75,
        )  # fmt: skip
        return batch, "four"


def test_views_are_cropped_flipped_and_mixed_as_recorded(files: Files, tmp_path: Path) -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32, 0], pixels[:, 32:, 1] = 200, 100  # red to the left, green to the right
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "one.png")
    benchmark = StudentBenchmark(FourViews(), tmp_path / "images", files.val, val_labels=files.labels, class_map=files.class_map)
    whole, flipped, left, mixed = benchmark.views.float()
    assert whole[:, :12, 0].eq(200).all()
    assert whole[:, 20:, 1].eq(100).all()
    assert torch.equal(flipped, whole.flip(1))
    assert left[..., 0].eq(200).all()
    torch.testing.assert_close(mixed, 0.75 * whole + 0.25 * left, atol=0.5, rtol=0)


class CutMixViews(FourViews):
    """The left half of an image and the whole, each with the upper right quarter of the other's view (224 pixels)."""

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        batch, name = super()._load(at)
        rows = {column: getattr(batch, column)[2:] for column in ("labels", "image", "crop", "flip")}
        return LabelBatch(**rows, place=batch.place, mix_index=np.array([1, 0]), mix_lam=0.75, mix_box=(0, 112, 112, 224)), name


def test_cutmix_boxes_are_scaled_from_the_teachers_views_to_those_of_the_student(files: Files, tmp_path: Path) -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32, 0], pixels[:, 32:, 1] = 200, 100  # red to the left, green to the right
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "one.png")
    options = {"images": tmp_path / "images", "val": files.val, "class_map": files.class_map}
    half, whole = StudentBenchmark(CutMixViews(), **options, view=224).views
    is_green = half[..., 1] > half[..., 0]
    assert is_green[:16, 17:].all() and not is_green[16:].any() and not is_green[:, :16].any()
    assert whole[:16, 16:, 0].eq(200).all() and whole[16:, 20:, 1].eq(100).all()
    with pytest.raises(UsageError, match=r"mix_box is \(0, 112, 112, 224\), views have 100 pixels"):
        StudentBenchmark(CutMixViews(), **options, view=100)


def test_the_same_labels_and_seed_train_the_same_student(files: Files) -> None:
    benchmark = files.benchmark()
    first, second, other_seed = (benchmark.train_and_score(benchmark.raw_labels, passes=2, seed=seed) for seed in (0, 0, 1))
    assert first == second != other_seed
    assert 0 <= first["top1"] <= 100
    assert first["kl_teacher"] > 0
    assert set(files.benchmark(val_labels=None).train_and_score(benchmark.raw_labels, passes=1)) == {"top1"}


def test_compare_trains_a_student_from_the_labels_of_every_method(files: Files) -> None:
    config = CompareConfig(bits=(24,), methods=["vqae", "raw", "hard"], passes=2, temperature=(1,))
    comparison = compare_methods(files.dump, config, benchmark=files.benchmark())
    student = comparison["student"]
    assert (student["passes"], student["temperature"], student["views"], student["new_images"]) == (2, 1, 360, 6)
    scores = {p["method"]: p["student"] for p in comparison["points"] if "student" in p}
    assert {p["part"] for p in comparison["points"] if "student" in p} == {"all-in"}
    assert scores["raw"] == pytest.approx(student["raw"], rel=1e-3)
    assert scores["vqae"] != scores["hard"] != student["raw"]


def test_the_command_prints_and_plots_the_scores_of_students(files: Files, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    command = [
        "compare", files.dump, "--bits", 24, "--methods", "hard", "--student", files.images, "--val", files.val, "--val-labels",
        files.labels, "--class-map", files.class_map, "--view", 170, "--passes", 1, "--plot", tmp_path / "students.png",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "students: 1 passes over 360 views at T = 20, seed 0; tested on 6 new images" in result.stdout
    assert "kl_teacher" in result.stdout.rpartition("students:")[2]
    assert (tmp_path / "students.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("network", ["conv", "vit"])  # the default, a ResNet, is that of all other tests
def test_students_of_every_network_are_trained(files: Files, network: str) -> None:
    benchmark = files.benchmark()
    scores = [benchmark.train_and_score(benchmark.raw_labels, passes=passes, network=network) for passes in (1, 3)]
    assert scores[0]["kl_teacher"] != scores[1]["kl_teacher"]
    with pytest.raises(UsageError, match="network is 'mlp'; it must be one of resnet, conv, vit"):
        benchmark.train_and_score(benchmark.raw_labels, network="mlp")


def test_tune_prints_the_scores_of_a_student_of_every_trial(files: Files, tmp_path: Path) -> None:
    command = [
        "tune", files.dump, "-o", tmp_path / "a.codec", "--bytes", 40_000, "--slots", 2, "--weight-bits", 4, "--codebook-size", 8,
        "--no-prior", "--temperature", 1, "--judge", "student", "--student", files.images, "--val", files.val, "--val-labels",
        files.labels, "--class-map", files.class_map, "--view", 170, "--passes", 1, "--json",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 0, result.stderr
    (trial,) = json.loads(result.stdout)["trials"]
    student = StudentJudge(benchmark=files.benchmark(), temperature=20, passes=1)
    assert trial["loss"] == round(trial["student"]["kl_teacher"], 6) and trial["student"].keys() == {"top1", "kl_teacher"}
    assert f"student's kl_teacher {trial['student']['kl_teacher']:.4g}" in result.stderr
    scores = student(load_codec(tmp_path / "a.codec")[0])
    assert scores.keys() == {"loss", "top1", "kl_teacher"} and scores["loss"] == scores["kl_teacher"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--judge", "top1"), "--judge top1: must be kl or student"),
        (("--judge", "student"), "--judge student: students need --judge student, --student"),
        (("--student", "a", "--val", "b"), "--judge kl: students need --judge student"),
        (("--val", "b"), "--judge kl: students need --judge student"),
        (("--student-temperature", "20"), "--judge kl: students need --judge student"),
        (("--judge", "student", "--student", "a", "--val", "b", "--kl", "1"), "--kl 1: a search for a KL has no other judge"),
    ],
)
def test_judges_that_have_nothing_to_judge_are_refused(
    files: Files, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = CliRunner().invoke(app, ["tune", str(files.dump), "-o", str(tmp_path / "a.codec"), "--bytes", "40000", *options])
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())


def test_a_search_without_a_budget_is_refused_before_any_view_is_rendered(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqlabel.report.student_benchmark.StudentBenchmark", None)
    command = ["tune", files.dump, "-o", tmp_path / "a.codec", "--judge", "student", "--student", files.images, "--val", files.val]
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 2 and "tune: name one budget" in result.stderr


def test_a_judge_without_labels_of_the_teacher_minimises_the_error(files: Files, codec: LabelCodec) -> None:
    scores = StudentJudge(benchmark=files.benchmark(val_labels=None), passes=1)(codec)
    assert scores == {"loss": 100 - scores["top1"], "top1": scores["top1"]}


def test_a_judge_trains_on_decoded_probabilities_as_logits(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.full(20, 0.1), (3, 60)).astype(np.float32)
    np.save(tmp_path / "probs.npy", probabilities)
    benchmark, targets = files.benchmark(), list[torch.Tensor]()
    benchmark.source = open_labels(tmp_path / "probs.npy", domain="probs")
    codec = vqlabel.fit(benchmark.source, FitConfig(codec="raw"))[0]

    def train_and_score(labels: torch.Tensor, **_: Any) -> dict[str, float]:
        targets.append(labels.float().softmax(1))
        return {"top1": 0.0}

    monkeypatch.setattr(benchmark, "train_and_score", train_and_score)
    StudentJudge(benchmark=benchmark)(codec)
    torch.testing.assert_close(targets[0], torch.from_numpy(probabilities).flatten(0, 1), atol=5e-3, rtol=0)


def test_a_judge_refuses_its_schedule_before_a_fit(files: Files) -> None:
    benchmark = files.benchmark()
    for options, message in (({"temperature": 0.0}, "temperature is"), ({"passes": 0}, "passes is 0")):
        with pytest.raises(UsageError, match=message):
            StudentJudge(benchmark=benchmark, **options)


def test_sigmoid_labels_have_no_students(files: Files) -> None:
    source = FourViews()
    source.about = replace(source.about, domain="sigmoid")
    with pytest.raises(UsageError, match="four: has sigmoid labels"):
        StudentBenchmark(source, files.images, files.val, class_map=files.class_map)


def test_files_that_make_no_benchmark_are_refused(files: Files, tmp_path: Path, dump: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "a.png").write_bytes((files.images / "all" / "000.png").read_bytes())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG, not really")
    np.save(tmp_path / "short.npy", np.zeros((5, 40), np.float32))
    (tmp_path / "classes.json").write_text('{"ant": 40}')
    (tmp_path / "one.json").write_text('{"broken": 0}')
    for error, message, changes in (
        (BadLabels, "records lack image, crop or flip", {"dump": dump}),
        (UsageError, "not a folder with images", {"images": tmp_path / "none"}),
        (UsageError, "1 images; the dump's labels are of", {"images": tmp_path / "few"}),
        (UsageError, "not a readable image", {"val": tmp_path / "broken", "class_map": tmp_path / "one.json", "val_labels": None}),
        (
            UsageError,
            "1 folders, but the labels have 40 classes",
            {"val": tmp_path / "broken", "class_map": None, "val_labels": None},
        ),
        (UsageError, r"must be \(6, 40\)", {"val_labels": tmp_path / "short.npy"}),
        (UsageError, "cannot be read as .npy", {"val_labels": files.class_map}),
        (UsageError, r"folder 'ant' has class 40; it must be an integer in 0\.\.39", {"class_map": tmp_path / "classes.json"}),
        (UsageError, "not readable as JSON", {"class_map": files.labels}),
        (UsageError, "view is 0", {"view": 0}),
    ):
        with pytest.raises(error, match=message):
            files.benchmark(**changes)
    with pytest.raises(UsageError, match=r"temperature is \[0.0\]"):
        files.benchmark().train_and_score(torch.zeros(360, 40), temperature=0.0)
    with pytest.raises(UsageError, match="labels is 3"):
        files.benchmark().train_and_score(torch.zeros(3, 40))
    with pytest.raises(UsageError, match="keep is"):
        files.benchmark().train_and_score(torch.zeros(360, 40), keep=0.01)


def test_a_student_without_a_pass_is_refused() -> None:
    with pytest.raises(UsageError, match="passes is 0"):
        CompareConfig(bits=(24,), methods=["hard"], passes=0)


def test_student_without_val_is_refused(files: Files) -> None:
    result = CliRunner().invoke(app, ["compare", str(files.dump), "--student", str(files.images)])
    assert result.exit_code == 2
    assert "--student and --val need each other" in result.stderr


def test_without_pillow_the_error_names_the_extra_to_install(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vqlabel\[student\]'"):
        files.benchmark()
