"""The command line: results on stdout, notes on stderr, exit codes, interruption and closed pipes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forge import flip_bit
from numpy.typing import NDArray
from paths import GOLDEN, ROOT
from typer.testing import CliRunner, Result

import vqlabel
from vqlabel import FitConfig
from vqlabel.cli import app, show
from vqlabel.cli.options import LAYOUTS as LAYOUT_NAMES
from vqlabel.cli.parse import read_temperature
from vqlabel.labels import LAYOUTS, open_labels

pytestmark = pytest.mark.usefixtures("short_fits")

COMMANDS = ("fit", "tune", "pack", "unpack", "convert", "relabel", "stats", "compare", "info", "verify", "demo", "report", "doctor")
QUICK = ("--bits", "12", "--codebook-size", "8", "--no-prior", "--epochs", "2", "--temperature", "1,4,20")


def run(*arguments: object) -> Result:
    """Run a command in this process: fast, and exceptions are visible."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="vqlabel")


def start(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """Start a command in its own process, as a shell does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vqlabel", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options)


def in_a_shell(*arguments: object) -> tuple[int, str, str]:
    process = start(*arguments)
    out, error = process.communicate(timeout=60)
    return process.returncode, out, error


def notes_of(stderr: str) -> str:
    """stderr without the note on how an array of epochs is read."""
    return re.sub(r"vqlabel: .*: read as 6 epochs of 60 images; .*\n", "", stderr)


def ok(*arguments: object) -> str:
    """stdout of a command that succeeds and prints nothing on stderr."""
    result = run(*arguments)
    assert (result.exit_code, notes_of(result.stderr)) == (0, ""), result.stderr
    return result.stdout


def ok_json(*arguments: object) -> dict[str, Any]:
    """The single JSON object on stdout."""
    out = ok(*arguments, "--json")
    assert out.count("\n") == 1
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def refused(code: int, message: str, *arguments: object) -> None:
    """Check for one line "vqlabel: ... message ..." on stderr, an empty stdout and no traceback."""
    for options in ((), ("--json",)):
        result = run(*arguments, *options)
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == code, result.stderr
        assert result.stdout == ""
        assert result.stderr.startswith("vqlabel: ")
        assert notes_of(result.stderr).count("\n") == 1
        assert message in result.stderr


# --- commands ---------------------------------------------------------------------------------------------------------


def test_fit_reports_the_held_out_distortion(dump: Path, codec_file: Path, tmp_path: Path) -> None:
    found = ok_json("fit", dump, "-o", tmp_path / "a.codec", *QUICK)
    assert found["path"] == str(tmp_path / "a.codec")
    assert found["split"] == "the last epoch (5)"
    assert (found["held_out"]["labels"], found["train"]["labels"], found["code_bits"]) == (60, 300, 12)
    assert (tmp_path / "a.codec").read_bytes() == codec_file.read_bytes(), "the same bytes as from Python"
    out = ok("fit", dump, "-o", tmp_path / "b.codec", *QUICK)
    assert "vqae, 12 code bits per label, 40 classes of logits" in out
    assert "held out: the last epoch (5)" in out
    assert "training labels" in out
    assert "perplexity per slot" in out
    assert f"{found['held_out']['kl_T20']:.4f}" in out


def test_every_option_of_fit_reaches_the_configuration(dump: Path, tmp_path: Path) -> None:
    found = ok_json(
        "fit", dump, "--out", tmp_path / "a.codec", "--bits", 30, "--slots", 4, "--codebook-size", 5, "--code-width", 2, "--latent", 8,
        "--weight-bits", 7, "--image-width", 3, "--hidden", 6, "--gain", 1.2, "--exact-classes", 2, "--no-prior", "--temperature", "2,3.5", "--epochs", 1, "--seed", 9, "--device", "cpu", "--layout", "arrays", "--domain", "logits",
    )  # fmt: skip
    want = FitConfig(
        bits=30,
        slots=4,
        codebook_size=5,
        code_width=2,
        latent=8,
        weight_bits=7,
        image_width=3,
        hidden=6,
        prior=False,
        temperature=(2.0, 3.5),
        gain=1.2,
        exact_classes=2,
        epochs=1,
        seed=9,
        device="cpu",
    )
    assert found["fit"] == {**want.to_dict(), "codec": "vqae", "temperature": [2.0, 3.5]}
    assert found["config"]["quantizer"] == "grouped"


def test_a_schedule_is_parsed_to_four_temperatures() -> None:
    assert read_temperature("20:2") == pytest.approx((20, 9.2832, 4.3089, 2))
    assert read_temperature("2:20") == pytest.approx((2, 4.3089, 9.2832, 20))
    assert read_temperature("4") == (4,)
    assert read_temperature("auto") is read_temperature(None) is None


def test_mse_is_parsed_to_a_high_temperature() -> None:
    assert read_temperature("mse") == (100,)


def test_pack_accepts_a_codec_file(tree: Path, codec_file: Path, vql: Path, tmp_path: Path) -> None:
    found = ok_json("pack", tree, "-o", tmp_path / "a.vql", "--codec", codec_file)
    assert found.pop("augmentation_bits")["stored"] > 30
    fit = found.pop("fit")
    assert fit["codec_file"] == str(codec_file) and fit["held_out"]["kl_T1"] > 0
    assert found.pop("stored_code_bits") == pytest.approx(12, abs=0.1)
    read = {"records": 360, "classes": 40, "epochs": 6}
    assert found == {"path": str(tmp_path / "a.vql"), **read, "bytes": vql.stat().st_size, "code_bits": 12}
    assert (tmp_path / "a.vql").read_bytes() == vql.read_bytes()
    out = ok("pack", tree, "-o", tmp_path / "b.vql", "--codec", codec_file, "--effort", "best")
    assert "360 labels of 40 classes, 6 epochs, in" in out
    assert "12 code bits each\n" in out and "\naugmentation and order: " in out
    assert f"{codec_file}, on the dump that it was fitted to: held out (the last epoch (5), 60 labels)" in out


def test_pack_prints_the_distortion_of_its_labels_last(dump: Path, tmp_path: Path) -> None:
    options = ("--bits", 12, "--codebook-size", 8, "--epochs", 1, "--temperature", 20)
    result = run("pack", dump, "-o", tmp_path / "a.vql", *options)
    assert result.exit_code == 0
    held, header, own, calibrated, mean, topk, judgement, gain = result.stdout.splitlines()[-8:]
    assert held == "held out (the last epoch (5), 60 labels)"
    assert header.split() == ["bits/label", "KL", "at", "T", "=", "20", "top-1", "%"]
    figure = r"\d\.\d{4}"
    assert re.fullmatch(rf"these labels, gain [\d.]+ +[\d.]+ +{figure} +[\d.]+", own)
    assert re.fullmatch(rf"the same codes, --gain 1 +{figure}", calibrated)
    assert re.fullmatch(rf"one mean label for all +0\.0 +{figure}", mean)
    assert re.fullmatch(rf"top-27 in as many bytes +594\.0 +{figure}", topk), "of 16 + 6 bits each; codes and decoder take 600"
    assert re.fullmatch(r"gain [\d.]+: .*; students feel the bias, not the KL: slope .*, held out: [\d.]+ at T = 20", gain)
    assert re.fullmatch(
        r"by the KL with --gain 1, these labels are (good|mixed): KL at T = 20 is .* that of top-27 in as many bytes.*", judgement
    )
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).normal(size=(300, 30)).astype(np.float16))
    result = run("pack", tmp_path / "noise.npy", "-o", tmp_path / "b.vql", "--bits", 1, "--epochs", 0, "--json")
    warnings = json.loads(result.stdout)["fit"]["warnings"]
    assert warnings
    assert all(f"vqlabel: {warning}" in result.stderr for warning in warnings)
    assert ok("pack", dump, "-o", tmp_path / "c.vql", "--codec", "raw").endswith("labels are stored losslessly\n")


@pytest.mark.parametrize(("codec", "bits"), [("vqae", 12), ("topk", 44), ("raw", 640)])
def test_pack_fits_a_codec_if_only_its_kind_is_given(codec: str, bits: int, dump: Path, tmp_path: Path) -> None:
    result = run("pack", dump, "-o", tmp_path / "a.vql", "--codec", codec, "--epochs", 1, "--bits", min(bits, 64), "--json")
    assert (result.exit_code, json.loads(result.stdout)["code_bits"]) == (0, bits)
    large = f"the file has {(tmp_path / 'a.vql').stat().st_size:,} bytes, the uncompressed labels 28,800: for so few labels use --codec raw"
    notes = {
        "vqae": [large],
        "topk": ["--epochs 1 has no effect: --codec topk uses only --slots and --bits", "the stored classes have only 7"],
        "raw": [f"--{option} has no effect: --codec raw stores labels unchanged" for option in ("bits 64", "epochs 1")],
    }[codec]
    lines = notes_of(result.stderr).splitlines()
    assert len(lines) == len(notes) and all(line.startswith(f"vqlabel: {note}") for line, note in zip(lines, notes, strict=True))
    assert ok_json("info", tmp_path / "a.vql")["codec"]["kind"] == codec


def test_pack_reports_the_probability_of_the_classes_that_topk_stores(dump: Path, tmp_path: Path) -> None:
    result = run("pack", dump, "-o", tmp_path / "a.vql", "--codec", "topk", "--slots", 3)
    share = 100 * ok_json("stats", tmp_path / "a.vql", "--against", dump)["distortion"]["mass_kept"]
    assert f"KL is computed over the stored classes, which have {share:.0f}"[:-1] in result.stdout
    assert "the KL is over these classes alone; more --slots or --bits keep more" in result.stderr
    result = run("pack", dump, "-o", tmp_path / "b.vql", "--codec", "topk", "--slots", 39)
    assert "which have 100.0 %" in result.stdout and notes_of(result.stderr) == ""


def test_pack_reports_no_augmentation_bits_for_a_dump_without_augmentation(dump: Path, codec_file: Path, tmp_path: Path) -> None:
    out = ok("pack", dump, "-o", tmp_path / "a.vql", "--codec", codec_file)
    assert "360 labels of 40 classes, 6 epochs, in" in out
    assert "augmentation" not in out
    assert ok_json("pack", dump, "-o", tmp_path / "b.vql", "--codec", codec_file)["augmentation_bits"] == {}


def test_pack_reports_the_compressed_size_of_raw_labels(tree: Path, tmp_path: Path) -> None:
    found = ok_json("pack", tree, "-o", tmp_path / "a.vql", "--codec", "raw")
    codes = next(row["bytes"] for row in ok_json("stats", tmp_path / "a.vql")["rows"] if row["part"] == "codes")
    assert (
        found["code_bits"] == 640
        and found["stored_code_bits"] == pytest.approx(8 * codes / 360, abs=1e-4)
        and found["stored_code_bits"] < 600
    )
    out = ok("pack", tree, "-o", tmp_path / "b.vql", "--codec", "raw")
    assert f"640 code bits each, compressed to {found['stored_code_bits']:.1f}" in out


def test_a_rate_outside_the_codecs_range_is_refused(tree: Path, codec_file: Path, tmp_path: Path) -> None:
    for bits in (100, 2, 0):
        result = run("pack", tree, "-o", tmp_path / "a.vql", "--codec", codec_file, "--bits", bits)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"bits is {bits}; it must be 3..12, the codec's 4 slots of 3 bits each" in result.stderr
    between = run("pack", tree, "-o", tmp_path / "b.vql", "--codec", codec_file, "--bits", 5)
    assert between.stderr.startswith(f"vqlabel: --bits 5: {codec_file} has codes of 3 bits, so each label stores 3 bits of codes\n")
    result = run("pack", tree, "-o", tmp_path / "a.vql", "--codec", "vqea")
    assert (result.exit_code, "or one to fit first: vqae, " in result.stderr) == (2, True)


def test_info_of_a_codec_file_shows_the_report_of_its_fit(codec_file: Path) -> None:
    found = ok_json("info", codec_file)
    assert (found["codec"], found["code_bits"], found["report"]["held_out"]["labels"]) == ("vqae", 12, 60)
    out = ok("info", codec_file)
    assert re.search(r"held out +the last epoch \(5\)", out)
    assert f"{found['report']['held_out']['kl_T20']:.4f}" in out
    for command in ("verify", "stats"):
        result = run(command, codec_file)
        assert (result.exit_code, "not a .vql file but a codec file; `vqlabel info` shows it" in result.stderr) == (3, True)


def test_info_of_a_seeded_file_lists_stored_and_generated_columns() -> None:
    found = ok_json("info", GOLDEN / "seeded.vql")
    assert (found["order"], found["columns"], found["epochs"], found["batch_size"]) == ("seeded", ["image_size"], 4, 4)
    assert found["drawn"] == ["image", "crop", "flip", "mix_index", "mix_lam", "mix_box"]


@pytest.mark.parametrize(
    ("slopes", "gain", "message"),
    [
        ({"T20": 1.003}, None, r"gain 1\.200: labels are rescaled to be unbiased: .* held out: 1\.00 at T = 20"),
        ({"T20": 0.81}, None, r"gain 1\.200: labels are less biased than calibrated ones, .* held out: 0\.81 at T = 20"),
        ({"T20": 0.81}, 1.2, r"gain 1\.200: set by --gain; .* held out: 0\.81 at T = 20"),
    ],
)
def test_labels_are_called_unbiased_only_if_the_slope_is_near_1(
    slopes: dict[str, float], gain: float | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    part = {"labels": 1, "kl_T1": 0.5, "top1_agreement": 0.5}
    report = {
        "codec": "vqae",
        "config": {"classes": 3, "domain": "logits", "temperature": [1]},
        "code_bits": 8,
        "split": "x",
        "held_out": part,
        "train": part,
    }
    show.show_fit({**report, "gain": 1.2, "bias_slope": slopes, "fit": {"gain": gain}})
    assert re.search(message, capsys.readouterr().out)


def test_unpack_writes_a_file_or_a_folder(vql: Path, tmp_path: Path) -> None:
    found = ok_json("unpack", vql, "-o", tmp_path / "a.npy", "--records", "10:-5", "--dtype", "f32")
    assert found == {"path": str(tmp_path / "a.npy"), "records": 345, "classes": 40, "dtype": "f32"}
    assert np.load(tmp_path / "a.npy").shape == (345, 40)
    assert "360 labels of 40 classes, f16" in ok("unpack", vql, "-o", tmp_path / "tree", "--layout", "gvbsm")
    assert len(open_labels(tmp_path / "tree").places) == 24


def test_stats_reports_every_byte(vql: Path, tree: Path, tmp_path: Path) -> None:
    found = ok_json("stats", vql, "--against", tree, "--teacher-bytes", 5000)
    assert {"records", "classes", "bytes", "bits_per_label"} <= set(found)
    assert found["bytes"]["total"] == vql.stat().st_size
    assert found["distortion"]["kl_T1"] > 0
    assert found == json.loads(json.dumps(vqlabel.stats(vql, against=tree, teacher_bytes=5000)))
    out = ok("stats", vql, "--against", tree, "--teacher-bytes", 5000)
    for text in (
        "codes only",
        "all-in: the whole file",
        "at 300 views/image",
        "perplexity per slot",
        "the teacher (5.00 kB) is smaller",
        "kl_T20",
        f"calibration at T4: slope {found['calibration']['T4']['slope']:.4f}  ECE {found['calibration']['T4']['ece']:.4g} (",
        "% of the mean probability)",
        "one mean label for all",
        f"these labels are {found['baselines']['judgement']['sentence']}",
    ):
        assert text in out
    for row in found["rows"]:
        assert any(line.startswith(row["part"]) and f"{row['bytes']:,}" in line for line in out.splitlines())


def test_stats_reads_a_dump_of_probabilities_in_the_files_domain(probs: NDArray[np.float16], tmp_path: Path) -> None:
    np.save(tmp_path / "probs.npy", probs)
    ok("pack", tmp_path / "probs.npy", "-o", tmp_path / "a.vql", "--domain", "probs", *QUICK)
    assert ok_json("stats", tmp_path / "a.vql", "--against", tmp_path / "probs.npy")["distortion"]["kl_T1"] > 0


def test_stats_draws_a_plot(vql: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    ok("stats", vql, "--plot", tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert before.startswith(b"\x89PNG")
    refused(4, "a.png exists; pass --overwrite", "stats", vql, "--plot", tmp_path / "a.png")
    refused(2, "a.xyz: not a name of an image file", "stats", vql, "--plot", tmp_path / "a.xyz")
    refused(2, "no: no such folder; make it first", "stats", vql, "--plot", tmp_path / "no" / "a.png")


def test_stats_draws_calibration(vql: Path, tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    out = tmp_path / "a.png"
    ok("stats", vql, "--against", tree, "--plot-calibration", out, "--plot", tmp_path / "b.png")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.read_bytes() != (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
    ok("stats", vql, "--against", tree, "--plot-calibration", out, "--overwrite")


def test_a_calibration_plot_that_cannot_be_written_is_refused_before_measuring(
    vql: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")

    def measure(*_: object, **__: object) -> None:
        raise AssertionError("refused too late")

    monkeypatch.setattr("vqlabel.report.stats", measure)
    (tmp_path / "a.png").write_bytes(b"precious")
    for code, message, out in (
        (4, "a.png exists; pass --overwrite", tmp_path / "a.png"),
        (2, "a.xyz: not a name of an image file", tmp_path / "a.xyz"),
        (2, "a: not a name of an image file", tmp_path / "a"),
        (2, "no: no such folder; make it first", tmp_path / "no" / "a.png"),
    ):
        refused(code, message, "stats", vql, "--against", tree, "--plot-calibration", out)
    refused(2, "c.png: needs --against, the dump to compare with", "stats", vql, "--plot-calibration", tmp_path / "c.png")
    for flag, value in (("--layout", "sre2l"), ("--array", "a"), ("--axes", "images,views,classes")):
        refused(2, f"{flag} {value}: needs --against, the dump that it applies to", "stats", vql, flag, value)
    both = ("--plot", tmp_path / "c.png", "--plot-calibration", tmp_path / "c.png")
    refused(2, "name two files", "stats", vql, "--against", tree, *both)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"precious")]


def test_stats_reports_labels_that_are_not_those_of_the_file(
    vql: Path, tree: Path, logits: NDArray[np.float16], tmp_path: Path
) -> None:
    np.save(tmp_path / "other.npy", logits)  # in the order of the images, not of the dump's batches
    result = run("stats", vql, "--against", tmp_path / "other.npy", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["same_dump"] is False
    want = f"vqlabel: {tmp_path / 'other.npy'}: its labels differ from those that {vql} was packed from (by sha256); the comparison continues\n"
    assert result.stderr == want
    assert ok_json("stats", vql, "--against", tree)["same_dump"] is True  # `ok` checks that stderr is empty
    assert "another teacher's labels" in " ".join(ok("stats", "--help").split())


def test_info_prints_the_header(vql: Path) -> None:
    found = ok_json("info", vql)
    assert (found["records"], found["batches"], found["order"]) == (360, 24, "explicit")
    assert found["label"] == {"classes": 40, "domain": "logits", "dtype": "F16", "shift_preserved": False}
    assert found["columns"] == ["image", "crop", "flip", "mix_index", "mix_lam", "mix_box", "image_size"]
    assert found["bytes"] == vql.stat().st_size
    assert (found["what"], found["images"], found["gain"]) == ("images", 60, pytest.approx(found["gain"]))
    assert sum(found["bytes_by_group"].values()) == found["bytes"]
    assert found["ratio_to_fp16"] == pytest.approx(ok_json("stats", vql)["ratio_to_fp16"]["labels"])


def test_verify_reads_every_byte(vql: Path, tmp_path: Path) -> None:
    found = ok_json("verify", vql)
    assert found == {"path": str(vql), **vqlabel.verify(vql)}
    assert "all valid" in ok("verify", vql)
    data = vql.read_bytes()
    (tmp_path / "bad.vql").write_bytes(flip_bit(data, len(data) // 2))
    refused(3, "bad.vql: ", "verify", tmp_path / "bad.vql")


# --- exit codes -------------------------------------------------------------------------------------------------------


def test_invalid_options_and_missing_files_exit_with_2(dump: Path, vql: Path, codec_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    for message, arguments in (
        ("--bits is -1; it must be 0..1048576", ("fit", dump, "-o", out, "--bits", -1)),
        ("the rate leaves no codes", ("fit", dump, "-o", out, "--bits", 0, "--no-prior")),
        ("--weight-bits is 9; it must be 2..8", ("fit", dump, "-o", out, "--weight-bits", 9)),
        ("--codec is 'zip'; it must be one of vqae, sparse, topk, raw", ("fit", dump, "-o", out, "--codec", "zip")),
        ("--temperature '20:x': must be comma-separated numbers", ("fit", dump, "-o", out, "--temperature", "20:x")),
        ("--temperature '0:2': must be comma-separated numbers", ("fit", dump, "-o", out, "--temperature", "0:2")),
        ("--temperature is [-2.0", ("fit", dump, "-o", out, "--temperature=-2:-1")),
        ("--exact-classes 'two': must be a number of classes, or auto", ("fit", dump, "-o", out, "--exact-classes", "two")),
        ("--temperature '1,x': must be comma-separated numbers", ("fit", dump, "-o", out, "--temperature", "1,x")),
        ("nothing.npy: no such file or directory", ("fit", tmp_path / "nothing.npy", "-o", out)),
        ("no: no such folder; make it first", ("fit", dump, "-o", tmp_path / "no" / "a")),
        ("no: no such folder; make it first", ("pack", dump, "-o", tmp_path / "no" / "a.vql")),
        ("nothing: no such file; name a codec", ("pack", dump, "-o", out, "--codec", tmp_path / "nothing")),
        ("--effort is 'most'; it must be one of", ("pack", dump, "-o", out, "--codec", codec_file, "--effort", "most")),
        ("--layout is 'fkd2'; it must be one of", ("pack", dump, "-o", out, "--layout", "fkd2")),
        ("--domain is 'odds'; it must be one of", ("pack", dump, "-o", out, "--domain", "odds")),
        ("--records '1:2:3': must be first:stop", ("unpack", vql, "-o", tmp_path / "a.npy", "--records", "1:2:3")),
        ("--records 'x:': must be first:stop", ("unpack", vql, "-o", tmp_path / "a.npy", "--records", "x:")),
        (
            "records 0:1000 are out of range; the file has records 0:360",
            ("unpack", vql, "-o", tmp_path / "a.npy", "--records", "0:1000"),
        ),
        ("--dtype is 'f8'; it must be f16, bf16 or f32", ("unpack", vql, "-o", tmp_path / "a.npy", "--dtype", "f8")),
        ("nothing.vql: no such file", ("info", tmp_path / "nothing.vql")),
        ("nothing.vql: no such file", ("stats", tmp_path / "nothing.vql")),
        ("nothing.vql: no such file", ("verify", tmp_path / "nothing.vql")),
    ):
        refused(2, message, *arguments)
    assert not list(tmp_path.iterdir())


def test_malformed_input_exits_with_3(vql: Path, dump: Path, logits: NDArray[np.float16], tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY and no more")
    (tmp_path / "a.txt").write_text("labels")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "nan.npy", np.where(np.arange(40) == 3, np.float16("nan"), logits[0]))
    for message, arguments in (
        ("a.npy: not readable as a .npy file", ("fit", tmp_path / "a.npy", "-o", tmp_path / "a")),
        ("a.txt: .txt is not a format of labels", ("fit", tmp_path / "a.txt", "-o", tmp_path / "a")),
        ("empty: the folder is empty", ("pack", tmp_path / "empty", "-o", tmp_path / "a")),
        ("row 0: class 3 is nan", ("pack", tmp_path / "nan.npy", "-o", tmp_path / "a")),
        ("a.vql: a safetensors file, but not a codec file", ("pack", dump, "-o", tmp_path / "a", "--codec", tmp_path / "a.vql")),
        ("not a .vql file but a .npy file; `vqlabel pack` makes a .vql of the labels in it", ("verify", dump)),
        ("not a .vql file but a .npy file; `vqlabel pack` makes a .vql of the labels in it", ("stats", dump)),
        (
            "not a .vql file but a .npy file; `vqlabel pack` makes a .vql of the labels in it",
            ("unpack", dump, "-o", tmp_path / "b.npy"),
        ),
    ):
        (tmp_path / "a.vql").write_bytes(vql.read_bytes())
        refused(3, message, *arguments)
    assert not (tmp_path / "a").exists()


def test_an_existing_target_is_not_replaced_and_exits_with_4(dump: Path, vql: Path, codec_file: Path, tmp_path: Path) -> None:
    for name in ("a.codec", "a.vql", "a.npy", "a.png"):
        (tmp_path / name).write_bytes(b"precious")
    commands: dict[str, tuple[object, ...]] = {
        "a.codec": ("fit", dump, "-o", tmp_path / "a.codec", *QUICK),
        "a.vql": ("pack", dump, "-o", tmp_path / "a.vql", "--codec", codec_file),
        "a.npy": ("unpack", vql, "-o", tmp_path / "a.npy"),
    }
    for name, arguments in commands.items():
        refused(4, f"{name} exists; pass --overwrite", *arguments)
        assert (tmp_path / name).read_bytes() == b"precious"
        ok(*arguments, "--overwrite")
        assert (tmp_path / name).read_bytes() != b"precious"


def test_a_missing_device_exits_with_1(dump: Path, vql: Path, codec_file: Path, tmp_path: Path) -> None:
    refused(2, "check --device", "fit", dump, "-o", tmp_path / "a.codec", "--device", "abacus", *QUICK)
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    refused(1, "check --device", "fit", dump, "-o", tmp_path / "a.codec", "--device", "cuda", *QUICK)
    refused(1, "check --device", "pack", dump, "-o", tmp_path / "a.vql", "--codec", codec_file, "--device", "cuda")
    refused(1, "check --device", "unpack", vql, "-o", tmp_path / "a.npy", "--device", "cuda")
    assert not list(tmp_path.iterdir())


def test_an_unknown_option_or_a_missing_argument_exits_with_2() -> None:
    for arguments in (("fit",), ("fit", "a", "-o", "b", "--bits", "many"), ("info", "--loud", "x"), ("sing",)):
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "vqlabel" in result.stderr
        assert "Traceback" not in result.stderr


def test_exit_codes_and_streams_in_a_shell(vql: Path, dump: Path, tmp_path: Path) -> None:
    code, out, error = in_a_shell("info", vql, "--json")
    assert (code, error) == (0, "")
    assert json.loads(out)["records"] == 360
    for arguments, want, message in (
        (("info", tmp_path / "no.vql"), 2, "no such file; name a .vql file"),
        (("stats", dump), 3, "not a .vql file but a .npy file"),
        (("unpack", vql, "-o", dump), 4, "logits.npy exists; pass --overwrite"),
    ):
        code, out, error = in_a_shell(*arguments)
        assert (code, out) == (want, "")
        assert error.startswith("vqlabel: ")
        assert message in error
        assert error.count("\n") == 1


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_its_description_and_options(command: str) -> None:
    out = ok(command, "--help")
    assert f"vqlabel {command}" in out
    (registered,) = [c for c in app.registered_commands if c.callback is not None and c.callback.__name__ == command]
    assert registered.callback is not None
    assert (registered.callback.__doc__ or "none").split(".")[0].split(",")[0] in " ".join(out.split())
    options = [line.split() for line in out.splitlines() if line.strip().startswith("-")]
    assert len(options) >= 2
    assert "--json" in out
    assert "-h, --help" in out


def test_help_lists_every_command() -> None:
    out = ok("--help")
    assert sorted(c.callback.__name__ for c in app.registered_commands if c.callback is not None) == sorted(COMMANDS)
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["fit", "--help"], ["info", "{vql}"], ["stats", "{vql}", "--json"]], ids=lambda a: a[0]
)
def test_help_and_commands_that_read_headers_do_not_import_torch(arguments: list[str], vql: Path) -> None:
    code = (
        "import sys; from vqlabel.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *(argument.format(vql=vql) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(done.stderr.split())
    assert done.stdout
    assert "typer" in loaded
    assert "torch" not in loaded
    assert "--help" not in arguments or "numpy" not in loaded


def test_every_command_that_reads_a_dump_accepts_array_and_dump_colon_name(tmp_path: Path) -> None:
    z = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float16)
    np.savez(tmp_path / "a.npz", train=z, val=-z)
    refused(3, "a.npz: several of its arrays may be the labels: 'train'", "pack", tmp_path / "a.npz", "-o", tmp_path / "a.vql")
    for form, dump in enumerate(((f"{tmp_path / 'a.npz'}:val",), (tmp_path / "a.npz", "--array", "val"))):
        assert run("pack", *dump, "-o", tmp_path / f"{form}.vql", "--codec", "raw").exit_code == 0
        assert run("convert", *dump, tmp_path / f"{form}.npy").exit_code == 0
        assert (np.load(tmp_path / f"{form}.npy") == -z).all()
        against = ("--against", *dump)
        assert json.loads(run("stats", tmp_path / f"{form}.vql", *against, "--json").stdout)["same_dump"] is True
    refused(2, "a dump has one teacher", "pack", tmp_path / "0.npy", "-o", tmp_path / "b.vql", "--axes", "teachers,images,classes")


# --- interruption and closed pipes ------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to a process")
def test_an_interrupted_fit_resumes_to_the_same_bytes(dump: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "a.codec", tmp_path / "a.codec.state"
    command = ("fit", dump, "-o", out, "--bits", "12", "--codebook-size", "8", "--no-prior", "--epochs", "20")
    process = start(*command)
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    shown, error = process.communicate(timeout=60)
    assert (process.returncode, shown) == (130, ""), error
    end = "no partial output was left; run the same command to continue"
    assert notes_of(error) == f"vqlabel: interrupted; {end}\n"
    assert list(tmp_path.iterdir()) == [state]
    refused(2, "of an interrupted run with other settings (seed 0, now 1)", *command, "--seed", "1")
    resumed = run(*command)
    assert (resumed.exit_code, notes_of(resumed.stderr)) == (
        0,
        f"vqlabel: {state}: continues the interrupted run (--restart begins anew)\n",
    )
    assert list(tmp_path.iterdir()) == [out]
    vqlabel.fit(dump, FitConfig(bits=12, codebook_size=8, prior=False, epochs=20), out=tmp_path / "b.codec")
    assert out.read_bytes() == (tmp_path / "b.codec").read_bytes()


INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
INTERRUPT_IN_CLASS_CREATION = "class Stop:\n  def __set_name__(self, *_): exec(stop)\nclass Made:\n  field = Stop()"


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to a process")
@pytest.mark.parametrize("code_of_fit", [INTERRUPT, INTERRUPT_IN_CLASS_CREATION], ids=["in an exec", "in class creation"])
def test_an_interrupt_inside_an_exec_exits_with_130(code_of_fit: str, dump: Path, tmp_path: Path) -> None:
    code = (
        "import sys, vqlabel.workflows.fit, vqlabel.cli\n"
        f"vqlabel.workflows.fit.read_sample = lambda *_, **__: exec({code_of_fit!r}, {{'stop': {INTERRUPT!r}}})\n"
        "vqlabel.cli.main()"
    )
    (tmp_path / "stopped.py").write_text(code)  # with `-m`: otherwise Python does not kill itself for a caught interrupt
    command = [sys.executable, "-m", "stopped", "fit", str(dump), "-o", str(tmp_path / "a.codec")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert notes_of(done.stderr) == "vqlabel: interrupted; no partial output was left\n", "there is no state to resume from"
    assert list(tmp_path.iterdir()) == [tmp_path / "stopped.py"]


@pytest.mark.skipif(os.name == "nt", reason="a POSIX pipe")
@pytest.mark.parametrize("arguments", [("stats", "{vql}"), ("info", "{vql}", "--json"), ("--help",)], ids=lambda a: a[0])
def test_a_closed_pipe_is_not_an_error(arguments: tuple[str, ...], vql: Path) -> None:
    process = start(*(argument.format(vql=vql) for argument in arguments))
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) in (0, 1)  # 1 if Typer detects the closed pipe
    process.stderr.close()


def test_pack_notes_a_missing_image_order_and_an_unreadable_recipe(
    batches: list[Any], write_dump: Any, codec_file: Path, tmp_path: Path
) -> None:
    few = write_dump(tmp_path / "few", [replace(batches[0], image=None)], "sre2l")
    result = run("pack", few, "-o", tmp_path / "a.vql", "--codec", codec_file)
    assert result.exit_code == 0
    unknown, *_ = result.stderr.splitlines()
    assert unknown.endswith(
        "few: does not record the image of each label, so its views cannot be rendered; --images FOLDER infers it"
    )
    (tmp_path / "few.recipe.json").write_text("{")
    result = run("pack", few, "-o", tmp_path / "b.vql", "--codec", "raw")
    assert result.exit_code == 0, "an unreadable recipe is only a note"
    assert "the size of seeded views is unknown" in result.stderr


def test_help_lists_every_layout() -> None:
    assert set(re.split(", | or ", LAYOUT_NAMES)) == LAYOUTS.keys()
