"""How many threads work takes: as many as its operations can use, of the processors that this process may use."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_named: ContextVar[int | None] = ContextVar("_named", default=None)
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@contextmanager
def named_threads(count: int | None) -> Iterator[None]:
    """Inside, all work of this package takes `count` threads; None: what was named outside, or as many as suit it."""
    before = _named.set(count or _named.get())
    try:
        yield
    finally:
        _named.reset(before)


def worker_count() -> int:
    """Threads for work in independent parts: those that the user named, else all processors."""
    return _named.get() or available_processors()


@contextmanager
def small_operations() -> Iterator[None]:
    """Inside, torch takes one thread, or as many as the user named. Operations of a millisecond and less gain little from a second one, and
    where another process takes its processor they wait for it at the end of each: fits took three times the processor time. One thread
    also adds up in one order, so that a fit's bytes do not depend on the number of processors.
    """
    with _torch_threads(_named.get() or 1):
        yield


@contextmanager
def large_operations() -> Iterator[None]:
    """Inside, torch takes `worker_count` threads, where by itself it would count all processors of the machine."""
    with _torch_threads(worker_count()):
        yield


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def available_processors() -> int:
    """Those of this process's affinity, or fewer where its container's quota of processor time is less; at least 1."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        count = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = cgroup_quota()
    return count if quota is None else max(1, min(count, int(quota)))


def cgroup_quota(mounted: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float | None:
    """Processors' time that the control groups of this process allow it, of version 2 or 1; None: no limit is set.

    Args:
        mounted: where control groups are mounted.
        own: the file that names the groups of this process.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = (
            mounted / controllers if controllers and (mounted / controllers).is_dir() else mounted / ("cpu" if controllers else "")
        )
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):  # inside a container `path` may be the host's, and then only the root is there
                quotas.append(_quota_of(folder, controllers != ""))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path, first_version: bool) -> float | None:
    """Of one control group."""
    try:
        if first_version:
            quota, period = (float((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        else:
            quota, period = map(float, (folder / "cpu.max").read_text().split())
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return quota / period if quota > 0 and period > 0 else None  # -1: no limit
