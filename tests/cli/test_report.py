"""`vqlabel report`: one page that needs nothing else; a browser draws it."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tests.text_corpus import random_codec, small_split, write_head, write_hidden_states, write_text_file
from vqlabel.cli import app

pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
SECTIONS = (
    "Summary",
    "Where every byte went",
    "Distortion",
    "Calibration",
    "Use of the codes",
    "Sample labels",
    "How it was made",
)
BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], prog_name="vqlabel")


@pytest.fixture(scope="module")
def page(vql: Path, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    result = run("report", vql, "-o", out, "--against", tree)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "7 sections\nby the KL with --gain 1, these labels are " in result.stdout
    return out


def check_alone(text: str) -> None:
    """No script, and no reference to anything outside the page."""
    assert "<script" not in text and "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r'(?:href|src)="([^"]*)"', text))
    assert not re.findall(r"url\((?!#)", text)


def test_the_page_has_every_section_and_needs_nothing_else(page: Path, vql: Path) -> None:
    text = page.read_text()
    assert tuple(re.findall(r"<h2>(.*?)</h2>", text)) == SECTIONS
    assert text.count("<svg") == 4, "bytes, calibration, slots and sample labels"
    assert f"{vql.stat().st_size:,}" in text
    assert "one mean label for all" in text and "These labels are " in text
    assert "vqlabel pack DUMP -o " in text
    check_alone(text)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids)), "an id of one plot does not hide that of another"


def test_a_page_without_a_dump_says_how_to_get_the_rest(vql: Path, tmp_path: Path) -> None:
    result = run("report", vql, "-o", tmp_path / "a.html")
    assert result.exit_code == 0
    text = (tmp_path / "a.html").read_text()
    assert text.count("--against DUMP</code>") == 4 and text.count("<svg") == 2
    assert run("report", vql, "-o", tmp_path / "a.html").exit_code == 4
    for message, arguments in (
        ("is for an image", ("-o", tmp_path / "a.png")),
        ("--layout lpld: needs --against", ("-o", tmp_path / "b.html", "--layout", "lpld")),
        ("is for labels of documents", ("-o", tmp_path / "b.html", "--head", "x", "--against", "y")),
    ):
        result = run("report", vql, *arguments)
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_a_page_of_documents(tmp_path: Path) -> None:
    split = small_split(24)
    write_text_file(tmp_path / "labels.vql", random_codec(), split)
    dump, head = write_hidden_states(tmp_path / "dump", split), write_head(tmp_path)
    out = tmp_path / "a.html"
    result = run("report", tmp_path / "labels.vql", "-o", out, "--against", dump, "--head", head)
    assert result.exit_code == 0, result.stderr
    text = out.read_text()
    assert tuple(re.findall(r"<h2>(.*?)</h2>", text)) == SECTIONS
    assert text.count("<svg") == 4
    check_alone(text)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
def test_a_browser_draws_the_page(page: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    def browse(*options: str) -> str:
        command = [str(BROWSER), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    browse("--window-size=900,1200", f"--screenshot={tmp_path / 'page.png'}")
    pixels = imread(tmp_path / "page.png")[..., :3]
    assert pixels.shape[:2] == (1200, 900)
    colors = np.unique((pixels * 255).astype(np.uint8).reshape(-1, 3), axis=0)
    assert (colors == (0x2B, 0x6C, 0xB0)).all(1).any(), "the bar of the codes"
    assert (pixels < 0.5).mean() > 0.002, "text"
    document = browse("--dump-dom")
    assert tuple(re.findall(r"<h2>(.*?)</h2>", document)) == SECTIONS
