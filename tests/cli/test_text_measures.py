"""compare, tune and stats --against on the command line, for labels of documents."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tests.text_corpus import random_codec, small_split, write_head, write_hidden_states, write_text_file
from vqlabel.cli import app
from vqlabel.report.text import compare
from vqlabel.report.text.methods import METHODS

LABELS, SMALL = len(small_split(24).labels), ("--slots", 2, "--codebook-size", 8, "--ids", 1, "--latent", 8, "--epochs", 1)
PEERS = ("--methods", "topk,topk-zero,sampling,fp8-hidden,logits")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A dump, its head, and a file of its labels."""
    folder = tmp_path_factory.mktemp("cli")
    split = small_split(24)
    write_text_file(folder / "labels.vql", random_codec(), split)
    return write_hidden_states(folder / "dump", split), write_head(folder), folder / "labels.vql"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], prog_name="vqlabel")


def refused(message: str, *arguments: object) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_compare_prints_tables_by_rising_bits(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dump, head, _ = files
    (tmp_path / "teacher.bin").write_bytes(bytes(4500))
    result = run("compare", dump, "--head", head, *PEERS, "--teacher", tmp_path / "teacher.bin")
    assert (result.exit_code, result.stderr) == (0, "")
    out = result.stdout.splitlines()
    assert out[0] == f"{LABELS:,} labels of 20 documents, 60 tokens in the vocabulary"
    bits = code_bits(out)
    assert bits == sorted(bits) and len(bits) == 2 + 2 + 3 + 1 + 1
    zero = next(line for line in out if "zero tail" in line and "k = 16" in line)
    assert "inf" in zero
    assert any(line.startswith("all-in bits per label: fixed parts are divided by") for line in out)
    assert out[-1].startswith(f"teacher: 4.50 kB, {8 * 4500 / LABELS:.1f} bits per label of this dump, 0.0036 at 1e7")


def code_bits(lines: list[str]) -> list[float]:
    """The column of the first table."""
    start = next(i for i, line in enumerate(lines) if line.startswith("held out: "))
    end = lines[start + 1].index("code bits") + len("code bits")
    return [float(line[:end].split()[-1]) for line in lines[start + 2 : lines.index("", start)]]


def test_compare_as_json_and_with_students_of_the_text(
    files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump, head, _ = files
    monkeypatch.setattr(compare, "STUDENT_WIDTH", 8)
    options = ("--methods", "topk", "--student", "text", "--passes", 1)
    result = run("compare", dump, "--head", head, *options, "--json")
    found = json.loads(result.stdout)
    assert list(found) == [
        "dump", "vocabulary", "labels", "documents", "sampled", "head", "config", "seed", "bits", "methods", "teacher", "student", "points",
    ]  # fmt: skip
    assert [point["setting"] for point in found["points"]] == ["k = 16", "k = 50"]
    assert set(found["points"][0]["student"]) == {"kl", "ce", "ece", "top1", "share"}
    assert found["student"]["passes"] == 1
    text = run("compare", dump, "--head", head, *options).stdout
    assert "students: 1 passes over" in text and "hard labels" in text and "dense labels" in text


@pytest.mark.parametrize("students", [False, True])
def test_compare_draws_a_plot(
    files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, students: bool
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    from vqlabel.report.plots import figure, text_comparison

    dump, head, _ = files
    drawn = []
    monkeypatch.setattr(compare, "STUDENT_WIDTH", 8)
    monkeypatch.setattr(
        text_comparison, "save_figure", lambda *given, **options: drawn.append(given[0]) or figure.save_figure(*given, **options)
    )
    options = ("--student", "text", "--passes", 1) if students else ()
    plot = tmp_path / "rd.svg"
    assert run("compare", dump, "--head", head, "--methods", "topk,topk-zero,fp8-hidden", "--plot", plot, *options).exit_code == 0
    assert plot.read_text().startswith("<?xml")
    left, right = drawn[0].axes
    colours = {line.get_label().split(" (")[0]: line.get_color() for line in left.lines}
    names = list(METHODS)
    for name in ("topk", "topk-zero", "fp8-hidden") if students else ("topk", "fp8-hidden"):  # a zero tail's KL is infinite
        assert colours[METHODS[name]] == text_comparison.COLORS[names.index(name)]
    assert {axes.get_xscale() for axes in (left, right)} == {axes.get_yscale() for axes in (left, right)} == {"log"}
    assert len(left.lines) == (5 if students else 2)
    assert run("compare", dump, "--head", head, "--plot", plot).exit_code == 4


def test_compare_refuses_options_for_images_by_name(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dump, head, _ = files
    command = ("compare", dump, "--head", head)
    for option in (("--val", tmp_path), ("--view", 64), ("--temperature", "4"), ("--layout", "fkd"), ("--images", tmp_path)):
        refused(f"{option[0]} {option[1]}: is for labels of images; these are labels of documents", *command, *option)
    refused(f"--student {tmp_path}: must be text for labels of documents", *command, "--student", tmp_path)
    refused("methods is 'vqae'; it must be one of token_vqae", *command, "--methods", "vqae")
    refused("holds hidden states; pass the teacher's output head with --head", "compare", dump)
    np.save(tmp_path / "images.npy", np.zeros((4, 5), np.float32))
    refused("--layer 1: is for labels of documents; ", "compare", tmp_path / "images.npy", "--layer", 1)


def test_tune_writes_a_codec_that_packs_at_the_kl(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dump, head, _ = files
    out = tmp_path / "codec.safetensors"
    result = run("tune", dump, "--head", head, "-o", out, "--kl", 0.6, *SMALL, "--json")
    report = json.loads(result.stdout)
    assert report["held_out"]["kl"] <= 0.6
    assert report["path"] == str(out)
    packed = json.loads(run("pack", dump, "--head", head, "-o", tmp_path / "labels.vql", "--codec", out, "--json").stdout)
    assert packed["fit"]["held_out"] == report["held_out"]
    direct = json.loads(run("pack", dump, "--head", head, "-o", tmp_path / "direct.vql", "--kl", 0.6, *SMALL, "--json").stdout)
    assert direct["fit"]["held_out"] == report["held_out"]
    assert (tmp_path / "direct.vql").read_bytes() == (tmp_path / "labels.vql").read_bytes()
    fit = json.loads(run("fit", dump, "--head", head, "-o", tmp_path / "again.safetensors", "--kl", 0.6, *SMALL, "--json").stdout)
    assert fit["held_out"] == report["held_out"]
    refused("is already fitted; remove --kl", "pack", dump, "--head", head, "-o", tmp_path / "c.vql", "--kl", 0.6, "--codec", out)


def test_tune_prints_its_trials(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dump, head, _ = files
    result = run("tune", dump, "--head", head, "-o", tmp_path / "codec.safetensors", "--bytes", "1MB", *SMALL)
    assert result.exit_code == 0, result.stderr
    assert "codes  ids  latent  prior's width  fixed parts" in result.stdout
    assert "for this dump, " in result.stdout and "% of the budget" in result.stdout


def test_tune_refuses_options_for_images_by_name(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dump, head, _ = files
    command = ("tune", dump, "--head", head, "-o", tmp_path / "codec.safetensors")
    for option in (
        ("--judge", "student"),
        ("--student", tmp_path),
        ("--student-temperature", 2.0),
        ("--view", 64),
        ("--gain", 1.0),
    ):
        refused(f"{option[0]} {option[1]}: is for labels of images; these are labels of documents", *command, *option)
    refused("tune: name one budget", *command)
    refused("tune: name one budget", *command, "--kl", 1, "--bits", 8)
    refused("are several rates; give one", *command, "--bits", 8, "--bytes", 5)
    assert list(tmp_path.iterdir()) == []


def test_stats_compares_labels_with_a_dump(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dump, head, file = files
    result = run("stats", file, "--against", dump, "--head", head, "--labels", 40)
    assert result.exit_code == 0
    assert f"{head}: this head differs from that of {file} (by sha256); the comparison continues" in result.stderr
    assert (
        "documents are compared, seed 0; 0 documents of the file are not in the dump, 0 of the dump not in the file"
        in result.stdout
    )
    assert "distortion against the dump: kl_T1 " in result.stdout and "kl_T4 " in result.stdout
    assert "calibration at T1: slope " in result.stdout
    found = json.loads(run("stats", file, "--against", dump, "--head", head, "--json").stdout)
    assert found["compared"]["labels"] == LABELS
    assert found["bits_per_label"]["all_in"] > 0


def test_stats_draws_the_calibration_of_documents(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    dump, head, file = files
    plot = tmp_path / "calibration.svg"
    assert run("stats", file, "--against", dump, "--head", head, "--plot-calibration", plot).exit_code == 0
    assert plot.exists()


def test_stats_refuses_options_that_do_not_apply(files: tuple[Path, Path, Path], dump: Path, tmp_path: Path) -> None:
    _, head, file = files
    refused("--head " + str(head) + ": needs --against", "stats", file, "--head", head)
    refused("--labels 5: needs --against", "stats", file, "--labels", 5)
    refused("--teacher-bytes 5: is for labels of images; these are labels of documents", "stats", file, "--teacher-bytes", 5)
    refused("--layout fkd: is for labels of images", "stats", file, "--layout", "fkd")
    images = tmp_path / "images.vql"
    assert run("pack", dump, "-o", images, "--codec", "raw", "--axes", "epochs,images,classes").exit_code == 0
    refused(f"--labels 5: is for labels of documents; {images} has labels of images", "stats", images, "--labels", 5)
    refused(f"--head {head}: is for labels of documents", "stats", images, "--head", head)
