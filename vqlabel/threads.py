"""The number of threads of a computation: as many as it can use, at most as many as the process has processors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_named: ContextVar[int | None] = ContextVar("_named", default=None)
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@contextmanager
def named_threads(count: int | None) -> Iterator[None]:
    """In this context, all computations of the package use `count` threads; None: keep the number of the outer context,
    or the default of each computation.
    """
    token = _named.set(count or _named.get())
    try:
        yield
    finally:
        _named.reset(token)


def worker_count() -> int:
    """Number of threads for independent tasks: what the user named, else all available processors."""
    return _named.get() or available_processors()


@contextmanager
def small_operations() -> Iterator[None]:
    """In this context, torch uses one thread, or as many as the user named: for operations of up to a millisecond, such
    as a fit's.

    They gain little from a second thread, and wait for it at the end of each operation if another process uses its
    processor: fits took three times the processor time (tests/benchmarks/threads.py). One thread also sums in one
    order, so a fit's bytes do not depend on the number of processors.
    """
    with _torch_threads(_named.get() or 1):
        yield


@contextmanager
def large_operations() -> Iterator[None]:
    """In this context, torch uses `worker_count` threads; by default it would count all processors of the machine."""
    with _torch_threads(worker_count()):
        yield


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    import torch

    threads_before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)


def available_processors() -> int:
    """Number of processors in this process's affinity, limited by its container's processor quota; at least 1."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        count = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = cgroup_quota()
    return count if quota is None else max(1, min(count, int(quota)))


def cgroup_quota(mounted: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float | None:
    """The quota of processor time of this process's control groups (version 2 or 1), in processors; None: unlimited.

    Args:
        mounted: where control groups are mounted.
        own: the file that lists the groups of this process.
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
            if folder.is_relative_to(root):  # in a container, `path` may be the host's; then only the root exists
                quotas.append(_quota_of(folder, controllers != ""))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path, first_version: bool) -> float | None:
    """The quota of one control group, in processors; None: unlimited or unknown."""
    try:
        if first_version:
            quota, period = (float((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        else:
            quota, period = map(float, (folder / "cpu.max").read_text().split())
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return quota / period if quota > 0 and period > 0 else None  # -1: no limit
