"""What users of other command lines expect: short options, help in panels, sizes, lists, several files, progress."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from forge import flip_bit
from paths import GOLDEN, ROOT
from text_corpus import random_codec, small_split, write_hidden_states, write_text_file
from typer.testing import CliRunner, Result

from vqlabel import __version__
from vqlabel.cli import app
from vqlabel.cli.flags import named_by_flags
from vqlabel.cli.parse import read_range, read_size
from vqlabel.cli.progress import Lines
from vqlabel.errors import UsageError


def run(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="vqlabel", **options)


def ok(*arguments: object, **options: Any) -> str:
    result = run(*arguments, **options)
    assert result.exit_code == 0, result.stderr
    return result.stdout


# --- options of all commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_printed(flag: str) -> None:
    assert ok(flag) == f"vqlabel {__version__}\n"


def test_completion_knows_the_options() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_VQLABEL_COMPLETE": "complete_bash"}
    code = "import sys; sys.argv = ['vqlabel']; from vqlabel.cli import app; app(prog_name='vqlabel')"

    settings = {**environment, "COMP_WORDS": "vqlabel pack --ra", "COMP_CWORD": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--ratio"]


def test_help_of_all_commands_shows_whole_summaries_in_panels() -> None:
    out = ok("-h")
    assert not re.search(r"(?m)\.\.\.$", out.partition("\n")[2])
    assert max(map(len, out.splitlines())) <= 80
    assert out.index("Make labels small:") < out.index("  pack ") < out.index("Read them back:") < out.index("  unpack ")


@pytest.mark.parametrize("width", [60, 80])
def test_help_of_a_command_has_panels_and_everyday_options_first(width: int) -> None:
    out = ok("pack", "-h", terminal_width=width)
    assert max(map(len, out.splitlines())) <= width
    panels = [line.removesuffix(":") for line in out.splitlines() if re.fullmatch(r"[A-Z][a-z ]+:", line)]
    assert panels == ["Arguments", "Output", "Rate", "Input", "Codec", "Training", "Language models", "General"]
    positions = [
        out.index(f"  {text}") for text in ("-o, --out FILE.vql", "--ratio N", "--bytes SIZE", "--codec KIND|FILE", "--slots N")
    ]
    assert positions == sorted(positions)
    assert out.startswith("Usage: vqlabel pack [OPTIONS] DUMP\n")
    assert "-f, --overwrite" in out
    assert "[default: normal]" in " ".join(out.split())


def test_every_option_of_every_command_is_in_a_named_panel() -> None:
    for command in [c.callback.__name__ for c in app.registered_commands if c.callback is not None]:
        out = ok(command, "-h")
        unnamed = re.findall(r"(?m)^Options:|<(?:str|int|float|path)", out)
        assert unnamed == [], command


def test_quiet_prints_errors_only(dump: Path, tmp_path: Path) -> None:
    command = ("pack", dump, "-o", tmp_path / "a.vql", "--codec", "raw", "--epochs", "1")
    noted = run(*command)
    assert "--epochs 1 has no effect" in noted.stderr
    assert run(*command, "-f", "-q").stderr == ""
    refused = run(*command, "-q")
    assert (refused.exit_code, "a.vql exists; pass --overwrite" in refused.stderr) == (4, True)


def test_verbose_prints_the_time_and_where_an_error_arose(tmp_path: Path) -> None:
    assert re.search(r"info, vqlabel .*: \d+\.\d s", run("info", GOLDEN / "raw.vql", "-v").stderr)
    failed = run("info", tmp_path / "no.vql", "-v").stderr
    assert failed.startswith("Traceback") and failed.endswith("no.vql: no such file; name a .vql file\n")
    both = run("info", GOLDEN / "raw.vql", "-q", "-v")
    assert (both.exit_code, "-q and -v contradict each other" in both.stderr) == (2, True)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("5M", 5e6), ("5MB", 5e6), ("5MiB", 5 << 20), ("50kib", 50 << 10), ("1.5g", 1.5e9), ("5,000", 5000), ("2 T", 2e12), ("5e6", 5e6)],
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(text: str, size: float) -> None:
    assert read_size(text) == size


def test_an_invalid_size_names_the_option(dump: Path, vql: Path, tmp_path: Path) -> None:
    for text in ("5X", "-5M", "1..2", "five"):
        with pytest.raises(UsageError, match=r"--teacher-bytes .*must be a number of bytes, such as 500000, 500kB, 5M"):
            read_size(text, "--teacher-bytes")
    result = run("stats", vql, "--teacher-bytes", "7X")
    assert (result.exit_code, "--teacher-bytes '7X': must be" in result.stderr) == (2, True)
    found = json.loads(ok("stats", vql, "--teacher-bytes", "7MiB", "--json"))
    assert found["teacher"]["teacher_bytes"] == 7 << 20


@pytest.mark.parametrize(
    ("command", "words", "name", "value"),
    [
        ("fit", ("--temperature", "1", "4", "dump", "-o", "a"), "temperature", "1,4"),
        ("fit", ("--temperature=1", "4", "dump", "-o", "a"), "temperature", "1,4"),
        ("relabel", ("dump", "-o", "a", "--teacher", "t", "--scale", "0.5", "1", "--view", "32"), "scale", "0.5,1"),
        ("relabel", ("dump", "-o", "a", "--teacher", "t", "--mean", "0.5,", "0.5", "0.4"), "mean", "0.5,0.5,0.4"),
        ("compare", ("--bits", "8", "16,32", "dump", "--bits", "64"), "bits", ["8,16,32", "64"]),
        ("fit", ("dump", "--bits", "8", "-o", "a"), "bits", 8),
    ],
)
def test_lists_of_numbers_have_commas_or_blanks(command: str, words: tuple[str, ...], name: str, value: object) -> None:
    parsed: Any = typer.main.get_command(app)
    assert parsed.commands[command].make_context(command, list(words)).params[name] == value


def test_a_range_has_two_numbers() -> None:
    assert read_range("--scale", "0.5,1") == (0.5, 1.0)
    with pytest.raises(UsageError, match=r"--scale 0\.5: must be two numbers, such as --scale 0\.08,1 or --scale 0\.08 1"):
        read_range("--scale", "0.5")


def test_messages_name_the_flag_that_was_typed(dump: Path, tmp_path: Path) -> None:
    flags = {"code_width": "--code-width", "layout": "--layout", "dump": "dump"}
    assert named_by_flags("code_width is 3; it must divide latent", flags) == "--code-width is 3; it must divide latent"
    assert named_by_flags("a: lower code_width, or more", flags) == "a: lower --code-width, or more"
    same = "/tmp/code_width/x: 'code_width': code_width.npy: its layout is dump"
    assert named_by_flags(same, flags) == same
    result = run("fit", dump, "-o", tmp_path / "a", "--code-width", 0)
    assert result.stderr.splitlines()[-1].startswith("vqlabel: --code-width is 0; it must be")


def test_a_dash_is_refused_where_files_are_read_in_parts(dump: Path, vql: Path) -> None:
    for flag, command in (("--out", ("unpack", vql, "-o", "-")), ("dump", ("pack", "-", "-o", "a.vql"))):
        result = run(*command)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"vqlabel: {flag} -: standard input and output cannot be used here"), result.stderr


# --- info and verify --------------------------------------------------------------------------------------------------


def test_several_files_are_verified_and_the_exit_code_is_the_worst(vql: Path, tmp_path: Path) -> None:
    data = vql.read_bytes()
    (tmp_path / "bad.vql").write_bytes(flip_bit(data, len(data) // 2))
    files = (vql, tmp_path / "bad.vql", tmp_path / "no.vql", GOLDEN / "raw.vql")
    result = run("verify", *files)
    assert result.exit_code == 3
    assert [line.partition(":")[0] for line in result.stdout.splitlines()] == [str(vql), str(GOLDEN / "raw.vql")]
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == [str(tmp_path / "bad.vql"), str(tmp_path / "no.vql")]
    found = json.loads(run("verify", *files, "--json").stdout)
    assert [file.get("exit_code", 0) for file in found["files"]] == [0, 3, 2, 0]
    assert run("verify", vql, GOLDEN / "raw.vql").exit_code == 0


def test_info_of_several_files_is_one_object_with_a_list() -> None:
    files = (GOLDEN / "raw.vql", GOLDEN / "vqae.vql")
    found = json.loads(ok("info", *files, "--json"))
    assert found == {"files": [json.loads(ok("info", file, "--json")) for file in files]}


def test_info_reads_standard_input() -> None:
    found = json.loads(ok("info", "-", "--json", input=(GOLDEN / "raw.vql").read_bytes()))
    assert (found["path"], found["records"]) == ("-", 40)
    twice = run("verify", "-", "-", input=b"")
    assert (twice.exit_code, "can be read once only" in twice.stderr) == (2, True)


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("name", ["vqae", "seeded", "prior", "variable"])
def test_info_of_a_file_is_a_screen(name: str, width: int) -> None:
    out = ok("info", GOLDEN / f"{name}.vql", env={"COLUMNS": str(width)})
    lines = out.splitlines()
    assert max(map(len, lines)) <= width and len(lines) <= 32
    assert not any(line.endswith(" ") for line in lines)
    assert {"labels", "epochs", "codec", "views", "made"} <= {line.split()[0] for line in lines if line and line[0] != " "}
    total = next(line.split() for line in lines if line.startswith("total"))
    assert total[1] == f"{(GOLDEN / f'{name}.vql').stat().st_size:,}"
    if name == "seeded":
        assert "generated from seed 17" in out


def test_info_of_documents_and_their_dump(tmp_path: Path) -> None:
    split = small_split(24)
    write_text_file(tmp_path / "labels.vql", random_codec(), split)
    out = ok("info", tmp_path / "labels.vql", env={"COLUMNS": "80"})
    assert max(map(len, out.splitlines())) <= 80
    found = json.loads(ok("info", tmp_path / "labels.vql", "--json"))
    assert sum(found["bytes_by_group"].values()) == found["bytes"]
    assert f"{found['labels']:,} of {found['label']['classes']:,} tokens" in out
    dump = json.loads(ok("info", write_hidden_states(tmp_path / "dump", split), "--json"))
    assert (dump["what"], dump["documents"], dump["domain"]) == ("dump", 24, "hidden")


def test_info_of_a_dump(tree: Path, dump: Path, tmp_path: Path) -> None:
    found = json.loads(ok("info", tree, "--json"))
    assert (found["what"], found["layout"], found["labels"], found["classes"], found["epochs"]) == ("dump", "lpld", 360, 40, 6)
    assert "about 360 of 40 classes (logits, f16)" in ok("info", tree)
    np.save(tmp_path / "bad.npy", np.full((3, 4), np.nan, np.float32))
    assert run("info", tmp_path / "bad.npy").exit_code == 3
    assert run("info", tmp_path / "no.npy").exit_code == 2


# --- progress ---------------------------------------------------------------------------------------------------------


def test_lines_of_progress_come_with_a_stage_and_each_interval() -> None:
    lines = Lines(interval=60)
    start = lines._started
    assert lines.due(start + 2) is None, "nothing is known yet"
    lines("reading", 3, 10, {})
    assert lines.due(start + 2) == "vqlabel: 0:00:02  reading 3/10"
    assert lines.due(start + 61) is None
    lines("training", 1, 4, {"loss": 0.5, "rate": 1.0})
    assert lines.due(start + 3) is None, "a short stage has no line"
    assert lines.due(start + 8) == "vqlabel: 0:00:08  training 1/4  loss 0.500"
    assert lines.due(start + 67) is None
    assert lines.due(start + 3725) == "vqlabel: 1:02:05  training 1/4  loss 0.500"
    assert lines.due(start + 3784) is None
    assert lines.due(start + 3785) == "vqlabel: 1:03:05  training 1/4  loss 0.500"


def test_progress_is_plain_off_the_terminal_and_can_be_switched_off(
    vql: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqlabel.cli.progress.QUIET_SECONDS", 0.01)
    monkeypatch.setattr("vqlabel.cli.progress.TICK_SECONDS", 0.01)

    def slow(*_: object, progress: Any, **__: object) -> dict[str, Any]:
        progress("unpacking", 1, 2, {})
        time.sleep(0.1)
        return {"path": "a", "records": 1, "classes": 2, "dtype": "f16"}

    monkeypatch.setattr("vqlabel.workflows.unpack.unpack", slow)
    command = ("unpack", vql, "-o", tmp_path / "a.npy")
    for how in ("auto", "plain"):
        assert run(*command, "--progress", how).stderr == "vqlabel: 0:00:00  unpacking 1/2\n"
    for options in (("--progress", "off"), ("-q",), ("-q", "--progress", "plain"), ()):  # the tests set VQLABEL_PROGRESS=off
        assert run(*command, *options).stderr == ""
    refused = run(*command, "--progress", "loud")
    assert (refused.exit_code, "--progress loud: must be one of auto, bar, plain, off" in refused.stderr) == (2, True)


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_names_versions_devices_and_missing_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "h5py" else find(name, *rest))
    found = json.loads(ok("doctor", "--json"))
    assert found["vqlabel"] == __version__
    assert found["packages"]["numpy"] == np.__version__
    assert found["devices"][0]["device"] == "cpu"
    (hdf5,) = [extra for extra in found["extras"] if extra["package"] == "h5py"]
    assert hdf5 == {"package": "h5py", "version": None, "purpose": "dumps in HDF5 files", "extra": "hdf5"}
    out = ok("doctor")
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"h5py +missing +dumps in HDF5 files", out)
    assert re.search(r"to install what is missing: pip install 'vqlabel\[.*hdf5.*\]'", out)


def test_doctor_names_every_extra_that_a_message_asks_for() -> None:
    from vqlabel.cli.doctor import EXTRAS

    asked = set()
    for file in (ROOT / "vqlabel").rglob("*.py"):
        asked |= {pair[1] for pair in re.findall(r'MissingExtra\("(\w+)", (?:extra=)?"(\w+)"', file.read_text())}
    assert asked - {"demo"} <= {extra.extra for extra in EXTRAS}
