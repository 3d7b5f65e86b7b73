"""Atomic targets: concurrent runs, kills, links, foreign files, and early refusal of what cannot be written."""

import ast
import os
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqlabel
from vqlabel.codecs.raw.config import RawConfig
from vqlabel.config import FitConfig
from vqlabel.errors import TargetExists, UsageError, VqlabelError
from vqlabel.labels import About, LabelBatch, LabelSource, Place
from vqlabel.storage import locks, targets
from vqlabel.storage.apart import check_apart
from vqlabel.storage.formats import CODEC, INTERNAL, NPY, TREE, VQL, TargetFormat
from vqlabel.storage.targets import AtomicTarget, atomic_target, check_target
from vqlabel.workflows import run_state
from vqlabel.workflows.convert import convert
from vqlabel.workflows.tune import tune

needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="this system has no fork, which the test needs to kill or limit a process"
)


def tree_of(path: Path, **texts: str) -> Path:
    """A folder with these files."""
    path.mkdir()
    for name, text in texts.items():
        (path / name).write_text(text)
    return path


def contents(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in sorted(path.rglob("*")) if file.is_file()}


# --- two runs ---------------------------------------------------------------------------------------------------------


def test_a_second_run_with_the_same_target_is_refused_while_the_first_one_lives(tmp_path: Path) -> None:
    target = tmp_path / "a.vql"
    with atomic_target(target, VQL, overwrite=False) as partial:
        with pytest.raises(UsageError, match=r"a\.vql: another run is writing it, in a\.vql\.\w{8}\.partial; wait until it ends"):
            check_target(target, VQL, overwrite=True)
        partial.write_text("the first's")
    assert contents(tmp_path) == {"a.vql": "the first's"}


