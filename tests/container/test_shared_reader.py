"""One reader shared by threads and by forked and other processes; files removed or replaced while they are open."""

import os
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vqlabel.container import ContainerReader, ContainerWriter, reader
from vqlabel.errors import UsageError
from vqlabel.vql.file import VqlFile

ROWS = np.arange(6000, dtype=np.uint32)[:, None]
CHUNK = 64  # rows


def write(path: Path, rows: np.ndarray, overwrite: bool = False) -> Path:
    with ContainerWriter(path, overwrite=overwrite) as writer:
        writer.begin("codes", [16], chunk_rows=CHUNK)
        writer.append(rows)
        writer.end()
        writer.finish({})
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "a.vql", ROWS)


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Makes the interpreter switch threads far more often than by default."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def test_threads_read_the_right_rows_through_a_cache_of_two_chunks(
    file: Path, monkeypatch: pytest.MonkeyPatch, frequent_switches: None
) -> None:
    monkeypatch.setattr(reader, "CACHE_BYTES", 2 * CHUNK * ROWS.itemsize)
    shared = ContainerReader(file)

    def read(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(25):
            index = draw.integers(0, len(ROWS), 16)
            np.testing.assert_array_equal(shared.take("codes", index), ROWS[index])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert shared._cached == sum(rows.nbytes for rows in shared._cache.values())


@pytest.mark.parametrize("lock", ["cache", "file"])
def test_a_process_forked_while_a_thread_held_a_lock_reads(lock: str, file: Path) -> None:
    shared = ContainerReader(file)
    with shared._lock if lock == "cache" else shared._file._lock:
        child = os.fork()
        if not child:
            os._exit(0 if (shared.rows("codes") == ROWS).all() else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_forked_process_keeps_reading_the_file_that_was_opened(file: Path) -> None:
    shared = ContainerReader(file)
    write(file, ROWS[::-1], overwrite=True)
    child = os.fork()
    if not child:
        os._exit(0 if (shared.rows("codes") == ROWS).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_replaced_file_is_refused_when_it_is_opened_again(file: Path) -> None:
    closed, pickled = ContainerReader(file), pickle.dumps(ContainerReader(file))
    closed.close()
    write(file, ROWS, overwrite=True)  # the same bytes
    assert (closed.rows("codes", 0, CHUNK) == ROWS[:CHUNK]).all() and (pickle.loads(pickled).rows("codes") == ROWS).all()
    closed.close()
    write(file, ROWS[::-1], overwrite=True)
    for again in (lambda: closed.rows("codes", CHUNK, 2 * CHUNK), lambda: pickle.loads(pickled)):
        with pytest.raises(UsageError, match=r"a\.vql: was replaced while it was open; open the new file"):
            again()


def test_a_dataset_recognises_its_file_in_another_process(vql: Path, tmp_path: Path) -> None:
    import vqlabel

    path = tmp_path / "b.vql"
    path.write_bytes(vql.read_bytes())
    pickled = pickle.dumps(vqlabel.open(path))
    assert len(pickle.loads(pickled)) == len(vqlabel.open(vql))
    write(path, ROWS, overwrite=True)
    with pytest.raises(UsageError, match="was replaced"):
        pickle.loads(pickled)


def test_a_missing_or_unreadable_file_is_reported_by_its_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = ContainerReader(file)
    shared.close()
    file.unlink()
    with pytest.raises(UsageError, match=r"a\.vql: cannot be opened \(No such file or directory\); it was moved or removed"):
        shared.rows("codes")
    write(file, ROWS)

    def forbidden(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(UsageError, match=r"a\.vql: cannot be opened \(Permission denied\)"):
        VqlFile(file)
