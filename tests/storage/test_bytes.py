"""A local file: exact reads at any position, and errors for files that are short, missing, replaced or unreadable."""

import os
from pathlib import Path

import pytest

from vqlabel.errors import BadContainer, BadInput, UsageError
from vqlabel.storage import bytes as storage_bytes
from vqlabel.storage.bytes import LocalFile

DATA = bytes(range(256)) * 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(DATA)
    return tmp_path / "a"


@pytest.mark.parametrize("read_bytes", [1 << 22, 7])
@pytest.mark.parametrize(("offset", "count"), [(0, 0), (0, 1024), (5, 100), (1023, 1), (1024, 0)])
def test_any_range_is_read_exactly(read_bytes: int, offset: int, count: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_bytes, "READ_BYTES", read_bytes)
    file = LocalFile(path)
    assert file.size == 1024 and file.read_at(offset, count) == DATA[offset : offset + count]


@pytest.mark.parametrize("error", [BadInput, BadContainer])
def test_a_read_beyond_the_end_is_an_error_of_the_named_type(error: type[BadInput], path: Path) -> None:
    with pytest.raises(error, match="a: ends 10 bytes early, at byte 1024; the file is truncated: copy it again"):
        LocalFile(path, error=error).read_at(1000, 34)


def test_a_closed_file_is_opened_again_if_its_tail_is_the_same(path: Path) -> None:
    file = LocalFile(path)
    file.tail = DATA[-32:]
    file.close()
    path.with_name("b").write_bytes(b"x" * 100 + DATA[-32:])
    os.replace(path.with_name("b"), path)
    assert file.read_at(0, 2) == b"xx"
    file.close()
    path.with_name("b").write_bytes(DATA + b"x")
    os.replace(path.with_name("b"), path)
    for read in (lambda: file.read_at(0, 1), lambda: LocalFile(path, tail=DATA[-32:])):
        with pytest.raises(UsageError, match="a: was replaced while it was open; open the new file from the start"):
            read()


def test_a_missing_file_is_reported_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none: cannot be opened \(No such file or directory\); it was moved or removed"):
        LocalFile(tmp_path / "none")
