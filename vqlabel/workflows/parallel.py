"""Groups of labels -> results in order, each group on a core of its own."""

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from vqlabel.threads import worker_count

SWITCH_SECONDS = 1e-4  # unpickling holds Python's lock; at the default of 5 ms every operation of an encoder would wait for it
Group = TypeVar("Group")
Result = TypeVar("Result")


def in_parallel(
    groups: Iterable[Group], work: Callable[[Group], Result], device: str
) -> Generator[tuple[Group, Result], None, None]:
    """Yield (group, work(group)) in order; a few groups are read ahead.

    On a CPU each worker takes its own group with one thread, since threads that share an operation wait for each other
    at its end. Reading takes one thread, too: a second one would spin on the core of a worker.
    """
    workers = worker_count() if device == "cpu" else 1
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(SWITCH_SECONDS)
    torch.set_num_threads(1)
    waiting: deque[tuple[Group, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for group in groups:
                waiting.append((group, pool.submit(work, group)))
                while len(waiting) > workers + 1:
                    first, result = waiting.popleft()
                    yield first, result.result()
            while waiting:
                first, result = waiting.popleft()
                yield first, result.result()
        finally:
            sys.setswitchinterval(interval)
            torch.set_num_threads(threads)
            for _, unfinished in waiting:
                unfinished.cancel()
