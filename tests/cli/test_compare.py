"""`vqlabel compare` on the command line."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vqlabel.cli import app

pytestmark = pytest.mark.usefixtures("short_fits")

QUICK = ("--methods", "topk,hard")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], prog_name="vqlabel")


def rates(*arguments: object) -> list[int]:
    """The rates to which --bits is parsed."""
    result = run(*arguments, *QUICK, "--axes", "epochs,images,classes", "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    assert result.stdout.count("\n") == 1
    bits: list[int] = json.loads(result.stdout)["bits"]
    return bits


def refused(code: int, message: str, *arguments: object) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_bits_are_accepted_in_every_form(dump: Path) -> None:
    assert rates(dump, "--bits", "24", "48", "96") == [24, 48, 96]
    assert rates("--bits", "24", "48", dump) == [24, 48]
    assert rates(dump, "--bits", "24,48", "96") == [24, 48, 96]
    assert rates(dump, "--bits", "24", "--bits", "48") == [24, 48]
    assert rates(dump, "--bits=24", "48", "--seed", "3") == [24, 48]
    assert rates(dump, "--bits", "24 48") == [24, 48]
    assert rates(dump, "--bits", "24", "48", "--seed", "3", "--bits", "96") == [24, 48, 96]
    assert rates(dump) == [8, 16, 32, 64, 128, 256]


def test_numbers_after_other_options_are_not_bits(dump: Path) -> None:
    refused(2, "unexpected extra argument", dump, "--seed", "3", "4", *QUICK)
    refused(2, "unexpected extra argument", dump, "--bits", "24", "--seed", "3", "4", *QUICK)


def test_each_table_has_a_heading_and_the_teachers_size_is_printed(dump: Path, tmp_path: Path) -> None:
    (tmp_path / "teacher.bin").write_bytes(bytes(4500))
    result = run(dump, "--bits", "44", *QUICK, "--teacher", tmp_path / "teacher.bin", "--temperature", "1,4")
    assert result.exit_code == 0 and result.stderr.count("\n") == 1, "one note, on how the array is read"
    out = result.stdout
    assert "360 labels of 40 classes of logits; fitted for T = 1, 4" in out
    assert "held out: the last epoch (5), 60 labels, not used by any fit; fixed parts are not counted" in out
    assert (
        "all-in: fixed parts are divided by the number of labels in this dump; measured on 360 of them, training and held out"
        in out
    )
    assert "teacher: 4.50 kB, 100.0 bits per label of this dump" in out
    assert out.count("top-k (MR-k, flat tail)") == out.count("hard label") == 2
    assert out.count("all-in bits") == 1


def test_the_json_object_has_the_published_keys(dump: Path) -> None:
    result = run(dump, "--bits", "44", *QUICK, "--teacher-bytes", 4500, "--json")
    found = json.loads(result.stdout)
    assert list(found) == [
        "dump", "classes", "domain", "dtype", "labels", "sampled", "split", "temperature", "seed", "bits", "methods", "skipped",
        "teacher", "student", "points",
    ]  # fmt: skip
    assert found["teacher"] == {"bytes": 4500, "all_in_bits": 100.0}
    assert {point["part"] for point in found["points"]} == {"held out", "all-in"}


def test_a_plot_is_drawn_and_an_existing_file_is_kept_without_overwrite(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    command = (dump, "--bits", "44", *QUICK, "--plot", tmp_path / "rd.png")
    assert run(*command).exit_code == 0
    assert (tmp_path / "rd.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "rd.png").write_bytes(b"precious")
    assert run(*command, "--overwrite").exit_code == 0
    (tmp_path / "rd.png").write_bytes(b"precious")
    monkeypatch.setattr("vqlabel.report.rate_distortion.compare_methods", lambda *_, **__: pytest.fail("refused too late"))
    refused(4, "rd.png exists; pass --overwrite", *command)
    assert (tmp_path / "rd.png").read_bytes() == b"precious"
    refused(2, "rd.xyz: not a name of an image file", dump, "--plot", tmp_path / "rd.xyz")
    assert [path.name for path in tmp_path.iterdir()] == ["rd.png"]


def test_invalid_options_are_refused(dump: Path, tmp_path: Path) -> None:
    refused(2, "--bits '8 x': must be integers, such as 8 16 32 or 8,16,32", dump, "--bits", "8 x")
    refused(2, "--bits '-8': must be integers", dump, "--bits=-8")
    refused(2, "bits is 0; it must be 1..65536", dump, "--bits", "0")
    refused(2, "methods is 'zip'; it must be one of vqae", dump, "--methods", "zip")
    refused(2, "--teacher and --teacher-bytes both give the size of the teacher", dump, "--teacher", dump, "--teacher-bytes", 5)
    refused(2, "nothing: no such file; name the teacher's weights", dump, "--teacher", tmp_path / "nothing")
    refused(2, "--temperature '1,x': must be comma-separated numbers", dump, "--temperature", "1,x")
    refused(2, "nothing.npy: no such file or directory", tmp_path / "nothing.npy")
    refused(2, "layout is 'fkd2'", dump, "--layout", "fkd2")
    (tmp_path / "a.npy").write_bytes(b"no array")
    refused(3, "a.npy: is a text file, not a .npy file", tmp_path / "a.npy")


def test_a_method_without_its_extra_names_the_install_line(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    refused(1, "run: pip install 'vqlabel[baselines]'", dump, "--methods", "rq")


def test_a_method_without_a_point_is_named(dump: Path) -> None:
    result = run(dump, "--bits", "8", *QUICK, "--json")
    reason = "its smallest setting takes more than 8 bits"
    assert f"topk: no point; {reason}: raise --bits" in result.stderr
    assert json.loads(result.stdout)["skipped"] == {"topk": reason}
