"""Number of threads: the available processors, one for small operations, or the number that the user sets."""

import os
from contextvars import ContextVar
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import vqlabel
from vqlabel import FitConfig
from vqlabel.cli import app
from vqlabel.threads import available_processors, cgroup_quota, large_operations, named_threads, small_operations, worker_count


@pytest.fixture(autouse=True)
def _no_number_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the number of threads that the test suite sets."""
    monkeypatch.setattr("vqlabel.threads._named", ContextVar("_named", default=None))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"cpu.max": "400000 100000\n", "a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2.0),
        ("0::/of/the/host\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("2:memory:/a\n4:cpu,cpuacct:/a\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 3.0),
        ("4:cpu,cpuacct:/a\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)  # fmt: skip
def test_the_quota_is_the_smallest_of_the_process_control_groups(
    groups: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    write(tmp_path / "own", groups)
    for name, text in files.items():
        write(tmp_path / "mounted" / name, text)
    assert cgroup_quota(tmp_path / "mounted", tmp_path / "own") == quota


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(("quota", "count"), [(None, 6), (2.7, 2), (0.3, 1), (64.0, 6)])
def test_the_number_of_processors_is_limited_by_affinity_and_quota(
    quota: float | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "process_cpu_count", lambda: 6, raising=False)
    monkeypatch.setattr("vqlabel.threads.cgroup_quota", lambda: quota)
    assert available_processors() == worker_count() == count


def test_the_bytes_of_a_fit_do_not_depend_on_the_number_of_threads(dump: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            vqlabel.fit(dump, FitConfig(bits=6, codebook_size=8, epochs=1, prior=False), out=tmp_path / f"{threads}.codec")
        finally:
            torch.set_num_threads(before)
    assert (tmp_path / "1.codec").read_bytes() == (tmp_path / "2.codec").read_bytes()


@pytest.mark.parametrize("command", ["fit", "tune", "pack", "unpack", "relabel", "stats", "compare"])
def test_every_command_that_computes_has_the_option_threads(command: str) -> None:
    assert "--threads" in CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output


def test_small_operations_use_one_thread_and_large_ones_all_unless_the_user_sets_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vqlabel.threads.available_processors", lambda: 3)
    before = torch.get_num_threads()
    for named, small, large in ((None, 1, 3), (2, 2, 2)):
        with named_threads(named):
            assert worker_count() == large
            with small_operations():
                assert torch.get_num_threads() == small
            with large_operations():
                assert torch.get_num_threads() == large
    assert torch.get_num_threads() == before