@pytest.mark.parametrize(("form", "write"), [(INTERNAL, Path.write_text), (TREE, lambda path, text: tree_of(path, a=text))])
def test_on_a_system_without_locks_the_last_of_two_runs_replaces_the_first_completely(
    form: TargetFormat, write: Callable[[Path, str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    target = tmp_path / "a"
    with AtomicTarget(target, form, overwrite=True) as one, AtomicTarget(target, form, overwrite=True) as other:
        assert one.path != other.path
        for partial, text in ((one, "one"), (other, "other")):
            write(partial.path, text)
            partial.publish()
    assert list(contents(tmp_path).values()) == ["other"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("form", [INTERNAL, TREE])
def test_without_overwrite_the_second_of_two_runs_to_publish_is_refused(
    form: TargetFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    with AtomicTarget(tmp_path / "a", form, overwrite=False) as one, AtomicTarget(tmp_path / "a", form, overwrite=False) as other:
        for partial in (one, other):
            tree_of(partial.path, a="x") if form is TREE else partial.path.write_text("x")
        one.publish()
        with pytest.raises(TargetExists, match="a exists; pass --overwrite"):
            other.publish()


# --- a kill -----------------------------------------------------------------------------------------------------------


def in_child(work: Callable[[], object]) -> tuple[int, str]:
    """Run `work` in a forked process: its exit status, negative for a signal, and the repr of its result."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.write(writing, repr(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), text


def overwrite(folder: Path, at: int) -> None:
    """Overwrite folder/tree, and die at the `at`-th change of a name."""
    count = [0]

    def hook(event: str, _: object) -> None:
        if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            count[0] += 1
            if count[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    with atomic_target(folder / "tree", TREE, overwrite=True) as partial:
        tree_of(partial, **dict.fromkeys("abc", "new"))


@needs_fork
@pytest.mark.parametrize("swap", [True, False])
def test_a_kill_while_a_folder_is_replaced_leaves_the_old_or_the_new_one_complete(
    swap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swap:
        monkeypatch.setattr(targets, "exchange", lambda first, second: False)
    old, new = (dict.fromkeys("abc", text) for text in ("old", "new"))
    found, at = [], 0
    while True:
        at += 1
        folder = tmp_path / f"killed at {at}"
        folder.mkdir()
        tree_of(folder / "tree", **old)
        if in_child(lambda folder=folder, at=at: overwrite(folder, at))[0] != -signal.SIGKILL:  # type: ignore[misc]
            break
        if swap or (folder / "tree").exists():
            assert contents(folder / "tree") in (old, new)
        with pytest.raises(TargetExists):  # the next run restores the old folder if there is none
            check_target(folder / "tree", TREE, overwrite=False)
        found.append(contents(folder / "tree"))
        assert [entry.name for entry in folder.iterdir()] == ["tree"], "and clears up"
    assert found == sorted(found, key=lambda texts: texts == new)
    assert old in found
    assert new in found
    assert contents(folder / "tree") == new


def test_leftovers_of_a_killed_run_are_removed_and_other_files_are_kept(tmp_path: Path) -> None:
    for name in ("a.vql.0123abcd.partial", "b.vql.0123abcd.partial"):
        tree_of(tmp_path / name, **{f"{name[:5]}.lock": "", name[:5]: "half"})
    (tmp_path / "a.vql.ffffffff.partial").mkdir()  # killed before it had a lock
    (tmp_path / "a.vql.00000000.partial").symlink_to(tree_of(tmp_path / "precious", **{"a.vql.lock": "", "years": "of work"}))
    (tmp_path / "a.vql.partial").write_text("of a user")
    tree_of(tmp_path / "a.vql.11111111.partial", notes="of a user")
    check_target(tmp_path / "a.vql", VQL, overwrite=False)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "a.vql.00000000.partial", "a.vql.11111111.partial", "a.vql.partial", "b.vql.0123abcd.partial", "precious",
    ]  # fmt: skip
    assert contents(tmp_path / "precious") == {"a.vql.lock": "", "years": "of work"}


# --- links, folders, devices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False])
def test_a_target_that_is_a_link_replaces_the_file_it_points_to(there: bool, tmp_path: Path) -> None:
    real, link = tmp_path / "elsewhere" / "real", tmp_path / "link"
    real.parent.mkdir()
    if there:
        real.write_text("old")
    link.symlink_to(real)
    with atomic_target(link, INTERNAL, overwrite=there) as partial:
        partial.write_text("new")
    assert link.is_symlink()
    assert contents(tmp_path) == {"elsewhere/real": "new", "link": "new"}


@pytest.mark.parametrize("form", [VQL, CODEC, NPY])
@pytest.mark.parametrize("name", [".", "folder", "link"])
def test_a_folder_is_not_replaced_by_a_file(form: TargetFormat, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree_of(tmp_path / "folder", a="x")
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(UsageError, match=f"{name}: is a folder, and what would be written is {form.words}; name a file"):
        check_target(name, form, overwrite=True)
    assert contents(tmp_path / "folder") == {"a": "x"}


def test_a_file_is_not_replaced_by_a_folder_and_devices_and_pipes_are_not_replaced_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for name, kind, form in (
        ("file", "a file", TREE),
        ("pipe", "a device, a pipe or a socket", VQL),
        ("/dev/null", "a device", VQL),
    ):
        with pytest.raises(UsageError, match=f"{name}: is {kind}.*; choose another name"):
            check_target(tmp_path / name, form, overwrite=True)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("x.npz", TREE, r"x\.npz: \.npz is for NumPy arrays, and what would be written is a folder; leave \.npz out of its name"),
        ("x.CSV", TREE, r"\.csv is for a table"),
        ("x.vql", TREE, r"\.vql is for a \.vql file"),
        ("x.npy", VQL, r"\.npy is for a NumPy array, and what would be written is a \.vql file; end its name in \.vql"),
        ("x.vql", CODEC, r"what would be written is a codec file; end its name in \.safetensors or \.codec"),
        ("x.npy", CODEC, r"\.npy is for a NumPy array"),
        ("x.codec", NPY, r"\.codec is for a codec file"),
        ("x.tar", VQL, r"\.tar is for an archive"),
    ],
)
def test_a_suffix_of_another_format_is_refused(name: str, form: TargetFormat, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        check_target(tmp_path / name, form, overwrite=True)


@pytest.mark.parametrize(
    ("name", "form"),
    [("x", VQL), ("x.vql", VQL), ("x.v2", VQL), ("x", CODEC), ("x.st", CODEC), ("x.codec", CODEC), ("x.relabelled", TREE)],
)
def test_an_unknown_suffix_is_accepted(name: str, form: TargetFormat, tmp_path: Path) -> None:
    check_target(tmp_path / name, form, overwrite=False)
    assert not list(tmp_path.iterdir())


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_a_target_is_never_an_input_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = tree_of(tmp_path / "dump", a="x") / "a"
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    (tmp_path / "folder").symlink_to("dump")
    for target in (source, Path("dump/../dump/a"), tmp_path / "link", tmp_path / "hard", tmp_path / "folder" / "a"):
        with pytest.raises(UsageError, match=r"is an input of this run .* and would be replaced; name another target"):
            check_apart(target, source)
    for target in (tmp_path / "dump", tmp_path / "folder", Path(".")):
        with pytest.raises(UsageError, match=r"contains .*a, which is an input, and would be replaced"):
            check_apart(target, source)
        with pytest.raises(UsageError, match=r"(is an input of this run|contains .*dump, which is an input)"):
            check_apart(target, None, beside=(tmp_path / "dump",))
    with pytest.raises(UsageError, match=r"lies in .*dump, which is an input; name a target outside that folder"):
        check_apart(tmp_path / "folder" / "new" / "b.vql", tmp_path / "dump")
    check_apart(tmp_path / "dump" / "b.vql", tmp_path / "other", None, beside=(tmp_path / "dump", None))
    check_apart(tmp_path / "dump2", tmp_path / "dump")


# --- what cannot be written -------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_detected_before_the_work(
    dump: Path, vql: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    def untouched(*_: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(Path, "mkdir", refuse)
    codec = vqlabel.codecs.CODECS["raw"].codec(RawConfig(classes=40, domain="logits", dtype="F16"))
    runs: dict[str, Callable[[Path], Any]] = {
        "a.vql": lambda out: vqlabel.pack(dump, out, codec=codec, progress=untouched),
        "a.npy": lambda out: vqlabel.unpack(vql, out, progress=untouched),
        "tree": lambda out: convert(dump, out, layout="gvbsm", progress=untouched),
        "a.codec": lambda out: vqlabel.fit(dump, FitConfig(), out=out, progress=untouched),
        "b.codec": lambda out: tune(dump, FitConfig(bytes=20_000), out=out, progress=untouched, on_trial=untouched),
    }
    for name, run in runs.items():
        with pytest.raises(VqlabelError, match=rf"{name}: cannot be written \(Read-only file system\)"):
            run(tmp_path / name)


def test_a_partial_file_that_cannot_be_removed_does_not_hide_why_it_was_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    with pytest.raises(ValueError, match="the reason"), atomic_target(tmp_path / "a", INTERNAL, overwrite=False) as partial:  # noqa: PT012
        partial.write_text("half")
        monkeypatch.setattr(os, "unlink", refuse)
        monkeypatch.setattr(os, "rmdir", refuse)
        raise ValueError("the reason")


def test_an_interrupt_during_removal_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, calls = Path.unlink, list[Path]()

    def interrupt(path: Path, **options: Any) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        unlink(path, **options)

    partial = AtomicTarget(tmp_path / "a", INTERNAL, overwrite=False)
    partial.path.write_text("half")
    monkeypatch.setattr(Path, "unlink", interrupt)
    with pytest.raises(KeyboardInterrupt):
        partial.close()
    assert not list(tmp_path.iterdir())


def test_if_the_lock_file_does_not_fit_on_the_disk_its_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(VqlabelError, match=r"a: cannot be written \(No space left on device\)"):
        check_target(tmp_path / "a", INTERNAL, overwrite=False)
    assert not list(tmp_path.iterdir())


class RandomLabels(LabelSource):
    """Eight random batches; `before` is called before each is read."""

    about = About(layout="sre2l", classes=7, domain="logits", dtype="F16", order="none")

    def __init__(self, path: Path, before: Callable[[int], None]) -> None:
        self.path, self.places, self._before = path, [Place(i // 2, i % 2) for i in range(8)], before

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        self._before(at)
        labels = np.random.default_rng(at).standard_normal((8, 7)).astype(np.float16)
        return LabelBatch(labels=labels, place=self.places[at]), "b"


def written(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("tree.*.partial/tree/**/*.tar"))


@pytest.mark.parametrize("what", ["file", "epoch", "tree", "folder"])
def test_a_tree_that_loses_files_while_it_is_written_is_not_published(what: str, tmp_path: Path) -> None:
    def remove(at: int) -> None:
        if at == 4:
            first = next(written(tmp_path))
            first.unlink() if what == "file" else shutil.rmtree(first.parents[("epoch", "tree", "folder").index(what)])

    message = r"8 files were written, but [67] exist|cannot be written \(No such file or directory\)"
    with pytest.raises(VqlabelError, match=rf"tree: ({message})"):
        convert(RandomLabels(tmp_path, remove), tmp_path / "tree", layout="sre2l")
    assert not list(tmp_path.iterdir())


def test_a_complete_tree_is_published_with_every_file(tmp_path: Path) -> None:
    convert(RandomLabels(tmp_path, lambda _: None), tmp_path / "tree", layout="sre2l")
    assert len(list((tmp_path / "tree").rglob("*.tar"))) == 8


# --- a full disk ------------------------------------------------------------------------------------------------------


def under_a_limit(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """With files limited to 4,000 bytes: messages of errors, messages of warnings, and the files that are left."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000,) * 2)
    refused = []
    for name, layout, source in (("tree", "gvbsm", "a.npy"), ("flat", "lpqld", "a.npy"), ("b.pt", None, "image.npy")):
        with pytest.raises(VqlabelError) as error:
            convert(folder / source, folder / name, layout=layout)
        refused.append(str(error.value))
    state = run_state.RunState(folder / "c.codec")
    state.begin({})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            state.keep("numbers", list(range(5_000)))
    return refused, [str(warning.message) for warning in caught], sorted(path.name for path in folder.iterdir())


@needs_fork
def test_a_full_disk_under_torch_save_is_reported_and_does_not_end_a_fit(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).standard_normal((2, 60, 40)).astype(np.float16)
    np.save(tmp_path / "a.npy", labels)
    np.save(tmp_path / "image.npy", labels[:1])
    status, found = in_child(lambda: under_a_limit(tmp_path))
    assert status == 0
    wanted = "cannot be written (File too large); nothing was left behind"
    assert ast.literal_eval(found) == (
        [f"{tmp_path / name}: {wanted}" for name in ("tree", "flat", "b.pt")],
        [f"{tmp_path / 'c.codec.state'}: {wanted}; the run continues, and cannot be resumed from here"],
        ["a.npy", "image.npy"],
    )
