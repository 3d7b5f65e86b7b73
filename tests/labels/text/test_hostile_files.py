"""Truncated, forged and foreign .safetensors files: refused with their name before anything of them is used."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from text_dumps import D, save

from vqlabel.errors import BadLabels
from vqlabel.labels.text.head import open_head
from vqlabel.labels.text.open import open_text_labels


def forged(path: Path, change: Any) -> Path:
    """Change the header of a .safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = change(json.loads(data[8 : 8 + length]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


def changed(name: str, **fields: Any) -> Any:
    return lambda header: {**header, name: {**header[name], **fields}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed("hidden", shape=[1 << 40, D]),
            r"tensor hidden F32 \[1099511627776, 6\] needs \d+ bytes, but has 120; the file is damaged or forged",
        ),
        (
            changed("hidden", data_offsets=[0, 1 << 50]),
            r"tensor 'hidden' lies at bytes 0\.\.1125899906842624 of 160; the file is truncated or forged",
        ),
        (changed("hidden", data_offsets=[-8, 112]), "the entry of tensor 'hidden' is malformed"),
        (changed("hidden", data_offsets=[120, 0]), "lies at bytes 120..0"),
        (changed("hidden", shape=[5.0, D]), "the entry of tensor 'hidden' is malformed"),
        (changed("hidden", shape=[True, D]), "the entry of tensor 'hidden' is malformed"),
        (changed("hidden", dtype=4), "the entry of tensor 'hidden' is malformed"),
        (changed("hidden", dtype="F16"), "needs 60 bytes, but has 120"),
        (lambda header: {"hidden": 4}, "not readable as a .safetensors file"),
        (lambda header: [1], "its header is not a JSON object"),
        (lambda header: b"{" * 5000, "not readable as a .safetensors file"),
        (lambda header: b'{"a":1,"a":2}', "a key occurs twice"),
        (lambda header: {**header, "__metadata__": {"vocabulary": 4}}, "its metadata are not texts"),
    ],
    ids=range(13),
)
def test_a_forged_header_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    forged(save(tmp_path / "a.safetensors", tokens=np.arange(5), hidden=torch.zeros(5, D)), change)
    with pytest.raises(BadLabels, match=rf"a\.safetensors: .*{message}"):
        open_text_labels(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 1000, 1 << 40, (1 << 64) - 1])
def test_a_header_longer_than_its_file_is_refused_before_it_is_read(length: int, tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", tokens=np.arange(5), hidden=torch.zeros(5, D))
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(
        BadLabels, match=rf"a\.safetensors: not readable as .* \(a header of {length} bytes in a file of {path.stat().st_size}\)"
    ):
        open_text_labels(tmp_path)


def test_a_truncated_file_is_refused_at_every_length(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", tokens=np.arange(5), hidden=torch.zeros(5, D))
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(BadLabels, match=r"a\.safetensors: "):
            open_text_labels(tmp_path)


def test_a_file_that_is_truncated_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", tokens=np.arange(5), hidden=torch.zeros(5, D))
    source = open_text_labels(tmp_path)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(BadLabels, match=r"a\.safetensors: truncated, \d+ of \d+ bytes at row 0"):
        source.read(0)


def test_a_file_of_another_type_is_named_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(BadLabels, match=r"a\.safetensors: is a Git-LFS pointer, not a \.safetensors file"):
        open_text_labels(tmp_path)
    (tmp_path / "a.safetensors").unlink()
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(BadLabels, match="is a folder, not a file"):
        open_text_labels(tmp_path)


def test_a_head_that_is_truncated_after_it_was_opened_has_no_sum(tmp_path: Path) -> None:
    save_file({"lm_head.weight": torch.zeros(9, D)}, tmp_path / "m.safetensors")
    head = open_head(tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:-8])
    with pytest.raises(BadLabels, match=r"m\.safetensors: truncated, 8 of 216 bytes of lm_head\.weight F32 \[9, 6\] are missing"):
        _ = head.sha256
