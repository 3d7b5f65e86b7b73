"""A dump that changes while it is read: detected in every layout with the file's name, and nothing is written."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqlabel
from vqlabel.codecs import CODECS
from vqlabel.codecs.raw.config import RawConfig
from vqlabel.config import FitConfig
from vqlabel.errors import BadLabels
from vqlabel.labels import About, LabelBatch, LabelSource, Place, open_labels, writing
from vqlabel.labels.pruning import Pruned
from vqlabel.workflows.convert import convert
from vqlabel.workflows.sample import read_sample

CLASSES, BATCHES = 7, 4
LAYOUTS = {
    "arrays:npy": ".npy", "arrays:safetensors": ".safetensors", "tensor": ".pt", "lpld": "", "lpqld": "", "lpqld:3": "",
    "gvbsm": "", "edc": "", "fkd": "", "tinyvit:3": "",
}  # fmt: skip


def batch(at: int, layout: str) -> LabelBatch:
    """Batch `at` of epoch 0, with the columns that the layout stores."""
    rng = np.random.default_rng(at)
    logits = rng.standard_normal((4, CLASSES)).astype(np.float16)
    plain = LabelBatch(labels=logits, place=Place(0, at), image=np.arange(4 * at, 4 * at + 4))
    crop, flip = rng.random((4, 4), dtype=np.float32), rng.random(4) < 0.5
    if layout in ("fkd", "tinyvit"):
        share = np.exp(logits.astype(np.float32))
        plain = replace(plain, labels=(share / share.sum(1, keepdims=True)).astype(np.float16))
        return replace(plain, crop=crop, flip=flip) if layout == "fkd" else replace(plain, seed=np.arange(4))
    return plain if layout in ("arrays", "tensor") else replace(plain, crop=crop, flip=flip)


@pytest.fixture(params=LAYOUTS)
def dump(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Four batches in one layout."""
    layout = str(request.param)
    name, path = layout.partition(":")[0], tmp_path / f"dump{LAYOUTS[layout]}"
    domain = "probs" if name in ("fkd", "tinyvit") else "logits"
    names = [f"n{i}/{i}" for i in range(4 * BATCHES)] if name == "fkd" else None
    with writing(
        path, About(layout="", classes=CLASSES, domain=domain, dtype="F16", order="explicit", names=names), layout
    ) as writer:
        for at in range(BATCHES):
            writer.add(batch(at, name))
    return path


def labels_in(path: Path) -> set[Path]:
    """The files of a dump that hold labels."""
    return {
        file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file() and file.suffix not in (".json", ".txt")
    }


def touch(file: Path) -> None:
    """Change a file without changing its size."""
    now = file.stat()
    os.utime(file, ns=(now.st_atime_ns, now.st_mtime_ns + 1_000_000))


def test_files_of_lists_every_file_that_labels_are_read_from(dump: Path) -> None:
    source = open_labels(dump)
    found = {file for at in range(len(source)) for file in source.files_of(at)}
    assert labels_in(dump) <= found
    assert source.inputs == (dump,)


def test_a_file_that_changes_after_it_was_read_is_refused(dump: Path) -> None:
    source = open_labels(dump)
    list(source)
    source.check_unchanged()
    changed = sorted(labels_in(dump))[-1]
    touch(changed)
    for look in (source.check_unchanged, lambda: list(source)):
        with pytest.raises(BadLabels, match=f"{changed.name}: changed while it was read: nothing was written"):
            look()
    list(open_labels(dump))


def test_a_file_that_is_deleted_is_refused(dump: Path) -> None:
    source = open_labels(dump)
    list(source)
    gone = sorted(labels_in(dump))[-1]
    gone.unlink()
    with pytest.raises(BadLabels, match=f"{gone.name}: (No such file or directory; it existed when|changed while)"):
        source.check_unchanged()


def overwriting(file: Path) -> Callable[..., None]:
    """A progress callback that once overwrites `file` in place, with as many bytes."""

    def progress(_stage: str, _done: int, _total: int, _figures: object) -> None:
        data = file.read_bytes()
        file.write_bytes(data[:-2] + b"\0\0")
        touch(file)

    return progress


def raw() -> Any:
    return CODECS["raw"].codec(RawConfig(classes=CLASSES, domain="logits", dtype="F16"))


RUNS: dict[str, Callable[[LabelSource, Path, Any], Any]] = {
    "pack": lambda source, out, progress: vqlabel.pack(source, out / "a.vql", codec=raw(), progress=progress),
    "convert": lambda source, out, progress: convert(source, out / "a.npy", progress=progress),
    "fit": lambda source, out, progress: vqlabel.fit(source, FitConfig(codec="raw"), out=out / "a.codec", progress=progress),
    "tune": lambda source, _out, progress: read_sample(source, progress),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("kind", ["one array", "a tree", "a part of a tree"])
def test_nothing_is_written_if_the_dump_changes_meanwhile(kind: str, run: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    if kind == "one array":
        path = changed = tmp_path / "a.npy"
        np.save(path, np.random.default_rng(0).standard_normal((3, 20, CLASSES)).astype(np.float16))
        source: LabelSource = open_labels(path)
    else:
        path = tmp_path / "tree"
        with writing(path, About(layout="", classes=CLASSES, domain="logits", dtype="F16", order="explicit"), "gvbsm") as writer:
            for at in range(8):
                writer.add(replace(batch(at, "gvbsm"), place=Place(at // 2, at % 2)))
        source, changed = open_labels(path), path / "epoch_0" / "batch_0.tar"
        source = Pruned(source, 1.0) if kind == "a part of a tree" else source
    with pytest.raises(BadLabels, match=f"{changed.name}: changed while it was read"):
        RUNS[run](source, tmp_path / "out", overwriting(changed))
    assert not list((tmp_path / "out").iterdir())
