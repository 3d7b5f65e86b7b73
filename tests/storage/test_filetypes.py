"""A file whose content contradicts its name is reported with its type and a remedy; pipes and devices stay unopened."""

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from vqlabel.errors import BadContainer, BadLabels
from vqlabel.labels import open_labels
from vqlabel.labels.image_order import image_classes
from vqlabel.storage.filetypes import HEAD_BYTES, foreign_file_message, identify, require_regular

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def written(kind: str) -> bytes:
    """A tar archive, or a zip archive, of one file; or an array."""
    out = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=out, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("a.jpg"))
    elif kind == "zip":
        with zipfile.ZipFile(out, "w") as zipped:
            zipped.writestr("labels/a.npy", b"x")
    else:
        np.save(out, np.eye(3))
    return out.getvalue()


KINDS = [
    (b"", "is an empty file", "copy, download or write it again"),
    (POINTER, "is a Git-LFS pointer", "git lfs pull"),
    (b"\n <!DOCTYPE html><html><title>Virus scan warning", "is an HTML page", "download it again"),
    (b"<html lang=en>", "is an HTML page", "download it again"),
    (b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(100), "is a macOS sidecar file", "name the file without ._"),
    (gzip.compress(b"x" * 99), "is a gzip file", "gunzip"),
    (bz2.compress(b"x" * 99), "is a bzip2 file", "bunzip2"),
    (lzma.compress(b"x" * 99), "is an xz file", "unxz"),
    (b"\x28\xb5\x2f\xfd" + bytes(20), "is a zstd file", "zstd -d"),
    (written("tar"), "is a tar archive", "extract it"),
    (written("zip"), "is a zip archive", "extract it"),
    (written("npy"), r"is a \.npy file", r"suffix \.npy"),
    (save({"a": np.eye(3)}), r"is a \.safetensors file", r"suffix \.safetensors"),
    (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file", r"suffix \.h5"),
    (json.dumps({"0": [1, 2]}).encode(), "is a JSON text", "torch.save"),
    (("\u00fc,label\n" * 99).encode(), "is a text file", "torch.save"),
    (bytes(1000), "is a file of zero bytes only", "download it again"),
    (b"\xff\xd8\xff\xe0" + bytes(99), "is an image", "name the labels"),
]


@pytest.mark.parametrize(("data", "what", "remedy"), KINDS, ids=[kind[1] for kind in KINDS])
def test_a_file_of_another_type_is_reported_with_its_type_and_a_remedy(data: bytes, what: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "labels.pt").write_bytes(data)
    with pytest.raises(BadLabels, match=rf"labels\.pt: {what}.*, not a torch\.save file.*{remedy}"):
        open_labels(tmp_path / "labels.pt")
    if "zip archive" not in what:
        sentence = foreign_file_message(tmp_path / "labels.pt", "a file")
        assert sentence is not None and sentence.startswith(f"{tmp_path / 'labels.pt'}: is ")


def test_random_bytes_have_no_type() -> None:
    rng = np.random.default_rng(0)
    assert [identify(b"\x80" + rng.bytes(HEAD_BYTES - 1)) for _ in range(50)] == [None] * 50
    assert identify("\u00fc".encode() * 255 + b"a\xc3") == identify(b"text")  # the end of the head cuts a character


@pytest.mark.parametrize(
    "name", ["a.npy", "a.npz", "a.safetensors", "a.pt", "tree/epoch_0/batch_0.tar", "tree/sampler_indices_epoch.json"]
)
def test_a_named_pipe_is_refused_before_it_is_opened(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(BadLabels, match="is a named pipe, not a file"):
        open_labels(path if path.parent == tmp_path else tmp_path / "tree", layout="lpld" if "json" in name else None)


def test_pipes_beside_a_dump_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    folder = tmp_path / "logits_top2_epoch0"
    folder.mkdir()
    (folder / "rank0-values.bin").write_bytes(bytes(12))
    os.mkfifo(folder / "rank0-keys.txt")
    with pytest.raises(BadLabels, match=r"rank0-keys\.txt: is a named pipe, not a file"):
        open_labels(tmp_path)
    (tmp_path / "img" / "a").mkdir(parents=True)
    with pytest.raises(BadLabels, match=r"rank0-keys\.txt: is a named pipe, not a file"):
        image_classes(tmp_path / "img", folder / "rank0-keys.txt", 2)


def test_a_device_and_a_folder_are_not_regular_files(tmp_path: Path) -> None:
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(BadContainer, match="zero: is a device, not a file"):
        require_regular(tmp_path / "zero", BadContainer)
    with pytest.raises(BadLabels, match="is a folder, not a file"):
        require_regular(tmp_path)
