"""Commands and public functions check their target before they work: inputs and other formats' suffixes are refused."""

import errno
import gc
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import vqlabel
from vqlabel.cli import app
from vqlabel.codecs import LabelCodec
from vqlabel.errors import UsageError, VqlabelWarning
from vqlabel.workflows.convert import convert
from vqlabel.workflows.fit import fit


@pytest.fixture
def here(logits: NDArray[np.float16], vql: Path, codec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a dump as an array and as a tree, a link to each, a codec and a .vql."""
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", logits)
    convert("a.npy", "tree", layout="gvbsm")
    os.symlink("a.npy", "link.npy")
    os.symlink("tree", "link")
    for name, file in (("l.vql", vql), ("c.codec", codec_file)):
        Path(name).write_bytes(file.read_bytes())
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


REPLACED = "would be replaced; name another target"
COMMANDS = {
    "unpack l.vql -o l.vql": f"l.vql: is an input of this run (l.vql), and {REPLACED}",
    "unpack l.vql -o x.vql": ".vql is for a .vql file, and what would be written is a folder; leave .vql out of its name",
    "unpack l.vql -o x.npz": ".npz is for NumPy arrays, and what would be written is a folder",
    "unpack l.vql -o x.csv": ".csv is for a table",
    "unpack l.vql -o .": ".: contains l.vql, which is an input",
    "unpack l.vql -o x.pt --layout gvbsm": ".pt is for a torch.save file, and what would be written is a folder",
    "pack a.npy --codec raw -o a.npy": ".npy is for a NumPy array, and what would be written is a .vql file",
    "pack a.npy --codec raw -o .": ".: is a folder, and what would be written is a .vql file; name a file",
    "pack tree --codec raw -o tree/a.vql": "lies in tree, which is an input; name a target outside that folder",
    "pack link --codec raw -o tree/a.vql": "lies in link, which is an input",
    "pack a.npy --codec c.codec -o c.codec": ".codec is for a codec file, and what would be written is a .vql file",
    "fit a.npy -o out.npy --codec raw": ".npy is for a NumPy array, and what would be written is a codec file",
    "fit a.npy -o out.vql --codec raw": ".vql is for a .vql file, and what would be written is a codec file",
    "fit a.npy -o tree --codec raw": "tree: is a folder, and what would be written is a codec file",
    "fit tree -o tree/c --codec raw": "lies in tree, which is an input",
    "tune a.npy -o out.npy --bytes 20000": ".npy is for a NumPy array, and what would be written is a codec file",
    "tune tree -o tree/c.codec --bytes 20000": "lies in tree, which is an input",
    "convert tree tree --layout gvbsm": f"tree: is an input of this run (tree), and {REPLACED}",
    "convert link tree --layout gvbsm": f"tree: is an input of this run (link), and {REPLACED}",
    "convert tree link --layout gvbsm": f"link: is an input of this run (tree), and {REPLACED}",
    "convert a.npy link.npy": f"link.npy: is an input of this run (a.npy), and {REPLACED}",
    "convert a.npy a.npy": f"a.npy: is an input of this run (a.npy), and {REPLACED}",
    "convert tree/epoch_0 tree --layout gvbsm": f"tree: contains tree/epoch_0, which is an input, and {REPLACED}",
    "convert a.npy x.npz --layout gvbsm": ".npz is for NumPy arrays",
    "stats l.vql --plot l.vql": "l.vql: not a name of an image file",
    "stats l.vql --against tree --plot tree/a.png": "lies in tree, which is an input",
    "compare tree --plot tree/a.png": "lies in tree, which is an input",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_its_target_before_it_works_and_changes_no_file(command: str, here: Path) -> None:
    if "--plot" in command:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra plot): nothing is drawn")
    before = contents(here)
    result = CliRunner().invoke(app, [*command.split(), "--overwrite"])
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert COMMANDS[command] in result.stderr
    assert contents(here) == before
    assert {entry.name for entry in here.iterdir()} == {"a.npy", "c.codec", "l.vql", "link", "link.npy", "tree"}


def test_relabel_refuses_to_write_into_its_images_or_over_its_inputs(here: Path) -> None:
    (here / "images").mkdir()
    words = "relabel images --teacher nowhere:none --overwrite --codec c.codec"
    for out, message in (
        ("images/a.vql", "lies in images, which is an input"),
        ("images.png --layout lpld", ".png is for an image, and what would be written is a folder"),
        ("c.codec --layout lpld", ".codec is for a codec file"),
        ("images --layout lpld", "images: is an input of this run (images)"),
    ):
        result = CliRunner().invoke(app, [*words.split(), "-o", *out.split()])
        assert result.exit_code == 2, result.output
        assert message in result.stderr


def test_public_functions_refuse_the_same_targets_as_commands(here: Path, codec: LabelCodec) -> None:
    runs: dict[str, Callable[[], Any]] = {
        r"a\.npy: is an input of this run": lambda: vqlabel.pack("a.npy", "a.npy", codec=codec, overwrite=True),
        "lies in .*tree, which is an input": lambda: vqlabel.pack("tree", "tree/a.vql", codec=codec),
        r"is an input of this run \(l\.vql\)": lambda: vqlabel.unpack("l.vql", "l.vql", overwrite=True),
        r"is an input of this run \(tree\)": lambda: convert("tree", "tree", layout="gvbsm", overwrite=True),
        r"out\.npy: \.npy is for": lambda: vqlabel.fit("a.npy", out="out.npy"),
        r"x\.npz: \.npz is for": lambda: vqlabel.unpack("l.vql", "x.npz"),
        r"x\.npy: \.npy is for": lambda: vqlabel.save_codec(codec, "x.npy"),
    }
    before = contents(here)
    for message, run in runs.items():
        with pytest.raises(UsageError, match=message):
            run()
    assert contents(here) == before


def test_a_target_beside_its_input_is_accepted(here: Path, codec: LabelCodec) -> None:
    vqlabel.pack("tree", "tree.vql", codec=codec)
    convert("tree", "tree2", layout="gvbsm")
    vqlabel.unpack("tree.vql", "tree2", overwrite=True, layout="gvbsm")
    assert len(list(here.glob("tree2/**/*.tar"))) == len(list(here.glob("tree/**/*.tar")))


def test_a_fit_whose_state_cannot_be_written_continues_with_a_warning(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def refuse_states(source: Path, target: Path) -> None:
        if Path(target).suffix == ".state":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    words = "fit a.npy -o o.codec --bits 12 --codebook-size 8 --no-prior --epochs 2 --json"
    want = CliRunner().invoke(app, words.replace("o.codec", "p.codec").split())
    monkeypatch.setattr(os, "replace", refuse_states)
    found = CliRunner().invoke(app, words.split())
    assert found.exit_code == 0
    assert found.stderr.endswith(
        "vqlabel: o.codec.state: cannot be written (No space left on device); nothing was left behind; the run continues, and cannot be "
        "resumed from here\n"
    )
    assert json.loads(found.stdout) == {**json.loads(want.stdout), "path": "o.codec"}
    assert (here / "o.codec").read_bytes() == (here / "p.codec").read_bytes()


def test_every_opened_file_is_closed(here: Path) -> None:
    np.savez("a.npz", logits=np.load("a.npy"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for source in ("a.npz", "a.npy", "tree", "l.vql"):
            convert(source, f"{source}.out.safetensors")
            convert(source, f"{source}.out", layout="gvbsm")
        for source in ("a.npz", "tree"):
            fit(source, vqlabel.FitConfig(codec="topk", bits=60), out=f"{source}.codec")
            vqlabel.pack(source, f"{source}.vql", codec=vqlabel.load_codec(f"{source}.codec")[0])
            vqlabel.unpack(f"{source}.vql", f"{source}.npy")
            vqlabel.verify(f"{source}.vql")
        gc.collect()
    assert [str(one.message) for one in caught if issubclass(one.category, ResourceWarning | VqlabelWarning)] == []
